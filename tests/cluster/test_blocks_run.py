"""The block as the unit of work, on a real engine: what is divided equals the whole, and deaths cost a block each.

Deaths are said by the slots; the engine behind them is one that runs already, so that a test takes seconds.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from loaded_backend import LoadedBackend, LoadedSlot
from rich.console import Console

from banpick_exp.cluster import faults, fleet, stop_request
from banpick_exp.cluster.backends.base import Call, EngineLost
from banpick_exp.cluster.backends.inline import InlineCall
from banpick_exp.cluster.events import read
from banpick_exp.cluster.plan import RunPlan, plan_run
from banpick_exp.cluster.run import Run
from banpick_exp.engine.config import EngineConfig
from banpick_exp.engine.engine import Engine
from banpick_exp.run_lock import driver_of, held

pytestmark = pytest.mark.engine

LADDER = [
    "policy=fixed_k", "policy.k=choice(2,6)", "task.max_problems=20", "task.speed_seconds=0", "tracking=none",
    "engine.policies_per_batch=1",  # so that a call is a block
]  # fmt: skip
IN_BLOCKS = [*LADDER, "task.block_problems=20"]  # three blocks of 20 problems a point


class LostCall:
    def __init__(self, reason: str) -> None:
        self._reason = reason

    def run(self) -> None:
        """The work is not done."""

    def result(self) -> Any:
        raise EngineLost(self._reason)


class DyingSlot(LoadedSlot):
    """Dies under the calls that `dies` says, counted over all slots and starts."""

    def __init__(self, *arguments: Any, dies: Callable[[int], bool], calls: list[str]) -> None:
        super().__init__(*arguments)
        self._dies, self._calls = dies, calls

    def call(self, method: str, *arguments: Any) -> Any:
        self._calls.append(method)
        if self._dies(len(self._calls)):
            return LostCall("ActorDiedError: killed")
        return super().call(method, *arguments)


class DyingBackend(LoadedBackend):
    def __init__(self, engine: Engine, dies: Callable[[int], bool]) -> None:
        super().__init__(engine)
        self._dies, self.calls, self.starts = dies, list[str](), 0

    def reserve(self, names: Sequence[str], engine: EngineConfig) -> list[LoadedSlot]:
        return [
            DyingSlot(name, self._engine, self.done, self._limit, dies=self._dies, calls=self.calls) for name in names
        ]

    def wait(self, calls: Sequence[Call], seconds: float) -> list[Call]:
        if not calls:
            return []
        first = calls[0]
        assert isinstance(first, InlineCall | LostCall)
        first.run()
        return [first]


@pytest.fixture(autouse=True)
def no_rest(monkeypatch: pytest.MonkeyPatch, no_pages: None) -> None:
    monkeypatch.setattr(faults, "FIRST_REST", 0.0)
    monkeypatch.setattr(fleet, "POLL_SECONDS", 0.01)


def planned(folder: Path, *typed: str) -> RunPlan:
    plan = plan_run([*typed, "cluster=inline", f"output_dir={folder}"])
    plan.folder.write_manifest(plan.sweep.manifest())
    return plan


def run(plan: RunPlan, backend: LoadedBackend) -> tuple[int, str]:
    output = io.StringIO()
    code = Run(plan, Console(file=output, width=200), backend).run()
    return code, output.getvalue()


@pytest.fixture(scope="module")
def whole(tiny_engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> RunPlan:
    plan = planned(tmp_path_factory.mktemp("whole"), *LADDER)
    assert run(plan, LoadedBackend(tiny_engine))[0] == 0
    return plan


def answers(plan: RunPlan) -> dict[str, tuple[Any, ...]]:
    records, left_out = plan.folder.load_points()
    assert left_out == []
    found = {}
    for record in records:
        outcomes = plan.folder.outcomes(record.fingerprint)
        told = [tuple(row) for row in outcomes.select("problem_id", "correct", "completion").rows()]
        found[record.fingerprint] = record.label, record.status, record.measured.overall.accuracy, told
    return found


def test_a_point_in_blocks_is_the_point(whole: RunPlan, tiny_engine: Engine, tmp_path: Path) -> None:
    plan, backend = planned(tmp_path, *IN_BLOCKS), LoadedBackend(tiny_engine)
    assert run(plan, backend)[0] == 0
    labels = [point.label for point in plan.sweep.points]
    assert sorted(backend.done) == sorted(
        [("block", label, block) for label in labels for block in range(3)] + [("point", label, 0) for label in labels]
    )
    assert answers(plan) == answers(whole), "the same fingerprints, the same answers"
    begun = [event for event in read(plan.folder).events if event.kind == "block_begun"]
    assert len(begun) == 9 and {event.fields["of"] for event in begun} == {3}


def test_deaths_cost_a_block_each_and_end_nothing(whole: RunPlan, tiny_engine: Engine, tmp_path: Path) -> None:
    """Every third call kills its engine: many times more than one slot may be started without progress."""
    plan, backend = planned(tmp_path, *IN_BLOCKS), DyingBackend(tiny_engine, lambda call: call % 3 == 0)
    code, output = run(plan, backend)
    assert code == 0, output
    assert len(backend.calls) // 3 > faults.STARTS_WITHOUT_PROGRESS
    assert len(backend.done) == len(set(backend.done)), "no block is answered twice"
    assert answers(plan) == answers(whole)


def test_an_engine_that_gets_nothing_done_leaves_its_points_pending(tiny_engine: Engine, tmp_path: Path) -> None:
    plan, backend = planned(tmp_path, *LADDER), DyingBackend(tiny_engine, lambda call: call > 1)
    code, output = run(plan, backend)
    assert code == 1
    records, _ = plan.folder.load_points()
    by_status = {record.label: record.status for record in records}
    assert by_status.pop("none") == "done" and set(by_status.values()) <= {"failed"}
    assert f"resume={plan.folder.path.name} goes on from here" in output and "no engine could be kept running" in output
    again = planned(tmp_path, *LADDER, f"resume={plan.folder.path.name}")
    backend = DyingBackend(tiny_engine, lambda call: False)
    code, output = run(again, backend)
    assert code == 0, output
    assert {label for _, label, _ in backend.done} == {"fixed_k k=2", "fixed_k k=6"}, "stock is not repeated"


def test_a_driver_that_dies_between_blocks_repeats_none(whole: RunPlan, tiny_engine: Engine, tmp_path: Path) -> None:
    plan, backend = planned(tmp_path, *IN_BLOCKS), LoadedBackend(tiny_engine, limit=5)
    with pytest.raises(KeyboardInterrupt):
        run(plan, backend)
    first = list(backend.done)
    again, backend = planned(tmp_path, *IN_BLOCKS, f"resume={plan.folder.path}"), LoadedBackend(tiny_engine)
    assert run(again, backend)[0] == 0
    assert not set(first) & set(backend.done)
    assert answers(again) == answers(whole)


def test_a_stop_that_was_asked_for_ends_after_what_runs(
    tiny_engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(tmp_path, *LADDER)

    def asked(call: int) -> bool:
        if call == 2:
            driver = driver_of(plan.folder)
            assert driver is not None
            stop_request.ask(plan.folder, driver)
        return False

    monkeypatch.setattr(fleet, "WATCH_SECONDS", 0.0)
    with held(plan.folder):
        code, output = run(plan, DyingBackend(tiny_engine, asked))
    assert code == 1 and "stop was asked for" in output
    records, _ = plan.folder.load_points()
    assert [record.status for record in records] == ["done", "done"]
    assert [event.fields["left"] for event in read(plan.folder).events if event.kind == "run_ended"] == [1]
