"""The same policies on one CPU process, on two tensor-parallel ranks and in two pipeline stages, in float32.

One process is what both are held against. Written for `test_tensor_parallel.py` and `test_pipeline_parallel.py`.
"""

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
from banpick_exp.engine.verify.checks import check_engine
from banpick_exp.evaluation.calibration import passes
from banpick_exp.evaluation.calibration.config import CALIBRATION_WORKER
from banpick_exp.evaluation.demand.record import Replay, record
from banpick_exp.evaluation.demand.sums import Asked
from banpick_exp.models.config import ModelConfig

SWAPS: list[tuple[str, dict[str, Any]]] = [
    ("none", {}),
    ("fixed_k", {"k": 3}),
    ("pick", {"mode": "range_replace", "experts": {1: [3]}}),
    ("pick", {"mode": "range_replace", "experts": {3: [5]}}),
]
"""The last two change one layer, of the first stage and of the second."""
REPEATS = 5


def started(tensor: int, stages: int) -> Engine:
    settings = EngineConfig(
        cpus=1, max_model_len=128, kv_cache_blocks=256, tensor_parallel_size=tensor, pipeline_parallel_size=stages,
        distributed_executor_backend="mp" if tensor > 1 else None,
    )  # fmt: skip
    worker = CALIBRATION_WORKER if stages > 1 else "disagreeing.Disagreeing"
    engine = Engine(ModelConfig(name="tiny", dtype="float32"), CHECKPOINT, settings, NUM_LAYERS, worker=worker)
    engine.start()
    engine.verify()
    return engine


def turns(engine: Engine) -> list[dict[str, Any]]:
    """What each policy answers and counts."""
    found = []
    for name, params in SWAPS:
        seconds = sorted(engine.set_policy(name, params) for _ in range(REPEATS))
        engine.counters(reset=True)
        answers = engine.generate(short_prompts(60), max_tokens=MAX_TOKENS)
        found.append(
            {
                "swap_seconds": seconds[REPEATS // 2],
                "texts": [answer.text for answer in answers],
                "counters": dataclasses.asdict(engine.counters(reset=True)),
                "demanded": demanded(engine),
            }
        )
    return found


def demanded(engine: Engine) -> dict[str, Any]:
    replays = [Replay(tuple(ids), 2) for ids in engine.tokenize(short_prompts(6))]
    return record(engine, replays, Asked(windows=(1, 4), caches=(8,), batches=(2,))).plain()


def calibrated(engine: Engine) -> dict[str, Any]:
    engine.set_policy("none", {})
    seen = passes.observe(engine, engine.tokenize(short_prompts(60)), markers=[], k_min=3, hidden_states=64)
    outputs = [dataclasses.asdict(passes.expert_outputs(engine, layer, 3)) for layer in range(NUM_LAYERS)]
    return {"seen": dataclasses.asdict(seen), "outputs": outputs}


def refused(engine: Engine) -> str | None:
    """What the engine says when its second rank takes over another policy."""
    try:
        engine.set_policy(*BROKEN)
    except EngineError as error:
        return str(error)
    return None


def layer_missing(engine: Engine) -> str | None:
    """What it says where the checkpoint has a layer more."""
    engine.num_layers += 1
    try:
        engine.verify()
    except EngineError as error:
        return str(error)
    return None


def held_by_rank(engine: Engine) -> list[Any]:
    return [counters["tokens"] for counters in engine.call("banpick_counters", False)]


def main(result: Path) -> None:
    engine = started(1, 1)
    one: dict[str, Any] = {"turns": turns(engine), "by_rank": held_by_rank(engine), **calibrated(engine)}
    one |= {"refusal": refused(engine), "wrong_total": layer_missing(engine)}
    engine.close()

    engine = started(2, 1)
    tensor: dict[str, Any] = {"turns": turns(engine), **calibrated(engine), "refusal": refused(engine)}
    engine.close()

    engine = started(1, 2)
    pipeline: dict[str, Any] = {"turns": turns(engine), "by_rank": held_by_rank(engine), "calibration": None}
    try:
        passes.observe(engine, engine.tokenize(short_prompts(2)), markers=[], k_min=3, hidden_states=4)
    except EngineError as error:
        pipeline["calibration"] = str(error)
    pipeline["checks"] = [check.wire() for check in check_engine(engine)]
    pipeline["wrong_total"] = layer_missing(engine)
    engine.close()
    result.write_text(json.dumps({"one": one, "tensor": tensor, "pipeline": pipeline}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
