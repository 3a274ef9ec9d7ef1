"""Other model families, in miniature: random weights, built from the real config classes, in float32.

Each is loaded into vLLM with the plugin and scored under three policies; the same folder is scored by Transformers.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Scores = list[list[float]]

SHARED: dict[str, Any] = {
    "vocab_size": 128, "hidden_size": 128, "intermediate_size": 128, "num_attention_heads": 4,
    "max_position_embeddings": 128, "initializer_range": 0.1, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    # Softmax, two of eight, always renormalised.
    "mixtral": ("MixtralConfig", {"num_hidden_layers": 2, "num_local_experts": 8, "num_experts_per_tok": 2,
                                  "num_key_value_heads": 2}),
    # Raw weights and a gated shared expert.
    "qwen2_moe": ("Qwen2MoeConfig", {"num_hidden_layers": 2, "num_experts": 16, "num_experts_per_tok": 4,
                                     "num_key_value_heads": 2, "moe_intermediate_size": 64, "norm_topk_prob": False,
                                     "shared_expert_intermediate_size": 64}),
    # Sigmoid, correction bias, groups, a scaling factor, a dense first layer: MoE layer 0 is model layer 1.
    "deepseek_v3": ("DeepseekV3Config", {"num_hidden_layers": 3, "n_routed_experts": 16, "num_experts_per_tok": 4,
                                         "num_key_value_heads": 4, "moe_intermediate_size": 64, "n_shared_experts": 1,
                                         "n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5,
                                         "norm_topk_prob": True, "first_k_dense_replace": 1, "q_lora_rank": None,
                                         "kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 64,
                                         "v_head_dim": 64, "num_nextn_predict_layers": 0, "topk_method": "noaux_tc",
                                         "scoring_func": "sigmoid"}),
}  # fmt: skip
POLICIES: dict[str, tuple[str, dict[str, Any]]] = {
    "none": ("none", {}),
    "fixed_k": ("fixed_k", {}),  # half of top_k
    "range_replace": ("pick", {"mode": "range_replace", "experts": {"0": [1, 2], "1": [5]}}),
    "none again": ("none", {}),
}


def build(family: str, folder: Path) -> tuple[Any, int]:
    """Save a random model of this family. Returns the Transformers model and its top_k."""
    import torch
    import transformers

    kind, options = CONFIGS[family]
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**(SHARED | options), dtype="float32")
    model = transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation="eager", experts_implementation="eager"
    ).eval()
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.copy_(torch.rand(buffer.shape) * 0.4 - 0.2)
    model.save_pretrained(folder)
    return model, options["num_experts_per_tok"]


def limit(model: Any, keep: int) -> None:
    """The first `keep` of each token's selection, by weight: wraps every router of a Transformers model."""

    def limited(route: Callable[..., Any], normalised: bool) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            logits, weights_TK, ids_TK = route(*args, **kwargs)
            first_TK, order_TK = weights_TK.sort(-1, descending=True)
            kept_TK = first_TK[:, :keep]
            if normalised:
                kept_TK = kept_TK / kept_TK.sum(-1, keepdim=True) * weights_TK.sum(-1, keepdim=True)
            return logits, kept_TK, ids_TK.gather(1, order_TK[:, :keep])

        return forward

    for module in model.modules():
        if type(module).__name__.lower().endswith("topkrouter"):
            module.forward = limited(module.forward, getattr(module, "norm_topk_prob", True))


def expected_scores(model: Any, sequences: Sequence[Sequence[int]]) -> Scores:
    import torch

    scores = []
    with torch.no_grad():
        for sequence in sequences:
            ids = torch.tensor([list(sequence)])
            log_probabilities = model(ids).logits[0, :-1].log_softmax(-1)
            scores.append(log_probabilities.gather(1, ids[0, 1:, None])[:, 0].tolist())
    return scores


def measure(folder: Path, top_k: int, sequences: Sequence[Sequence[int]]) -> dict[str, Any]:
    """What vLLM says of one miniature: hooked layers, self-test, and per policy scores and counters."""
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=str(folder),
        dtype="float32",
        skip_tokenizer_init=True,
        enforce_eager=True,
        max_model_len=128,
        max_num_batched_tokens=1024,
        # vLLM's own CPU rotary kernel errs for the three-dimensional query of MLA.
        compilation_config={"custom_ops": ["all", "-rotary_embedding"]},
        # The attention that vLLM prefers for MLA on CPUs with AMX takes bfloat16 only.
        attention_backend="CPU_MLA" if "deepseek" in folder.name else None,
        worker_extension_cls="banpick_exp.engine.worker.RoutingExtension",
        disable_log_stats=True,
    )
    sampling = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
    found: dict[str, Any] = {
        "described": llm.collective_rpc("banpick_describe")[0],
        "problems": llm.collective_rpc("banpick_self_test")[0],
        "scores": {},
        "counters": {},
    }
    for label, (name, params) in POLICIES.items():
        knobs = {"k": top_k // 2} if name == "fixed_k" else params
        llm.collective_rpc("banpick_set_policy", args=(name, json.dumps(knobs), ""))
        llm.collective_rpc("banpick_counters", args=(True,))
        inputs: Any = [{"prompt_token_ids": list(ids), "cache_salt": label} for ids in sequences]
        scores = []
        for sequence, output in zip(sequences, llm.generate(inputs, sampling, use_tqdm=False), strict=True):
            positions = output.prompt_logprobs or []
            scores.append([entry[t].logprob for t, entry in zip(sequence[1:], positions[1:], strict=True) if entry])
        found["scores"][label] = scores
        found["counters"][label] = llm.collective_rpc("banpick_counters", args=(True,))[0]
    llm.llm_engine.engine_core.shutdown()
    return found


def main(result: Path) -> None:
    os.environ.update(
        VLLM_PLUGINS="banpick", VLLM_NO_USAGE_STATS="1", VLLM_LOGGING_LEVEL="ERROR", VLLM_USE_V2_MODEL_RUNNER="0",
        VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_OMP_THREADS_BIND="nobind", VLLM_ENABLE_V1_MULTIPROCESSING="0",
        OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE",
    )  # fmt: skip
    import torch

    generator = torch.Generator().manual_seed(1)
    sequences = torch.randint(3, 128, (12, 24), generator=generator).tolist()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for family in CONFIGS:
            path = Path(folder) / family
            model, top_k = build(family, path)
            measured = measure(path, top_k, sequences)
            expected = {"none": expected_scores(model, sequences)}
            limit(model, top_k // 2)
            expected["fixed_k"] = expected_scores(model, sequences)
            found[family] = measured | {"expected": expected, "top_k": top_k, "tokens": 12 * 24}
    result.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
