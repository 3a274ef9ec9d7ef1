"""Every point of a run that has a record: read once at the start, kept as points finish, mirrored as they do."""

from __future__ import annotations

import polars as pl
from rich.console import Console

from banpick_exp.analysis.stock_answers import stock_alarms
from banpick_exp.cluster.breaking import ask_again
from banpick_exp.cluster.events import Events, point_fields
from banpick_exp.cluster.faults import StockIsWrong
from banpick_exp.cluster.record_of import record_of
from banpick_exp.evaluation.blocks import AnsweredBlock
from banpick_exp.evaluation.metrics import point_metrics
from banpick_exp.evaluation.speed import Timed
from banpick_exp.records import Engagement, PointRecord
from banpick_exp.remembered import remembered
from banpick_exp.report.tracking.wandb import Tracker
from banpick_exp.sweep.composed import composed
from banpick_exp.sweep.plan import SweepPlan
from banpick_exp.sweep.point import Point
from banpick_exp.sweep.rerun import rerun_command


class Ledger:
    """`records`: by fingerprint, those that count as finished; failed ones of an earlier driver are tried again."""

    def __init__(self, plan: SweepPlan, tracker: Tracker, console: Console, events: Events) -> None:
        self._plan, self._tracker, self._events = plan, tracker, events
        stored, left_out = plan.folder.load_remembered()
        for each in left_out:
            if not each.whole:
                plan.folder.set_aside(each)
                events.write("point_aside", point=each.file.stem, label=each.file.stem, reason=each.reason)
            fate = "its point is computed again" if each.whole else "set aside, its point is computed again"
            console.print(f"Note: {each.file.name}: {each.reason}: {fate}.", markup=False, highlight=False)
        for record in stored:
            if record.status == "failed":
                events.write("point_aside", point=record.fingerprint, label=record.label, reason=record.reason)
        ask_again(plan.folder, {record.fingerprint for record in stored if record.status == "failed"})
        self.records: dict[str, PointRecord] = {r.fingerprint: r for r in stored if r.status != "failed"}
        pending = len(self.pending())
        if self.records and pending:
            console.print(f"{len(plan.points) - pending} of {len(plan.points)} points are finished already.")

    def pending(self) -> list[Point]:
        """Points without a finished record, in plan order."""
        return [point for point in self._plan.points if point.fingerprint not in self.records]

    def start_mirror(self) -> None:
        """Open the tracker and hand it what is finished already. Raises UserError where it cannot start."""
        self._tracker.start(self._plan.folder, composed(self._plan))
        if self._tracker.at_once and self.records:
            self._plan.folder.load_points(self._mirrored)  # once more, and whole: less is remembered of each

    def _mirrored(self, record: PointRecord) -> PointRecord:
        if record.status != "failed":
            self._tracker.log_point(record)
        return remembered(record)

    def finish(self, record: PointRecord) -> PointRecord:
        """A point is over; its record is on disk. Returns what is remembered of it."""
        self._tracker.log_point(record)
        self.records[record.fingerprint] = kept = remembered(record)
        return kept

    def tell(self, record: PointRecord) -> None:
        """Say that a point is over, with what is first asked of it."""
        self._events.write("point_done", **point_fields(record))

    def fail(self, point: Point, reason: str) -> PointRecord:
        """Record that a point could not be measured."""
        record = record_of(point, self.command(point), status="failed", reason=reason)
        self._plan.folder.write_point(record, None)
        return self.finish(record)

    def drop(self, point: Point, reason: str, block: AnsweredBlock, stock: AnsweredBlock) -> PointRecord:
        """Record a point that a race has stopped: what it answered, against stock on the same problems."""
        failed = {domain: run.failed for domain, run in stock.runs.items()}
        runs = {domain: run.without(failed.get(domain, ())) for domain, run in block.runs.items()}
        record = record_of(
            point,
            self.command(point),
            status="dropped",
            reason=reason,
            metrics=point_metrics(runs, stock.runs, Timed()),
            engagement=Engagement(measured={domain: run.counters.mean_kept for domain, run in runs.items()}),
            failed_problems=[each for run in runs.values() for each in run.failed],
        )
        self._plan.folder.write_point(record, [outcome for run in runs.values() for outcome in run.outcomes])
        return self.finish(record)

    def check_stock(self, point: Point, outcomes: pl.DataFrame) -> None:
        """Raises StockIsWrong where stock's answers make every comparison meaningless, unless the task allows it."""
        if point.task.allow_zero:
            return
        fatal = [alarm for alarm in stock_alarms(outcomes) if alarm.fatal]
        if fatal:
            found = "\n".join(f"  {alarm.guard} ({alarm.domain}): {alarm.detail}" for alarm in fatal)
            raise StockIsWrong(
                f"Stopped after stock, because nothing measured would mean anything:\n{found}\nMend the task and run"
                " the command again, or type task.allow_zero=true to go on all the same."
            )

    def keep_trace(self, name: str, trace: str) -> str:
        """Keep an error's trace in the run's folder; returns its path below it."""
        folder = self._plan.folder
        return str(folder.write_trace(name, trace).relative_to(folder.path))

    def command(self, point: Point) -> str:
        """What to type to run one point again, next to stock."""
        return rerun_command(self._plan.command, point)
