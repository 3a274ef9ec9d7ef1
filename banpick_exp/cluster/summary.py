"""The end of a run: the flat tables, the pictures, the printed front, the verdict, and the tracker's summary."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import polars as pl
from rich.console import Console

from banpick_exp.analysis import GUARDS
from banpick_exp.cluster.billing import bill_of
from banpick_exp.cluster.paces import paces_of
from banpick_exp.cluster.plan import RunPlan
from banpick_exp.costs import Bill
from banpick_exp.evaluation.calibration.artifact import artifact_folder
from banpick_exp.records import STATUSES
from banpick_exp.report.failure import or_else
from banpick_exp.report.files import write_report, write_tables
from banpick_exp.report.repeats import repeats_summary
from banpick_exp.report.run import Run, left_out_lines, read_run
from banpick_exp.report.sentences import closing
from banpick_exp.report.terminal import print_bill, print_pareto, print_repeats, print_selection, print_verdict
from banpick_exp.report.tracking.found import FoundOut
from banpick_exp.report.tracking.wandb import Tracker
from banpick_exp.sweep.past import remember


@dataclass(frozen=True, kw_only=True, slots=True)
class Totals:
    """What a run spent."""

    seconds: float
    engine_loads: int
    engine_slots: int
    engine_load_seconds: float
    points_computed: int


def finish(plan: RunPlan, tracker: Tracker, console: Console, totals: Totals, left: str = "") -> int:
    """Report what is on disk (the truth), not what is in memory; the verdict stands last of all.

    `left`: what to say of points that have no record.

    Returns the exit code: 1 when a point failed or is invalid, by its record or by a guard, or where no report could be
    written.
    """
    run = read_run(plan.folder)
    bill = or_else("the bill", plan.folder, lambda: _bill(plan, run, totals), lambda _: None, writes=False)
    if totals.points_computed:
        _print("the speeds of its engines", run, lambda: remember(plan.folder.past, *paces_of(plan, run)))
    files, unwritten = _write(run, bill, plan)
    console.print()
    for line in left_out_lines(run):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    _print("the table of the points", run, lambda: print_pareto(run, console))
    _print("the table of the repeats", run, lambda: print_repeats(run, console))
    _print("the table of the selection", run, lambda: print_selection(run, console))
    console.print(_spent(run, totals), highlight=False, soft_wrap=not console.is_terminal)
    _print("the bill", run, lambda: print_bill(bill, console))
    for file in files:
        console.print(f"  {file}", markup=False, highlight=False, soft_wrap=True)
    if unwritten is not None:
        console.print(unwritten, markup=False, highlight=False, soft_wrap=True, style="red")
    failures = tracker.finish(_summary_or_totals(run, totals) | _costs(bill), _artifacts(plan), FoundOut(run))
    for failure in failures:
        console.print(f"W&B: {failure}. The records are complete.", markup=False, highlight=False, soft_wrap=True)
    for line in tracker.to_publish() if run.done and not failures else ():
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if left:
        console.print(left, markup=False, highlight=False, soft_wrap=True, style="red")
    _print("the verdict", run, lambda: print_verdict(run, console))
    return 1 if _any_invalid(run) or unwritten is not None else 0


def _any_invalid(run: Run) -> bool:
    """By a guard, failed points and replays included; by the records alone where the guards cannot judge."""

    def by_guards() -> bool:
        return bool((pl.concat([run.guards, run.on_dev.guards])["level"] == "invalid").any())

    def by_records(_: str) -> bool:
        return any(record.status in ("failed", "invalid") for record in (*run.records, *run.dev))

    return or_else("the guards", run.folder, by_guards, by_records, writes=False)


def _print(what: str, run: Run, work: Callable[[], None]) -> None:
    or_else(what, run.folder, work, lambda _: None, writes=True)


def _bill(plan: RunPlan, run: Run, totals: Totals) -> Bill | None:
    """What the run cost so far; where this driver computed nothing, what the last one left."""
    if not totals.engine_loads and (known := plan.folder.bill()) is not None:
        return known
    kinds = max(len(plan.sweep.by_engine()), 1)
    engines = plan.engines
    if plan.cluster.engines == "auto" and totals.engine_slots:  # how many there were is known only now
        engines = math.ceil(totals.engine_slots / kinds)
    return bill_of(plan, run, engines)


def _write(run: Run, bill: Bill | None, plan: RunPlan) -> tuple[list[Path], str | None]:
    """The figures and the page, with the tables beside them; in place of what cannot be written, a sentence."""
    try:
        if bill is not None:
            run.folder.write_bill(bill)
        write_tables(run, _calibrations(plan))
        return write_report(run), None
    except OSError as error:
        typed = shlex.quote(str(run.folder.path))
        reason = str(error.strerror or error).partition(". ")[0]  # the remedy is the same
        return [], (
            f"The report cannot be written ({reason}), but the points are whole: make room, then type"
            f" python -m banpick_exp report {typed}"
        )


def _counts(run: Run) -> dict[str, int]:
    return {status: sum(record.status == status for record in (*run.records, *run.dev)) for status in STATUSES}


def _spent(run: Run, totals: Totals) -> str:
    """One sentence: what became of the points, and where the time went that was not generation."""
    counts = _counts(run)
    stopped = f"{counts['dropped']} dropped, " if counts["dropped"] else ""
    measured = [record.timing for record in (*run.records, *run.dev) if record.status != "failed"]
    overhead = sum(timing.overhead_seconds for timing in measured) / max(len(measured), 1)
    slowest = max((timing.swap_seconds for timing in measured), default=0.0)
    return (
        f"{counts['done']} done, {stopped}{counts['invalid']} invalid, {counts['failed']} failed "
        f"in {totals.seconds:.0f} s; engine loads {totals.engine_loads} for {totals.engine_slots} engine slot(s), "
        f"{totals.engine_load_seconds:.1f} s; overhead outside generation {overhead:.2f} s a point; "
        f"slowest swap {1e3 * slowest:.1f} ms"
    )


def _summary(run: Run, totals: Totals) -> dict[str, object]:
    """What the tracker's summary run says."""
    raised = Counter(run.guards.filter(run.guards["level"] != "ok")["guard"].to_list())
    alarms = {f"guard/{name}": raised[name] for name in GUARDS}
    return {"headline": closing(run), **asdict(totals), **_counts(run), **alarms, **repeats_summary(run)}


def _summary_or_totals(run: Run, totals: Totals) -> dict[str, object]:
    return or_else("W&B's summary", run.folder, lambda: _summary(run, totals), lambda _: asdict(totals), writes=False)


def _costs(bill: Bill | None) -> dict[str, object]:
    """The bill, for the tracker's summary."""
    sides = {} if bill is None else {"estimated": bill.estimated, "spent": bill.spent}
    return {f"cost/{side}/{name}": number for side, cost in sides.items() for name, number in cost}


def _artifacts(plan: RunPlan) -> list[tuple[str, str, Path]]:
    """The calibrations that the points read, for the tracker to keep: type, name and folder."""
    return [
        ("calibration", f"calibration-{name}", folder)
        for name, folder in _calibrations(plan).items()
        if folder.is_dir()
    ]


def _calibrations(plan: RunPlan) -> dict[str, Path]:
    """Fingerprint -> folder of the calibrations that the points read, or would."""
    needed = plan.sweep.calibrations()
    return {n: artifact_folder(point.calibration, plan.folder.calibrations, n) for n, point in needed.items()}
