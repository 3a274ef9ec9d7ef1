"""Greedy answers and counters of an engine in float32, for policies that Transformers then answers under."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from prompts import CHECKPOINT, MAX_TOKENS, NUM_LAYERS, short_prompts

CALIBRATION = {"layer_sensitivity": [0.0, 1.0, 0.5, 0.25], "r_min": 0.4, "r_max": 0.9}
POLICIES: dict[str, tuple[str, dict[str, Any]]] = {
    "boost": ("pick", {"mode": "boost", "boost": 1.0, "experts": {0: [1], 1: [3, 5], 2: [7]}}),
    "pick": ("pick", {"mode": "range_add", "experts": {0: [1], 1: [3, 5], 2: [7]}}),
    "ban": ("ban", {"lambda": 0.8, "k_min": 3}),
    "whole k": ("fixed_k", {"k": 4}),
    "k with a fraction": ("fixed_k", {"k": 4.6}),
    "mask": ("mask", {"experts": {0: [0, 4, 9], 2: [1, 2, 3], 3: [30]}}),
}
CALIBRATED = ("ban",)
PROMPTS = 60


def main(result: Path) -> None:
    from banpick_exp.engine.config import EngineConfig
    from banpick_exp.engine.engine import Engine
    from banpick_exp.models.config import ModelConfig
    from banpick_exp.policy import Calibration

    settings = EngineConfig(cpus=1, max_model_len=128)
    engine = Engine(ModelConfig(name="tiny", dtype="float32"), CHECKPOINT, settings, NUM_LAYERS)
    engine.start()
    engine.load_calibration("hand made", Calibration.model_validate(CALIBRATION))
    found = {}
    for label, (name, params) in {"none": ("none", {}), **POLICIES}.items():
        engine.set_policy(name, params, "hand made" if label in CALIBRATED else "")
        engine.counters(reset=True)
        answers = engine.generate(short_prompts(PROMPTS), max_tokens=MAX_TOKENS)
        found[label] = {
            "prompts": [answer.prompt_token_ids for answer in answers],
            "answers": [answer.token_ids for answer in answers],
            "counters": dataclasses.asdict(engine.counters(reset=True)),
        }
    engine.close()
    result.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
