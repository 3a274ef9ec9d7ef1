"""The jobs of one kind of engine on its slots: start, calibrate, the work of the search; and what if an engine dies.

Every transition is an event (`events`); what has finished is on the disk before it is heard of here. An engine that is
lost is started again, on another node where its own is gone, as long as work gets done in between; where none can be
kept running, what is left of its kind stays pending and the run says how to go on. One for which nothing is left is
closed: engines of other kinds may wait for its place.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, KeysView, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from banpick_exp.cluster.answers import Started, Together
from banpick_exp.cluster.backends.base import Backend, Call, CallFailed, EngineLost, Slot
from banpick_exp.cluster.breaking import Breaking
from banpick_exp.cluster.deadline import Deadlines
from banpick_exp.cluster.events import Events
from banpick_exp.cluster.faults import ATTEMPTS, FATAL_TO_ENGINE, Restarts, lost_with
from banpick_exp.cluster.jobs import Job, Jobs
from banpick_exp.cluster.kinds import Kind
from banpick_exp.cluster.ledger import Ledger
from banpick_exp.cluster.pulse import Watch
from banpick_exp.cluster.sharing import Sharing
from banpick_exp.errors import CannotWrite
from banpick_exp.evaluation.blocks import read_block
from banpick_exp.evaluation.cut import Cut
from banpick_exp.records import PointRecord, outcomes_frame
from banpick_exp.run_folder import RunFolder
from banpick_exp.sweep.point import Point
from banpick_exp.sweep.search.strategy import setup


@dataclass(slots=True)
class Loads:
    """Engines loaded so far, the seconds that took, and the slots that had a place."""

    count: int = 0
    seconds: float = 0.0
    slots: int = 0


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
    deadline_seconds: float
    """Which every call has, whatever it should take."""
    spent: Callable[[], str | None] = lambda: None
    """Why nothing more may be begun, where what the run was given is spent."""


class EngineGroup:
    """All work of one kind of engine on its slots: first start, then calibrations, then what the search hands out.

    `Fleet` has the loop: it brings the calls that are ready (`collect`), and asks in turn for `look_around` and `work`.
    """

    def __init__(self, supplies: Supplies, kind: Kind) -> None:
        self._with, self.kind, self._strategy = supplies, kind, kind.strategy
        self.slots: list[Slot] = []
        """Those that it has now: with their place, or waiting for it."""
        self._jobs = Jobs(supplies.folder.calibrations)
        self._running: dict[Call, tuple[Slot, Job]] = {}
        self._resting: dict[str, tuple[float, Slot, Point]] = {}
        """Slots that are started again when their time has come (perf_counter)."""
        self._unplaced: dict[str, bool] = {}
        """Slots without a place, and whether that was said."""
        self._placed: set[str] = set()
        """Slots that had a place once."""
        self._restarts = Restarts()
        self._watch = Watch(supplies.folder, supplies.dead_seconds)
        self._deadlines = Deadlines(supplies.deadline_seconds)
        self._breaking = Breaking(supplies.folder)
        self._sharing = Sharing(self._jobs, supplies.cut_of, self._deadlines)
        self.stopping: str | None = None
        """Why nothing more is begun, where that is so."""
        self._jobs.add(kind.works)

    # ------------------------------------------------------------ for the loop

    @property
    def calls(self) -> KeysView[Call]:
        """What its engines are doing."""
        return self._running.keys()

    @property
    def over(self) -> bool:
        """No engine of it is there, and none will be asked for."""
        return not self.slots and (self.stopping is not None or not self._jobs)

    @property
    def holds_room(self) -> bool:
        """Whether one of its slots has its place."""
        return len(self._unplaced) < len(self.slots)

    @property
    def had_a_place(self) -> bool:
        return bool(self._placed)

    @property
    def calibrating(self) -> set[str | None]:
        """Fingerprints of what is being measured on its engines at this moment."""
        return {job.point.calibration_fingerprint for _, job in self._running.values() if job.kind == "calibrate"}

    def occupy(self, slots: Sequence[Slot]) -> None:
        """Start an engine in each of these, too."""
        for slot in slots:
            self.slots.append(slot)
            self._start(slot, self.kind.point)

    def collect(self, call: Call) -> None:
        """A call is ready."""
        slot, job = self._running.pop(call)
        self._collect(slot, job, call)

    def stop(self, reason: str) -> None:
        """Begin nothing more; what runs goes on."""
        if self.stopping is None:
            self.stopping = reason
            self._resting.clear()

    def look_around(self) -> None:
        """Give up engines that show no life or do not answer in time."""
        for call, (slot, job) in list(self._running.items()):
            reason = self._overdue(slot, job)
            if reason is not None:
                del self._running[call]
                self._engine_lost(slot, job, reason)

    def look_for_places(self) -> None:
        """Other engines were closed: some slot may have its place now."""
        for slot, job in list(self._running.values()):
            if slot.name in self._unplaced and slot.placed():
                self._found_a_place(slot, job)

    def work(self, elsewhere: Collection[str | None]) -> None:
        """Start what has rested, give idle engines their next jobs, close those that will have none.

        `elsewhere`: calibrations that engines of other kinds are measuring; what is made once is waited for.
        """
        self._start_rested()
        for slot in list(self._idle()):
            if not self._dispatch(slot, elsewhere):
                break  # what one idle slot cannot run, none can
        if self.slots and not self._running and not self._resting and not elsewhere:  # so nothing will come any more
            if self._jobs:
                self.stop("no engine could be kept running")
            self.release()
        self._close_surplus()

    def release(self) -> None:
        """Close every engine."""
        for slot in list(self.slots):
            self._close(slot)

    def engines_of_use(self) -> int:
        """How many can have work at a time, now or when what runs is over."""
        working = sum(job.kind != "start" for _, job in self._running.values())
        queued = 0 if self.stopping is not None else len(self._jobs)
        if self.stopping is not None or not working + queued:  # a search hands out more when something is over
            return working
        later = self._strategy.to_come() + self._jobs.to_come()
        if any(self._idle()):  # then what is queued waits for something that runs
            queued, later = 0, later + queued
        # The engine whose call is over takes the first of what comes then.
        return working + queued + max(0, later - 1 if working else later)

    def _close_surplus(self) -> None:
        if self.stopping is None and len(self._jobs) >= len(self.slots):
            return
        surplus = len(self.slots) - self.engines_of_use()
        if surplus <= 0:
            return
        working = {slot.name for slot, job in self._running.values() if job.kind != "start"}
        loaded = {slot.name for slot in self._idle()}
        spare = [slot for slot in self.slots if slot.name not in working]
        # Those first that have cost the least so far: without a place, then not loaded yet.
        spare.sort(key=lambda slot: (slot.name in loaded, slot.name not in self._unplaced))
        for slot in spare[:surplus]:
            self._close(slot)

    def _close(self, slot: Slot) -> None:
        """Give its place back: others may wait for it."""
        for call in [call for call, (at, _) in self._running.items() if at is slot]:
            del self._running[call]
        self._resting.pop(slot.name, None)
        self._unplaced.pop(slot.name, None)
        self.slots.remove(slot)
        slot.release()
        self._with.events.write("engine_closed", engine=slot.name)

    def _overdue(self, slot: Slot, job: Job) -> str | None:
        """Why an engine that has not answered yet is given up; one that hangs would hold its GPUs for ever."""
        if job.kind != "start":
            limit = self._sharing.limit_seconds(job)
            if job.step is not None and job.step.seconds is not None:
                limit = self._deadlines.limit_of(job.step.seconds)
            if limit is not None and time.perf_counter() - job.started > limit:
                return f"no answer within {limit:.0f} s, which is many times what it should take: it hangs"
            return self._watch.lost(slot.name) if slot.apart else None
        if not slot.placed():
            if not self._unplaced.get(slot.name):
                self._unplaced[slot.name] = True
                self.tell_that_it_waits(slot.name, "there is no room for it yet")
            return None
        if slot.name in self._unplaced:
            self._found_a_place(slot, job)
        patience = job.point.engine.start_timeout_seconds
        if time.perf_counter() - job.started > patience:
            return f"GetTimeoutError: not loaded after engine.start_timeout_seconds={patience}"
        return None

    # ------------------------------------------------------------ what slots are given

    def _start(self, slot: Slot, point: Point) -> None:
        self._restarts.started(slot.name)
        job = Job("start", point)
        self._running[slot.start(point, str(self._with.folder.path))] = (slot, job)
        if slot.placed():
            self._found_a_place(slot, job)
        else:
            self._unplaced[slot.name] = False  # a cluster takes a moment: said when it takes longer

    def _found_a_place(self, slot: Slot, job: Job) -> None:
        """Its engine is being loaded: its time begins."""
        self._unplaced.pop(slot.name, None)
        job.started = time.perf_counter()
        if slot.name not in self._placed:
            self._placed.add(slot.name)
            self._with.loads.slots += 1
        self._with.events.write(
            "engine_starting", engine=slot.name, point=job.point.fingerprint, of_kind=self.kind.name or None
        )

    def tell_that_it_waits(self, engine: str, reason: str) -> None:
        self._with.events.write("engine_waits", engine=engine, reason=reason, of_kind=self.kind.name or None)

    def _start_rested(self) -> None:
        for name, (when, slot, point) in list(self._resting.items()):
            if time.perf_counter() >= when:
                del self._resting[name]
                self._start(slot, point)

    def _idle(self) -> Iterator[Slot]:
        busy = {slot.name for slot, _ in self._running.values()}
        return (slot for slot in self.slots if slot.occupied and slot.name not in busy)

    def _dispatch(self, slot: Slot, elsewhere: Collection[str | None]) -> bool:
        """Give the slot the first job that can run now; returns whether there was one."""
        job = None if self.stopping is not None else self._jobs.take(elsewhere)
        if job is None:
            return False
        self._sharing.find_company(job, len(self.slots))
        for each in (*job.company, job):  # the last is shown as what the engine does
            self._tell("begun", slot, each)
        method, arguments = self._sharing.calls(job, self._call)
        self._running[slot.call(method, *arguments)] = (slot, job)
        return True

    def _call(self, job: Job) -> tuple[str, tuple[Any, ...]]:
        if job.step is not None:
            method, *arguments = job.step.call(job.point)
            return method, tuple(arguments)
        cut = self._with.cut_of(job.point)
        if job.work is not None and job.kind == "block":
            return "run_block", (job.point, cut, job.work.block)
        command = self._with.ledger.command(job.point)
        return "run_point", (job.point, self._with.stock[setup(job.point)], command, cut)

    def _tell(self, what: str, slot: Slot, job: Job, **more: Any) -> None:
        if job.kind == "calibrate":
            more["calibration"] = job.point.calibration_fingerprint
            if job.calibrating is not None and job.step is not None:
                more |= job.calibrating.fields(job.step, over=what == "done")
        else:
            more["point"] = job.point.fingerprint
        if what == "begun" or job.kind == "block":
            more["label"] = job.point.label + (f" and {len(job.company)} more at once" if job.company else "")
        if job.kind == "block" and job.work is not None:
            more |= {"block": job.work.block, "of": len(self._with.cut_of(job.point) or ())}
        self._with.events.write(f"{_NOUN[job.kind]}_{what}", engine=slot.name, **more)

    # ------------------------------------------------------------ what comes back

    def _collect(self, slot: Slot, job: Job, call: Call) -> None:
        try:
            answer = call.result()
        except CallFailed as error:
            self._check_folder(error)
            lost = None if job.kind == "start" else lost_with(error.error, str(error))
            if lost is not None:
                self._engine_lost(slot, job, lost)
            else:
                self._failed(slot, job, error)
        except EngineLost as error:
            self._engine_lost(slot, job, str(error))
        else:
            self._succeeded(slot, job, answer)

    def _succeeded(self, slot: Slot, job: Job, answer: Any) -> None:
        if isinstance(answer, Started):
            self._started(slot, job, answer)
            return
        self._restarts.progressed(slot.name)
        took = time.perf_counter() - job.started
        of_each = took / (1 + len(job.company))
        self._deadlines.returned(job.kind, job.point, self._with.cut_of(job.point), of_each)
        if isinstance(answer, Together):
            self._came_together(slot, job, answer)
            return
        self._succeeded_alone(slot, job, answer)

    def _came_together(self, slot: Slot, job: Job, found: Together) -> None:
        self._sharing.learn(job, found)
        if found.said:
            self._note(found.said)
        jobs = self._sharing.part(job)
        for each in jobs:
            if each.point.fingerprint in found.answers:
                self._succeeded_alone(slot, each, found.answers[each.point.fingerprint])
            else:
                each.alone = True
                self._jobs.again(each)

    def _succeeded_alone(self, slot: Slot, job: Job, answer: Any) -> None:
        if job.kind == "calibrate":
            self._tell("done", slot, job, seconds=answer)
            seconds = self._jobs.calibrated(job, answer)
            if seconds is not None:
                self._note(f"calibrated in {seconds:.1f} s" if seconds else "calibration found, not repeated")
        else:
            record = answer if isinstance(answer, PointRecord) else None
            if record is not None:
                record = self._with.ledger.finish(record)
            else:
                self._tell("done", slot, job, seconds=answer)
            self._check_stock(job)
            self._finished(job, record)

    def _started(self, slot: Slot, job: Job, answer: Started) -> None:
        if slot.name in self._unplaced:  # it came, and was loaded, between two looks
            self._found_a_place(slot, job)
        if not answer.attached:
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
        if answer.attached:
            self._note(
                f"engine{self.kind.of} taken over from an earlier driver (process {answer.pid} on {answer.host}):"
                " no load"
            )
            return
        self._note(
            f"engine{self.kind.of} loaded in {answer.load_seconds:.1f} s: {answer.layers} MoE layers hooked "
            f"({', '.join(answer.routers)}), verified in {answer.verify_seconds:.2f} s"
            + (f"; {answer.parity}" if answer.parity else "")
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
        if job.company:
            self._failed_together(slot, job, error)
            return
        name = job.point.fingerprint if job.work is not None else f"{job.kind}-{slot.name}"
        reason = f"{error} (whole trace: {self._with.ledger.keep_trace(name, error.trace)})"
        if job.kind in ("block", "calibrate"):
            self._tell("failed", slot, job, reason=reason)
        if job.work is not None:
            self._fail(job, reason)
        elif job.kind == "calibrate":
            self._drop_uncalibrated(job, reason)
        if job.kind == "start" or error.error in FATAL_TO_ENGINE:
            self._note(f"engine{self.kind.of} stopped: {reason}")
            self._stop(slot, reason)
            if job.kind != "start":
                self._restart(slot, job.point, reason)
                return
            self._close(slot)
            if not self.holds_room:
                self._fail_all(reason)  # it would not load the next time either

    def _failed_together(self, slot: Slot, job: Job, error: CallFailed) -> None:
        """As `_failed`, but nobody knows of which of them it is: each is done again alone."""
        name = f"{job.point.fingerprint}-in-company"
        reason = f"{error} (whole trace: {self._with.ledger.keep_trace(name, error.trace)})"
        self._note(f"{1 + len(job.company)} policies in one batch: {reason}; each is asked alone now")
        for each in reversed(self._sharing.go_alone(job)):
            if each.kind == "block":
                self._tell("failed", slot, each, reason=reason)
            self._jobs.again(each)
        if error.error in FATAL_TO_ENGINE:
            self._stop(slot, reason)
            self._restart(slot, job.point, reason)

    def _engine_lost(self, slot: Slot, job: Job, reason: str) -> None:
        """The engine is gone. A call may have run or not: points are idempotent, so it is repeated."""
        self._check_folder()  # signs of life are files
        self._note(f"engine{self.kind.of} lost ({reason})")
        self._stop(slot, reason)
        if job.company:  # whose death it was shows when each is asked alone
            for each in reversed(self._sharing.go_alone(job)):
                self._jobs.again(each)
            self._restart(slot, job.point, reason)
            return
        found = self._breaking.died(job, reason)
        if found.said:
            self._note(found.said)
        if found.narrowed:  # work was done: fewer deaths are left to come
            self._restarts.progressed(slot.name)
        job.attempts = 0 if found.narrowed else job.attempts + 1
        if job.kind != "start":
            if found.too_many is not None:
                self._fail(job, found.too_many)
            elif job.attempts < ATTEMPTS:
                self._jobs.again(job)
            elif job.work is not None:
                self._fail(job, f"its engine died {ATTEMPTS} times: {reason}")
            else:
                self._drop_uncalibrated(job, reason)
        self._restart(slot, job.point, reason)

    def _check_folder(self, error: CallFailed | None = None) -> None:
        """Raises CannotWrite where that is what went wrong: of any work that is done now, nothing could be kept."""
        found = self._with.folder.unwritable()
        if found is not None:
            raise found
        if error is not None and error.error == CannotWrite.__name__:  # there is room again, or its disk is another
            raise CannotWrite(None, str(error).partition(": ")[2])

    def _stop(self, slot: Slot, reason: str) -> None:
        slot.stop()
        self._with.events.write("engine_lost", engine=slot.name, reason=reason)

    def _restart(self, slot: Slot, point: Point, reason: str) -> None:
        """Where nothing is left for it to do it is closed before its rest is over."""
        rest = None if self.stopping is not None else self._restarts.rest(slot.name)
        if rest is not None:
            self._resting[slot.name] = time.perf_counter() + rest, slot, point
            return
        self._close(slot)
        if not self.slots:
            self.stop(f"no engine could be kept running ({reason})")

    def _drop_uncalibrated(self, calibration: Job, reason: str) -> None:
        failed: set[str] = set()
        for job in self._jobs.uncalibrated(calibration):
            if job.point.fingerprint not in failed:  # with a point go its other blocks
                failed.add(job.point.fingerprint)
                self._fail(job, f"its calibration failed: {reason}")

    def _fail_all(self, reason: str) -> None:
        """The engine does not load: nothing that is asked of it, or will be, can be measured."""
        self.stop("the engine does not load")
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
