"""The same policies at TP 1 and TP 2 (two CPU processes), in float32; writes what each found."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from disagreeing import BROKEN
from prompts import CHECKPOINT, MAX_TOKENS, NUM_LAYERS, short_prompts

from banpick_exp.engine.config import EngineConfig
from banpick_exp.engine.engine import Engine, EngineError
from banpick_exp.evaluation.calibration import passes
from banpick_exp.models.config import ModelConfig

SWAPS: list[tuple[str, dict[str, Any]]] = [
    ("none", {}),
    ("fixed_k", {"k": 3}),
    ("pick", {"mode": "range_replace", "experts": {1: [3]}}),
]
REPEATS = 5


def measure(tensor_parallel_size: int) -> dict[str, Any]:
    backend: Any = "mp" if tensor_parallel_size > 1 else None
    settings = EngineConfig(
        cpus=1, tensor_parallel_size=tensor_parallel_size, distributed_executor_backend=backend, max_model_len=128
    )
    model = ModelConfig(name="tiny", dtype="float32")
    engine = Engine(model, CHECKPOINT, settings, NUM_LAYERS, worker="disagreeing.Disagreeing")
    engine.start()
    engine.verify()
    found = []
    for name, params in SWAPS:
        seconds = sorted(engine.set_policy(name, params) for _ in range(REPEATS))
        engine.counters(reset=True)
        answers = engine.generate(short_prompts(60), max_tokens=MAX_TOKENS)
        counters = engine.counters(reset=True)
        found.append(
            {
                "swap_seconds": seconds[REPEATS // 2],
                "texts": [answer.text for answer in answers],
                "counters": [counters.tokens, counters.kept, counters.usage],
            }
        )
    engine.set_policy("none", {})
    seen = passes.observe(engine, engine.tokenize(short_prompts(60)), markers=[], k_min=3, hidden_states=64)
    outputs = [dataclasses.asdict(passes.expert_outputs(engine, layer, 3)) for layer in range(NUM_LAYERS)]
    refusal = None
    try:
        engine.set_policy(*BROKEN)
    except EngineError as error:
        refusal = str(error)
    engine.close()
    return {"turns": found, "refusal": refusal, "seen": dataclasses.asdict(seen), "outputs": outputs}


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps({"one": measure(1), "two": measure(2)}))
