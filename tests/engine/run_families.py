"""Half of the miniature families: each loaded into vLLM with the plugin and scored under four policies, in float32.

The same folder is scored by Transformers. Written for `test_hooked_families.py`; `run_more_families.py` has the rest.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from miniatures import MINIATURES, REFUSED, Miniature, build, expected_scores, limit

ALL: dict[str, Miniature] = {**MINIATURES, **REFUSED}
FIRST = tuple(ALL)[::2]
MORE = tuple(ALL)[1::2]
POLICIES: dict[str, tuple[str, dict[str, Any]]] = {
    "none": ("none", {}),
    "fixed_k": ("fixed_k", {}),  # half of top_k
    "range_replace": ("pick", {"mode": "range_replace", "experts": {"0": [1, 2], "1": [5]}}),
    "none again": ("none", {}),
}


def measure(small: Miniature, folder: Path, sequences: Sequence[Sequence[int]]) -> dict[str, Any]:
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
        attention_backend="CPU_MLA" if "kv_lora_rank" in small.options else None,
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
    for label, (policy, params) in POLICIES.items():
        knobs = {"k": small.top_k // 2} if policy == "fixed_k" else params
        llm.collective_rpc("banpick_set_policy", args=(policy, json.dumps(knobs), ""))
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


def main(result: Path, names: Iterable[str]) -> None:
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
        for name in names:
            small, path = ALL[name], Path(folder) / name
            model = build(small, path)
            # First: vLLM changes the classes of those that it runs by Transformers' own code.
            expected = {"none": expected_scores(model, sequences)}
            wrapped = limit(model, small.top_k // 2, normalised=small.normalised)
            expected["fixed_k"] = expected_scores(model, sequences)
            measured = measure(small, path, sequences)
            found[name] = measured | {"expected": expected, "wrapped": wrapped, "tokens": 12 * 24}
    result.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), FIRST)
