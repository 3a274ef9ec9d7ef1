"""Where a run stands, folded from events that are written out here: second by second, so that every number is known."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from banpick_exp.cluster.events import KINDS, Event
from banpick_exp.cluster.state import RECENT, Fold, RunState, fold

BEGIN = datetime(2026, 11, 27, 10, 15, tzinfo=UTC)


def at(second: float) -> datetime:
    return BEGIN + timedelta(seconds=second)


def event(second: float, kind: str, **fields: Any) -> Event:
    known = KINDS[kind]
    assert fields.keys() <= known.keys()
    return Event(at(second), kind, {name: fields.get(name) for name in known})


def begun(second: float, points: int, pid: int = 7) -> Event:
    fields = {"command": "python -m banpick_exp", "host": "node1", "pid": pid, "cluster": "ray"}
    return event(second, "run_begun", points=points, expected=float(points), **fields)


def ready(second: float, engine: str, seconds: float = 5.0) -> Event:
    return event(second, "engine_ready", engine=engine, seconds=seconds, host="node2", pid=9, layers=4)


def block(second: float, kind: str, engine: str, point: str, number: int = 0, **more: Any) -> Event:
    more = {"seconds": 1.0} | more if kind == "done" else more
    return event(
        second, f"block_{kind}", engine=engine, point=point, label=f"policy {point}", block=number, of=2, **more
    )


def done(second: float, point: str, status: str = "done", **more: Any) -> Event:
    return event(second, "point_done", point=point, label=f"policy {point}", status=status, **more)


def ended(second: float, left: int, code: int = 0) -> Event:
    return event(second, "run_ended", code=code, seconds=second, left=left)


AT_WORK = [
    begun(0, points=4),
    event(0, "engine_starting", engine="e0", point="a"),
    event(0, "engine_starting", engine="e1", point="a"),
    event(1, "engine_waits", engine="e1", reason="2 GPUs are free, it takes 4"),
    ready(5, "e0"),
    event(6, "calibration_begun", engine="e0", calibration="c", label="policy a"),
    event(10, "calibration_done", engine="e0", calibration="c", seconds=4.0),
    event(10, "note", text="calibrated in 4.0 s"),
    block(10, "begun", "e0", "a", 0),
    block(20, "done", "e0", "a", 0),
    block(20, "begun", "e0", "a", 1),
    block(30, "done", "e0", "a", 1),
    event(30, "progress", done=1.0, expected=4.0),
    done(30, "a", accuracy=0.5, delta=-0.01, speedup=1.25, kept=4.0),
    event(32, "point_begun", engine="e0", point="b", label="policy b"),
]


def test_points_that_a_ladder_adds_are_asked_for_too() -> None:
    state = fold([*AT_WORK, event(33, "points_added", points=2)], now=at(35))
    assert (state.ended_now, state.asked_now, state.left, state.total) == (1, 6, 5, 6)


def test_a_run_at_work() -> None:
    state = fold(AT_WORK, now=at(35))
    assert (state.phase, state.host, state.pid, state.seconds) == ("running", "node1", 7, 35)
    assert (state.counts, state.left, state.total) == ({"done": 1}, 3, 4)
    assert (state.ended_now, state.asked_now, state.work, state.blocks) == (1, 4, (1.0, 4.0), 2)
    assert state.eta_seconds == pytest.approx(20 / 1 * 3 - 5), "20 s for the first point, 5 s of the others are over"
    assert state.fine and not state.over
    first, second = state.engines
    assert (first.name, first.phase, first.host, first.load_seconds, first.blocks) == ("e0", "busy", "node2", 5.0, 2)
    assert first.job is not None and (first.job.kind, first.job.point, first.job.since) == ("point", "b", at(32))
    assert first.busy == pytest.approx((4 + 10 + 10 + 3) / 30)
    assert (second.phase, second.reason, second.since, second.busy) == (
        "waiting",
        "2 GPUs are free, it takes 4",
        at(1),
        None,
    )
    assert [engine.name for engine in state.running] == ["e0"]
    assert [(end.label, end.accuracy, end.kept) for end in state.recent] == [("policy a", 0.5, 4.0)]
    assert state.notes == ((at(10), "calibrated in 4.0 s"),)


@pytest.mark.parametrize("cut", range(len(AT_WORK) + 1))
def test_taken_one_by_one_it_is_the_same(cut: int) -> None:
    folded = Fold()
    for each in AT_WORK[:cut]:
        folded.add(each)
    assert folded.state(at(40)) == fold(AT_WORK[:cut], now=at(40))


def test_nothing_is_known_before_the_first_point() -> None:
    assert fold([]).phase == "not begun" and fold([]).total == 0 and fold([]).begun is None
    state = fold(AT_WORK[:9], now=at(12))
    assert state.eta_seconds is None and state.left == 4


@pytest.mark.parametrize(
    ("events", "alive", "phase", "fine"),
    [
        ([], True, "running", True),
        ([], False, "gone", False),
        ([event(33, "stop_asked", by="ann@node3")], True, "stopping", True),
        ([event(33, "stop_asked", by="ann@node3"), ended(34, left=3, code=1)], False, "stopped", True),
        ([ended(34, left=3, code=1)], False, "stopped", False),
        ([ended(34, left=0)], False, "ended", True),
        ([ended(34, left=0)], True, "ended", True),
        ([ended(34, left=0, code=1)], False, "ended", False),
        ([done(33, "b", "failed", reason="out of memory")], True, "running", False),
        ([done(33, "b", "invalid", reason="replayed")], True, "running", False),
        ([done(33, "b", "dropped", reason="worse")], True, "running", True),
    ],
)
def test_phases(events: list[Event], alive: bool, phase: str, fine: bool) -> None:
    state = fold([*AT_WORK, *events], now=at(100), alive=alive)
    assert (state.phase, state.fine) == (phase, fine)
    assert state.over == (phase in ("gone", "stopped", "ended"))
    assert (state.eta_seconds is not None) == (phase == "running")


def test_a_driver_that_is_gone_did_nothing_since_its_last_word() -> None:
    state = fold(AT_WORK, now=at(5000), alive=False)
    assert state.seconds == 32 and state.engines[0].busy == pytest.approx(24 / 27)


def test_an_engine_that_is_lost_counts_on_when_it_is_back() -> None:
    lost = [
        *AT_WORK,
        event(40, "engine_lost", engine="e0", reason="ActorDiedError: killed"),
        event(50, "engine_starting", engine="e0", point="b"),
    ]
    (gone, _) = fold(lost[:-1], now=at(45)).engines
    assert (gone.phase, gone.reason, gone.job, gone.since) == ("lost", "ActorDiedError: killed", None, at(40))
    assert gone.busy == pytest.approx((24 + 8) / 35)
    back = fold([*lost, ready(60, "e0"), block(60, "begun", "e0", "b"), block(65, "done", "e0", "b")], now=at(70))
    assert (back.engines[0].phase, back.engines[0].reason, back.engines[0].blocks) == ("idle", None, 3)
    assert back.engines[0].busy == pytest.approx((24 + 8 + 5) / (35 + 10))


def test_why_an_engine_was_lost_outlives_its_slot() -> None:
    events = [*AT_WORK, event(40, "engine_lost", engine="e0", reason="killed"), event(41, "engine_closed", engine="e0")]
    first, second = fold([*events, ended(42, left=3)]).engines
    assert (first.phase, first.reason) == ("lost", "killed") and second.phase == "closed"


def test_what_fails_leaves_its_engine_idle() -> None:
    for failed in (block(36, "failed", "e0", "b", reason="x"), done(36, "b", "failed", reason="x")):
        state = fold([*AT_WORK, block(33, "begun", "e0", "b"), failed], now=at(40))
        assert (state.engines[0].phase, state.engines[0].since) == ("idle", at(36))
    dropped = fold([*AT_WORK, block(33, "begun", "e0", "b"), done(36, "b", "dropped", reason="worse")], now=at(40))
    assert dropped.engines[0].phase == "busy", "a race does not call back what runs"


def test_a_run_that_was_resumed() -> None:
    first = [*AT_WORK, done(40, "b", "failed", reason="out of memory"), ended(50, left=2, code=1)]
    assert (fold(first).counts, fold(first).left, fold(first).total) == ({"done": 1, "failed": 1}, 2, 4)
    aside = [*first, event(60, "point_aside", point="b", label="policy b", reason="out of memory")]
    assert (fold(aside).counts, fold(aside).left, fold(aside).failed) == ({"done": 1}, 3, ())
    second = [*aside, begun(100, points=3, pid=8), event(101, "engine_starting", engine="f0", point="b")]
    state = fold(second, now=at(102))
    assert (state.counts, state.left, state.total, state.ended_now, state.asked_now) == ({"done": 1}, 3, 4, 0, 3)
    assert [engine.name for engine in state.engines] == ["f0"] and state.pid == 8 and state.seconds == 2
    assert state.stop_asked_by is None and state.eta_seconds is None
    last = [done(110 + n, point) for n, point in enumerate("bcd")]
    over = fold([*second, *last, ended(120, left=0)])
    assert (over.phase, over.counts, over.left, over.fine) == ("ended", {"done": 4}, 0, True)


def test_a_point_that_is_measured_twice_counts_once() -> None:
    state = fold([begun(0, 2), done(1, "a", "failed", reason="x"), begun(2, 2, pid=8), done(3, "a"), done(4, "b")])
    assert (state.counts, state.left, state.total, state.failed) == ({"done": 2}, 0, 2, ())


def test_work_that_was_done_before_does_not_make_the_pace() -> None:
    events = [
        begun(0, 4),
        event(0, "progress", done=2.0, expected=4.0),
        block(10, "begun", "e0", "a"),
        event(20, "progress", done=2.5, expected=4.0),
    ]
    assert fold(events, now=at(20)).eta_seconds == pytest.approx(10 / 0.5 * 1.5)


def test_a_clock_that_is_behind_turns_no_time_negative() -> None:
    state = fold(AT_WORK, now=at(-100))
    assert state.seconds == 32 and all(engine.busy is None or engine.busy >= 0 for engine in state.engines)


def test_what_is_kept_does_not_grow_with_the_run() -> None:
    """Ten thousand points on 64 engines: folding and looking stay cheap."""
    folded = Fold()
    folded.add(begun(0, 10_000))
    for n in range(64):
        folded.add(ready(0, f"e{n}"))
    begin = time.perf_counter()
    for n in range(10_000):
        folded.add(block(n, "begun", f"e{n % 64}", f"p{n}"))
        folded.add(block(n + 1, "done", f"e{n % 64}", f"p{n}"))
        folded.add(event(n + 1, "progress", done=n + 1.0, expected=10_000.0))
        folded.add(done(n + 1, f"p{n}"))
    state: RunState = folded.state(at(10_001))
    seconds = time.perf_counter() - begin
    assert len(state.recent) == RECENT and state.counts == {"done": 10_000} and state.left == 0
    assert seconds < 5, f"{1e6 * seconds / 40_000:.0f} us an event"
