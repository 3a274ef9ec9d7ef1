"""Placement, dispatch, retry, resume: every pending point to some loaded engine, on Ray core. No science.

Points that share an engine share the loaded actors: the number of engine loads is the number of engine slots. Why Ray
core and not Ray Tune: reuse there is keyed by placement alone, and a killed driver recomputes every finished trial.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Sequence
from typing import Any

import ray
from rich.console import Console

from banpick_exp.cluster import summary
from banpick_exp.cluster.actor import describe
from banpick_exp.cluster.backends import ray as placement
from banpick_exp.cluster.dispatch import EngineGroup
from banpick_exp.cluster.progress import Display
from banpick_exp.errors import UserError
from banpick_exp.evaluation.blocks import Block
from banpick_exp.evaluation.metrics import all_metrics
from banpick_exp.records import load_points, write_point
from banpick_exp.report.tracking.wandb import Tracker
from banpick_exp.sweep.plan import SweepPlan
from banpick_exp.sweep.point import Point
from banpick_exp.sweep.rerun import rerun_command
from banpick_exp.sweep.search.grid import Grid
from banpick_exp.sweep.search.optuna import Sampling
from banpick_exp.sweep.search.racing import Race
from banpick_exp.sweep.search.strategy import Spending, Work


class Sweep:
    """One run of a plan."""

    def __init__(self, plan: SweepPlan, console: Console) -> None:
        self.plan, self.console = plan, console
        self.points_dir = plan.run_dir / "points"
        self.calibration_dir = plan.run_dir.parent.parent / "calibrations"
        self.tracker = Tracker(**plan.tracking.model_dump())
        self.records: dict[str, dict[str, Any]] = {}
        self.engine_loads = 0
        self.engine_slots = 0
        self.load_seconds = 0.0
        self._display: Display | None = None

    def run(self) -> int:
        """Returns the exit code: 0, or 1 when a point failed or is invalid."""
        begin = time.perf_counter()
        pending = self._pending()
        self.tracker.start(self.plan.run_dir, self.plan.manifest())
        for record in self.records.values():
            self.tracker.log_point(record)
        searches = self._searches(pending)
        computed = sum(spending.points_left() for _, spending, _ in searches)
        if searches:
            self._run_engines(searches)
        elif self.plan.points:
            self.console.print("Every point of this run is finished: nothing to compute.")
        return summary.finish(self.plan, self.tracker, self.console, {
            "seconds": time.perf_counter() - begin,
            "engine_loads": self.engine_loads,
            "engine_slots": self.engine_slots,
            "engine_load_seconds": self.load_seconds,
            "points_computed": computed,
        })  # fmt: skip

    def _pending(self) -> list[Point]:
        """Points without a finished record. Corrupt records are set aside, failed ones are tried again."""
        found, set_aside = load_points(self.points_dir)
        for path in set_aside:
            self.console.print(f"Note: {path.name} does not hold together: set aside, its point is computed again.")
        self.records = {r["fingerprint"]: r for r in found if r["status"] != "failed"}
        pending = [p for p in self.plan.points if p.fingerprint not in self.records]
        if self.records and pending:
            self.console.print(f"{len(self.records)} of {len(self.plan.points)} points are finished already.")
        return pending

    def _searches(self, pending: list[Point]) -> list[tuple[Point, Spending, list[Work]]]:
        """For each engine that has something to do: one of its points, its search, and the first work."""
        found = []
        for points in self.plan.by_engine().values():
            spending = self._spending(points, pending)
            works = spending.begin()
            if works:
                found.append((points[0], spending, works))
        return found

    def _spending(self, points: Sequence[Point], pending: list[Point]) -> Spending:
        plan = self.plan
        if plan.search.name == "racing":
            return Race(points, self.records, plan.search, plan.run_dir, self.drop_point, self.note)
        if plan.search.name == "optuna":
            return Sampling(
                points, plan.spaces, plan.maker, self.records, plan.search, plan.run_dir, plan.cluster.engines
            )
        return Grid([point for point in points if point in pending])

    def _run_engines(self, searches: list[tuple[Point, Spending, list[Work]]]) -> None:
        total = sum(spending.points_left() for _, spending, _ in searches)
        self.console.print(f"Starting Ray and {self.plan.cluster.engines} engine slot(s) ...")
        placement.connect(self.plan.cluster)
        try:
            with Display(self.console, total=total, progress_file=self.plan.run_dir / "progress.json") as display:
                self._display = display
                for point, spending, works in searches:
                    self._run_engine(point, spending, works, display)
        finally:
            ray.shutdown()

    def _run_engine(self, point: Point, spending: Spending, works: list[Work], display: Display) -> None:
        count = min(self.plan.cluster.engines, len(works))
        names = [f"engine-{point.engine_fingerprint}-{self.plan.run_dir.name}-{i}" for i in range(count)]
        settings = point.engine
        slots = placement.reserve(names, settings, self.plan.cluster, settings.start_timeout_seconds)
        self.engine_slots += count
        try:
            EngineGroup(self, slots, spending, works, display).run()
        finally:
            for slot in slots:
                slot.release()

    def finish_point(self, record: dict[str, Any]) -> None:
        self.records[record["fingerprint"]] = record
        self.tracker.log_point(record)

    def drop_point(self, point: Point, reason: str, block: Block, stock: Block) -> None:
        """Record a point that a race has stopped: what it answered, against stock on the same problems."""
        record = {
            "fingerprint": point.fingerprint,
            "status": "dropped",
            "reason": reason,
            "metrics": all_metrics(block.runs, stock.runs, {}),
            "engagement": {"measured": {domain: run.counters.mean_kept for domain, run in block.runs.items()}},
            "timing": {},
            **describe(point, rerun_command(self.plan, point)),
        }
        write_point(self.points_dir, record, [outcome for run in block.runs.values() for outcome in run.outcomes])
        self.finish_point(record)
        if self._display is not None:
            self._display.point(record)

    def note(self, text: str) -> None:
        if self._display is not None:
            self._display.note(text)

    def fail_point(self, point: Point, reason: str) -> dict[str, Any]:
        record = {
            "fingerprint": point.fingerprint,
            "status": "failed",
            "reason": reason,
            "metrics": None,
            "engagement": {},
            "timing": {},
            **describe(point, rerun_command(self.plan, point)),
        }
        write_point(self.points_dir, record, None)
        return record


def run_sweep(plan: SweepPlan) -> int:
    """Run the plan and report. Returns 0, or 1 when a point failed or is invalid. Ctrl-C releases the engines."""
    with contextlib.suppress(ValueError):  # not the main thread
        # A shell that puts us in the background leaves SIGINT ignored: Ctrl-C and `kill -INT` must still work.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    missing = sorted({p.checkpoint.missing for p in plan.points if p.checkpoint.missing})
    missing += sorted({p.data_missing for p in plan.points if p.data_missing})
    if missing:
        raise UserError("; ".join(missing) + ".")
    try:
        return Sweep(plan, Console()).run()
    except placement.DoesNotFit as error:
        raise UserError(str(error)) from None
