"""What is left to do on the engines of one kind, in order; what reads a calibration waits for it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from banpick_exp.evaluation.calibration.scores import Part
from banpick_exp.sweep.point import Point
from banpick_exp.sweep.search.strategy import Work

Need = tuple[str, tuple[Part, ...]]
"""A calibration, and parts of it."""


@dataclass(slots=True)
class Job:
    """What one slot is doing: `start`, `calibrate`, or the `point` or `block` that a search asked for.

    `point` says on which engine and with which settings.
    """

    kind: str
    point: Point
    work: Work | None = None
    attempts: int = 0
    """Engines that died under it since it last got on (`breaking`)."""
    started: float = field(default_factory=time.perf_counter)


class Jobs:
    """A queue; true while something is in it."""

    def __init__(self) -> None:
        self._waiting: deque[Job] = deque()
        self._asked: set[Need] = set()
        """Calibrations asked for so far; `_missing` are those that are not there yet."""
        self._missing: set[Need] = set()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, works: Sequence[Work]) -> None:
        """What a search asks for, behind what waits; with the calibrations that it reads before it."""
        needed = {need: w.point for w in works if (need := w.point.calibration_need) is not None}
        for need in [need for need in needed if need not in self._asked]:
            self._asked.add(need)
            self._missing.add(need)
            self._waiting.append(Job("calibrate", needed[need]))
        self._waiting.extend(Job(work.kind, work.point, work) for work in works)

    def first(self) -> Job:
        """What has waited longest; it stays."""
        return self._waiting[0]

    def take(self, calibrating: Collection[str | None]) -> Job | None:
        """The first that can run now. `calibrating`: fingerprints of what is being measured at this moment."""
        for index, job in enumerate(self._waiting):
            if job.work is not None and job.point.calibration_need in self._missing:
                continue
            if job.kind == "calibrate" and job.point.calibration_fingerprint in calibrating:
                continue  # two scores of one artifact: it is made once
            del self._waiting[index]
            job.started = time.perf_counter()
            return job
        return None

    def again(self, job: Job) -> None:
        """Its engine died: before all else."""
        self._waiting.appendleft(job)

    def calibrated(self, point: Point) -> None:
        """What the point reads is there."""
        assert point.calibration_need is not None
        self._missing.discard(point.calibration_need)

    def uncalibrated(self, point: Point) -> list[Job]:
        """Takes out the works that read what the point reads: it cannot be had."""
        need = point.calibration_need
        lost = [job for job in self._waiting if job.point.calibration_need == need and job.work is not None]
        self._waiting = deque(job for job in self._waiting if job.point.calibration_need != need)
        return lost

    def drop_point(self, point: Point) -> None:
        """The point is over: no block of it is asked for any more."""
        name = point.fingerprint
        self._waiting = deque(job for job in self._waiting if job.work is None or job.point.fingerprint != name)

    def clear(self) -> list[Job]:
        """Takes out all works."""
        lost = [job for job in self._waiting if job.work is not None]
        self._waiting.clear()
        return lost
