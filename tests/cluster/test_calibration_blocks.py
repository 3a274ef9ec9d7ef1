"""The block as the unit of a calibration, on a real engine: divided it equals the whole, and a death costs a block.

Deaths are said by the slots, as in test_blocks_run.py; the engine behind them is one that runs already.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loaded_backend import LoadedBackend, LoadedSlot
from rich.console import Console

from banpick_exp.cluster import faults, fleet
from banpick_exp.cluster.actor import EngineActor
from banpick_exp.cluster.backends.base import Call, CallFailed, EngineLost
from banpick_exp.cluster.backends.inline import InlineCall
from banpick_exp.cluster.events import Event, read
from banpick_exp.cluster.plan import RunPlan, plan_run
from banpick_exp.cluster.run import Run
from banpick_exp.engine.config import EngineConfig
from banpick_exp.engine.engine import Engine
from banpick_exp.evaluation.calibrated import artifact_of
from banpick_exp.evaluation.calibration import arrays
from banpick_exp.evaluation.calibration.artifact import parts_in
from banpick_exp.evaluation.calibration.scores import Part
from banpick_exp.sweep.point import Point
from banpick_exp.sweep.search.cuts import block_layers

PICK = ["policy=pick", "policy.mode=boost", "policy.boost=1", "task.domains=[math,code]", "task.max_problems=2"]
SMALL = ["task.speed_seconds=0", "calibration.samples=6", "calibration.gain_samples=8", "calibration.wanted=4"]
SWEEP = [*PICK, *SMALL, "tracking=none"]
EVERY: tuple[Part, ...] = ("gain_boost", "removal_kl_per_use", "limit_gain")
BLOCK_CALLS = ("calibrate", "calibrate_block")


def planned(folder: Path, *typed: str) -> RunPlan:
    plan = plan_run([*SWEEP, *typed, "cluster=inline", f"output_dir={folder}"])
    plan.folder.write_manifest(plan.sweep.manifest())
    return plan


def point_of(plan: RunPlan) -> Point:
    return plan.sweep.points[-1]


def measured(plan: RunPlan) -> dict[str, np.ndarray]:
    """Every array of the artifact, scores included."""
    point = point_of(plan)
    domains = arrays.load(*artifact_of(point, plan.folder.calibrations))
    assert domains is not None
    found = {}
    for domain, calibration in domains.items():
        for name, array in calibration.arrays().items():
            found[f"{domain} {name}"] = array
        for part, scores in calibration.scores.items():
            for each in fields(scores):
                found[f"{domain} {part} {each.name}"] = getattr(scores, each.name)
    return found


def equal(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> list[str]:
    """The names of arrays that are not the same to the bit."""
    assert one.keys() == other.keys()
    return [
        name for name in one if one[name].dtype != other[name].dtype or one[name].tobytes() != other[name].tobytes()
    ]


# ---------------------------------------------------------------- divided is undivided


@pytest.mark.engine
@pytest.mark.parametrize(
    ("typed", "width"),
    [
        (["calibration.method=race"], 1),
        (["calibration.method=full", "calibration.positions=last"], 3),
        (['calibration.text="{corpus}"'], 1),
    ],
    ids=["race", "full", "corpus"],
)
def test_every_array_is_that_of_one_call(tiny_engine: Engine, tmp_path: Path, typed: list[str], width: int) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(f"compute {n}+{n}={2 * n};" for n in range(10, 18)))
    typed = [word.replace("{corpus}", str(corpus)) for word in typed]
    parts = [part for part in EVERY if "text" not in typed[0] or part == "removal_kl_per_use"]
    score = [] if "text" not in typed[0] else ["calibration.score=removal_kl_per_use"]
    whole = planned(tmp_path / "whole", *typed, *score)
    divided = planned(tmp_path / "divided", *typed, *score, f"calibration.block_layers={width}")
    assert point_of(whole).calibration_fingerprint == point_of(divided).calibration_fingerprint
    for plan in (whole, divided):
        EngineActor(point_of(plan), str(plan.folder.path), tiny_engine).calibrate(
            point_of(plan), lambda done, total, of: None, parts
        )
    assert block_layers(point_of(whole), None) is None, "the embedded model is calibrated in one call"
    found = measured(whole)
    assert equal(found, measured(divided)) == []
    assert len(found) > 40 and set(parts_in(artifact_of(point_of(divided), divided.folder.calibrations)[0])) == {*parts}
    assert not list(divided.folder.calibrations.glob("*.blocks")), "added up: not needed any more"


# ---------------------------------------------------------------- in a run


class LostCall:
    def run(self) -> None:
        """The work is not done."""

    def result(self) -> Any:
        raise EngineLost("ActorDiedError: killed")


class BrokenCall(LostCall):
    def result(self) -> Any:
        raise CallFailed("ValueError", "no such layer", "the trace")


class CalibratingSlot(LoadedSlot):
    """Counts the calls of calibrations, and answers those that `wrong` says in its own way."""

    def __init__(self, *arguments: Any, wrong: Callable[[int], Any], calls: list[str]) -> None:
        super().__init__(*arguments)
        self._wrong, self._calls = wrong, calls

    def call(self, method: str, *arguments: Any) -> Any:
        if method not in BLOCK_CALLS:
            return super().call(method, *arguments)
        answer = self._wrong(len(self._calls))
        told = arguments[1].words() if method == "calibrate_block" else "add up"
        self._calls.append(told if answer is None else f"lost {told}")
        if answer is KeyboardInterrupt:
            raise KeyboardInterrupt
        return super().call(method, *arguments) if answer is None else answer


class CalibratingBackend(LoadedBackend):
    """Slots take turns, whichever was asked first."""

    def __init__(self, engine: Engine, wrong: Callable[[int], Any] = lambda call: None) -> None:
        super().__init__(engine)
        self._wrong, self.calls = wrong, list[str]()

    def reserve(self, names: Sequence[str], engine: EngineConfig) -> list[LoadedSlot]:
        return [
            CalibratingSlot(name, self._engine, self.done, self._limit, wrong=self._wrong, calls=self.calls)
            for name in names
        ]

    def wait(self, calls: Sequence[Call], seconds: float) -> list[Call]:
        if not calls:
            return []
        first = calls[0]
        assert isinstance(first, InlineCall | LostCall)
        first.run()
        return [first]

    @property
    def measured(self) -> list[str]:
        return [call for call in self.calls if "layers" in call and not call.startswith("lost")]


@pytest.fixture(autouse=True)
def no_rest(monkeypatch: pytest.MonkeyPatch, no_pages: None) -> None:
    monkeypatch.setattr(faults, "FIRST_REST", 0.0)
    monkeypatch.setattr(fleet, "POLL_SECONDS", 0.01)


def run(plan: RunPlan, backend: LoadedBackend) -> tuple[int, str]:
    output = io.StringIO()
    code = Run(plan, Console(file=output, width=200), backend).run()
    return code, output.getvalue()


def calibrations_in(plan: RunPlan) -> list[Event]:
    return [event for event in read(plan.folder).events if event.kind.startswith("calibration_")]


@pytest.fixture(scope="module")
def whole(tiny_engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> RunPlan:
    plan = planned(tmp_path_factory.mktemp("whole"), "calibration.sensitivity=gold")
    assert run(plan, CalibratingBackend(tiny_engine))[0] == 0
    assert [event.kind for event in calibrations_in(plan)] == ["calibration_begun", "calibration_done"]
    return plan


DIVIDED = ["calibration.sensitivity=gold", "calibration.block_layers=2"]


@pytest.mark.engine
def test_two_engines_share_one_calibration(whole: RunPlan, tiny_engine: Engine, tmp_path: Path) -> None:
    plan, backend = planned(tmp_path, *DIVIDED, "cluster.engines=2"), CalibratingBackend(tiny_engine)
    code, output = run(plan, backend)
    assert code == 0, output
    assert equal(measured(whole), measured(plan)) == []
    assert len(backend.measured) == len(set(backend.measured)) > 12
    begun = [event.fields for event in calibrations_in(plan) if event.kind == "calibration_begun"]
    assert len({fields["engine"] for fields in begun}) == 2 and len({fields["calibration"] for fields in begun}) == 1
    told = [fields["what"] for fields in begun]
    assert told.index("answers code, layers 0 to 3") < told.index("limits code, layers 0 to 1")
    ends = [event.fields for event in calibrations_in(plan) if event.kind == "calibration_done"]
    assert [fields["done"] for fields in ends if fields["what"] == "adding up"] == [
        fields["expected"] for fields in ends if fields["what"] == "adding up"
    ], "what was counted is what was planned"
    assert output.count("calibrated in ") == 1


@pytest.mark.engine
def test_a_death_costs_a_block(whole: RunPlan, tiny_engine: Engine, tmp_path: Path) -> None:
    backend = CalibratingBackend(tiny_engine, lambda call: LostCall() if call % 4 == 3 else None)
    plan = planned(tmp_path, *DIVIDED)
    code, output = run(plan, backend)
    assert code == 0, output
    assert sum(call.startswith("lost") for call in backend.calls) > 4
    assert len(backend.measured) == len(set(backend.measured)), "no block is measured twice"
    assert equal(measured(whole), measured(plan)) == []


@pytest.mark.engine
def test_a_driver_that_dies_after_some_blocks_repeats_none(whole: RunPlan, tiny_engine: Engine, tmp_path: Path) -> None:
    """Neither when the run goes on nor when another run of the same output folder needs the same calibration."""
    first = CalibratingBackend(tiny_engine, lambda call: KeyboardInterrupt if call == 7 else None)
    plan = planned(tmp_path, *DIVIDED)
    with pytest.raises(KeyboardInterrupt):
        run(plan, first)
    second = CalibratingBackend(tiny_engine, lambda call: KeyboardInterrupt if call == 9 else None)
    with pytest.raises(KeyboardInterrupt):
        run(planned(tmp_path, *DIVIDED, f"resume={plan.folder.path}"), second)
    # Blocks of another width: what is there stays, what is missing is divided anew.
    third, again = CalibratingBackend(tiny_engine), planned(tmp_path, *DIVIDED[:1], "calibration.block_layers=3")
    assert run(again, third)[0] == 0
    measured_once = [*first.measured, *second.measured, *third.measured]
    assert first.measured and second.measured and len(measured_once) == len(set(measured_once))
    assert not set(first.measured) & set(second.measured)
    assert equal(measured(whole), measured(again)) == []


@pytest.mark.engine
def test_a_block_that_fails_fails_the_points_that_read_it(tiny_engine: Engine, tmp_path: Path) -> None:
    plan = planned(tmp_path, *DIVIDED)
    code, output = run(plan, CalibratingBackend(tiny_engine, lambda call: BrokenCall() if call == 5 else None))
    assert code == 1
    by_label = {record.label: record for record in plan.folder.load_points()[0]}
    assert by_label.pop("none").status == "done"
    (failed,) = by_label.values()
    assert failed.status == "failed" and "its calibration failed: ValueError: no such layer" in (failed.reason or "")
    assert [event.kind for event in calibrations_in(plan)].count("calibration_failed") == 1, output
