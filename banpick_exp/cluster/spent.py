"""What the engines of a run were held for and did meanwhile, over all its drivers, from the events alone.

An engine holds its GPUs (or cores) from its start to the event that says it is lost or closed, not while it waits for a
place. Of a driver that ended without a word its last event counts as its end. Where events cannot be written nothing
can be counted, and no budget ends the run. Imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from banpick_exp.cluster.engine_state import seconds_between
from banpick_exp.cluster.events import Event, read
from banpick_exp.cluster.plan import RunPlan
from banpick_exp.errors import UserError
from banpick_exp.sweep.estimate import devices_of
from banpick_exp.sweep.price import hours_text

PHASES = {"calibration": "calibration", "block": "answer", "point": "point"}
"""First word of an event -> what is done. The last call of a point answers, times, or both."""


@dataclass(frozen=True, slots=True)
class Devices:
    """What one engine holds."""

    gpus: int
    cores: int
    """Of a CPU engine."""


@dataclass(slots=True)
class Account:
    """Takes the events of a run in their order; engine-seconds by phase, hours by device."""

    devices: Callable[[str], Devices]
    """What an engine of that name holds."""
    drivers: int = 0
    loads: int = 0
    wall_seconds: float = 0.0
    """Of drivers that are over."""
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("load", *PHASES.values()), 0.0))
    _gpu_seconds: float = 0.0
    _core_seconds: float = 0.0
    _held: dict[str, datetime] = field(default_factory=dict)
    """Engines that hold devices now -> since when."""
    _loading: dict[str, datetime] = field(default_factory=dict)
    _jobs: dict[str, tuple[str, str, datetime]] = field(default_factory=dict)
    """Engine -> phase, point and begin of what it does."""
    _begun: datetime | None = None
    _last: datetime | None = None

    def add(self, event: Event) -> None:
        """Take the next event."""
        kind, fields, time = event.kind, event.fields, event.time
        engine = str(fields.get("engine", ""))
        first, _, what = kind.partition("_")
        if kind == "run_begun":
            self._end_driver(self._last or time)
            self._begun, self.drivers = time, self.drivers + 1
        elif kind == "run_ended":
            self._end_driver(time)
        elif kind == "engine_starting":
            self._held.setdefault(engine, time)
            self._loading[engine] = time
        elif kind == "engine_waits":
            self._release(engine, time)
        elif kind == "engine_ready":
            self._held.setdefault(engine, time)
            if (since := self._loading.pop(engine, None)) is not None:
                self.seconds["load"] += seconds_between(since, time)
                self.loads += 1
        elif kind in ("engine_lost", "engine_closed"):
            self._end_job(engine, time)
            self._release(engine, time)
        elif kind == "point_done":
            for name in [name for name, (_, point, _) in self._jobs.items() if point == fields["point"]]:
                if self._jobs[name][0] == "point":
                    self._end_job(name, time)
        elif first in PHASES and what == "begun":
            self._end_job(engine, time)
            self._jobs[engine] = PHASES[first], str(fields.get("point", "")), time
        elif first in PHASES and what in ("done", "failed"):
            self._end_job(engine, time)
        self._last = time

    def gpu_hours(self, now: datetime | None = None) -> float:
        """Held until now, or until the last event."""
        return (self._gpu_seconds + sum(seconds * d.gpus for seconds, d in self._open(now))) / 3600

    def cpu_hours(self, now: datetime | None = None) -> float:
        """Core-hours of CPU engines, the same."""
        return (self._core_seconds + sum(seconds * d.cores for seconds, d in self._open(now))) / 3600

    def wall(self) -> float:
        """Seconds of all drivers, from the begin of each to its end or its last event."""
        running = seconds_between(self._begun, self._last) if self._begun and self._last else 0.0
        return self.wall_seconds + running

    def _open(self, now: datetime | None) -> Iterable[tuple[float, Devices]]:
        until = now or self._last
        return [] if until is None else [(seconds_between(t, until), self.devices(e)) for e, t in self._held.items()]

    def _end_driver(self, time: datetime) -> None:
        for engine in list(self._jobs):
            self._end_job(engine, time)
        for engine in list(self._held):
            self._release(engine, time)
        if self._begun is not None:
            self.wall_seconds += seconds_between(self._begun, time)
        self._begun = None

    def _end_job(self, engine: str, time: datetime) -> None:
        if (job := self._jobs.pop(engine, None)) is not None:
            self.seconds[job[0]] += seconds_between(job[2], time)

    def _release(self, engine: str, time: datetime) -> None:
        self._loading.pop(engine, None)
        if (since := self._held.pop(engine, None)) is not None:
            held, devices = seconds_between(since, time), self.devices(engine)
            self._gpu_seconds += held * devices.gpus
            self._core_seconds += held * devices.cores


def account_of(plan: RunPlan) -> Account:
    """An empty account for a run, which knows what each of its engines holds."""
    known: Mapping[str, Devices] = {
        kind.point.engine_fingerprint: Devices(
            kind.point.engine.gpus, 0 if kind.point.engine.gpus else devices_of(kind.point, plan.engines)
        )
        for kind in plan.estimate.kinds
    }

    def devices(name: str) -> Devices:
        # An engine is named after its kind; a run whose kinds changed is no run that can be resumed.
        return next((found for kind, found in known.items() if kind in name), Devices(0, 0))

    return Account(devices)


class RunBudgetWatch:
    """Whether what the run may spend is spent: earlier drivers' part too. Reads on in the events at each look."""

    def __init__(self, plan: RunPlan) -> None:
        self._budget, self._folder = plan.sweep.budget, plan.folder
        self._limited = self._budget.gpu_hours is not None or self._budget.cpu_hours is not None
        self._account = account_of(plan) if self._limited else None
        self._offset = 0

    def exhausted(self) -> str | None:
        """Why nothing more may be begun, None where something may."""
        if self._account is None:
            return None
        try:
            reading = read(self._folder, self._offset)
        except OSError:
            return None  # the next look may do
        self._offset = reading.offset
        for event in reading.events:
            self._account.add(event)
        now = datetime.now(UTC)
        spent = (
            ("gpu_hours", self._budget.gpu_hours, self._account.gpu_hours, "GPUs"),
            ("cpu_hours", self._budget.cpu_hours, self._account.cpu_hours, "cores"),
        )
        for name, most, held, what in spent:
            if most is not None and (hours := held(now)) >= most:
                return (
                    f"budget.{name}={most:g} is spent (engines have held {what} for {hours_text(hours)} hours, all"
                    f" drivers of this run together; to go on, type a larger budget.{name} too)"
                )
        return None


def check_unspent(plan: RunPlan) -> None:
    """Raises UserError where a run that is gone on with has points left and nothing to spend on them: before an engine
    is loaded for none."""
    if not plan.sweep.resume or len(plan.folder.record_files()) >= len(plan.sweep.points):
        return
    if (why := RunBudgetWatch(plan).exhausted()) is not None:
        raise UserError(f"{why}: nothing was started.")
