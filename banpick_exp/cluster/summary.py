"""The end of a run: the flat table, the pictures, the printed front, the verdict, and the tracker's summary."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from banpick_exp.analysis import GUARDS, guards, headline, repeat_spread
from banpick_exp.evaluation.calibration.artifact import artifact_folder
from banpick_exp.records import STATUSES, load_outcomes, load_points, write_parquet, write_table
from banpick_exp.report import load_run, print_pareto, print_repeats, repeats_summary, write_report
from banpick_exp.report.tracking.wandb import Tracker
from banpick_exp.sweep.plan import SweepPlan


def finish(plan: SweepPlan, tracker: Tracker, console: Console, numbers: dict[str, Any]) -> int:
    """Report what is on disk (the truth), not what is in memory.

    Returns the exit code: 1 when a point failed or is invalid, by its record or by a guard.
    """
    records, _ = load_points(plan.run_dir / "points")
    write_parquet(plan.run_dir)
    frame, found = load_run(plan.run_dir)
    outcomes = load_outcomes(plan.run_dir / "points", records)
    guarded, spread = guards(records, outcomes), repeat_spread(records, outcomes)
    write_table(plan.run_dir / "guards.parquet", guarded)
    if spread.height:
        write_table(plan.run_dir / "repeats.parquet", spread)
    files = write_report(plan.run_dir, frame, found)
    console.print()
    print_pareto(frame, console, found=found, guarded=guarded)
    print_repeats(spread, console)
    counts = {status: sum(r["status"] == status for r in records) for status in STATUSES}
    stopped = f"{counts['dropped']} dropped, " if counts["dropped"] else ""
    overhead = [r["timing"]["overhead_seconds"] for r in records if r["timing"]]
    swaps = [r["timing"]["swap_seconds"] for r in records if r["timing"]]
    console.print(
        f"{counts['done']} done, {stopped}{counts['invalid']} invalid, {counts['failed']} failed "
        f"in {numbers['seconds']:.0f} s; "
        f"engine loads {numbers['engine_loads']} for {numbers['engine_slots']} engine slot(s), "
        f"{numbers['engine_load_seconds']:.1f} s; overhead outside generation "
        f"{sum(overhead) / max(len(overhead), 1):.2f} s a point; slowest swap {1e3 * max(swaps, default=0):.1f} ms",
        highlight=False,
    )
    for file in files:
        console.print(f"  {file}", highlight=False, soft_wrap=True)
    shared = plan.run_dir.parent.parent / "calibrations"
    folders = {n: artifact_folder(p.calibration, shared, n) for n, p in plan.calibrations().items()}
    artifacts = {f"calibration-{name}": folder for name, folder in folders.items() if folder.is_dir()}
    raised = guarded.filter(guarded["level"] != "ok")["guard"].to_list()
    alarms = {f"guard/{name}": raised.count(name) for name in GUARDS}
    totals = {**numbers, **counts, **alarms, **repeats_summary(spread)}
    failures = tracker.finish({"headline": headline(found), **totals}, artifacts)
    if failures:
        console.print(
            f"W&B failed {len(failures)} time(s), the records are complete. First: {failures[0]}", markup=False
        )
    return 1 if (guarded["level"] == "invalid").any() else 0  # failed points and replays included
