"""A compiled engine beside an eager one, in float32: swaps, exact counters, and the width it cannot exceed.

The compiled engines skip banned slots wherever there are any (`COPY_COST = 0`), the eager one never: it has small ones.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from parity_policies import CALIBRATED, CALIBRATION
from prompts import CHECKPOINT, MAX_TOKENS, NUM_LAYERS, POLICY_A, short_prompts

from banpick_exp.engine.config import EngineConfig
from banpick_exp.engine.engine import Engine
from banpick_exp.models.config import ModelConfig
from banpick_exp.policy import Calibration
from banpick_kernels import cpu_dispatch

SWAPS: list[tuple[str, dict[str, Any]]] = [
    ("none", {}),
    ("pick", {"mode": "range_replace", "experts": {1: [3, 5], 2: [7]}}),
    ("fixed_k", {"k": 3}),
    ("ban", {"lambda": 0.9, "k_min": 3}),
    ("ban_pick", {"lambda": 0.7, "k_min": 2, "mode": "range_replace", "key_experts": 3}),
    ("pick", {"mode": "boost", "boost": 1.5, "experts": {1: [3]}}),
    ("steer", {"on": {"1": [3]}, "off": {"2": [7]}}),
    ("diep", {"beta": 0.9, "alpha": 0.7, "k_min": 2}),
    ("none", {}),
]


def start(*, compiled: bool, extra_slots: int = 0) -> Engine:
    settings = EngineConfig(cpus=1, compile=compiled, extra_slots=extra_slots, max_num_batched_tokens=2048)
    engine = Engine(ModelConfig(name="tiny", dtype="float32"), CHECKPOINT, settings, NUM_LAYERS)
    engine.start()
    engine.verify()
    engine.load_calibration("hand made", Calibration.model_validate(CALIBRATION))
    return engine


def under(engine: Engine, policy: tuple[str, dict[str, Any]], turn: int, sequences: list[list[int]]) -> dict[str, Any]:
    engine.set_policy(*policy, "hand made" if policy[0] in CALIBRATED else "")
    engine.counters(reset=True)
    scores = engine.score(sequences, salt=f"turn {turn}")
    counters = engine.counters(reset=True)
    return {"scores": scores, **dataclasses.asdict(counters)}


def mode(engine: Engine) -> int:
    """vLLM's compilation mode; 0 is none."""
    return int(engine.llm.llm_engine.vllm_config.compilation_config.mode)


def count_lookups() -> list[int]:
    """Handles that the opaque routing op looks up from now on: only compiled code goes through it."""
    from banpick_exp.engine.plugin import layer

    lookups: list[int] = []

    class Counted(dict[int, Any]):
        def __getitem__(self, handle: int) -> Any:
            lookups.append(handle)
            return super().__getitem__(handle)

    layer._LAYERS = Counted(layer._LAYERS)  # type: ignore[assignment]
    return lookups


def main(result: Path) -> None:
    engine = start(compiled=False)
    eager_mode = mode(engine)
    engine.set_policy("none", {})
    generations = engine.generate(short_prompts(30), max_tokens=MAX_TOKENS)
    sequences = [[*g.prompt_token_ids, *g.token_ids] for g in generations]
    eager = [under(engine, policy, turn, sequences) for turn, policy in enumerate(SWAPS)]
    wide_eager = under(engine, POLICY_A, 9, sequences)
    engine.close()

    cpu_dispatch.COPY_COST = 0
    engine = start(compiled=True)
    compiled_mode, lookups = mode(engine), count_lookups()
    compiled = [under(engine, policy, turn, sequences) for turn, policy in enumerate(SWAPS)]
    custom_op_calls = len(lookups)
    mixed = [under(engine, ("fixed_k", {"k": 3.6}), turn, sequences) for turn in (11, 12)]
    engine.set_policy("fixed_k", {"k": 3})
    fingerprint, refusal = engine.policy_fingerprint, ""
    try:
        engine.set_policy(*POLICY_A)
    except RuntimeError as error:
        refusal = str(error)
    after: dict[str, Any] = {"fingerprint": [fingerprint, engine.policy_fingerprint]}
    engine.counters(reset=True)
    after["scores"] = engine.score(sequences, salt="after the refusal")
    after["kept"] = engine.counters(reset=True).kept
    engine.close()

    engine = start(compiled=True, extra_slots=2)
    wide = under(engine, POLICY_A, 9, sequences)
    wide_none = under(engine, ("none", {}), 10, sequences)
    engine.close()
    result.write_text(
        json.dumps(
            {
                "eager_mode": eager_mode,
                "mode": compiled_mode,
                "custom_op_calls": custom_op_calls,
                "tokens": sum(map(len, sequences)),
                "eager": eager,
                "compiled": compiled,
                "mixed": mixed,
                "refusal": refusal,
                "after": after,
                "wide_eager": wide_eager,
                "wide": wide,
                "wide_none": wide_none,
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
