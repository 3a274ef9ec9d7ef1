"""A run as a notebook and a Python prompt show it: the verdict in a sentence, and its foremost points."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from rich.console import Group
from rich.markup import escape as escaped
from rich.table import Table

from banpick_exp.report.page.html_tables import html_table
from banpick_exp.report.run import Run
from banpick_exp.report.text import in_words, span, speed_text, verdict_text

SHOWN = 8
"""Points of the small table; the rest is counted."""
NUMBERS = 4
"""Columns behind the first that hold numbers."""


def head(run: Run) -> list[str]:
    return [
        "policy",
        f"{run.measure} % [95 %]",
        "vs stock [95 %]",
        "kept",
        "speed-up [95 %]",
        "at equal budget [points]",
    ]


def rows(run: Run) -> list[list[str]]:
    """The foremost points (`report.shown`), with the cells of the printed table, the largest budget first."""
    told = run.foremost(SHOWN)
    found = []
    for row in run.done_rows().sort("mean_kept", "accuracy", descending=True).iter_rows(named=True):
        if row["fingerprint"] in told:
            verdict = run.verdict_of.get((row["fingerprint"], row["domain"]))
            numbers = (span(row, "accuracy", ".1f", 100), span(row, "delta", "+.1f", 100), f"{row['mean_kept']:.2f}")
            said = "" if verdict is None else verdict_text(verdict)
            found.append([in_words(row["label"]), *numbers, speed_text(row), said])
    return found


def extent(run: Run) -> str:
    """`pick_strength/first: 23 of 24 points done, the foremost 8 shown`."""
    of = f"{len(run.done)} of {run.recorded} points done"
    return f"{run.name}: {of}" + (f", the foremost {SHOWN} shown" if len(run.done) > SHOWN else "")


def as_html(run: Run) -> str:
    """For a notebook."""
    cells: Sequence[Sequence[str]] = [[escape(cell) for cell in row] for row in rows(run)]
    return f"<p><b>{escape(run.headline)}</b></p>{html_table(extent(run), head(run), cells)}"


def as_rich(run: Run) -> Group:
    """For rich's `print`, and IPython with rich's pretty printing."""
    table = Table(title=extent(run), title_justify="left", box=None, pad_edge=False)
    for number, name in enumerate(head(run)):
        table.add_column(escaped(name), justify="right" if 0 < number <= NUMBERS else "left")
    for row in rows(run):
        table.add_row(*map(escaped, row))
    return Group(f"[bold]{escaped(run.headline)}[/bold]", table)
