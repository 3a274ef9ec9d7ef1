"""Model families in miniature: a few MB of random weights, made from the real config classes of Transformers.

docs/families.md has the table: what is proved by these, what the CPU build of vLLM cannot load, and what is not tried.
`limit` is the rule of `fixed_k` once more, written for a Transformers model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Scores = list[list[float]]

SHARED: dict[str, Any] = {
    "vocab_size": 128, "hidden_size": 128, "intermediate_size": 128, "num_attention_heads": 4,
    "num_key_value_heads": 2, "num_hidden_layers": 2, "num_experts_per_tok": 4, "max_position_embeddings": 128,
    "initializer_range": 0.1, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
MLA: dict[str, Any] = {
    "num_key_value_heads": 4, "q_lora_rank": None, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 64,
    "v_head_dim": 64,
}  # fmt: skip
"""Multi-head latent attention in the sizes that vLLM's CPU kernel takes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Miniature:
    """One family, small."""

    config: str
    """Its config class in Transformers."""
    options: Mapping[str, Any]
    """Over `SHARED`."""
    layers: tuple[int, ...] = (0, 1)
    """Numbers of the layers that have experts."""
    block: str = "mlp"
    """Where the experts stand in a layer, as vLLM names it."""
    normalised: bool = True
    """Whether the weights of a token's experts are divided by their sum."""
    top_k: int = 4
    written: Mapping[str, Any] = field(default_factory=dict)
    """What published checkpoints say in config.json beyond what the class in Transformers writes."""
    without: tuple[str, ...] = ()
    """Keys of `SHARED` that the class does not take."""

    @property
    def layer_names(self) -> list[str]:
        return [f"model.layers.{number}.{self.block}.experts" for number in self.layers]


MINIATURES: dict[str, Miniature] = {
    # Softmax, two of eight, always renormalised.
    "mixtral": Miniature(
        config="MixtralConfig", options={"num_local_experts": 8, "num_experts_per_tok": 2}, top_k=2,
        block="block_sparse_moe",
    ),
    # Softmax, renormalised as the config says.
    "qwen3_moe": Miniature(
        config="Qwen3MoeConfig", options={"num_experts": 16, "moe_intermediate_size": 64, "head_dim": 32,
                                          "norm_topk_prob": True},
    ),
    # Raw weights and a gated shared expert.
    "qwen2_moe": Miniature(
        config="Qwen2MoeConfig", normalised=False,
        options={"num_experts": 16, "moe_intermediate_size": 64, "norm_topk_prob": False,
                 "shared_expert_intermediate_size": 64},
    ),
    # Raw weights.
    "olmoe": Miniature(config="OlmoeConfig", options={"num_experts": 16, "norm_topk_prob": False}, normalised=False),
    "flex_olmo": Miniature(
        config="FlexOlmoConfig", options={"num_experts": 16, "norm_topk_prob": False}, normalised=False
    ),
    # Softmax over the selected logits, a bias in the router and in the experts, sinks, windows.
    "gpt_oss": Miniature(
        config="GptOssConfig",
        options={"num_local_experts": 16, "head_dim": 32, "sliding_window": 128,
                 "rope_parameters": {"rope_type": "yarn", "rope_theta": 150000.0, "factor": 32.0, "beta_fast": 32.0,
                                     "beta_slow": 1.0, "truncate": False, "original_max_position_embeddings": 4}},
    ),
    # Sigmoid, correction bias, a dense first layer: MoE layer 0 is model layer 1.
    "glm4_moe": Miniature(
        config="Glm4MoeConfig", layers=(1, 2),
        options={"num_hidden_layers": 3, "n_routed_experts": 16, "moe_intermediate_size": 64, "n_shared_experts": 1,
                 "n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.5, "norm_topk_prob": True, "head_dim": 32,
                 "first_k_dense_replace": 1},
    ),
    # Softmax, raw weights, groups, a scaling factor, shared experts.
    "deepseek_v2": Miniature(
        config="DeepseekV2Config", layers=(1, 2), normalised=False,
        options={**MLA, "num_hidden_layers": 3, "n_routed_experts": 16, "moe_intermediate_size": 64,
                 "n_shared_experts": 2, "n_group": 4, "topk_group": 2, "topk_method": "group_limited_greedy",
                 "routed_scaling_factor": 2.0, "norm_topk_prob": False, "first_k_dense_replace": 1},
    ),
    # Sigmoid, correction bias, groups, a scaling factor.
    "deepseek_v3": Miniature(
        config="DeepseekV3Config", layers=(1, 2),
        options={**MLA, "num_hidden_layers": 3, "n_routed_experts": 16, "moe_intermediate_size": 64,
                 "n_shared_experts": 1, "n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5,
                 "norm_topk_prob": True, "first_k_dense_replace": 1, "num_nextn_predict_layers": 0,
                 "topk_method": "noaux_tc", "scoring_func": "sigmoid"},
    ),
    "dots1": Miniature(
        config="Dots1Config", layers=(1, 2),
        options={"num_hidden_layers": 3, "n_routed_experts": 16, "moe_intermediate_size": 64, "n_shared_experts": 1,
                 "n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.5, "norm_topk_prob": True,
                 "first_k_dense_replace": 1, "sliding_window": None},
        written={"scoring_func": "noaux_tc", "topk_method": "noaux_tc", "moe_layer_freq": 1},
    ),
    # Softmax over the selected logits; multipliers.
    "granite_moe": Miniature(
        config="GraniteMoeConfig", block="block_sparse_moe",
        options={"num_local_experts": 16, "embedding_multiplier": 2.0, "logits_scaling": 2.0,
                 "residual_multiplier": 0.5, "attention_multiplier": 0.125},
    ),
    "exaone_moe": Miniature(
        config="ExaoneMoeConfig", layers=(1, 2),
        options={"num_hidden_layers": 3, "num_experts": 16, "moe_intermediate_size": 64, "num_shared_experts": 1,
                 "sliding_window": 128, "first_k_dense_replace": 1},
    ),
    "lfm2_moe": Miniature(
        config="Lfm2MoeConfig", layers=(1, 2), block="feed_forward",
        options={"num_hidden_layers": 3, "num_dense_layers": 1, "num_experts": 16, "moe_intermediate_size": 64,
                 "layer_types": ["conv", "full_attention", "full_attention"]},
    ),
}  # fmt: skip
REFUSED: dict[str, Miniature] = {
    # Softmax, correction bias, shared experts, a dense first layer.
    "ernie_4_5": Miniature(
        config="Ernie4_5_MoeConfig", layers=(1, 2),
        options={"num_hidden_layers": 3, "moe_num_experts": 16, "moe_k": 4, "moe_intermediate_size": 64,
                 "moe_num_shared_experts": 1},
        without=("num_experts_per_tok",),
    ),
}  # fmt: skip
"""What the CPU build loads and computes wrongly: its router there leaves the correction bias out of a softmax."""


