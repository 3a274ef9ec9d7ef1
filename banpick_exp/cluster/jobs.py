"""What is left to do on the engines of one kind, in order; what reads a calibration waits for it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from banpick_exp.cluster.calibrating import Calibrating, Step, steps_at_most
from banpick_exp.evaluation.calibration.scores import Part
from banpick_exp.sweep.point import Point
from banpick_exp.sweep.search.company import belong_together, has_company
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
    calibrating: Calibrating | None = None
    step: Step | None = None
    """Of a calibration."""
    attempts: int = 0
    """Engines that died under it since it last got on (`breaking`)."""
    company: tuple[Job, ...] = ()
    """Jobs that are done in the same call."""
    alone: bool = False
    """Whether it is to be done without company: a call in company did not bring it to an end."""
    started: float = field(default_factory=time.perf_counter)


class Jobs:
    """A queue; true while something is in it."""

    def __init__(self, calibrations: Path) -> None:
        """`calibrations`: the folder that holds them."""
        self._folder = calibrations
        self._waiting: deque[Job] = deque()
        self._asked: set[Need] = set()
        """Calibrations asked for so far; `_missing` are those that are not there yet."""
        self._missing: set[Need] = set()
        self._calibrating: dict[str, deque[Calibrating]] = {}
        """By artifact, what is to be measured of it: one after the other, for the artifact is made once."""

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, works: Sequence[Work]) -> None:
        """What a search asks for, behind what waits; a calibration just before the first that reads it, so that stock,
        whose answers can end a sweep, is not kept waiting by it."""
        for work in works:
            need = work.point.calibration_need
            if need is not None and need not in self._asked:
                self._asked.add(need)
                self._missing.add(need)
                wanted = Calibrating(work.point, self._folder)
                waiting = self._calibrating.setdefault(need[0], deque())
                waiting.append(wanted)
                if len(waiting) == 1:
                    self._waiting.extend(_jobs(wanted, wanted.begin()))
            self._waiting.append(Job(work.kind, work.point, work))

    def to_come(self) -> int:
        """At most how many steps of calibrations may be asked for yet, when those that are out are over."""
        begun = [waiting for waiting in self._calibrating.values() if waiting]
        return sum(
            max([waiting[0].to_come(), *(steps_at_most(each.point) for each in list(waiting)[1:])]) for waiting in begun
        )

    def take(self, elsewhere: Collection[str | None] = ()) -> Job | None:
        """The first that can run now. `elsewhere`: calibrations that engines of other kinds measure at this moment."""
        for index, job in enumerate(self._waiting):
            if job.kind == "calibrate" and job.point.calibration_fingerprint in elsewhere:
                continue  # it is made once
            if job.work is not None and job.point.calibration_need in self._missing:
                continue
            del self._waiting[index]
            job.started = time.perf_counter()
            return job
        return None

    def alike(self, job: Job, most: int) -> list[Job]:
        """Those that wait and could be done in one call with a job that was taken, `most` at most."""
        if not _is_open(job):
            return []
        found: list[Job] = []
        for other in self._waiting:
            if len(found) == most:
                break
            if _is_open(other) and self._fits(job, other):
                found.append(other)
        return found

    def join(self, job: Job, company: Sequence[Job]) -> None:
        """Take these out too: they are done in the job's call."""
        job.company = tuple(company)
        taken = {id(each) for each in company}
        self._waiting = deque(each for each in self._waiting if id(each) not in taken)

    def _fits(self, job: Job, other: Job) -> bool:
        assert job.work is not None and other.work is not None
        return belong_together(job.work, other.work) and other.point.calibration_need not in self._missing

    def again(self, job: Job) -> None:
        """Its engine died: before all else, unless nobody asks for it any more."""
        if job.calibrating is None or self._current(job.point) is job.calibrating:
            self._waiting.appendleft(job)

    def calibrated(self, job: Job, seconds: float) -> float | None:
        """A step of a calibration is over; the next ones come before all else.

        Returns the seconds of engines that the calibration took where it is there now, else None.
        """
        current = self._current(job.point)
        if current is None or current is not job.calibrating:  # it failed meanwhile
            return None
        assert job.step is not None
        self._waiting.extendleft(reversed(_jobs(current, current.finished(job.step, seconds))))
        if not current.over:
            return None
        assert current.point.calibration_need is not None
        self._missing.discard(current.point.calibration_need)
        self._next_calibration(current)
        return current.seconds

    def uncalibrated(self, job: Job) -> list[Job]:
        """Takes out the works that read what the job was to measure: it cannot be had.

        Who asks for it again has it tried again. Nothing where the job is of an attempt that failed before.
        """
        current, need = self._current(job.point), job.point.calibration_need
        if current is None or current is not job.calibrating:
            return []
        assert need is not None
        lost = [each for each in self._waiting if each.point.calibration_need == need and each.work is not None]
        self._waiting = deque(each for each in self._waiting if each.point.calibration_need != need)
        self._asked.discard(need)
        self._next_calibration(current)
        return lost

    def _current(self, point: Point) -> Calibrating | None:
        """What is measured of the point's calibration now, where that is what the point reads."""
        waiting = self._calibrating.get(point.calibration_fingerprint or "")
        if not waiting or waiting[0].point.calibration_need != point.calibration_need:
            return None
        return waiting[0]

    def _next_calibration(self, over: Calibrating) -> None:
        waiting = self._calibrating[over.point.calibration_fingerprint or ""]
        waiting.popleft()
        if waiting:
            self._waiting.extendleft(reversed(_jobs(waiting[0], waiting[0].begin())))

    def drop_point(self, point: Point) -> None:
        """The point is over: no block of it is asked for any more."""
        name = point.fingerprint
        self._waiting = deque(job for job in self._waiting if job.work is None or job.point.fingerprint != name)

    def clear(self) -> list[Job]:
        """Takes out all works."""
        lost = [job for job in self._waiting if job.work is not None]
        self._waiting.clear()
        return lost


def _is_open(job: Job) -> bool:
    return job.work is not None and not job.alone and not job.attempts and has_company(job.work)


def _jobs(calibrating: Calibrating, steps: Sequence[Step]) -> list[Job]:
    return [Job("calibrate", calibrating.point, calibrating=calibrating, step=step) for step in steps]
