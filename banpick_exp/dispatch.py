"""The jobs of one engine on its slots: start, calibrate, points; and what happens when an engine dies under one."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from banpick_exp import placement
from banpick_exp.actor import EngineActor
from banpick_exp.display import Display
from banpick_exp.plan import SweepPlan
from banpick_exp.points import Point
from banpick_exp.rerun import rerun_command

if TYPE_CHECKING:
    from banpick_exp.runner import Sweep

ATTEMPTS = 2
"""A point whose engine died is tried once more on a new engine; one that fails by itself is not."""
POLL_SECONDS = 0.5
FATAL_TO_ENGINE = ("EngineError", "EngineDeadError")
"""Errors of a call after which the engine can no longer be trusted with the next point."""


@dataclass(slots=True)
class Job:
    """What one slot is doing: `start`, `calibrate` or `point`. `point` says on which engine and with which settings."""

    kind: str
    point: Point
    attempts: int = 0
    started: float = field(default_factory=time.perf_counter)


class EngineGroup:
    """All points of one engine on its slots: first start, then calibrations, then points in plan order."""

    def __init__(self, sweep: Sweep, slots: list[placement.Slot], points: list[Point], display: Display) -> None:
        self.sweep, self.slots, self.display = sweep, slots, display
        self.stock = _stock_fingerprints(sweep.plan)
        calibrations = {p.calibration_fingerprint: p for p in points if p.calibration_fingerprint}
        self.jobs = deque([Job("calibrate", p) for p in calibrations.values()] + [Job("point", p) for p in points])
        self.missing = set(calibrations)
        self.running: dict[Any, tuple[placement.Slot, Job]] = {}
        self.starts: dict[str, int] = {}

    def run(self) -> None:
        for slot in self.slots:
            self._start(slot, self.jobs[0].point)
        while self.running:
            ready, _ = ray.wait(list(self.running), timeout=POLL_SECONDS)
            self.display.update(running=[(s.name, j.kind, j.point.label, j.started) for s, j in self.running.values()])
            for reference in ready:
                slot, job = self.running.pop(reference)
                self._collect(slot, job, reference)
                if slot.actor is not None and slot not in [s for s, _ in self.running.values()]:
                    self._dispatch(slot)
            self._stop_overdue_starts()
        # Only left when every slot is gone.
        for job in self.jobs:
            if job.kind == "point":
                self._finished(
                    self.sweep.fail_point(job.point, "no engine could be kept running; see the points above")
                )

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
            if job.kind == "point" and job.point.calibration_fingerprint in self.missing:
                continue
            self.jobs.remove(job)
            job.started = time.perf_counter()
            if job.kind == "calibrate":
                call = slot.actor.calibrate.remote(job.point)
            else:
                command = rerun_command(self.sweep.plan, job.point)
                call = slot.actor.run_point.remote(job.point, self.stock[_setup(job.point)], command)
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
            for slot in self._idle():
                self._dispatch(slot)
        else:
            self._finished(answer)

    def _idle(self) -> Iterator[placement.Slot]:
        busy = [slot for slot, _ in self.running.values()]
        return (slot for slot in self.slots if slot.actor is not None and slot not in busy)

    def _finished(self, record: dict[str, Any]) -> None:
        self.sweep.finish_point(record)
        self.display.point(record)

    def _failed(self, slot: placement.Slot, job: Job, error: RayTaskError) -> None:
        """The call raised. The engine stays, unless the error says that it cannot be trusted any more."""
        cause = error.cause if isinstance(error.cause, BaseException) else error
        reason = f"{type(cause).__name__}: {_last_line(cause)}"
        if job.kind == "point":
            self._finished(self.sweep.fail_point(job.point, reason))
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
            elif job.kind == "point":
                self._finished(self.sweep.fail_point(job.point, f"its engine died {ATTEMPTS} times: {reason}"))
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
            if job.kind == "point":
                self._finished(self.sweep.fail_point(job.point, f"its calibration failed: {reason}"))

    def _give_up_if_last(self, reason: str) -> None:
        if not self.running and not any(self._idle()):
            while self.jobs:
                job = self.jobs.popleft()
                if job.kind == "point":
                    self._finished(self.sweep.fail_point(job.point, reason))


def _setup(point: Point) -> tuple[str, str]:
    """What two points must share to be paired: the engine, and the task with its data."""
    return point.engine_fingerprint, f"{point.data_identity} {point.task.model_dump_json()}"


def _stock_fingerprints(plan: SweepPlan) -> dict[tuple[str, str], str]:
    return {_setup(p): p.fingerprint for p in plan.points if p.rule.name == "none"}


def _last_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else repr(error)
