"""Where a run stands, folded from its events: the same for the live table, `status` and whoever waits for a run.

Pure: events, the time and whether the driver lives go in, a `RunState` comes out. `Fold` takes events one by one, for
who follows a run; each costs the same however long the run is.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal

from banpick_exp.cluster.engine_state import EngineState, EngineTally, Job, seconds_between
from banpick_exp.cluster.events import ADDING_UP, Event
from banpick_exp.records import Status

RECENT = 8
"""Finished points that are kept to show."""
NOTES = 20

Phase = Literal["not begun", "running", "stopping", "gone", "stopped", "ended"]
"""`stopping`: asked to, and finishing what runs; `gone`: the driver ended without a word; `stopped`: it ended in order
with points left; `ended`: nothing is left."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PointEnd:
    """What came of a point."""

    time: datetime
    point: str
    """Fingerprint."""
    label: str
    status: Status
    reason: str | None
    accuracy: float | None
    """0 to 1."""
    delta: float | None
    """Accuracy less stock's."""
    speedup: float | None
    kept: float | None
    """Experts a token and layer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """How far a part of a calibration is that is measured in blocks; changes times problems."""

    since: datetime
    """When its first block of this driver began."""
    before: float
    """What was there then."""
    updated: datetime
    done: float
    expected: float

    def eta_seconds(self, now: datetime) -> float | None:
        """By the pace since; None before the first block is over."""
        if self.done <= self.before:
            return None
        pace = seconds_between(self.since, self.updated) / (self.done - self.before)
        return max(pace * (self.expected - self.done) - seconds_between(self.updated, now), 0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunState:
    """What is known of a run at one moment."""

    phase: Phase
    command: str | None
    cluster: str | None
    host: str | None
    """Of the driver that came last, as its pid and the times below."""
    pid: int | None
    begun: datetime | None
    updated: datetime | None
    """The last event."""
    ended: datetime | None
    code: int | None
    """Exit code of a driver that ended in order."""
    seconds: float
    """From the driver's begin to its end, or to now."""
    counts: dict[Status, int]
    """Points by what came of them, of all drivers."""
    left: int
    """Points that have no record yet."""
    ended_now: int
    """Points that the last driver ended."""
    asked_now: int
    """Points that the last driver had to compute when it began."""
    work: tuple[float, float]
    """Done and expected by the last driver, in points."""
    eta_seconds: float | None
    blocks: int
    """Answered by the last driver's engines."""
    engines: tuple[EngineState, ...]
    calibrations: tuple[Measured, ...]
    """Those that are measured in blocks now."""
    recent: tuple[PointEnd, ...]
    """The last that ended, oldest first."""
    failed: tuple[PointEnd, ...]
    """Failed and invalid ones."""
    notes: tuple[tuple[datetime, str], ...]
    """The last ones, oldest first."""
    stop_asked_by: str | None

    @property
    def total(self) -> int:
        """Points of the run, as far as they are known: a search may ask for more."""
        return sum(self.counts.values()) + self.left

    @property
    def over(self) -> bool:
        """Nothing more will happen."""
        return self.phase in ("gone", "stopped", "ended")

    @property
    def fine(self) -> bool:
        """No point failed or is invalid, and no driver was lost or ended with an error; a stop that was asked for is
        none."""
        return not self.failed and self.phase != "gone" and (not self.code or self.stop_asked_by is not None)

    @property
    def running(self) -> list[EngineState]:
        """Engines that do something, the longest at it first."""
        return sorted((e for e in self.engines if e.job or e.phase == "starting"), key=lambda engine: engine.since)


def fold(events: Iterable[Event], *, now: datetime | None = None, alive: bool = True) -> RunState:
    """What the events of a run say of it. `alive`: the driver that began last still holds the run."""
    folded = Fold()
    for event in events:
        folded.add(event)
    return folded.state(now, alive=alive)


@dataclass(slots=True)
class _Driver:
    """What is known of the driver that came last."""

    command: str | None = None
    cluster: str | None = None
    host: str | None = None
    pid: int | None = None
    begun: datetime | None = None
    asked: int = 0
    """Points to compute at its begin."""
    point_ends: int = 0
    estimated_seconds: float | None = None
    """Of all its work, by what the same engines did before."""
    aside: int = 0
    """Records set aside since."""
    work: tuple[float, float] = (0.0, 0.0)
    work_at: datetime | None = None
    first_work: tuple[datetime, float] | None = None
    """When the first block or point began, and the work that was done before."""
    stop_asked_by: str | None = None
    ended: datetime | None = None
    code: int | None = None
    left: int = 0
    """As it said at its end."""
    engines: dict[str, EngineTally] = field(default_factory=dict)
    calibrations: dict[str, Measured] = field(default_factory=dict)
    """By fingerprint."""


