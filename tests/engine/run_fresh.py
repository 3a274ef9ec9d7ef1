"""Engines of their own: fresh under a policy, with long prompts and the prefix cache, and in float32."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from parity_policies import BOOST, CALIBRATED, CALIBRATION, POLICIES, PROBED, RANGE_FACTOR, as_policy
from prompts import CHECKPOINT, MAX_TOKENS, NUM_LAYERS, POLICY_A, POLICY_B, long_prompts, short_prompts

from banpick_exp.engine.config import EngineConfig
from banpick_exp.engine.engine import Engine
from banpick_exp.evaluation.calibration.config import CALIBRATION_WORKER
from banpick_exp.evaluation.calibration.passes import probe
from banpick_exp.evaluation.calibration.probe import Candidate, Judging, Scored
from banpick_exp.models.config import ModelConfig
from banpick_exp.policy import Calibration
from banpick_kernels import cpu_dispatch

Tokens = list[list[int]]


def start(dtype: Any, max_model_len: int) -> Engine:
    model = ModelConfig(name="tiny", dtype=dtype)
    settings = EngineConfig(cpus=1, max_model_len=max_model_len)
    engine = Engine(model, CHECKPOINT, settings, NUM_LAYERS, worker=CALIBRATION_WORKER)
    engine.start()
    return engine


def answers(engine: Engine, prompts: list[str]) -> Tokens:
    return [list(answer.token_ids) for answer in engine.generate(prompts, max_tokens=MAX_TOKENS)]


def judging(objective: Any, top_vocab: int) -> Judging:
    return Judging(
        objective=objective, last_only=False, top_vocab=top_vocab, range_factor=RANGE_FACTOR, boost=BOOST
    )  # fmt: skip


def swaps() -> dict[str, Any]:
    """A, B, A on one engine, then B first on another; `leak`: what one common cache salt would have done."""
    short, long = short_prompts(60), long_prompts(24)
    found: dict[str, Any] = {}
    engine = start("bfloat16", 256)
    found["counters_after_start"] = dataclasses.asdict(engine.counters(reset=False))
    engine.set_policy(*POLICY_A)
    found["a_short"], found["a_long"] = answers(engine, short), answers(engine, long)
    engine.set_policy(*POLICY_B)
    found["b_long_after_a"] = answers(engine, long)
    engine.set_policy(*POLICY_A)
    engine.counters(reset=True)
    found["a_long_again"] = answers(engine, long)
    found["a_tokens_again"] = engine.counters(reset=True).tokens
    engine.policy_fingerprints = ["one salt for all"]
    answers(engine, long)
    engine.set_policy(*POLICY_B)
    engine.policy_fingerprints = ["one salt for all"]
    found["leak"] = answers(engine, long)
    engine.set_policy("none", {})
    whole = [engine.tokenize([text])[0] for text in long]
    same_start = [whole[0], whole[0][:160] + whole[1][:5]]
    found["probe_again"] = [
        probe(engine, [Scored(x, len(x) - 8, None) for x in s], [Candidate("remove", 1, 3)], judging("kl", 1000)).values
        for s in (whole[:6], whole[:6], same_start, whole[:2])
    ]
    engine.close()
    engine = start("bfloat16", 256)
    engine.set_policy(*POLICY_B)
    found["b_long"] = answers(engine, long)
    engine.close()
    return found


def precise() -> dict[str, Any]:
    """float32: log-probabilities of 30 answered problems under each policy, and what the probe finds.

    Banned slots are skipped wherever there are any, which on experts this small would not pay; `pair_runs` counts it.
    """
    cpu_dispatch.COPY_COST, run_pairs, pair_runs = 0, cpu_dispatch._run_pairs, {}
    counted: list[int] = []

    def counting(*arguments: Any) -> None:
        counted.append(1)
        run_pairs(*arguments)

    cpu_dispatch._run_pairs = counting  # type: ignore[assignment]
    engine = start("float32", 128)
    engine.verify()
    engine.load_calibration("hand made", Calibration.model_validate(CALIBRATION))
    generations = engine.generate(short_prompts(30), max_tokens=MAX_TOKENS)
    sequences = [[*g.prompt_token_ids, *g.token_ids] for g in generations]
    lengths = [len(g.prompt_token_ids) for g in generations]
    scores, kept = {}, {}
    counted.clear()  # the self-test of `verify` skips too
    for label, (name, params) in POLICIES.items():
        engine.set_policy(name, params, "hand made" if name in CALIBRATED else "")
        engine.counters(reset=True)
        scores[label] = engine.score(sequences)
        kept[label] = engine.counters(reset=True).mean_kept
        pair_runs[label] = len(counted)
        counted.clear()
    as_policies = {}
    for change in PROBED:
        if (policy := as_policy(*change)) is not None:
            engine.set_policy(*policy)
            as_policies[" ".join(map(str, change))] = engine.score(sequences)
    engine.set_policy("none", {})
    candidates = [Candidate(*change) for change in PROBED]
    judged = [Scored(ids, start, None) for ids, start in zip(sequences, lengths, strict=True)]
    probed = {
        objective: dataclasses.asdict(probe(engine, judged, candidates, judging(objective, 20)))
        for objective in ("kl", "gain")
    }
    engine.close()
    found = {"sequences": sequences, "prompt_lengths": lengths, "scores": scores, "kept": kept}
    return found | {"probe": probed, "pair_runs": pair_runs, "as_policies": as_policies}


def main(result: Path) -> None:
    result.write_text(json.dumps({"swaps": swaps(), "precise": precise()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
