"""The jobs of one engine on its slots: start, calibrate, the work of the search; and what happens when one dies.

The driver's loop. Every transition is an event (`events`); what has finished is on the disk before it is heard of here.
An engine that is lost is started again, on another node where its own is gone, as long as work gets done in between;
where none can be kept running, what is left stays pending and the run says how to go on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from banpick_exp.cluster import stop_request
from banpick_exp.cluster.answers import Started
from banpick_exp.cluster.backends.base import Backend, Call, CallFailed, EngineLost, Slot
from banpick_exp.cluster.deadline import Deadlines
from banpick_exp.cluster.events import Events
from banpick_exp.cluster.faults import ATTEMPTS, DIED, FATAL_TO_ENGINE, Restarts
from banpick_exp.cluster.jobs import Job, Jobs
from banpick_exp.cluster.ledger import Ledger
from banpick_exp.cluster.pulse import Watch
from banpick_exp.evaluation.blocks import read_block
from banpick_exp.evaluation.cut import Cut
from banpick_exp.records import PointRecord, outcomes_frame
from banpick_exp.run_folder import RunFolder
from banpick_exp.sweep.point import Point
from banpick_exp.sweep.search.strategy import Strategy, Work, setup

POLL_SECONDS = 0.5
WATCH_SECONDS = 2.0
"""Between two looks at the engines' signs of life, the place they run in and a request to stop."""


@dataclass(slots=True)
class Loads:
    """Engines loaded so far, and the seconds that took."""

    count: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Supplies:
    """What all engines of a run share."""

    backend: Backend
    ledger: Ledger
    events: Events
    folder: RunFolder
    stock: Mapping[tuple[object, ...], str]
    """Fingerprint of the `none` point of a set-up."""
    cut_of: Callable[[Point], Cut | None]
    progress: Callable[[], tuple[float, float]]
    """Work done and expected of the whole run, in points."""
    loads: Loads
    dead_seconds: float
    """After which a thing that gives no sign of life is dead."""
    spent: Callable[[], str | None] = lambda: None
    """Why the budget of the run allows nothing more, where that is so."""


