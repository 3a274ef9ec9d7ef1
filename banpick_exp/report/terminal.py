"""What a run found, printed: the table of its points, the conclusion below, and what did not finish."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from banpick_exp.analysis import BUDGET_TOLERANCE, accuracy_name, guards, headline, pareto_front
from banpick_exp.records import OVERALL, load_outcomes, load_points
from banpick_exp.report.page.equal import print_equal_budgets
from banpick_exp.report.run import first_of_repeats, load_run
from banpick_exp.report.text import verdict_text

WIDE = 220  # columns, where the output is no terminal: a log wraps nothing
LISTED = 12  # lines of one kind; the rest is in the run's guards.parquet


def print_pareto(
    source: Path | str | pl.DataFrame,
    console: Console | None = None,
    *,
    found: pl.DataFrame | None = None,
    guarded: pl.DataFrame | None = None,
    domain: str = OVERALL,
) -> None:
    """Print the points of one domain as a table, the conclusion below, then invalid and failed points with reasons, and
    what the guards say of the others.

    Args:
        source: a run folder, or a frame like `points_frame`'s.
        found, guarded: the verdicts and guards that go with a frame; a folder brings its own.
    """
    if isinstance(source, pl.DataFrame):
        frame = first_of_repeats(pareto_front(source))
    else:
        frame, found = load_run(Path(source))
        records, _ = load_points(Path(source) / "points")
        guarded = guards(records, load_outcomes(Path(source) / "points", records))
    console = unwrapped(console or Console())
    verdict_of: dict[str, Mapping[str, Any]] = {}
    if found is not None:
        rows = found.filter(pl.col("domain") == domain).iter_rows(named=True)
        verdict_of = {row["fingerprint"]: row for row in rows if row["against"] == "fixed_k"}
    done = frame.filter((pl.col("status") == "done") & (pl.col("domain") == domain))
    if done.height:
        alarmed = set() if guarded is None else set(guarded.filter(pl.col("level") != "ok")["fingerprint"])
        console.print(_table(done, verdict_of, domain, alarmed, narrow=console.width < WIDE))
        console.print(
            "[dim]● on the front: no other point is at least as good in accuracy, speed-up and kept experts and better "
            "in one. ⚠ a guard was raised. At equal budget: same problems, interval right for all policies of the "
            "sweep at once.[/dim]"
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
        print_equal_budgets(frame, found, console)
    for row in frame.filter((pl.col("status") != "done") & (pl.col("domain") == OVERALL)).iter_rows(named=True):
        colour = {"invalid": "yellow", "dropped": "dim"}.get(row["status"], "red")
        reason = row["reason"] or "no reason recorded"
        console.print(f"[{colour}]{row['status']}[/{colour}] {escape(row['label'])}: {escape(reason)}")
    if guarded is not None and done.height:
        _print_guards(
            guarded.join(done.select("fingerprint", "policy"), on="fingerprint", maintain_order="left"), console
        )


def unwrapped(console: Console) -> Console:
    """The console itself, or where it is no terminal one that is WIDE."""
    return console if console.is_terminal else Console(file=console.file, width=max(WIDE, console.width))


def _print_guards(guarded: pl.DataFrame, console: Console) -> None:
    """What the guards found on finished points: the alarms, then sub-tasks that fell but may be noise.

    That sub-tasks fall down the fixed_k ladder is what it is there to show: those lines stay out.
    """
    points = guarded["fingerprint"].n_unique()
    of_ladder = (pl.col("guard") == "subtask_drop") & (pl.col("policy") == "fixed_k") & (pl.col("level") != "ok")
    left_out = guarded.filter(of_ladder).height
    guarded = guarded.filter((pl.col("guard") != "subtask_drop") | (pl.col("policy") != "fixed_k"))
    raised = guarded.filter(pl.col("level") != "ok").sort(pl.col("level") == "warning", maintain_order=True)
    dropped = guarded.filter(
        (pl.col("level") == "ok") & (pl.col("guard") == "subtask_drop") & ~pl.col("value").is_null()
    )
    for rows, style in ((raised, None), (dropped, "dim")):
        for row in rows.head(LISTED).iter_rows(named=True):
            colour = style or ("red" if row["level"] == "invalid" else "yellow")
            where = "" if row["domain"] == OVERALL else f" ({row['domain']})"
            name = f"guard {row['guard']}"
            console.print(
                f"[{colour}]{name}[/{colour}] {escape(row['label'] + where + ': ' + row['detail'])}", style=style
            )
        if rows.height > LISTED:
            console.print(f"[dim]... and {rows.height - LISTED} more like these[/dim]")
    if not raised.height:
        ladder = " but for sub-tasks that fall down the fixed_k ladder" if left_out else ""
        console.print(f"[dim]No guard was raised on {points} points{ladder}.[/dim]")


def _table(
    done: pl.DataFrame, verdict_of: Mapping[str, Mapping[str, Any]], domain: str, alarmed: set[str], *, narrow: bool
) -> Table:
    table = Table(title=f"Pareto table ({domain}, {max(done['n_problems']):,} problems)", title_justify="left")
    table.add_column("", no_wrap=True)
    table.add_column("policy", no_wrap=not narrow)
    columns = ((f"{accuracy_name(done)} % [95 %]", 18), ("vs stock [95 %]", 20), ("speed-up (spread)", 16), ("kept", 5))
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
            ("●" if row["on_front"] else "") + ("⚠" if row["fingerprint"] in alarmed else ""),
            escape(row["label"]) + (f" [dim]{escape(row['solved_knob'])}[/dim]" if row["solved_knob"] else ""),
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
