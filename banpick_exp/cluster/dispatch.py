"""The jobs of one engine on its slots: start, calibrate, the work of the search; and what happens when one dies."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from banpick_exp.cluster.actor import EngineActor
from banpick_exp.cluster.backends import ray as placement
from banpick_exp.cluster.progress import Display
from banpick_exp.sweep.plan import SweepPlan
from banpick_exp.sweep.point import Point
from banpick_exp.sweep.rerun import rerun_command
from banpick_exp.sweep.search.strategy import Spending, Work, setup

if TYPE_CHECKING:
    from banpick_exp.cluster.run import Sweep

ATTEMPTS = 2
"""A point whose engine died is tried once more on a new engine; one that fails by itself is not."""
POLL_SECONDS = 0.5
FATAL_TO_ENGINE = ("EngineError", "EngineDeadError")
"""Errors of a call after which the engine can no longer be trusted with the next point."""


@dataclass(slots=True)
class Job:
    """What one slot is doing: `start`, `calibrate`, or the `point` or `block` that a search asked for.

    `point` says on which engine and with which settings.
    """

    kind: str
    point: Point
    work: Work | None = None
    attempts: int = 0
    started: float = field(default_factory=time.perf_counter)


class EngineGroup:
    """All work of one engine on its slots: first start, then calibrations, then what the search hands out, in order."""

    def __init__(
        self, sweep: Sweep, slots: list[placement.Slot], spending: Spending, works: list[Work], display: Display
    ) -> None:
        """`works`: what `spending.begin()` gave; at least one."""
        self.sweep, self.slots, self.spending, self.display = sweep, slots, spending, display
        self.stock = _stock_fingerprints(sweep.plan)
        self.jobs: deque[Job] = deque()
        self.calibrations: set[str] = set()
        """Asked for so far; `missing` are those that are not there yet."""
        self.missing: set[str] = set()
        self.running: dict[Any, tuple[placement.Slot, Job]] = {}
        self.starts: dict[str, int] = {}
        self.given_up = False
        self._add(works)

    def _add(self, works: list[Work]) -> None:
        if self.given_up:
            return
        needed = {w.point.calibration_fingerprint: w.point for w in works if w.point.calibration_fingerprint}
        for name in [name for name in needed if name not in self.calibrations]:
            self.calibrations.add(name)
            self.missing.add(name)
            self.jobs.append(Job("calibrate", needed[name]))
        self.jobs.extend(Job(work.kind, work.point, work) for work in works)

    def run(self) -> None:
        for slot in self.slots:
            self._start(slot, self.jobs[0].point)
        while self.running:
            ready, _ = ray.wait(list(self.running), timeout=POLL_SECONDS)
            self.display.update(running=[(s.name, j.kind, j.point.label, j.started) for s, j in self.running.values()])
            for reference in ready:
                slot, job = self.running.pop(reference)
                self._collect(slot, job, reference)
            for slot in list(self._idle()):
                self._dispatch(slot)
            self._stop_overdue_starts()
        self._give_up("no engine could be kept running; see the points above")  # nothing is left unless it is so

    def _stop_overdue_starts(self) -> None:
        """An engine that hangs while loading would hold its GPUs for ever."""
        for reference, (slot, job) in list(self.running.items()):
            limit = job.point.engine.start_timeout_seconds
            if job.kind == "start" and time.perf_counter() - job.started > limit:
                del self.running[reference]
                self._engine_lost(slot, job, GetTimeoutError(f"not loaded after engine.start_timeout_seconds={limit}"))

    def _start(self, slot: placement.Slot, point: Point) -> None:
        self.starts[slot.name] = self.starts.get(slot.name, 0) + 1
        slot.start_actor(EngineActor, point, str(self.sweep.plan.run_dir), str(self.sweep.calibration_dir))
        self.running[slot.actor.start.remote()] = (slot, Job("start", point))

    def _dispatch(self, slot: placement.Slot) -> None:
        """Give the slot the first job that can run now; one waiting for a calibration waits for the slot making it."""
        for job in self.jobs:
            if job.work is not None and job.point.calibration_fingerprint in self.missing:
                continue
            self.jobs.remove(job)
            job.started = time.perf_counter()
            if job.kind == "calibrate":
                call = slot.actor.calibrate.remote(job.point)
            elif job.work is not None and job.kind == "block":
                call = slot.actor.run_block.remote(job.point, self.sweep.plan.search, job.work.block)
            else:
                command = rerun_command(self.sweep.plan, job.point)
                call = slot.actor.run_point.remote(
                    job.point, self.stock[setup(job.point)], command, self.sweep.plan.search
                )
            self.running[call] = (slot, job)
            return

    def _collect(self, slot: placement.Slot, job: Job, reference: Any) -> None:
        try:
            answer = ray.get(reference)
        except RayTaskError as error:
            self._failed(slot, job, error)
        except (RayActorError, GetTimeoutError, RayError) as error:
            self._engine_lost(slot, job, error)
        else:
            self._succeeded(job, answer)

    def _succeeded(self, job: Job, answer: Any) -> None:
        if job.kind == "start":
            self.sweep.engine_loads += 1
            self.sweep.load_seconds += answer["load_seconds"]
            self.display.note(
                f"engine loaded in {answer['load_seconds']:.1f} s: {len(answer['layers'])} MoE layers hooked "
                f"({', '.join(answer['router'])}), verified in {answer['verify_seconds']:.2f} s"
            )
        elif job.kind == "calibrate":
            assert job.point.calibration_fingerprint is not None
            self.missing.discard(job.point.calibration_fingerprint)
            self.display.note(f"calibrated in {answer:.1f} s" if answer else "calibration found, not repeated")
        else:
            self._finished(job, answer if job.kind == "point" else None)

    def _idle(self) -> Iterator[placement.Slot]:
        busy = [slot for slot, _ in self.running.values()]
        return (slot for slot in self.slots if slot.actor is not None and slot not in busy)

    def _finished(self, job: Job, record: dict[str, Any] | None) -> None:
        """The work is over; `record` where its point is."""
        assert job.work is not None
        if record is not None:
            self.sweep.finish_point(record)
        works = self.spending.finished(job.work, record)
        self.display.expect(*self.spending.progress())
        if record is not None:
            self.display.point(record)
        self._add(works)

    def _fail(self, job: Job, reason: str) -> None:
        self._finished(job, self.sweep.fail_point(job.point, reason))

    def _failed(self, slot: placement.Slot, job: Job, error: RayTaskError) -> None:
        """The call raised. The engine stays, unless the error says that it cannot be trusted any more."""
        cause = error.cause if isinstance(error.cause, BaseException) else error
        reason = f"{type(cause).__name__}: {_last_line(cause)}"
        if job.work is not None:
            self._fail(job, reason)
        elif job.kind == "calibrate":
            self._drop_uncalibrated(job.point, reason)
        if job.kind == "start" or type(cause).__name__ in FATAL_TO_ENGINE:
            self.display.note(f"engine stopped: {reason}")
            slot.stop_actor()
            if job.kind != "start":
                self._restart(slot, job.point)
            else:
                self._give_up_if_last(reason)

    def _engine_lost(self, slot: placement.Slot, job: Job, error: RayError) -> None:
        """The actor died or its node left. A call may have run or not: points are idempotent, so it is repeated."""
        reason = f"{type(error).__name__}: {_last_line(error)}"
        self.display.note(f"engine lost ({reason})")
        slot.stop_actor()
        job.attempts += 1
        if job.kind != "start":
            if job.attempts < ATTEMPTS:
                self.jobs.appendleft(job)
            elif job.work is not None:
                self._fail(job, f"its engine died {ATTEMPTS} times: {reason}")
            else:
                self._drop_uncalibrated(job.point, reason)
        self._restart(slot, job.point)

    def _restart(self, slot: placement.Slot, point: Point) -> None:
        if self.jobs and self.starts[slot.name] <= ATTEMPTS:
            self._start(slot, point)
        else:
            self._give_up_if_last("its engine could not be kept running")

    def _drop_uncalibrated(self, point: Point, reason: str) -> None:
        for job in [j for j in self.jobs if j.point.calibration_fingerprint == point.calibration_fingerprint]:
            self.jobs.remove(job)
            if job.work is not None:
                self._fail(job, f"its calibration failed: {reason}")

    def _give_up_if_last(self, reason: str) -> None:
        if not self.running and not any(self._idle()):
            self._give_up(reason)

    def _give_up(self, reason: str) -> None:
        """No engine is left: what is asked for, and what still waits for other work, fails."""
        self.given_up = True
        while self.jobs:
            job = self.jobs.popleft()
            if job.work is not None:
                self._fail(job, reason)
        for point in self.spending.waiting():
            record = self.sweep.fail_point(point, reason)
            self.sweep.finish_point(record)
            self.display.point(record)


def _stock_fingerprints(plan: SweepPlan) -> dict[tuple[object, ...], str]:
    return {setup(p): p.fingerprint for p in plan.points if p.rule.name == "none"}


def _last_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else repr(error)
