"""Engines of several kinds side by side: the real driver, on engines that answer by themselves."""

from __future__ import annotations

import doctest
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from banpick_exp.cluster import faults, fleet, shares
from banpick_exp.cluster.backends.answering import AnsweringBackend, AnsweringCall, AnsweringSlot
from banpick_exp.cluster.backends.base import Backend, CallFailed, DoesNotFit, EngineLost
from banpick_exp.cluster.backends.inline import InlineBackend, InlineCall
from banpick_exp.cluster.config import ClusterConfig
from banpick_exp.cluster.events import Event, read
from banpick_exp.cluster.kinds import names_of
from banpick_exp.cluster.plan import RunPlan, plan_run
from banpick_exp.cluster.run import Run
from banpick_exp.cluster.shares import Claim, claim_of, granted
from banpick_exp.engine.config import EngineConfig
from banpick_exp.sweep.point import Point

FIRST, SECOND = "tiny engine.max_num_seqs=8", "tiny engine.max_num_seqs=16"
LADDER = [
    "policy=fixed_k",
    "policy.k=choice(2,3,4,5,6)",
    "task.max_problems=4",
    "task.speed_seconds=0",
    "engine.policies_per_batch=1",  # so that a call is a point
    "tracking=none",
]
TWO_KINDS = [*LADDER, "engine.max_num_seqs=choice(8,16)"]  # six points each, with stock
POINTS_OF_A_KIND = 6


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch, no_pages: None) -> None:
    monkeypatch.setattr(fleet, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(fleet, "WATCH_SECONDS", 0.02)


def planned(folder: Path, *typed: str, engines: int | str = 1) -> RunPlan:
    """`cluster=inline`, whose backend the tests replace: no Ray is started."""
    plan = plan_run([*typed, "cluster=inline", f"cluster.engines={engines}", f"output_dir={folder}"])
    plan.folder.write_manifest(plan.sweep.manifest())
    return plan


def run(plan: RunPlan, backend: Backend) -> tuple[int, str]:
    output = io.StringIO()
    code = Run(plan, Console(file=output, width=200), backend).run()
    return code, output.getvalue()


class Story:
    """The events of a run, by kind of engine."""

    def __init__(self, plan: RunPlan) -> None:
        self.events = read(plan.folder).events
        self._kinds = {e.fields["engine"]: e.fields["of_kind"] for e in self.events if "of_kind" in e.fields}

    def of(self, kind: str, *whats: str) -> list[Event]:
        return [e for e in self.events if e.kind in whats and self._kinds.get(e.fields.get("engine")) == kind]

    def at(self, event: Event) -> int:
        return self.events.index(event)

    def engines(self, kind: str) -> set[Any]:
        return {event.fields["engine"] for event in self.of(kind, "engine_ready")}


def statuses(plan: RunPlan) -> Counter[str]:
    records, left_out = plan.folder.load_points()
    assert left_out == []
    return Counter(record.status for record in records)


class LostCall(AnsweringCall):
    def run(self) -> None:
        """The work is not done."""

    def result(self) -> Any:
        raise EngineLost("ActorDiedError: killed")


class RaisingCall(AnsweringCall):
    def result(self) -> Any:
        raise CallFailed("ValueError", "no such weights", "Traceback ...")


class FaultySlot(AnsweringSlot):
    """Of a kind whose engines do not load, or die under every call."""

    fault: str | None = None

    def start(self, point: Point, run_dir: str) -> AnsweringCall:
        call = super().start(point, run_dir)
        return RaisingCall(call.work, call.due, can_run=call.can_run) if self.fault == "loads not" else call

    def call(self, method: str, *arguments: Any) -> AnsweringCall:
        call = super().call(method, *arguments)
        return LostCall(call.work, call.due) if self.fault == "dies" else call


@dataclass
class KindsBackend(AnsweringBackend):
    """By `engine.max_num_seqs` of a kind: how long a point takes, and what is wrong with its engines."""

    answer_seconds: float = 0.0
    seconds: Mapping[int, float] = field(default_factory=dict)
    faults: Mapping[int, str] = field(default_factory=dict)
    engines_that_fit: int = 1

    def room(self, engine: EngineConfig, weight_bytes: float) -> int:
        return self.engines_that_fit

    def reserve(self, names: Sequence[str], engine: EngineConfig) -> list[AnsweringSlot]:
        size = engine.max_num_seqs
        if self.faults.get(size) == "never fits":
            raise DoesNotFit("One engine takes 64 core(s) on one node")
        slots: list[AnsweringSlot] = []
        for name in names:
            slot = FaultySlot(name, self.seconds.get(size, self.answer_seconds), self)
            slot.fault = self.faults.get(size)
            slots.append(slot)
        self.reserved += slots
        return slots


# ------------------------------------------------------------ side by side


def test_two_kinds_overlap_and_the_one_that_is_over_is_closed_first(tmp_path: Path) -> None:
    plan = planned(tmp_path, *TWO_KINDS)
    code, output = run(plan, KindsBackend(seconds={8: 0.02, 16: 0.1}))
    assert code == 0, output
    story = Story(plan)
    assert statuses(plan) == {"done": 2 * POINTS_OF_A_KIND}
    assert story.at(story.of(SECOND, "point_begun")[0]) < story.at(story.of(FIRST, "point_begun")[-1])
    (closed,) = story.of(FIRST, "engine_closed")
    assert story.at(closed) < story.at(story.of(SECOND, "point_begun")[-1]), "its place goes on while the other works"
    assert "engine loads 2 for 2 engine slot(s)" in output
    assert f"starting 1 engine(s) of {FIRST}" in output and f"starting 1 engine(s) of {SECOND}" in output


def test_where_one_fits_they_run_one_after_the_other(tmp_path: Path) -> None:
    plan = planned(tmp_path, *TWO_KINDS)
    code, output = run(plan, KindsBackend(0.02, places=1))
    assert code == 0 and statuses(plan) == {"done": 2 * POINTS_OF_A_KIND}, output
    story = Story(plan)
    (waits,), (closed,) = story.of(SECOND, "engine_waits"), story.of(FIRST, "engine_closed")
    (starting,) = story.of(SECOND, "engine_starting")
    assert story.at(waits) < story.at(closed) < story.at(starting)
    assert story.at(story.of(FIRST, "point_begun")[-1]) < story.at(closed)
    assert "engine loads 2 for 2 engine slot(s)" in output


def test_an_engine_without_work_gives_its_place_to_another_kind(tmp_path: Path) -> None:
    """Two places, two engines of each kind: the first place that is free goes on while the other is still at work."""
    plan = planned(tmp_path, *TWO_KINDS, engines=2)
    code, output = run(plan, KindsBackend(0.15, places=2))
    assert code == 0 and statuses(plan) == {"done": 2 * POINTS_OF_A_KIND}, output
    story = Story(plan)
    first, last = story.of(FIRST, "engine_closed")
    assert story.at(first) < story.at(story.of(SECOND, "engine_starting")[0]) < story.at(last)
    assert "engine loads 4 for 4 engine slot(s)" in output
    assert most_at_a_time(story) == 2


def test_a_slot_whose_work_others_did_is_withdrawn_without_a_load(tmp_path: Path) -> None:
    plan = planned(tmp_path, *LADDER, engines=4)
    code, output = run(plan, KindsBackend(0.05, places=1))
    assert code == 0 and "engine loads 1 for 1 engine slot(s)" in output, output
    events = read(plan.folder).events
    kinds = Counter(event.kind for event in events)
    assert (kinds["engine_waits"], kinds["engine_ready"], kinds["engine_closed"]) == (3, 1, 4)
    assert len({event.fields["engine"] for event in events if event.kind == "engine_closed"}) == 4
    closed = [index for index, event in enumerate(events) if event.kind == "engine_closed"]
    assert closed[0] < max(index for index, event in enumerate(events) if event.kind == "point_done")


def most_at_a_time(story: Story) -> int:
    """Engines that were being loaded, or loaded, at once."""
    there, most = set[Any](), 0
    for event in story.events:
        if event.kind == "engine_starting":
            there.add(event.fields["engine"])
        elif event.kind in ("engine_closed", "engine_lost"):
            there.discard(event.fields["engine"])
        most = max(most, len(there))
    return most


# ------------------------------------------------------------ as many as fit


def test_auto_gives_what_the_first_kind_leaves_and_more_when_it_is_over(tmp_path: Path) -> None:
    plan = planned(tmp_path, *TWO_KINDS, engines="auto")
    code, output = run(plan, KindsBackend(0.05, engines_that_fit=3))
    assert code == 0 and statuses(plan) == {"done": 2 * POINTS_OF_A_KIND}, output
    story = Story(plan)
    assert most_at_a_time(story) == 3
    assert len(story.engines(FIRST)) == 3
    assert [event.fields["reason"] for event in story.of(SECOND, "engine_waits")] == [
        "engines of other kinds have the room"
    ]
    assert len(story.engines(SECOND)) == 3, "all of the place, once the first kind is over"
    first, *_, last = story.of(FIRST, "engine_closed")
    assert story.at(first) < story.at(story.of(SECOND, "engine_starting")[0]) < story.at(last)


def test_engines_that_divide_the_machine_among_them_do_so_one_kind_after_the_other(tmp_path: Path) -> None:
    plan = planned(tmp_path, *TWO_KINDS, "engine.cpus=null", engines="auto")
    code, output = run(plan, KindsBackend(0.02, engines_that_fit=2))
    assert code == 0 and statuses(plan) == {"done": 2 * POINTS_OF_A_KIND}, output
    story = Story(plan)
    first = [story.at(event) for event in story.of(FIRST, "engine_closed")]
    second = [story.at(event) for event in story.of(SECOND, "engine_starting")]
    assert len(first) == len(second) == 2 and max(first) < min(second)


@pytest.mark.parametrize(
    ("engine", "engines", "works", "by_room", "claim"),
    [
        (EngineConfig(cpus=1), 4, 9, False, Claim(4)),
        (EngineConfig(cpus=1), 4, 3, False, Claim(3)),
        (EngineConfig(cpus=1), 4, 3, True, Claim(3, Fraction(1, 4))),
        (EngineConfig(cpus=None), 4, 3, True, Claim(3, Fraction(1, 3), all_or_none=True)),
        (EngineConfig(gpus=2), 4, 3, True, Claim(3)),
    ],
)
def test_claims(engine: EngineConfig, engines: int, works: int, by_room: bool, claim: Claim) -> None:
    assert claim_of(engine, engines, works, by_room=by_room) == claim


def test_what_is_granted() -> None:
    assert doctest.testmod(shares).failed == 0
    whole = Claim(2, Fraction(1, 2), all_or_none=True)
    quarter = Claim(4, Fraction(1, 4))
    assert granted([quarter, whole], [0, 0], [1, 2]) == [1, 0], "a part of the place is no place for it"
    assert granted([quarter, whole], [0, 0], [0, 2]) == [0, 2]
    assert granted([quarter, whole], [0, 2], [4, 0]) == [0, 0]
    assert granted([quarter, Claim(7)], [4, 0], [4, 7]) == [0, 7], "what the backend counts is asked for at once"


# ------------------------------------------------------------ one kind that cannot


def test_a_kind_that_does_not_load_leaves_the_others_alone(tmp_path: Path) -> None:
    plan = planned(tmp_path, *TWO_KINDS)
    code, output = run(plan, KindsBackend(0.02, faults={8: "loads not"}))
    assert code == 1
    assert statuses(plan) == {"failed": POINTS_OF_A_KIND, "done": POINTS_OF_A_KIND}
    assert f"engine of {FIRST} stopped: ValueError: no such weights" in output


def test_a_kind_that_cannot_be_kept_running_leaves_its_points_pending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faults, "FIRST_REST", 0.0)
    plan = planned(tmp_path, *TWO_KINDS)
    code, output = run(plan, KindsBackend(faults={8: "dies"}))
    assert code == 1
    found = statuses(plan)
    assert found["done"] == POINTS_OF_A_KIND
    left = POINTS_OF_A_KIND - found["failed"]  # what outlived three engines
    assert left > 0
    assert f"{left} point(s) of {FIRST} are left without a record: no engine could be kept running" in output
    assert f"resume={plan.folder.path.name} goes on from here" in output and f"of {SECOND} are left" not in output
    ends = [event.fields["left"] for event in read(plan.folder).events if event.kind == "run_ended"]
    assert ends == [left]


