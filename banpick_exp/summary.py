"""The end of a run: the flat table, the pictures, the printed front, the verdict, and the tracker's summary."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from banpick_exp.analysis import headline, verdicts
from banpick_exp.plan import SweepPlan
from banpick_exp.records import load_points, read_outcomes, write_parquet
from banpick_exp.report import print_pareto, write_report
from banpick_exp.tracking import Tracker


def finish(plan: SweepPlan, tracker: Tracker, console: Console, numbers: dict[str, Any]) -> int:
    """Report what is on disk (the truth), not what is in memory. Returns the exit code."""
    points_dir = plan.run_dir / "points"
    records, _ = load_points(points_dir)
    write_parquet(plan.run_dir)
    files = write_report(plan.run_dir)
    console.print()
    print_pareto(plan.run_dir, console)
    counts = {status: sum(r["status"] == status for r in records) for status in ("done", "invalid", "failed")}
    outcomes = {r["fingerprint"]: read_outcomes(points_dir, r["fingerprint"]) for r in records if r["status"] == "done"}
    verdict = headline(verdicts(records, outcomes))
    console.print(f"\n[bold]{verdict}[/]")
    overhead = [r["timing"]["overhead_seconds"] for r in records if r["timing"]]
    swaps = [r["timing"]["swap_seconds"] for r in records if r["timing"]]
    console.print(
        f"{counts['done']} done, {counts['invalid']} invalid, {counts['failed']} failed in {numbers['seconds']:.0f} s; "
        f"engine loads {numbers['engine_loads']} for {numbers['engine_slots']} engine slot(s), "
        f"{numbers['engine_load_seconds']:.1f} s; overhead outside generation "
        f"{sum(overhead) / max(len(overhead), 1):.2f} s a point; slowest swap {1e3 * max(swaps, default=0):.1f} ms",
        highlight=False,
    )
    for file in files:
        console.print(f"  {file}", highlight=False, soft_wrap=True)
    calibrations = sorted({r["calibration"] for r in records if r["calibration"]})
    folder = plan.run_dir.parent.parent / "calibrations"
    artifacts = {f"calibration-{name}": folder / name for name in calibrations if (folder / name).is_dir()}
    failures = tracker.finish({"headline": verdict, **numbers, **counts}, artifacts)
    if failures:
        console.print(f"W&B failed {len(failures)} time(s), the records are complete. First: {failures[0]}", markup=False)
    return 1 if counts["invalid"] or counts["failed"] else 0