class Fold:
    """Takes the events of a run in their order, and says at any time where the run stands."""

    def __init__(self) -> None:
        self._driver = _Driver()
        self._ends: dict[str, Status] = {}
        self._counts: Counter[Status] = Counter()
        self._failed: dict[str, PointEnd] = {}
        self._recent: deque[PointEnd] = deque(maxlen=RECENT)
        self._notes: deque[tuple[datetime, str]] = deque(maxlen=NOTES)
        self._updated: datetime | None = None

    def begun_by(self, host: str, pid: int) -> bool:
        """Whether that process is the driver that began last."""
        return self._driver.begun is not None and (self._driver.host, self._driver.pid) == (host, pid)

    def add(self, event: Event) -> None:
        """Take the next event. A kind without a method here changes nothing but the time."""
        self._updated = event.time
        if (take := getattr(self, f"_{event.kind}", None)) is not None:
            take(event.time, **event.fields)

    def state(self, now: datetime | None = None, *, alive: bool = True) -> RunState:
        """Where the run stands. `now`: for what goes on, the present by default; `alive` as in `fold`."""
        driver, phase = self._driver, self._phase(alive)
        last = self._updated or datetime.now(UTC)
        # Two machines' clocks differ: no event lies in the future.
        now = max(now or datetime.now(UTC), last) if phase in ("running", "stopping") else last
        engines = tuple(engine.state(now) for engine in driver.engines.values())
        until = driver.ended or now
        return RunState(
            phase=phase,
            command=driver.command,
            cluster=driver.cluster,
            host=driver.host,
            pid=driver.pid,
            begun=driver.begun,
            updated=self._updated,
            ended=driver.ended,
            code=driver.code,
            seconds=seconds_between(driver.begun, until) if driver.begun else 0.0,
            counts={status: count for status, count in self._counts.items() if count},
            left=self._left(),
            ended_now=driver.point_ends,
            asked_now=driver.asked,
            work=driver.work,
            eta_seconds=self._eta(now) if phase == "running" else None,
            blocks=sum(engine.blocks for engine in driver.engines.values()),
            engines=engines,
            calibrations=tuple(driver.calibrations.values()),
            recent=tuple(self._recent),
            failed=tuple(self._failed.values()),
            notes=tuple(self._notes),
            stop_asked_by=driver.stop_asked_by,
        )

    def _phase(self, alive: bool) -> Phase:
        driver = self._driver
        if driver.begun is None:
            return "not begun"
        if driver.ended is not None:
            return "stopped" if self._left() else "ended"
        if not alive:
            return "gone"
        return "running" if driver.stop_asked_by is None else "stopping"

    def _left(self) -> int:
        driver = self._driver
        if driver.ended is not None:
            return driver.left + driver.aside
        return max(driver.asked - driver.point_ends, 0) + driver.aside

    def _eta(self, now: datetime) -> float | None:
        """By the pace of points since the first work, and by the past, which knows of loads and calibrations too, where
        that is known and not used up: the later of the two. None where nobody can say."""
        driver, by_pace = self._driver, self._by_pace(now)
        if driver.estimated_seconds is None or driver.begun is None:
            calibrating = any(engine.job and engine.job.kind == "calibration" for engine in driver.engines.values())
            return None if calibrating else by_pace  # the pace of points says nothing of a calibration
        by_past = driver.estimated_seconds - seconds_between(driver.begun, now)
        if by_past <= 0 or driver.work[0] == driver.work[1]:
            return by_pace
        return by_past if by_pace is None else max(by_pace, by_past)

    def _by_pace(self, now: datetime) -> float | None:
        driver = self._driver
        done, expected = driver.work
        if driver.first_work is None or driver.work_at is None:
            return None
        begin, before = driver.first_work
        if done <= before:
            return None
        pace = seconds_between(begin, driver.work_at) / (done - before)
        return max(pace * (expected - done) - seconds_between(driver.work_at, now), 0.0)

    # ------------------------------------------------------------ the kinds; Any, because `KINDS` checks the types

    def _run_begun(self, time: datetime, *, command: Any, host: Any, pid: Any, points: Any, **rest: Any) -> None:
        self._driver = _Driver(
            command=command,
            cluster=rest["cluster"],
            host=host,
            pid=pid,
            begun=time,
            asked=points,
            work=(0.0, float(rest["expected"])),
            estimated_seconds=rest["estimated_seconds"],
        )

    def _points_added(self, time: datetime, *, points: Any) -> None:
        self._driver.asked += points

    def _engine_waits(self, time: datetime, *, engine: Any, reason: Any, of_kind: Any) -> None:
        slot = self._engine(engine, time)
        slot.unloaded(time, "waiting", reason)
        slot.of_kind = of_kind

    def _engine_starting(self, time: datetime, *, engine: Any, point: Any, of_kind: Any) -> None:
        slot = self._engine(engine, time)
        slot.unloaded(time, "starting")
        slot.of_kind = of_kind

    def _engine_ready(self, time: datetime, *, engine: Any, seconds: Any, host: Any, pid: Any, layers: Any) -> None:
        slot = self._engine(engine, time)
        slot.unloaded(time, "idle")
        slot.load_seconds, slot.host, slot.pid, slot.layers, slot.loaded_since = seconds, host, pid, layers, time

    def _engine_lost(self, time: datetime, *, engine: Any, reason: Any) -> None:
        self._engine(engine, time).unloaded(time, "lost", reason)

    def _engine_closed(self, time: datetime, *, engine: Any) -> None:
        self._engine(engine, time).unloaded(time, "closed")

    def _calibration_begun(self, time: datetime, *, engine: Any, calibration: Any, label: Any, **more: Any) -> None:
        shown = label if more["what"] is None else f"{label}: {more['what']}"
        self._engine(engine, time).begin(Job(kind="calibration", label=shown, since=time, what=more["what"]))
        done, expected = more["done"], more["expected"]
        known = self._driver.calibrations.get(calibration)
        if expected and (known is None or known.expected != expected or done < known.done):  # another part of it
            self._driver.calibrations[calibration] = Measured(
                since=time, before=done, updated=time, done=done, expected=expected
            )

    def _calibration_done(self, time: datetime, *, engine: Any, calibration: Any, **more: Any) -> None:
        self._engine(engine, time).end_job(time)
        known = self._driver.calibrations.get(calibration)
        if known is not None and more["done"] is not None:
            self._driver.calibrations[calibration] = replace(known, updated=time, done=more["done"])
        if more["done"] is None or more["what"] == ADDING_UP:
            self._driver.calibrations.pop(calibration, None)

    def _calibration_failed(self, time: datetime, *, engine: Any, calibration: Any, **more: Any) -> None:
        self._engine(engine, time).end_job(time)
        self._driver.calibrations.pop(calibration, None)

    def _block_begun(self, time: datetime, *, engine: Any, point: Any, label: Any, block: Any, of: Any) -> None:
        self._work_begins(time, engine, Job(kind="block", label=label, since=time, point=point, block=block, of=of))

    def _block_done(self, time: datetime, *, engine: Any, **rest: Any) -> None:
        slot = self._engine(engine, time)
        slot.end_job(time)
        slot.blocks += 1

    def _block_failed(self, time: datetime, *, engine: Any, **rest: Any) -> None:
        self._engine(engine, time).end_job(time)

    def _point_begun(self, time: datetime, *, engine: Any, point: Any, label: Any) -> None:
        self._work_begins(time, engine, Job(kind="point", label=label, since=time, point=point))

    def _work_begins(self, time: datetime, engine: str, job: Job) -> None:
        if self._driver.first_work is None:
            self._driver.first_work = time, self._driver.work[0]
        self._engine(engine, time).begin(job)

    def _point_done(self, time: datetime, *, point: Any, status: Any, **rest: Any) -> None:
        self._forget(point)
        end = PointEnd(time=time, point=point, status=status, **rest)
        self._ends[point] = status
        self._counts[end.status] += 1
        if status in ("failed", "invalid"):
            self._failed[point] = end
        self._recent.append(end)
        self._driver.point_ends += 1
        for engine in self._driver.engines.values():
            # Of one that failed no block goes on; of any other they may, as of one that a race drops.
            if engine.job and engine.job.point == point and (engine.job.kind == "point" or status == "failed"):
                engine.end_job(time)

    def _point_aside(self, time: datetime, *, point: Any, **rest: Any) -> None:
        if self._forget(point):
            self._driver.aside += 1

    def _forget(self, point: str) -> bool:
        """What came of a point earlier counts no more; whether there was anything."""
        status = self._ends.pop(point, None)
        if status is None:
            return False
        self._counts[status] -= 1
        self._failed.pop(point, None)
        return True

    def _progress(self, time: datetime, *, done: Any, expected: Any) -> None:
        self._driver.work, self._driver.work_at = (float(done), float(expected)), time

    def _note(self, time: datetime, *, text: Any) -> None:
        self._notes.append((time, text))

    def _stop_asked(self, time: datetime, *, by: Any) -> None:
        self._driver.stop_asked_by = by

    def _run_ended(self, time: datetime, *, code: Any, left: Any, **rest: Any) -> None:
        driver = self._driver
        driver.ended, driver.code, driver.left = time, code, left
        driver.aside = 0
        for engine in driver.engines.values():
            engine.unloaded(time, "closed")

    def _engine(self, name: str, time: datetime) -> EngineTally:
        return self._driver.engines.setdefault(name, EngineTally(name, time))
