"""How far scores move when nothing that should matter changes: a table on the page, a table in print, a sentence."""

from __future__ import annotations

from html import escape

import polars as pl
from rich.console import Console
from rich.markup import escape as plain
from rich.table import Table

from banpick_exp.records import OVERALL
from banpick_exp.report.page.tables import html_table
from banpick_exp.report.run import Run
from banpick_exp.report.terminal import unwrapped

HEAD = (
    "policy", "repeats", "accuracy % (mean)", "sd, points", "range", "problems not all score alike, %",
    "sampling error of one run, points",
)  # fmt: skip
NOTE = (
    "Repeats ask the same problems in other batches and another order. Their spread is not in the intervals above,"
    " which are about the choice of problems. Where the sd is well below the sampling error, no conclusion hangs on it."
)


def repeats_table(run: Run) -> str:
    """How much accuracy moves between points that differ only in batch size, seed or repeat; empty without any."""
    found = _overall(run.repeats)
    if found.height == 0:
        return ""
    rows = [
        [escape(label), *cells, escape("; ".join(settings))]
        for (label, *cells), settings in zip(_rows(found), found["settings"], strict=True)
    ]
    caption = "Repeats: the same point when nothing that should matter changes"
    return f'<p class="small">{NOTE}</p>{html_table(caption, [*HEAD, "differ in"], rows)}'


def print_repeats(spread: pl.DataFrame, console: Console) -> None:
    """The same in print; nothing without repeats. `spread`: as `analysis.repeat_spread` returns it."""
    found = _overall(spread)
    if found.height == 0:
        return
    console = unwrapped(console)
    table = Table(title="Repeats: the same point in other batches and another order", title_justify="left")
    for name in HEAD:
        table.add_column(name, justify="left" if name == "policy" else "right")
    for label, *cells in _rows(found):
        table.add_row(plain(label), *cells)
    console.print(table)
    console.print(f"[bold]{plain(repeats_sentence(found))}[/bold]")


def repeats_sentence(spread: pl.DataFrame) -> str:
    """The spread of all repeated points in one sentence, empty without any."""
    found = _overall(spread)
    if found.height == 0:
        return ""
    worst = found.row(int(found["accuracy_sd"].arg_max() or 0), named=True)
    times = "/".join(str(n) for n in sorted(set(found["repeats"])))
    if (found["unstable"] == 0).all():
        return (
            f"Repeats: {found.height} points ran {times} times in other batches and another order, and every problem"
            " scored alike each time."
        )
    return (
        f"Repeats: {found.height} points ran {times} times; accuracy has an sd of {_hundredths(found, 'accuracy_sd')} "
        f"points (median) and of {100 * worst['accuracy_sd']:.2f} at most ({worst['label']}), where the choice of "
        f"problems alone gives {_hundredths(found, 'sampling_error')}."
    )


def repeats_summary(spread: pl.DataFrame) -> dict[str, float]:
    """For W&B: the spread over all repeated points, accuracies 0..1; empty without any."""
    found = _overall(spread)
    if found.height == 0:
        return {}
    columns = ("accuracy_sd", "sampling_error", "unstable")
    values = {f"repeat/{key}_median": found[key].median() for key in columns}
    values |= {f"repeat/{key}_max": found[key].max() for key in columns}
    return {"repeat/points": found.height} | {key: float(v) for key, v in values.items() if isinstance(v, int | float)}


def _overall(spread: pl.DataFrame) -> pl.DataFrame:
    return spread.filter(pl.col("domain") == OVERALL).sort("accuracy_mean", "label", descending=[True, False])


def _hundredths(found: pl.DataFrame, column: str) -> str:
    return f"{100 * float(found[column].median() or 0):.2f}"  # type: ignore[arg-type]


def _rows(found: pl.DataFrame) -> list[list[str]]:
    """The columns of HEAD as text."""
    return [
        [
            row["label"], str(row["repeats"]), f"{100 * row['accuracy_mean']:.1f}", f"{100 * row['accuracy_sd']:.2f}",
            f"{100 * row['accuracy_min']:.1f} to {100 * row['accuracy_max']:.1f}",
            "-" if row["unstable"] is None else f"{100 * row['unstable']:.1f}", f"{100 * row['sampling_error']:.2f}",
        ]
        for row in found.iter_rows(named=True)
    ]  # fmt: skip
