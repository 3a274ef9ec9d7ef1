"""Calls in company: which jobs become one, and that nothing is lost, blamed or done twice where one goes wrong."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from banpick_exp.cluster import faults, fleet
from banpick_exp.cluster.answers import Together
from banpick_exp.cluster.backends.answering import AnsweringBackend, AnsweringCall, AnsweringSlot
from banpick_exp.cluster.backends.base import CallFailed, EngineLost
from banpick_exp.cluster.events import read
from banpick_exp.cluster.plan import RunPlan, plan_run
from banpick_exp.cluster.run import Run
from banpick_exp.engine.config import EngineConfig
from banpick_exp.sweep.plan import plan_sweep
from banpick_exp.sweep.point import Point
from banpick_exp.sweep.search.company import belong_together, has_company
from banpick_exp.sweep.search.strategy import Work

LADDER = ["policy=fixed_k", "policy.k=choice(1,2,3,4,5,6)", "task.max_problems=4", "tracking=none"]
UNTIMED = [*LADDER, "task.speed_seconds=0", "search.ladder=none"]  # stock and six others
Turn = Callable[[Any], Any]
"""What becomes of the answer of a call in company."""


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch, no_pages: None) -> None:
    monkeypatch.setattr(fleet, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(faults, "FIRST_REST", 0.0)


class TurnedCall(AnsweringCall):
    turn: Turn

    def result(self) -> Any:
        return self.turn(super().result())


class TurningSlot(AnsweringSlot):
    """Notes the labels of each call, and turns the answers of those in company."""

    turn: Turn
    calls: list[list[str]]

    def call(self, method: str, *arguments: Any) -> AnsweringCall:
        call = super().call(method, *arguments)
        together = method == "run_together"
        self.calls.append([each[0].label for each in (arguments[1] if together else [arguments])])
        if not together:
            return call
        turned = TurnedCall(call.work, call.due)
        turned.turn = self.turn
        return turned


@dataclass
class TurningBackend(AnsweringBackend):
    answer_seconds: float = 0.0
    turn: Turn = lambda found: found
    calls: list[list[str]] = field(default_factory=list)

    def reserve(self, names: Sequence[str], engine: EngineConfig) -> list[AnsweringSlot]:
        slots: list[AnsweringSlot] = []
        for name in names:
            slot = TurningSlot(name, self.answer_seconds, self)
            slot.turn, slot.calls = self.turn, self.calls
            slots.append(slot)
        self.reserved += slots
        return slots


def swept(folder: Path, backend: TurningBackend, *typed: str, engines: int = 1) -> RunPlan:
    """A whole run, each point of which must be done once."""
    plan = plan_run([*typed, "cluster=inline", f"cluster.engines={engines}", f"output_dir={folder}"])
    plan.folder.write_manifest(plan.sweep.manifest())
    output = io.StringIO()
    assert Run(plan, Console(file=output, width=200), backend).run() == 0, output.getvalue()
    records, left_out = plan.folder.load_points()
    assert left_out == [] and Counter(record.status for record in records) == {"done": len(plan.sweep.points)}
    ends = [event.fields["point"] for event in read(plan.folder).events if event.kind == "point_done"]
    assert len(ends) == len(set(ends)) == len(plan.sweep.points)
    return plan


def sizes(backend: TurningBackend) -> list[int]:
    return [len(call) for call in backend.calls]


# ------------------------------------------------------------ which


def works(*typed: str) -> list[Work]:
    return [Work(point=point) for point in plan_sweep(typed).points]


@pytest.mark.parametrize(
    ("more", "company"),
    [
        ((), 6),
        (("engine.policies_per_batch=1",), 0),
        (("engine.policies_per_batch=3",), 6),
        (("engine=cuda",), 0),  # not tried on a GPU yet
        (("engine=cuda", "engine.policies_per_batch=8"), 6),
        (("engine.pipeline_parallel_size=2",), 0),
    ],
)
def test_which_points_have_company(more: tuple[str, ...], company: int) -> None:
    found = works(*UNTIMED, *more)
    assert len(found) == 7 and sum(map(has_company, found)) == company
    assert not any(has_company(work) for work in found if work.point.rule.is_stock)


def test_blocks_have_company_though_their_point_is_timed() -> None:
    point = works(*LADDER)[-1].point
    assert not has_company(Work(point=point))  # no speed is read beside another policy
    assert has_company(Work(point=point, kind="block", block=2))


def test_a_policy_of_several_rows_has_none(tmp_path: Path) -> None:
    typed = ["policy=dynamic_experts", "policy.ks=[4,6]", "task.samples=2", "task.temperature=0.5"]
    plan = plan_sweep([*typed, "task.speed_seconds=0", f"output_dir={tmp_path}"])
    assert [has_company(Work(point=point, kind="block", block=2)) for point in plan.points] == [False, False]


def test_a_repeat_has_none_and_other_questions_do_not_belong_together() -> None:
    found = works(*UNTIMED, "repeats=2", "task.max_tokens=choice(8,16)", "seed=choice(0,1)")
    assert {work.point.repeat for work in found} == {0, 1}
    assert not any(has_company(work) for work in found if work.point.repeat)
    first = next(work for work in found if has_company(work))

    def asked(point: Point) -> tuple[int, int]:
        return point.task.max_tokens, point.seed

    for work in filter(has_company, found):
        assert belong_together(first, work) == (asked(first.point) == asked(work.point))
    block, other = (Work(point=first.point, kind="block", block=number) for number in (0, 1))
    assert belong_together(block, block) and not belong_together(block, other) and not belong_together(first, block)


# ------------------------------------------------------------ what becomes of them


def test_what_is_untimed_goes_in_one_call_and_stock_before_it(tmp_path: Path) -> None:
    backend = TurningBackend()
    swept(tmp_path, backend, *UNTIMED)
    assert sizes(backend) == [1, 6] and backend.calls[0] == ["none"]


def test_no_engine_stands_idle_for_company(tmp_path: Path) -> None:
    backend = TurningBackend(answer_seconds=0.05)
    swept(tmp_path, backend, *UNTIMED, engines=2)
    assert sorted(sizes(backend)) == [1, 1, 2, 3]  # each takes its share of what is left


def test_as_many_as_the_engine_holds_and_one_to_compare_with(tmp_path: Path) -> None:
    backend = TurningBackend()
    swept(tmp_path, backend, *UNTIMED, "engine.policies_per_batch=2")
    assert sizes(backend) == [1, 3, 3]


def test_where_it_does_not_pay_each_goes_alone_from_then_on(tmp_path: Path) -> None:
    backend = TurningBackend(turn=lambda found: replace(found, pays=False, said="alone is faster"))
    plan = swept(tmp_path, backend, *UNTIMED, "engine.policies_per_batch=2")
    assert sizes(backend) == [1, 3, 1, 1, 1]
    assert "alone is faster" in [e.fields["text"] for e in read(plan.folder).events if e.kind == "note"]


def test_what_was_not_answered_is_asked_alone(tmp_path: Path) -> None:
    def first_two(found: Together) -> Together:
        return replace(found, answers=dict(list(found.answers.items())[:2]))

    backend = TurningBackend(turn=first_two)
    swept(tmp_path, backend, *UNTIMED)
    assert sizes(backend) == [1, 6, 1, 1, 1, 1] and {call[0] for call in backend.calls[2:]} == set(backend.calls[1][2:])


@pytest.mark.parametrize(
    "error",
    [CallFailed("ValueError", "no such row", "Traceback ..."), CallFailed("EngineError", "ranks differ", "Traceback")],
)
def test_a_call_that_fails_is_nobodys_failure(tmp_path: Path, error: CallFailed) -> None:
    def fails(found: Together) -> Together:
        raise error

    backend = TurningBackend(turn=fails)
    plan = swept(tmp_path, backend, *UNTIMED)
    assert sizes(backend) == [1, 6, *[1] * 6]
    notes = [str(e.fields["text"]) for e in read(plan.folder).events if e.kind == "note"]
    assert any("each is asked alone now" in note and str(error) in note for note in notes)


def test_a_death_in_company_accuses_nobody(tmp_path: Path) -> None:
    def dies(found: Together) -> Together:
        raise EngineLost("ActorDiedError: killed")

    backend = TurningBackend(turn=dies)
    plan = swept(tmp_path, backend, *UNTIMED)
    assert sizes(backend) == [1, 6, *[1] * 6]
    assert not list(plan.folder.path.rglob("deaths.json")) and not plan.folder.problems_aside.exists()
