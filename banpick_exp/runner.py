"""Placement, dispatch, retry, resume: every pending point to some loaded engine, on Ray core. No science.

Points that share an engine share the loaded actors: the number of engine loads is the number of engine slots. Why Ray
core and not Ray Tune: reuse there is keyed by placement alone, and a killed driver recomputes every finished trial.
"""

from __future__ import annotations

import contextlib
import signal
import time
from typing import Any

import ray
from rich.console import Console

from banpick_exp import placement, summary
from banpick_exp.actor import describe
from banpick_exp.dispatch import EngineGroup
from banpick_exp.display import Display
from banpick_exp.errors import UserError
from banpick_exp.plan import SweepPlan
from banpick_exp.points import Point
from banpick_exp.records import load_points, write_point
from banpick_exp.rerun import rerun_command
from banpick_exp.tracking import Tracker


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

    def run(self) -> int:
        """Returns the exit code: 0, or 1 when a point failed or is invalid."""
        begin = time.perf_counter()
        pending = self._pending()
        self.tracker.start(self.plan.run_dir, self.plan.manifest())
        for record in self.records.values():
            self.tracker.log_point(record)
        if pending:
            self._run_engines(pending)
        elif self.plan.points:
            self.console.print("Every point of this run is finished: nothing to compute.")
        return summary.finish(self.plan, self.tracker, self.console, {
            "seconds": time.perf_counter() - begin,
            "engine_loads": self.engine_loads,
            "engine_slots": self.engine_slots,
            "engine_load_seconds": self.load_seconds,
            "points_computed": len(pending),
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

    def _run_engines(self, pending: list[Point]) -> None:
        self.console.print(f"Starting Ray and {self.plan.cluster.engines} engine slot(s) ...")
        placement.connect(self.plan.cluster)
        try:
            with Display(
                self.console, total=len(pending), progress_file=self.plan.run_dir / "progress.json"
            ) as display:
                for engine, points in self.plan.by_engine().items():
                    todo = [p for p in points if p in pending]
                    if todo:
                        self._run_engine(engine, todo, display)
        finally:
            ray.shutdown()

    def _run_engine(self, engine: str, points: list[Point], display: Display) -> None:
        count = min(self.plan.cluster.engines, len(points))
        names = [f"engine-{engine}-{self.plan.run_dir.name}-{i}" for i in range(count)]
        settings = points[0].engine
        slots = placement.reserve(names, settings, self.plan.cluster, settings.start_timeout_seconds)
        self.engine_slots += count
        try:
            EngineGroup(self, slots, points, display).run()
        finally:
            for slot in slots:
                slot.release()

    def finish_point(self, record: dict[str, Any]) -> None:
        self.records[record["fingerprint"]] = record
        self.tracker.log_point(record)

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