def test_a_kind_without_room_is_given_up_once_nothing_of_the_run_has_any(tmp_path: Path) -> None:
    plan = planned(tmp_path, *TWO_KINDS, "engine.start_timeout_seconds=1")
    backend = KindsBackend(places=0)
    code, output = run(plan, backend)
    assert code == 1 and statuses(plan) == {} and backend.reserved == []
    why = "no node had room for an engine (1 core(s)) within engine.start_timeout_seconds=1."
    assert f"{2 * POINTS_OF_A_KIND} point(s) are left without a record: {why}" in output
    assert "engine loads 0 for 0 engine slot(s)" in output


def test_a_kind_waits_for_as_long_as_another_has_the_room(tmp_path: Path) -> None:
    plan = planned(tmp_path, *TWO_KINDS, "engine.start_timeout_seconds=1")
    code, output = run(plan, KindsBackend(seconds={8: 0.3}, places=1))
    assert code == 0 and statuses(plan) == {"done": 2 * POINTS_OF_A_KIND}, output


def test_what_can_never_fit_is_refused_before_anything_starts(tmp_path: Path) -> None:
    plan = planned(tmp_path, *TWO_KINDS)
    backend = KindsBackend(faults={16: "never fits"})
    with pytest.raises(DoesNotFit, match="64 core"):
        run(plan, backend)
    assert statuses(plan) == {} and backend.reserved == []
    assert "engine_starting" not in {event.kind for event in read(plan.folder).events}


