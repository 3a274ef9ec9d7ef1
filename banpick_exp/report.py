"""What a run found: the printed table, the picture and the page, all read from the run folder's records."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from banpick_exp.analysis import BUDGET_TOLERANCE, headline, pareto_front, points_frame, verdicts
from banpick_exp.page import pareto_html, verdict_text
from banpick_exp.plots import heat_map, pareto_png
from banpick_exp.records import OVERALL, load_points, read_outcomes

__all__ = ["heat_map", "load_run", "print_pareto", "write_report"]

WIDE = 220  # columns, where the output is no terminal: a log wraps nothing


def load_run(run_dir: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    """A run's points (`points_frame` with `on_front`) and its verdicts, from its records and outcomes."""
    points_dir = Path(run_dir) / "points"
    records, _ = load_points(points_dir)
    done = [record for record in records if record["status"] == "done"]
    outcomes = {record["fingerprint"]: read_outcomes(points_dir, record["fingerprint"]) for record in done}
    return pareto_front(points_frame(records)), verdicts(records, outcomes)


def print_pareto(
    source: Path | str | pl.DataFrame,
    console: Console | None = None,
    *,
    found: pl.DataFrame | None = None,
    domain: str = OVERALL,
) -> None:
    """Print the points of one domain as a table, the conclusion below, then invalid and failed points with reasons.

    Args:
        source: a run folder, or a frame like `points_frame`'s.
        found: the verdicts that go with a frame; a folder brings its own.
    """
    if isinstance(source, pl.DataFrame):
        frame = pareto_front(source)
    else:
        frame, found = load_run(Path(source))
    console = console or Console()
    if not console.is_terminal:
        console = Console(file=console.file, width=max(WIDE, console.width))
    verdict_of: dict[str, Mapping[str, Any]] = {}
    if found is not None:
        rows = found.filter(pl.col("domain") == domain).iter_rows(named=True)
        verdict_of = {row["fingerprint"]: row for row in rows}
    done = frame.filter((pl.col("status") == "done") & (pl.col("domain") == domain))
    if done.height:
        console.print(_table(done, verdict_of, domain, narrow=console.width < WIDE))
        console.print(
            "[dim]● on the front: no other point is at least as good in accuracy, speed-up and kept experts and better "
            "in one. At equal budget: same problems, interval right for all policies of the sweep at once.[/dim]"
        )
        if any(_far(row) for row in verdict_of.values()):
            far = f"its measured budget is more than {BUDGET_TOLERANCE} experts away from the nearest fixed_k point."
            console.print(f"[dim]* not at equal budget: {far}[/dim]")
        for row in verdict_of.values():
            if row["note"] and not _far(row):
                console.print(f"[dim]{escape(row['label'])}: {escape(row['note'])}.[/dim]")
    else:
        console.print("No point finished: there is no front to show.")
    if found is not None:
        console.print(f"\n[bold]{escape(headline(found))}[/bold]")
    for row in frame.filter((pl.col("status") != "done") & (pl.col("domain") == OVERALL)).iter_rows(named=True):
        colour = "yellow" if row["status"] == "invalid" else "red"
        reason = row["reason"] or "no reason recorded"
        console.print(f"[{colour}]{row['status']}[/{colour}] {escape(row['label'])}: {escape(reason)}")


def write_report(run_dir: Path, frame: pl.DataFrame | None = None, found: pl.DataFrame | None = None) -> list[Path]:
    """Write `pareto.png` and `pareto.html` into a run folder; returns their paths, none when no point is done.

    `frame` and `found`: what `load_run` gave, where a caller has it already.
    """
    run_dir = Path(run_dir)
    if frame is None or found is None:
        frame, found = load_run(run_dir)
    done = frame.filter(pl.col("status") == "done")
    overall = done.filter(pl.col("domain") == OVERALL)
    if overall.height == 0:
        return []
    models = ", ".join(sorted({name for name in overall["model"] if name})) or "model"
    title = f"Routing policies on {models}: {'/'.join(run_dir.resolve().parts[-2:])}"
    subtitle = f"{headline(found)}  {max(overall['n_problems']):,} problems a point."
    return [
        pareto_png(overall, run_dir / "pareto.png", title=title, subtitle=subtitle),
        pareto_html(done, found, run_dir / "pareto.html", title=title, subtitle=subtitle),
    ]


def _table(done: pl.DataFrame, verdict_of: Mapping[str, Mapping[str, Any]], domain: str, *, narrow: bool) -> Table:
    table = Table(title=f"Pareto table ({domain}, {max(done['n_problems']):,} problems)", title_justify="left")
    table.add_column("", no_wrap=True)
    table.add_column("policy", no_wrap=not narrow)
    columns = (("accuracy % [95 %]", 18), ("vs stock [95 %]", 20), ("speed-up (spread)", 16), ("kept", 5))
    for name, width in (*columns, ("truncated %", 5), ("gap", 5)):
        table.add_column(name, justify="right", min_width=width)
    table.add_column("at equal budget [points]", no_wrap=not narrow)
    colours = {"beats": "green", "loses": "red", "ties": "dim"}
    for row in done.sort("mean_kept", "accuracy", descending=True).iter_rows(named=True):
        verdict = verdict_of.get(row["fingerprint"])
        text = "" if verdict is None else escape(verdict_text(verdict)) + (" *" if _far(verdict) else "")
        gap = verdict["budget_gap"] if verdict else None
        colour = colours.get(verdict["verdict"] if verdict else "", "default")
        table.add_row(
            "●" if row["on_front"] else "",
            escape(row["label"]),
            escape(_span(row, "accuracy", ".1f", 100)),
            escape(_span(row, "delta", "+.1f", 100)),
            _span(row, "speedup", ".2f", brackets="({}-{})"),
            f"{row['mean_kept']:.2f}",
            f"{100 * row['truncated_fraction']:.1f}",
            "" if gap is None else f"{gap:+.2f}",
            f"[{colour}]{text}[/{colour}]" if text else "",
        )
    return table


def _far(row: Mapping[str, Any]) -> bool:
    return row["budget_gap"] is not None and abs(row["budget_gap"]) > BUDGET_TOLERANCE


def _span(row: Mapping[str, Any], key: str, form: str, scale: float = 1, brackets: str = "[{}, {}]") -> str:
    """`61.2 [59.0, 63.3]`; the value alone without an interval, `-` without a value (stock has no delta)."""
    if row[key] is None:
        return "-"
    text, low, high = format(row[key] * scale, form), row[f"{key}_lo"], row[f"{key}_hi"]
    if low is None or high is None:
        return text
    return f"{text} {brackets.format(format(low * scale, form), format(high * scale, form))}"
