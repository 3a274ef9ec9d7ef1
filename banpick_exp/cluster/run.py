"""A run from its plan to its report: every pending point to some loaded engine, in the order of the search.

Points that share an engine share the loaded actors: the number of engine loads is the number of engine slots that had
room. What each kind of engine does is `fleet`'s.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console

from banpick_exp.cluster import stop_request
from banpick_exp.cluster.backends.base import Backend, DoesNotFit
from banpick_exp.cluster.backends.registry import backend_of
from banpick_exp.cluster.dispatch import Loads, Supplies
from banpick_exp.cluster.events import Events
from banpick_exp.cluster.faults import PlaceLost, StockIsWrong
from banpick_exp.cluster.fleet import Fleet
from banpick_exp.cluster.kinds import Kind, names_of
from banpick_exp.cluster.ledger import Ledger
from banpick_exp.cluster.plan import RunPlan
from banpick_exp.cluster.progress import Display
from banpick_exp.cluster.spent import RunBudgetWatch
from banpick_exp.cluster.summary import Totals, finish
from banpick_exp.errors import INTERRUPTED, CannotWrite, UserError
from banpick_exp.evaluation.blocks import AnsweredBlock
from banpick_exp.evaluation.cut import Cut
from banpick_exp.report.spelling import fitting
from banpick_exp.report.tracking.wandb import Tracker
from banpick_exp.run_lock import STALE_SECONDS, held
from banpick_exp.sweep.config import OptunaSearch, RacingSearch
from banpick_exp.sweep.dry_run import format_line
from banpick_exp.sweep.point import Point
from banpick_exp.sweep.search.cuts import cut_of
from banpick_exp.sweep.search.dividing import Divided
from banpick_exp.sweep.search.grid import Grid
from banpick_exp.sweep.search.ladder import Laddered
from banpick_exp.sweep.search.optuna import Sampling
from banpick_exp.sweep.search.racing import Race
from banpick_exp.sweep.search.selection import Selection
from banpick_exp.sweep.search.strategy import Strategy, setup


class Run:
    """One run of a plan."""

    def __init__(self, plan: RunPlan, console: Console, backend: Backend | None = None) -> None:
        """`backend`: where engines run, in place of the one that the plan names."""
        self._plan, self._console, self._backend = plan, console, backend
        self._tracker = Tracker(plan.tracking)
        self._display = Display(console, progress_file=plan.folder.progress)
        self._events = Events(plan.folder, [self._display])
        self._ledger = Ledger(plan.sweep, self._tracker, console, self._events)
        self._loads = Loads()
        self._kinds: Sequence[Kind] = ()
        self._why_left: Sequence[str | None] = ()
        """Of each kind why points of it are left without a record, where some are."""
        self._rungs = 0
        """Points that the ladder added while the run worked."""
        self._stays = ""
        """What to say of engines that a signal leaves on the cluster."""

    def run(self) -> int:
        """Returns the exit code: 0, or 1 when a point failed, is invalid, or is left for want of an engine."""
        begin = time.perf_counter()
        pending = self._ledger.pending()
        self._ledger.start_mirror()
        kinds = self._kinds = self._kinds_of(pending)
        computed, self._rungs = self._left(), 0  # those that wait already are among what is left
        self._events.write(
            "run_begun",
            command=self._plan.sweep.command,
            host=socket.gethostname(),
            pid=os.getpid(),
            points=computed,
            expected=float(computed),
            cluster=self._plan.cluster.address or self._plan.cluster.backend,
            estimated_seconds=self._plan.sweep.seconds_by_past(pending, self._plan.engines) if pending else None,
        )
        stopped = False
        if kinds:
            try:
                self._run_engines(kinds)
            except StockIsWrong as error:
                stopped = True
                self._console.print(str(error), markup=False, highlight=False, style="red")
            except PlaceLost as error:
                self._why_left = [str(error)] * len(kinds)
            except OSError as error:
                self._why_left = [str(self._lost_folder(error))] * len(kinds)
            except KeyboardInterrupt:
                if self._stays:
                    self._console.print(f"{self._stays}.", markup=False, highlight=False, soft_wrap=True)
                self._end(INTERRUPTED, begin, self._left())
                raise
        elif self._plan.sweep.points:
            self._console.print("Every point of this run is finished: nothing to compute.")
        totals = Totals(
            seconds=time.perf_counter() - begin,
            engine_loads=self._loads.count,
            engine_slots=self._loads.slots,
            engine_load_seconds=self._loads.seconds,
            points_computed=computed + self._rungs,
        )
        left = self._what_is_left()
        code = finish(self._plan, self._tracker, self._console, totals, left)
        code = 1 if stopped or left else code
        self._end(code, begin, self._left())
        return code

    def _left(self) -> int:
        """Points that have no record yet."""
        return sum(kind.strategy.points_left() for kind in self._kinds)

    def _what_is_left(self) -> str:
        """Which points are left and why; empty where none are."""
        left: dict[str, list[Kind]] = {}
        for kind, why in zip(self._kinds, self._why_left, strict=False):  # none where nothing was run
            if why and kind.strategy.points_left():
                left.setdefault(why, []).append(kind)
        told = []
        for why, kinds in left.items():
            count = sum(kind.strategy.points_left() for kind in kinds)
            of = f" of {', '.join(kind.name for kind in kinds)}" if len(kinds) < len(self._kinds) else ""
            told.append(f"{count} point(s){of} are left without a record: {why}.")
        again = f"the same command with resume={self._plan.folder.path.name} goes on from here."
        return " ".join([*told, f"What is finished is kept; {again}"]) if told else ""

    def _lost_folder(self, error: OSError) -> OSError:
        """What is wrong with the run's folder; the error itself is raised where nothing is: Ray's GetTimeoutError is an
        OSError too."""
        found = error if isinstance(error, CannotWrite) else self._plan.folder.unwritable()
        if found is None:
            raise error
        return found

    def _end(self, code: int, begin: float, left: int) -> None:
        """The last event; what was asked of this driver is over."""
        self._events.write("run_ended", code=code, seconds=time.perf_counter() - begin, left=left)
        self._events.close()
        with contextlib.suppress(OSError):
            stop_request.withdraw(self._plan.folder)
        self._plan.folder.remove_half_written()  # of engines that were killed while they wrote; all are released

    def _kinds_of(self, pending: Sequence[Point]) -> list[Kind]:
        """The kinds of engines that have something to do, the largest first."""
        found = []
        for points in self._plan.sweep.by_engine().values():
            strategy = self._strategy(points, pending)
            works = strategy.begin()
            if works:
                found.append(Kind(points[0], strategy, works))
        names = names_of([kind.point for kind in found])
        return [replace(kind, name=name) for kind, name in zip(found, names, strict=True)]

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
        grid = Grid([point for point in points if point.fingerprint in names])
        return Laddered(grid, points, sweep.ladder, records, self._added)

    def _progress(self) -> tuple[float, float]:
        """Work done and expected of all kinds, in points."""
        done, expected = zip(*(kind.strategy.progress() for kind in self._kinds), strict=True)
        return sum(done), sum(expected)

    def _cut_of(self, point: Point) -> Cut | None:
        return cut_of(point, self._plan.sweep.search)

    def _run_engines(self, kinds: Sequence[Kind]) -> None:
        cluster = self._plan.cluster
        if cluster.backend == "ray":
            self._console.print(
                "Starting Ray ..." if cluster.address is None else f"Joining Ray ({cluster.address}) ..."
            )
        for line in dict.fromkeys(format_line(kind.point) for kind in kinds):
            self._console.print(line, markup=False, highlight=False)
        backend = self._backend or backend_of(cluster)
        backend.connect(str(self._plan.folder.path))
        end_on_signals()  # Ray has handlers of its own
        try:
            fleet = Fleet(self._supplies(backend), kinds, cluster.engines)
            try:
                with self._display:
                    fleet.run()
            finally:
                self._stays = fleet.stays
            self._why_left = fleet.why_left()
        finally:
            backend.close()

    def _supplies(self, backend: Backend) -> Supplies:
        return Supplies(
            backend=backend,
            ledger=self._ledger,
            events=self._events,
            folder=self._plan.folder,
            stock={setup(point): point.fingerprint for point in self._plan.sweep.points if point.rule.is_stock},
            cut_of=self._cut_of,
            progress=self._progress,
            loads=self._loads,
            dead_seconds=self._plan.cluster.dead_seconds,
            deadline_seconds=self._plan.cluster.deadline_seconds,
            spent=RunBudgetWatch(self._plan).exhausted,
        )

    def _drop(self, point: Point, reason: str, block: AnsweredBlock, stock: AnsweredBlock) -> None:
        self._ledger.tell(self._ledger.drop(point, reason, block, stock))

    def _note(self, text: str) -> None:
        self._events.write("note", text=text)

    def _added(self, rungs: Sequence[Point]) -> None:
        names = ", ".join(point.label for point in rungs)
        self._note(f"the rivals of what was measured follow: {names} (search.ladder=none leaves them out)")
        self._events.write("points_added", points=len(rungs))
        self._rungs += len(rungs)


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

    Raises UserError where another driver computes this run, or an engine has no room; CannotWrite where the run's
    folder takes nothing before anything was begun.
    """
    end_on_signals()
    try:
        console = fitting(Console())  # a pipe wraps nothing, a terminal without Unicode gets none
        with held(plan.folder) as note:  # before anything is read: what another driver writes is not finished
            if note is not None:
                console.print(f"Note: {note}.", markup=False, highlight=False)
            plan.folder.remove_half_written(STALE_SECONDS)
            return Run(plan, console).run()
    except DoesNotFit as error:
        raise UserError(str(error)) from None
    except OSError as error:
        if isinstance(error, CannotWrite) or (found := plan.folder.unwritable()) is None:
            raise
        raise found from error
