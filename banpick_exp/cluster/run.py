"""A run from its plan to its report: every pending point to some loaded engine, in the order of the search.

Points that share an engine share the loaded actors: the number of engine loads is the number of engine slots.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console

from banpick_exp.cluster.backends.base import Backend, DoesNotFit
from banpick_exp.cluster.backends.registry import backend_of
from banpick_exp.cluster.dispatch import EngineGroup, Loads
from banpick_exp.cluster.faults import StockIsWrong
from banpick_exp.cluster.ledger import Ledger
from banpick_exp.cluster.plan import RunPlan
from banpick_exp.cluster.progress import Display
from banpick_exp.cluster.summary import Totals, finish
from banpick_exp.errors import UserError
from banpick_exp.evaluation.blocks import AnsweredBlock
from banpick_exp.report.tracking.wandb import Tracker
from banpick_exp.run_lock import held
from banpick_exp.sweep.config import OptunaSearch, RacingSearch
from banpick_exp.sweep.dry_run import format_line
from banpick_exp.sweep.estimate import weight_bytes
from banpick_exp.sweep.point import Point
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
        self._ledger = Ledger(plan.sweep, self._tracker, console)
        self._loads, self._slots = Loads(), 0
        self._display: Display | None = None

    def run(self) -> int:
        """Returns the exit code: 0, or 1 when a point failed or is invalid."""
        begin = time.perf_counter()
        pending = self._ledger.pending()
        self._ledger.start_mirror()
        engines = self._engines(pending)
        computed = sum(engine.strategy.points_left() for engine in engines)
        stopped = False
        if engines:
            try:
                self._run_engines(engines, computed)
            except StockIsWrong as error:
                stopped = True
                self._console.print(str(error), markup=False, highlight=False, style="red")
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
        return 1 if stopped else code

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
        if isinstance(sweep.search, OptunaSearch):
            # What is drawn depends on how many are at work: `auto` must not make that the machine's choice.
            slots = 1 if self._plan.cluster.engines == "auto" else self._plan.cluster.engines
            return Sampling(points, sweep.spaces, sweep.maker, records, sweep.search, folder, slots)
        if sweep.stages is not None:
            return Selection(sweep.stages, records, self._note)
        return Grid([point for point in points if point in pending])

    def _run_engines(self, engines: Sequence[EngineWork], total: int) -> None:
        cluster = self._plan.cluster
        if cluster.backend == "ray":
            self._console.print(
                "Starting Ray ..." if cluster.address is None else f"Joining Ray ({cluster.address}) ..."
            )
        for line in dict.fromkeys(format_line(engine.point) for engine in engines):
            self._console.print(line, markup=False, highlight=False)
        backend = self._backend or backend_of(cluster)
        backend.connect()
        try:
            with Display(self._console, total=total, progress_file=self._plan.folder.progress) as display:
                self._display = display
                for engine in engines:
                    self._run_engine(backend, engine, display)
        finally:
            backend.close()

    def _run_engine(self, backend: Backend, engine: EngineWork, display: Display) -> None:
        sweep, folder, settings = self._plan.sweep, self._plan.folder, engine.point.engine
        count = min(self._engines_asked(backend, engine.point), len(engine.works))
        display.note(f"starting {count} engine(s)")
        names = [f"engine-{engine.point.engine_fingerprint}-{folder.path.name}-{i}" for i in range(count)]
        slots = backend.reserve(names, settings)
        self._slots += count
        try:
            EngineGroup(
                backend,
                slots,
                engine.strategy,
                engine.works,
                ledger=self._ledger,
                display=display,
                folder=folder,
                stock={setup(point): point.fingerprint for point in sweep.points if point.rule.is_stock},
                cut=sweep.search.cut,
                loads=self._loads,
            ).run()
        finally:
            for slot in slots:
                slot.release()

    def _engines_asked(self, backend: Backend, point: Point) -> int:
        asked = self._plan.cluster.engines
        if asked != "auto":
            return asked
        return backend.room(point.engine, weight_bytes(point.checkpoint.location))

    def _drop(self, point: Point, reason: str, block: AnsweredBlock, stock: AnsweredBlock) -> None:
        record = self._ledger.drop(point, reason, block, stock)
        if self._display is not None:
            self._display.point(record)

    def _note(self, text: str) -> None:
        if self._display is not None:
            self._display.note(text)


def run_sweep(plan: RunPlan) -> int:
    """Run the plan and report. Returns 0, or 1 when a point failed or is invalid.

    Ctrl-C and SIGTERM, which ends a job, release the engines and the run's folder (KeyboardInterrupt; SystemExit where
    Ray has begun).

    Raises UserError where another driver computes this run, or an engine has no room.
    """
    with contextlib.suppress(ValueError):  # not the main thread
        for sign in (signal.SIGINT, signal.SIGTERM):
            # A shell that puts us in the background leaves SIGINT ignored: Ctrl-C and `kill -INT` must still work.
            signal.signal(sign, signal.default_int_handler)
    try:
        console = Console()
        with held(plan.folder) as note:  # before anything is read: what another driver writes is not finished
            if note is not None:
                console.print(f"Note: {note}.", markup=False, highlight=False)
            return Run(plan, console).run()
    except DoesNotFit as error:
        raise UserError(str(error)) from None