def build(small: Miniature, folder: Path) -> Any:
    """Save a random model of this family into `folder`. Returns the Transformers model, in float32."""
    import torch
    import transformers

    torch.manual_seed(0)
    options = {key: value for key, value in SHARED.items() if key not in small.without} | dict(small.options)
    config = getattr(transformers, small.config)(**options, dtype="float32")
    model = transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation="eager", experts_implementation="eager"
    ).eval()
    with torch.no_grad():
        for key, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if key.endswith(("correction_bias", "expert_bias", "gate.bias", "router.bias")):
                tensor.copy_(torch.rand(tensor.shape) * 0.4 - 0.2)
    model.save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | dict(small.written)), encoding="utf-8")
    return model


def limit(model: Any, keep: int, *, normalised: bool) -> int:
    """The first `keep` of each token's selection, by weight: wraps what computes the experts of a Transformers model.

    `normalised`: their weights then sum to what the whole selection's did. Returns the number of layers it wrapped.
    """

    def limited(compute: Callable[..., Any]) -> Callable[..., Any]:
        def forward(hidden: Any, ids_TK: Any, weights_TK: Any) -> Any:
            first_TK, order_TK = weights_TK.sort(-1, descending=True)
            kept_TK = first_TK[:, :keep]
            if normalised:
                kept_TK = kept_TK / kept_TK.sum(-1, keepdim=True) * weights_TK.sum(-1, keepdim=True)
            return compute(hidden, ids_TK.gather(1, order_TK[:, :keep]), kept_TK)

        return forward

    found = [module for module in model.modules() if type(module).__name__.endswith("Experts")]
    for module in found:
        module.forward = limited(module.forward)
    return len(found)


def expected_scores(model: Any, sequences: Sequence[Sequence[int]]) -> Scores:
    """Log-probability (nats) of each token but the first, by Transformers."""
    import torch

    scores = []
    with torch.no_grad():
        for sequence in sequences:
            ids = torch.tensor([list(sequence)])
            log_probabilities = model(ids).logits[0, :-1].float().log_softmax(-1)
            scores.append(log_probabilities.gather(1, ids[0, 1:, None])[:, 0].tolist())
    return scores