def test_what_is_spent_ends_all_kinds_after_what_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kind that waits for room as well: nothing of it is loaded any more."""
    plan = planned(tmp_path, *TWO_KINDS)
    supplies = Run._supplies

    def spent() -> str | None:
        return "budget.gpu_hours=1 is spent" if any(plan.folder.record_files()) else None

    monkeypatch.setattr(Run, "_supplies", lambda self, backend: replace(supplies(self, backend), spent=spent))
    code, output = run(plan, KindsBackend(0.1, places=1))
    assert code == 1
    done = statuses(plan)["done"]
    assert 1 <= done < POINTS_OF_A_KIND
    left = 2 * POINTS_OF_A_KIND - done
    assert f"{left} point(s) are left without a record: budget.gpu_hours=1 is spent. What is finished" in output
    assert "engine loads 1 for 1 engine slot(s)" in output


# ------------------------------------------------------------ one process


def test_in_one_process_kinds_take_turns(tmp_path: Path) -> None:
    backend = InlineBackend(ClusterConfig(backend="inline", engines=1))
    (first,), (second,) = backend.reserve(["a"], EngineConfig()), backend.reserve(["b"], EngineConfig())
    assert first.placed() and not second.placed()
    ran: list[str] = []
    waiting, working = InlineCall(lambda: ran.append("b"), second.placed), InlineCall(lambda: ran.append("a"))
    assert backend.wait([waiting, working], 0.0) == [working]
    assert backend.wait([waiting], 0.0) == [] and ran == ["a"]
    first.release()
    assert second.placed() and backend.wait([waiting], 0.0) == [waiting] and ran == ["a", "b"]


def test_kinds_are_called_by_what_differs(tmp_path: Path) -> None:
    def names(*typed: str) -> list[str]:
        sweep = plan_run([*LADDER, *typed, f"output_dir={tmp_path}", "dry_run=true"]).sweep
        return names_of([points[0] for points in sweep.by_engine().values()])

    assert names() == [""]
    assert names("engine.max_num_seqs=choice(8,16)") == [FIRST, SECOND]
    assert names("model=choice(tiny,tiny_control)") == ["tiny", "tiny_control"]
    assert names("model.dtype=choice(float32,bfloat16)") == ["tiny model.dtype=float32", "tiny model.dtype=bfloat16"]
