"""What an engine does at the moment and how busy it was, summed up event by event."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

EnginePhase = Literal["waiting", "starting", "busy", "idle", "lost", "closed"]
"""`waiting`: it has no place yet."""
JobKind = Literal["calibration", "block", "point"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What an engine does at the moment."""

    kind: JobKind
    label: str
    since: datetime
    point: str | None = None
    """Fingerprint; None of a calibration."""
    block: int | None = None
    """Counted from 0, of `of`."""
    of: int | None = None
    what: str | None = None
    """Of a calibration in blocks, which one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineState:
    """One slot for an engine and what is in it."""

    name: str
    of_kind: str | None
    """What tells it from engines of other kinds, where the run has any."""
    phase: EnginePhase
    since: datetime
    """When that phase or its job began."""
    reason: str | None
    """Why it waits or was lost."""
    host: str | None
    pid: int | None
    load_seconds: float | None
    """None until it was loaded."""
    layers: int | None
    """MoE layers hooked."""
    job: Job | None
    blocks: int
    """Answered by this driver's engine of that name."""
    busy: float | None
    """Share of the time since it was loaded that it was at work, 0 to 1; None until it was loaded."""


@dataclass(slots=True)
class EngineTally:
    """What is summed up of a slot."""

    name: str
    since: datetime
    of_kind: str | None = None
    phase: EnginePhase = "starting"
    reason: str | None = None
    host: str | None = None
    pid: int | None = None
    load_seconds: float | None = None
    layers: int | None = None
    job: Job | None = None
    blocks: int = 0
    loaded_since: datetime | None = None
    loaded_seconds: float = 0.0
    """Of loads before."""
    busy_seconds: float = 0.0
    """Of jobs that are over."""

    def begin(self, job: Job) -> None:
        self.end_job(job.since)
        self.job, self.phase, self.since = job, "busy", job.since

    def end_job(self, time: datetime) -> None:
        if self.job is not None:
            self.busy_seconds += seconds_between(self.job.since, time)
            self.job, self.phase, self.since = None, "idle", time

    def unloaded(self, time: datetime, phase: EnginePhase, reason: str | None = None) -> None:
        self.end_job(time)
        if self.loaded_since is not None:
            self.loaded_seconds += seconds_between(self.loaded_since, time)
            self.loaded_since = None
        if phase != "closed" or self.phase != "lost":  # a lost engine is closed too: why is worth more
            self.phase, self.since, self.reason = phase, time, reason

    def state(self, now: datetime) -> EngineState:
        loaded = self.loaded_seconds + (seconds_between(self.loaded_since, now) if self.loaded_since else 0.0)
        busy = self.busy_seconds + (seconds_between(self.job.since, now) if self.job else 0.0)
        share = None if self.load_seconds is None else min(busy / loaded, 1.0) if loaded else 0.0
        return EngineState(
            name=self.name,
            of_kind=self.of_kind,
            phase=self.phase,
            since=self.since,
            reason=self.reason,
            host=self.host,
            pid=self.pid,
            load_seconds=self.load_seconds,
            layers=self.layers,
            job=self.job,
            blocks=self.blocks,
            busy=share,
        )


def seconds_between(begin: datetime, end: datetime) -> float:
    return max((end - begin).total_seconds(), 0.0)