class EngineGroup:
    """All work of one engine on its slots: first start, then calibrations, then what the search hands out, in order."""

    def __init__(self, supplies: Supplies, slots: Sequence[Slot], strategy: Strategy, works: Sequence[Work]) -> None:
        """`works`: what `strategy.begin()` gave, at least one."""
        self._with, self._slots, self._strategy = supplies, slots, strategy
        self._jobs = Jobs()
        self._running: dict[Call, tuple[Slot, Job]] = {}
        self._resting: dict[str, tuple[float, Slot, Point]] = {}
        """Slots that are started again when their time has come (perf_counter)."""
        self._restarts = Restarts()
        self._watch = Watch(supplies.folder, supplies.dead_seconds)
        self._deadlines = Deadlines()
        self._watched = 0.0
        self.stopping: str | None = None
        """Why nothing more is begun, where that is so."""
        self._jobs.add(works)

    # ------------------------------------------------------------ the loop

    def run(self) -> None:
        """Until all work is done, or none can be. Raises PlaceLost where the place itself is gone."""
        for slot in self._slots:
            self._start(slot, self._jobs.first().point)
        while self._running or self._resting:
            for call in self._with.backend.wait(list(self._running), POLL_SECONDS):
                slot, job = self._running.pop(call)
                self._collect(slot, job, call)
            self._start_rested()
            if time.perf_counter() - self._watched > WATCH_SECONDS:
                self._look_around()
                self._watched = time.perf_counter()
            for slot in list(self._idle()):
                if not self._dispatch(slot):
                    break  # what one idle slot cannot run, none can
        if self._jobs and self.stopping is None:
            self.stopping = "no engine could be kept running"

    def _look_around(self) -> None:
        self._with.backend.check()
        if self.stopping is None and (stop := stop_request.asked(self._with.folder)) is not None:
            self.stopping = f"stop was asked for by {stop.by}"
            self._with.events.write("stop_asked", by=stop.by)
            self._resting.clear()
        elif self.stopping is None and (spent := self._with.spent()) is not None:
            self.stopping = spent
            self._note(f"nothing more is begun: {spent}")
            self._resting.clear()
        for call, (slot, job) in list(self._running.items()):
            reason = self._overdue(slot, job)
            if reason is not None:
                del self._running[call]
                self._engine_lost(slot, job, reason)

    def _overdue(self, slot: Slot, job: Job) -> str | None:
        """Why an engine that has not answered yet is given up; one that hangs would hold its GPUs for ever."""
        if job.kind != "start":
            limit = self._deadlines.limit_seconds(job.kind, job.point, self._with.cut_of(job.point))
            if limit is not None and time.perf_counter() - job.started > limit:
                return f"no answer within {limit:.0f} s, which is many times what it should take: it hangs"
            return self._watch.lost(slot.name) if slot.apart else None
        if not slot.placed():
            if job.started > 0:
                self._with.events.write("engine_waits", engine=slot.name, reason="no node has room for it")
            job.started = 0.0  # its time begins when it has a place
            return None
        if job.started == 0:
            job.started = time.perf_counter()
            self._with.events.write("engine_starting", engine=slot.name, point=job.point.fingerprint)
        patience = job.point.engine.start_timeout_seconds
        if time.perf_counter() - job.started > patience:
            return f"GetTimeoutError: not loaded after engine.start_timeout_seconds={patience}"
        return None

    # ------------------------------------------------------------ what slots are given

    def _start(self, slot: Slot, point: Point) -> None:
        self._restarts.started(slot.name)
        self._with.events.write("engine_starting", engine=slot.name, point=point.fingerprint)
        self._running[slot.start(point, str(self._with.folder.path))] = (slot, Job("start", point))

    def _start_rested(self) -> None:
        for name, (when, slot, point) in list(self._resting.items()):
            if time.perf_counter() >= when:
                del self._resting[name]
                self._start(slot, point)

    def _idle(self) -> Iterator[Slot]:
        busy = {slot.name for slot, _ in self._running.values()}
        return (slot for slot in self._slots if slot.occupied and slot.name not in busy)

    def _dispatch(self, slot: Slot) -> bool:
        """Give the slot the first job that can run now; returns whether there was one."""
        calibrating = {j.point.calibration_fingerprint for _, j in self._running.values() if j.kind == "calibrate"}
        job = None if self.stopping is not None else self._jobs.take(calibrating)
        if job is None:
            return False
        self._tell("begun", slot, job)
        self._running[self._call(slot, job)] = (slot, job)
        return True

    def _call(self, slot: Slot, job: Job) -> Call:
        if job.kind == "calibrate":
            return slot.call("calibrate", job.point)
        cut = self._with.cut_of(job.point)
        if job.work is not None and job.kind == "block":
            return slot.call("run_block", job.point, cut, job.work.block)
        command = self._with.ledger.command(job.point)
        return slot.call("run_point", job.point, self._with.stock[setup(job.point)], command, cut)

    def _tell(self, what: str, slot: Slot, job: Job, **more: Any) -> None:
        if job.kind == "calibrate":
            more["calibration"] = job.point.calibration_fingerprint
        else:
            more["point"] = job.point.fingerprint
        if what == "begun" or job.kind == "block":
            more["label"] = job.point.label
        if job.kind == "block" and job.work is not None:
            more |= {"block": job.work.block, "of": len(self._with.cut_of(job.point) or ())}
        self._with.events.write(f"{_NOUN[job.kind]}_{what}", engine=slot.name, **more)

    # ------------------------------------------------------------ what comes back

    def _collect(self, slot: Slot, job: Job, call: Call) -> None:
        try:
            answer = call.result()
        except CallFailed as error:
            if error.error in DIED and job.kind != "start":
                self._engine_lost(slot, job, str(error))
            else:
                self._failed(slot, job, error)
        except EngineLost as error:
            self._engine_lost(slot, job, str(error))
        else:
            self._succeeded(slot, job, answer)

    def _succeeded(self, slot: Slot, job: Job, answer: Any) -> None:
        if isinstance(answer, Started):
            self._started(slot, answer)
            return
        self._restarts.progressed(slot.name)
        took = time.perf_counter() - job.started
        self._deadlines.returned(job.kind, job.point, self._with.cut_of(job.point), took)
        if job.kind == "calibrate":
            self._jobs.calibrated(job.point)
            self._tell("done", slot, job, seconds=answer)
            self._note(f"calibrated in {answer:.1f} s" if answer else "calibration found, not repeated")
        else:
            record = answer if isinstance(answer, PointRecord) else None
            if record is not None:
                record = self._with.ledger.finish(record)
            else:
                self._tell("done", slot, job, seconds=answer)
            self._check_stock(job)
            self._finished(job, record)

    def _started(self, slot: Slot, answer: Started) -> None:
        self._with.loads.count += 1
        self._with.loads.seconds += answer.load_seconds
        self._watch.begin(slot.name)
        self._with.events.write(
            "engine_ready",
            engine=slot.name,
            seconds=answer.load_seconds,
            host=answer.host,
            pid=answer.pid,
            layers=answer.layers,
        )
        self._note(
            f"engine loaded in {answer.load_seconds:.1f} s: {answer.layers} MoE layers hooked "
            f"({', '.join(answer.routers)}), verified in {answer.verify_seconds:.2f} s"
        )

    def _check_stock(self, job: Job) -> None:
        """Stock comes first: where its answers are no answers, nothing else need be asked."""
        if not job.point.rule.is_stock:
            return
        folder, cut = self._with.folder, self._with.cut_of(job.point)
        if job.kind == "point":
            self._with.ledger.check_stock(job.point, folder.outcomes(job.point.fingerprint))
        elif cut is not None and job.work is not None:
            block = read_block(folder, job.point.fingerprint, cut, job.work.block)
            if block is not None:
                outcomes = [outcome for run in block.runs.values() for outcome in run.outcomes]
                self._with.ledger.check_stock(job.point, outcomes_frame(outcomes))

    def _finished(self, job: Job, record: PointRecord | None) -> None:
        """The work is over; `record` where its point is, and then no block of it is asked for any more."""
        assert job.work is not None
        if record is not None and job.kind == "block":
            self._jobs.drop_point(job.point)
        works = self._strategy.finished(job.work, record)
        done, expected = self._with.progress()
        self._with.events.write("progress", done=done, expected=expected)
        if record is not None:
            self._with.ledger.tell(record)
        self._jobs.add(works)

    def _note(self, text: str) -> None:
        self._with.events.write("note", text=text)

    # ------------------------------------------------------------ what goes wrong

    def _fail(self, job: Job, reason: str) -> None:
        self._finished(job, self._with.ledger.fail(job.point, reason))

    def _failed(self, slot: Slot, job: Job, error: CallFailed) -> None:
        """The call raised. The engine stays, unless the error says that it cannot be trusted any more."""
        name = job.point.fingerprint if job.work is not None else f"{job.kind}-{slot.name}"
        reason = f"{error} (whole trace: {self._with.ledger.keep_trace(name, error.trace)})"
        if job.kind in ("block", "calibrate"):
            self._tell("failed", slot, job, reason=reason)
        if job.work is not None:
            self._fail(job, reason)
        elif job.kind == "calibrate":
            self._drop_uncalibrated(job.point, reason)
        if job.kind == "start" or error.error in FATAL_TO_ENGINE:
            self._note(f"engine stopped: {reason}")
            self._stop(slot, reason)
            if job.kind != "start":
                self._restart(slot, job.point, reason)
            elif not self._running and not self._resting and not any(self._idle()):
                self._fail_all(reason)  # it would not load the next time either

    def _engine_lost(self, slot: Slot, job: Job, reason: str) -> None:
        """The engine is gone. A call may have run or not: points are idempotent, so it is repeated."""
        self._note(f"engine lost ({reason})")
        self._stop(slot, reason)
        job.attempts += 1
        if job.kind != "start":
            if job.attempts < ATTEMPTS:
                self._jobs.again(job)
            elif job.work is not None:
                self._fail(job, f"its engine died {ATTEMPTS} times: {reason}")
            else:
                self._drop_uncalibrated(job.point, reason)
        self._restart(slot, job.point, reason)

    def _stop(self, slot: Slot, reason: str) -> None:
        slot.stop()
        self._with.events.write("engine_lost", engine=slot.name, reason=reason)

    def _restart(self, slot: Slot, point: Point, reason: str) -> None:
        if not self._jobs or self.stopping is not None:
            return
        rest = self._restarts.rest(slot.name)
        if rest is not None:
            self._resting[slot.name] = time.perf_counter() + rest, slot, point
        elif not self._running and not self._resting and not any(self._idle()):
            self.stopping = f"no engine could be kept running ({reason})"

    def _drop_uncalibrated(self, point: Point, reason: str) -> None:
        failed: set[str] = set()
        for job in self._jobs.uncalibrated(point):
            if job.point.fingerprint not in failed:  # with a point go its other blocks
                failed.add(job.point.fingerprint)
                self._fail(job, f"its calibration failed: {reason}")

    def _fail_all(self, reason: str) -> None:
        """The engine does not load: nothing that is asked of it, or will be, can be measured."""
        self.stopping = "the engine does not load"
        failed: set[str] = set()
        while lost := [job for job in self._jobs.clear() if job.point.fingerprint not in failed]:
            for job in lost:
                if job.point.fingerprint not in failed:
                    failed.add(job.point.fingerprint)
                    self._finished(job, self._with.ledger.fail(job.point, reason))
        for point in self._strategy.waiting():
            self._with.ledger.tell(self._with.ledger.fail(point, reason))


_NOUN = {"calibrate": "calibration", "point": "point", "block": "block"}
"""What the events of a job are named after."""
