"""The jobs of one engine on its slots: start, calibrate, the work of the search; and what happens when one dies."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from banpick_exp.cluster.answers import Started
from banpick_exp.cluster.backends.base import Backend, Call, CallFailed, EngineLost, Slot
from banpick_exp.cluster.faults import ATTEMPTS, FATAL_TO_ENGINE, Restarts
from banpick_exp.cluster.ledger import Ledger
from banpick_exp.cluster.progress import Display, Running
from banpick_exp.evaluation.blocks import read_block
from banpick_exp.evaluation.calibration.scores import Part
from banpick_exp.evaluation.cut import Cut
from banpick_exp.records import PointRecord, outcomes_frame
from banpick_exp.run_folder import RunFolder
from banpick_exp.sweep.point import Point
from banpick_exp.sweep.search.strategy import Strategy, Work, setup

POLL_SECONDS = 0.5
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
    started: float = field(default_factory=time.perf_counter)


@dataclass(slots=True)
class Loads:
    """Engines loaded so far, and the seconds that took."""

    count: int = 0
    seconds: float = 0.0


class EngineGroup:
    """All work of one engine on its slots: first start, then calibrations, then what the search hands out, in order."""

    def __init__(
        self,
        backend: Backend,
        slots: Sequence[Slot],
        strategy: Strategy,
        works: Sequence[Work],
        *,
        ledger: Ledger,
        display: Display,
        folder: RunFolder,
        stock: Mapping[tuple[object, ...], str],
        cut: Cut | None,
        loads: Loads,
    ) -> None:
        """`works`: what `strategy.begin()` gave, at least one; `stock`: fingerprint of the `none` point of a set-up."""
        self._backend, self._slots, self._strategy = backend, slots, strategy
        self._ledger, self._display, self._loads = ledger, display, loads
        self._folder, self._stock, self._cut = folder, stock, cut
        self._jobs: deque[Job] = deque()
        self._calibrations: set[Need] = set()
        """Asked for so far; `_missing` are those that are not there yet."""
        self._missing: set[Need] = set()
        self._running: dict[Call, tuple[Slot, Job]] = {}
        self._restarts = Restarts()
        self._given_up = False
        self._add(works)

    def _add(self, works: Sequence[Work]) -> None:
        if self._given_up:
            return
        needed = {need: w.point for w in works if (need := w.point.calibration_need) is not None}
        for need in [need for need in needed if need not in self._calibrations]:
            self._calibrations.add(need)
            self._missing.add(need)
            self._jobs.append(Job("calibrate", needed[need]))
        self._jobs.extend(Job(work.kind, work.point, work) for work in works)

    def run(self) -> None:
        for slot in self._slots:
            self._start(slot, self._jobs[0].point)
        while self._running:
            self._display.update(
                [Running(slot.name, job.kind, job.point.label, job.started) for slot, job in self._running.values()]
            )
            for call in self._backend.wait(list(self._running), POLL_SECONDS):
                slot, job = self._running.pop(call)
                self._collect(slot, job, call)
            for slot in list(self._idle()):
                self._dispatch(slot)
            self._stop_overdue_starts()
        self._give_up("no engine could be kept running; see the points above")  # nothing is left unless it is so

    def _stop_overdue_starts(self) -> None:
        """An engine that hangs while loading would hold its GPUs for ever."""
        for call, (slot, job) in list(self._running.items()):
            limit = job.point.engine.start_timeout_seconds
            if job.kind == "start" and time.perf_counter() - job.started > limit:
                del self._running[call]
                self._engine_lost(slot, job, f"GetTimeoutError: not loaded after engine.start_timeout_seconds={limit}")

    def _start(self, slot: Slot, point: Point) -> None:
        self._restarts.started(slot.name)
        self._running[slot.start(point, str(self._folder.path))] = (slot, Job("start", point))

    def _dispatch(self, slot: Slot) -> None:
        """Give the slot the first job that can run now; one waiting for a calibration waits for the slot making it."""
        calibrating = {
            job.point.calibration_fingerprint for _, job in self._running.values() if job.kind == "calibrate"
        }
        for job in self._jobs:
            if job.work is not None and job.point.calibration_need in self._missing:
                continue
            if job.kind == "calibrate" and job.point.calibration_fingerprint in calibrating:
                continue  # two scores of one artifact: it is made once
            self._jobs.remove(job)
            job.started = time.perf_counter()
            self._running[self._call(slot, job)] = (slot, job)
            return

    def _call(self, slot: Slot, job: Job) -> Call:
        if job.kind == "calibrate":
            return slot.call("calibrate", job.point)
        if job.work is not None and job.kind == "block":
            return slot.call("run_block", job.point, self._cut, job.work.block)
        command = self._ledger.command(job.point)
        return slot.call("run_point", job.point, self._stock[setup(job.point)], command, self._cut)

    def _collect(self, slot: Slot, job: Job, call: Call) -> None:
        try:
            answer = call.result()
        except CallFailed as error:
            self._failed(slot, job, error)
        except EngineLost as error:
            self._engine_lost(slot, job, str(error))
        else:
            self._succeeded(job, answer)

    def _succeeded(self, job: Job, answer: Any) -> None:
        if isinstance(answer, Started):
            self._loads.count += 1
            self._loads.seconds += answer.load_seconds
            self._display.note(
                f"engine loaded in {answer.load_seconds:.1f} s: {answer.layers} MoE layers hooked "
                f"({', '.join(answer.routers)}), verified in {answer.verify_seconds:.2f} s"
            )
        elif job.kind == "calibrate":
            assert job.point.calibration_need is not None
            self._missing.discard(job.point.calibration_need)
            self._display.note(f"calibrated in {answer:.1f} s" if answer else "calibration found, not repeated")
        else:
            if isinstance(answer, PointRecord):
                self._ledger.finish(answer)
            self._check_stock(job)
            self._finished(job, answer if isinstance(answer, PointRecord) else None)

    def _check_stock(self, job: Job) -> None:
        """Stock comes first: where its answers are no answers, nothing else need be asked."""
        if not job.point.rule.is_stock:
            return
        if job.kind == "point":
            self._ledger.check_stock(job.point, self._folder.outcomes(job.point.fingerprint))
        elif self._cut is not None and job.work is not None:
            block = read_block(self._folder, job.point.fingerprint, self._cut, job.work.block)
            if block is not None:
                outcomes = [outcome for run in block.runs.values() for outcome in run.outcomes]
                self._ledger.check_stock(job.point, outcomes_frame(outcomes))

    def _idle(self) -> Iterator[Slot]:
        busy = [slot for slot, _ in self._running.values()]
        return (slot for slot in self._slots if slot.occupied and slot not in busy)

    def _finished(self, job: Job, record: PointRecord | None) -> None:
        """The work is over; `record` where its point is."""
        assert job.work is not None
        works = self._strategy.finished(job.work, record)
        self._display.expect(*self._strategy.progress())
        if record is not None:
            self._display.point(record)
        self._add(works)

    def _fail(self, job: Job, reason: str) -> None:
        self._finished(job, self._ledger.fail(job.point, reason))

    def _failed(self, slot: Slot, job: Job, error: CallFailed) -> None:
        """The call raised. The engine stays, unless the error says that it cannot be trusted any more."""
        name = job.point.fingerprint if job.work is not None else f"{job.kind}-{slot.name}"
        reason = f"{error} (whole trace: {self._ledger.keep_trace(name, error.trace)})"
        if job.work is not None:
            self._fail(job, reason)
        elif job.kind == "calibrate":
            self._drop_uncalibrated(job.point, reason)
        if job.kind == "start" or error.error in FATAL_TO_ENGINE:
            self._display.note(f"engine stopped: {reason}")
            slot.stop()
            if job.kind != "start":
                self._restart(slot, job.point)
            else:
                self._give_up_if_last(reason)

    def _engine_lost(self, slot: Slot, job: Job, reason: str) -> None:
        """The engine is gone. A call may have run or not: points are idempotent, so it is repeated."""
        self._display.note(f"engine lost ({reason})")
        slot.stop()
        job.attempts += 1
        if job.kind != "start":
            if job.attempts < ATTEMPTS:
                self._jobs.appendleft(job)
            elif job.work is not None:
                self._fail(job, f"its engine died {ATTEMPTS} times: {reason}")
            else:
                self._drop_uncalibrated(job.point, reason)
        self._restart(slot, job.point)

    def _restart(self, slot: Slot, point: Point) -> None:
        if self._jobs and self._restarts.may_start_again(slot.name):
            self._start(slot, point)
        else:
            self._give_up_if_last("its engine could not be kept running")

    def _drop_uncalibrated(self, point: Point, reason: str) -> None:
        for job in [j for j in self._jobs if j.point.calibration_need == point.calibration_need]:
            self._jobs.remove(job)
            if job.work is not None:
                self._fail(job, f"its calibration failed: {reason}")

    def _give_up_if_last(self, reason: str) -> None:
        if not self._running and not any(self._idle()):
            self._give_up(reason)

    def _give_up(self, reason: str) -> None:
        """No engine is left: what is asked for, and what still waits for other work, fails."""
        self._given_up = True
        while self._jobs:
            job = self._jobs.popleft()
            if job.work is not None:
                self._fail(job, reason)
        for point in self._strategy.waiting():
            self._display.point(self._ledger.fail(point, reason))
