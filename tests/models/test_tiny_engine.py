"""What the embedded model must show in the real engine, and its positive control end to end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from banpick_exp.analysis import paired_bootstrap
from banpick_exp.evaluation.calibration.scores import Name
from banpick_exp.evaluation.controls import (
    MODES,
    chosen_by,
    correct,
    open_engine,
    place,
    random_experts,
    tiny_shape,
    tiny_task,
    wrong_layer,
)
from banpick_exp.models.config import ControlKind
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

DROP = {"math": (-13.0, -6.5), "weak_math": (-16.0, -5.0)}
"""Points a control loses (docs/tiny-model.md)."""
GAIN = {"range_replace": 9.5, "boost 0.5": 9.25}
"""Points that Pick brings back on the math control, measured."""

Test = dict[str, list[Problem]]


@pytest.fixture(scope="module")
def problems() -> Test:
    return load_problems(tiny_task(*DOMAINS), "test")


@pytest.fixture(scope="module")
def healthy(tiny_engine: Engine, problems: Test) -> dict[str, Any]:
    """Per domain, which of the test problems are answered exactly with all of the experts."""
    return {domain: correct(tiny_engine, items, "fixed_k", {"k": 8}) for domain, items in problems.items()}


@pytest.fixture(scope="module")
def ladder(tiny_engine: Engine, problems: Test, healthy: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """The same per k."""
    fewer = {
        k: {domain: correct(tiny_engine, items, "fixed_k", {"k": k}) for domain, items in problems.items()}
        for k in (4, 3, 2, 1)
    }
    return {8: healthy, **fewer}


@pytest.mark.parametrize("domain", DOMAINS)
def test_baseline_accuracy(healthy: dict[str, Any], domain: str) -> None:
    low, high = BASELINE[domain]
    assert len(healthy[domain]) >= 800
    assert low <= healthy[domain].mean() <= high


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
    """A control as the engine saw it: calibration of its domain, and correct [N] per policy."""

    calibration: Any
    healthy: Any
    right: dict[str, Any]

    def gain(self, name: str, confidence: float = 0.95) -> tuple[float, float, float]:
        """Points against the control under stock routing: mean and its interval."""
        mean, low, high = paired_bootstrap(self.right[name] - self.right["none"], confidence=confidence)
        return 100 * mean, 100 * low, 100 * high


ASKED: dict[ControlKind, dict[Name, Sequence[str]]] = {
    "math": {
        "insertion_kl": ("range_replace", "boost 0.5"),
        "gain_add": ("range_replace", "boost 0.5"),
        "removal_kl": ("range_replace",),
    },
    "weak_math": {"insertion_kl": (), "gain_add": tuple(MODES)},
    "harmful_math": {"insertion_kl": tuple(MODES), "gain_add": tuple(MODES)},
}
"""Per control the scores that the tests below read, and the modes whose effect they read."""


Controls = Callable[[ControlKind], ControlRun]


@pytest.fixture(scope="module")
def controls(
    tiny_engine: Engine, problems: Test, healthy: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Controls]:
    """Measured when it is first asked for, after all else. One engine at a time in a process: the shared one makes
    room, and is loaded again at the end."""
    tiny_engine.close()
    runs: dict[ControlKind, ControlRun] = {}

    def measured(kind: ControlKind) -> ControlRun:
        if kind not in runs:
            folder = tmp_path_factory.mktemp(kind)
            build_control(kind, folder)
            runs[kind] = measure(kind, folder, problems["math"], healthy["math"])
        return runs[kind]

    yield measured
    tiny_engine.start()
    tiny_engine.verify()


def measure(kind: ControlKind, folder: Path, problems: list[Problem], healthy: Any) -> ControlRun:
    from banpick_exp.evaluation.calibration.config import CalibrationConfig
    from banpick_exp.evaluation.calibration.measure import calibrate, score

    settings, asked, count = CalibrationConfig(), ASKED[kind], len(PLANTED[kind].planted)
    engine = open_engine(folder)
    try:
        domains = calibrate(engine, tiny_shape(), tiny_task("math"), settings)
        found = domains["math"]
        for name in asked:
            found.scores[name] = score(engine, tiny_shape(), domains, settings, name)[0]["math"]
        policies: dict[str, dict[str, Any]] = {
            f"{mode} by {name}": {**MODES[mode], "experts": chosen}
            for name, modes in asked.items()
            if (chosen := chosen_by(found, name, count))
            for mode in modes
        }
        if kind == "math":
            insertion = chosen_by(found, "insertion_kl", count)
            policies["wrong layer"] = {"mode": "range_replace", "experts": wrong_layer(insertion)}
            for seed in range(3):
                policies[f"random {seed}"] = {"mode": "range_replace", "experts": random_experts(1, seed)}
        known = {"": correct(engine, problems)}  # two scores that find the same experts are asked once
        for params in policies.values():
            if str(params) not in known:
                known[str(params)] = correct(engine, problems, "pick", params)
        right = {name: known[str(params)] for name, params in policies.items()} | {"none": known[""]}
    finally:
        engine.close()
    return ControlRun(found, healthy, right)


@pytest.mark.parametrize("kind", ["math", pytest.param("weak_math", marks=pytest.mark.long)])
def test_demotion_costs_accuracy(controls: Controls, kind: ControlKind) -> None:
    run = controls(kind)
    delta, _, high = paired_bootstrap(run.right["none"] - run.healthy)
    assert high < -0.04 and DROP[kind][0] <= 100 * delta <= DROP[kind][1]


def test_calibration_finds_the_planted_expert(controls: Controls) -> None:
    ((layer, expert),) = PLANTED["math"].planted
    scores = controls("math").calibration.scores
    assert place(scores["insertion_kl"], layer, expert) == 1
    assert place(scores["gain_add"], layer, expert) == 1
    assert place(scores["removal_kl"], layer, expert) > 1
    values = np.sort(scores["insertion_kl"].value.ravel())
    assert values[-1] > 2 * values[-2]


@pytest.mark.long
def test_a_weak_expert_is_found_although_it_is_selected(controls: Controls) -> None:
    scores = controls("weak_math").calibration.scores
    first, _ = PLANTED["weak_math"].planted
    assert place(scores["gain_add"], *first) == 1 and place(scores["insertion_kl"], *first) == 1
    assert scores["gain_add"].lower[first] > 0, "it helps for sure"


@pytest.mark.parametrize("label", ["by insertion_kl", "by gain_add"])
@pytest.mark.parametrize("policy", ["range_replace", "boost 0.5"])
def test_pick_recovers_the_loss(controls: Controls, policy: str, label: str) -> None:
    mean, low, _ = controls("math").gain(f"{policy} {label}")
    assert low > 0
    assert abs(mean - GAIN[policy]) <= 2.0, "half the gain means that Pick acts on half of the tokens or of the window"


@pytest.mark.long
@pytest.mark.parametrize("policy", MODES)
def test_pick_wins_back_what_weak_experts_lost(controls: Controls, policy: str) -> None:
    mean, low, _ = controls("weak_math").gain(f"{policy} by gain_add")
    assert low > 0 and mean > 3


@pytest.mark.long
def test_a_score_without_a_sign_takes_what_harms_and_a_gain_does_not(controls: Controls) -> None:
    run = controls("harmful_math")
    (harmful,) = PLANTED["harmful_math"].planted
    assert place(run.calibration.scores["insertion_kl"], *harmful) == 1
    for mode in MODES:
        mean, _, high = run.gain(f"{mode} by insertion_kl")
        assert high < 0 and mean < -5, mode
        assert f"{mode} by gain_add" not in run.right, "there is nothing to reinforce"
    assert place(run.calibration.scores["gain_add"], *harmful) > 16
    assert run.calibration.scores["gain_add"].lower[harmful] < 0


@pytest.mark.parametrize("policy", ["random 0", "random 1", "random 2", "wrong layer", "range_replace by removal_kl"])
def test_other_experts_recover_nothing(controls: Controls, policy: str) -> None:
    mean, low, _ = controls("math").gain(policy, confidence=0.99)
    assert low <= 0
    assert mean < 2.0
