"""A run from its plan to its report: every pending point to some loaded engine, in the order of the search.

Points that share an engine share the loaded actors: the number of engine loads is the number of engine slots.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console

from banpick_exp.cluster import stop_request
from banpick_exp.cluster.backends.base import Backend, DoesNotFit
from banpick_exp.cluster.backends.registry import backend_of
from banpick_exp.cluster.dispatch import EngineGroup, Loads, Supplies
from banpick_exp.cluster.events import Events
from banpick_exp.cluster.faults import PlaceLost, StockIsWrong
from banpick_exp.cluster.ledger import Ledger
from banpick_exp.cluster.plan import RunPlan
from banpick_exp.cluster.progress import Display
from banpick_exp.cluster.spent import RunBudgetWatch
from banpick_exp.cluster.summary import Totals, finish
from banpick_exp.errors import INTERRUPTED, UserError
from banpick_exp.evaluation.blocks import AnsweredBlock
from banpick_exp.evaluation.cut import Cut
from banpick_exp.report.tracking.wandb import Tracker
from banpick_exp.run_lock import held
from banpick_exp.sweep.config import OptunaSearch, RacingSearch
from banpick_exp.sweep.dry_run import format_line
from banpick_exp.sweep.estimate import weight_bytes
from banpick_exp.sweep.point import Point
from banpick_exp.sweep.search.cuts import cut_of
from banpick_exp.sweep.search.dividing import Divided
from banpick_exp.sweep.search.grid import Grid
from banpick_exp.sweep.search.optuna import Sampling
from banpick_exp.sweep.search.racing import Race
from banpick_exp.sweep.search.selection import Selection
from banpick_exp.sweep.search.strategy import Strategy, Work, setup


@dataclass(frozen=True, slots=True)
class EngineWork:
    """One engine that has something to do: one of its points, its search, and the first work."""

    point: Point
    strategy: Strategy
    works: Sequence[Work]


class Run:
    """One run of a plan."""

    def __init__(self, plan: RunPlan, console: Console, backend: Backend | None = None) -> None:
        """`backend`: where engines run, in place of the one that the plan names."""
        self._plan, self._console, self._backend = plan, console, backend
        self._tracker = Tracker(plan.tracking)
        self._display = Display(console, progress_file=plan.folder.progress)
        self._events = Events(plan.folder, [self._display])
        self._ledger = Ledger(plan.sweep, self._tracker, console, self._events)
        self._loads, self._slots = Loads(), 0
        self._all: Sequence[EngineWork] = ()
        self._why_left = ""
        """Why points are left without a record, where some are."""

    def run(self) -> int:
        """Returns the exit code: 0, or 1 when a point failed, is invalid, or is left for want of an engine."""
        begin = time.perf_counter()
        pending = self._ledger.pending()
        self._ledger.start_mirror()
        engines = self._all = self._engines(pending)
        computed = sum(engine.strategy.points_left() for engine in engines)
        self._events.write(
            "run_begun",
            command=self._plan.sweep.command,
            host=socket.gethostname(),
            pid=os.getpid(),
            points=computed,
            expected=float(computed),
            cluster=self._plan.cluster.address or self._plan.cluster.backend,
        )
        stopped = False
        if engines:
            try:
                self._run_engines(engines)
            except StockIsWrong as error:
                stopped = True
                self._console.print(str(error), markup=False, highlight=False, style="red")
            except PlaceLost as error:
                self._why_left = str(error)
            except KeyboardInterrupt:
                self._end(INTERRUPTED, begin, sum(engine.strategy.points_left() for engine in engines))
                raise
        elif self._plan.sweep.points:
            self._console.print("Every point of this run is finished: nothing to compute.")
        totals = Totals(
            seconds=time.perf_counter() - begin,
            engine_loads=self._loads.count,
            engine_slots=self._slots,
            engine_load_seconds=self._loads.seconds,
            points_computed=computed,
        )
        code = finish(self._plan, self._tracker, self._console, totals)
        left = sum(engine.strategy.points_left() for engine in engines)
        if self._why_left and left:
            self._console.print(
                f"{left} point(s) are left without a record: {self._why_left}. What is finished is kept; the same"
                f" command with resume={self._plan.folder.path.name} goes on from here.",
                markup=False,
                highlight=False,
                soft_wrap=True,
                style="red",
            )
            code = 1
        code = 1 if stopped else code
        self._end(code, begin, left)
        return code

    def _end(self, code: int, begin: float, left: int) -> None:
        """The last event; what was asked of this driver is over."""
        self._events.write("run_ended", code=code, seconds=time.perf_counter() - begin, left=left)
        self._events.close()
        with contextlib.suppress(OSError):
            stop_request.withdraw(self._plan.folder)

    def _engines(self, pending: Sequence[Point]) -> list[EngineWork]:
        """The engines that have something to do, in the order to load them."""
        found = []
        for points in self._plan.sweep.by_engine().values():
            strategy = self._strategy(points, pending)
            works = strategy.begin()
            if works:
                found.append(EngineWork(points[0], strategy, works))
        return found

    def _strategy(self, points: Sequence[Point], pending: Sequence[Point]) -> Strategy:
        sweep, records, folder = self._plan.sweep, self._ledger.records, self._plan.folder
        if isinstance(sweep.search, RacingSearch):
            return Race(points, records, sweep.search, folder, self._drop, self._note)
        return Divided(self._whole_points(points, pending), self._cut_of, folder)

    def _whole_points(self, points: Sequence[Point], pending: Sequence[Point]) -> Strategy:
        """The search, in points."""
        sweep, records, folder = self._plan.sweep, self._ledger.records, self._plan.folder
        if isinstance(sweep.search, OptunaSearch):
            # What is drawn depends on how many are at work: `auto` must not make that the machine's choice.
            slots = 1 if self._plan.cluster.engines == "auto" else self._plan.cluster.engines
            return Sampling(points, sweep.spaces, sweep.maker, records, sweep.search, folder, slots)
        if sweep.stages is not None:
            return Selection(sweep.stages, records, self._note)
        names = {point.fingerprint for point in pending}
        return Grid([point for point in points if point.fingerprint in names])

    def _progress(self) -> tuple[float, float]:
        """Work done and expected of all engines, in points."""
        done, expected = zip(*(engine.strategy.progress() for engine in self._all), strict=True)
        return sum(done), sum(expected)

    def _cut_of(self, point: Point) -> Cut | None:
        return cut_of(point, self._plan.sweep.search)

    def _run_engines(self, engines: Sequence[EngineWork]) -> None:
        cluster = self._plan.cluster
        if cluster.backend == "ray":
            self._console.print(
                "Starting Ray ..." if cluster.address is None else f"Joining Ray ({cluster.address}) ..."
            )
        for line in dict.fromkeys(format_line(engine.point) for engine in engines):
            self._console.print(line, markup=False, highlight=False)
        backend = self._backend or backend_of(cluster)
        backend.connect()
        end_on_signals()  # Ray has handlers of its own
        try:
            with self._display:
                for engine in engines:
                    self._run_engine(backend, engine)
                    if self._why_left:
                        break
        finally:
            backend.close()

    def _run_engine(self, backend: Backend, engine: EngineWork) -> None:
        sweep, folder, settings = self._plan.sweep, self._plan.folder, engine.point.engine
        count = min(self._engines_asked(backend, engine.point), len(engine.works))
        self._note(f"starting {count} engine(s)")
        names = [f"engine-{engine.point.engine_fingerprint}-{folder.path.name}-{i}" for i in range(count)]
        slots = backend.reserve(names, settings)
        self._slots += count
        supplies = Supplies(
            backend=backend,
            ledger=self._ledger,
            events=self._events,
            folder=folder,
            stock={setup(point): point.fingerprint for point in sweep.points if point.rule.is_stock},
            cut_of=self._cut_of,
            progress=self._progress,
            loads=self._loads,
            dead_seconds=self._plan.cluster.dead_seconds,
            spent=RunBudgetWatch(self._plan).exhausted,
        )
        group = EngineGroup(supplies, slots, engine.strategy, engine.works)
        try:
            group.run()
        finally:
            for slot in slots:
                slot.release()
                self._events.write("engine_closed", engine=slot.name)
        self._why_left = group.stopping or ""

    def _engines_asked(self, backend: Backend, point: Point) -> int:
        asked = self._plan.cluster.engines
        if asked != "auto":
            return asked
        return backend.room(point.engine, weight_bytes(point.checkpoint.location))

    def _drop(self, point: Point, reason: str, block: AnsweredBlock, stock: AnsweredBlock) -> None:
        self._ledger.tell(self._ledger.drop(point, reason, block, stock))

    def _note(self, text: str) -> None:
        self._events.write("note", text=text)


def end_on_signals() -> None:
    """Ctrl-C, SIGTERM (which ends a job) and SIGHUP (which ends a terminal) raise KeyboardInterrupt, wherever we are.

    A shell that puts us in the background leaves SIGINT ignored: Ctrl-C and `kill -INT` must still work. `nohup` leaves
    SIGHUP ignored, and means it.
    """
    with contextlib.suppress(ValueError):  # not the main thread
        for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if sign != signal.SIGHUP or signal.getsignal(sign) != signal.SIG_IGN:
                signal.signal(sign, signal.default_int_handler)


def run_sweep(plan: RunPlan) -> int:
    """Run the plan and report. Returns 0, or 1 when a point failed or is invalid.

    Ctrl-C, SIGTERM and SIGHUP release the engines and the run's folder (KeyboardInterrupt).

    Raises UserError where another driver computes this run, or an engine has no room.
    """
    end_on_signals()
    try:
        console = Console()
        with held(plan.folder) as note:  # before anything is read: what another driver writes is not finished
            if note is not None:
                console.print(f"Note: {note}.", markup=False, highlight=False)
            return Run(plan, console).run()
    except DoesNotFit as error:
        raise UserError(str(error)) from None
