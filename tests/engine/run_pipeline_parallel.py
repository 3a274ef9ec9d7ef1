"""The same policies in one stage and in two (two CPU processes, half of the layers each), in float32."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from prompts import CHECKPOINT, MAX_TOKENS, NUM_LAYERS, short_prompts
from run_tensor_parallel import SWAPS as OF_THE_FIRST_STAGE

from banpick_exp.engine.config import EngineConfig
from banpick_exp.engine.engine import Engine, EngineError
from banpick_exp.engine.verify.checks import check_engine
from banpick_exp.evaluation.calibration import passes
from banpick_exp.models.config import ModelConfig

SWAPS = [*OF_THE_FIRST_STAGE, ("pick", {"mode": "range_replace", "experts": {3: [5]}})]
"""The last two change one layer, of the first stage and of the second."""


def measure(stages: int) -> dict[str, Any]:
    settings = EngineConfig(cpus=1, pipeline_parallel_size=stages, max_model_len=128, kv_cache_blocks=256)
    engine = Engine(
        ModelConfig(name="tiny", dtype="float32"), CHECKPOINT, settings, NUM_LAYERS,
        worker="banpick_exp.evaluation.calibration.worker.CalibrationExtension",
    )  # fmt: skip
    engine.start()
    engine.verify()
    found = []
    for name, params in SWAPS:
        engine.set_policy(name, params)
        engine.counters(reset=True)
        answers = engine.generate(short_prompts(60), max_tokens=MAX_TOKENS)
        counters = dataclasses.asdict(engine.counters(reset=True))
        found.append({"texts": [answer.text for answer in answers], "counters": counters})
    by_rank = [counters["tokens"] for counters in engine.call("banpick_counters", False)]
    refusal = None
    try:
        passes.observe(engine, engine.tokenize(short_prompts(2)), markers=[], k_min=3, hidden_states=4)
    except EngineError as error:
        refusal = str(error)
    checks = [check.wire() for check in check_engine(engine)] if stages > 1 else []
    wrong_total = None
    engine.num_layers += 1
    try:
        engine.verify()
    except EngineError as error:
        wrong_total = str(error)
    engine.close()
    return {"turns": found, "by_rank": by_rank, "refusal": refusal, "checks": checks, "wrong_total": wrong_total}


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps({"one": measure(1), "two": measure(2)}))
