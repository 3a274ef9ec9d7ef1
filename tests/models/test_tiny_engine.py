"""What the embedded model must show in the real engine, and its positive control end to end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from banpick_exp.analysis import paired_bootstrap
from banpick_exp.evaluation.controls import (
    boosted,
    correct,
    most_influential,
    open_engine,
    random_experts,
    rank,
    replace_with,
    tiny_shape,
    tiny_task,
    wrong_layer,
)
from banpick_exp.models.tiny import DOMAINS
from banpick_exp.models.tiny.control import build_control
from banpick_exp.models.tiny.kinds import PLANTED
from banpick_exp.tasks.load import load_problems
from banpick_exp.tasks.problem import Problem

if TYPE_CHECKING:
    from banpick_exp.engine.engine import Engine

pytestmark = pytest.mark.engine

BASELINE = {"math": (0.83, 0.90), "code": (0.77, 0.85), "knowledge": (0.39, 0.47)}
"""Accuracy bounds on the test split: the shipped weights, with room for the rounding of other processors."""

DROP = (-13.0, -6.5)
"""Points the math control loses; measured -9.6 (docs/tiny-model.md)."""
GAIN = {"range_replace": 9.5, "boost 0.5": 9.25}
"""Points that Pick brings back, measured."""

Test = dict[str, list[Problem]]


@pytest.fixture(scope="module")
def problems() -> Test:
    return load_problems(tiny_task(*DOMAINS), "test")


@pytest.fixture(scope="module")
def ladder(tiny_engine: Engine, problems: Test) -> dict[int, dict[str, Any]]:
    """Per k and domain, which of the test problems are answered exactly."""
    return {
        k: {domain: correct(tiny_engine, items, "fixed_k", {"k": k}) for domain, items in problems.items()}
        for k in (8, 4, 3, 2, 1)
    }


@pytest.mark.parametrize("domain", DOMAINS)
def test_baseline_accuracy(ladder: dict[int, dict[str, Any]], domain: str) -> None:
    low, high = BASELINE[domain]
    assert len(ladder[8][domain]) >= 800
    assert low <= ladder[8][domain].mean() <= high


def test_fewer_experts_are_worse_step_by_step(ladder: dict[int, dict[str, Any]]) -> None:
    together = {k: np.concatenate(list(by_domain.values())) for k, by_domain in ladder.items()}
    for fewer, more in ((4, 8), (3, 4), (2, 3), (1, 2)):
        delta, _, high = paired_bootstrap(together[fewer] - together[more])
        assert high < 0, f"fixed_k {fewer} against {more}: {100 * delta:.1f} points, not significant"
    for domain in DOMAINS:
        accuracies = [ladder[k][domain].mean() for k in (8, 4, 3, 2, 1)]
        assert accuracies == sorted(accuracies, reverse=True), domain


def test_a_rerun_gives_identical_answers(tiny_engine: Engine, problems: Test) -> None:
    prompts = [p.prompt for items in problems.values() for p in items[:200]]
    tiny_engine.set_policy("none", {})
    # Another salt, so that the second run cannot read the first one's keys and values from the prefix cache.
    first, second = (tiny_engine.generate(prompts, max_tokens=24, salt=salt) for salt in ("first", "second"))
    assert [a.token_ids for a in first] == [a.token_ids for a in second]
    assert len({a.text for a in first}) > 100


@dataclass(frozen=True, slots=True)
class ControlRun:
    """The math control as the engine saw it: calibration of its domain, and correct [N] per policy."""

    calibration: Any
    healthy: Any
    right: dict[str, Any]

    def gain(self, name: str, confidence: float = 0.95) -> tuple[float, float, float]:
        """Points against the control under stock routing: mean and its interval."""
        mean, low, high = paired_bootstrap(self.right[name] - self.right["none"], confidence=confidence)
        return 100 * mean, 100 * low, 100 * high


@pytest.fixture(scope="module")
def math_control(
    tiny_engine: Engine, problems: Test, ladder: dict[int, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ControlRun]:
    """One engine at a time in a process: the shared one makes room, and is loaded again afterwards."""
    from banpick_exp.evaluation.calibration.config import CalibrationConfig
    from banpick_exp.evaluation.calibration.measure import calibrate

    folder = tmp_path_factory.mktemp("control")
    build_control("math", folder)
    tiny_engine.close()
    engine = open_engine(folder)
    try:
        found = calibrate(engine, tiny_shape(), tiny_task("math"), CalibrationConfig())["math"]
        key = most_influential(found, "insertion_kl", 1)
        policies = {
            "range_replace": replace_with(key),
            "boost 0.5": boosted(key, 0.5),
            "removal_kl top 4": replace_with(most_influential(found, "removal_kl", 4)),
            "wrong layer": replace_with(wrong_layer(key)),
            **{f"random {seed}": replace_with(random_experts(1, seed)) for seed in range(3)},
        }
        right = {name: correct(engine, problems["math"], "pick", params) for name, params in policies.items()}
        right["none"] = correct(engine, problems["math"])
    finally:
        engine.close()
        tiny_engine.start()
        tiny_engine.verify()
    yield ControlRun(found, ladder[8]["math"], right)


def test_demotion_costs_accuracy(math_control: ControlRun) -> None:
    delta, _, high = paired_bootstrap(math_control.right["none"] - math_control.healthy)
    assert high < -0.04 and DROP[0] <= 100 * delta <= DROP[1]


def test_calibration_finds_the_planted_expert(math_control: ControlRun) -> None:
    ((layer, expert),) = PLANTED["math"].planted
    assert rank(math_control.calibration, "insertion_kl", layer, expert) == 1
    assert rank(math_control.calibration, "removal_kl", layer, expert) > 1
    influence = np.sort(math_control.calibration.insertion_kl.ravel())
    assert influence[-1] > 2 * influence[-2]


@pytest.mark.parametrize("policy", ["range_replace", "boost 0.5"])
def test_pick_recovers_the_loss(math_control: ControlRun, policy: str) -> None:
    mean, low, _ = math_control.gain(policy)
    assert low > 0
    assert abs(mean - GAIN[policy]) <= 2.0, "half the gain means that Pick acts on half of the tokens or of the window"


@pytest.mark.parametrize("policy", ["random 0", "random 1", "random 2", "wrong layer", "removal_kl top 4"])
def test_other_experts_recover_nothing(math_control: ControlRun, policy: str) -> None:
    mean, low, _ = math_control.gain(policy, confidence=0.99)
    assert low <= 0
    assert mean < 2.0
