"""Paired timing on a noisy machine: the variants alternate in one process, and a figure is a ratio within a round."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

Row = dict[str, Any]
"""One line of a benchmark's JSON."""
FILE_WIDTH = 200
"""Characters of a table that goes to a file."""


def alternate(variants: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each variant, round by round, after one warm-up each; the order turns by one place every round."""
    for run in variants.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    names = list(variants)
    for turn in range(rounds):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            begin = time.perf_counter()
            variants[name]()
            seconds[name].append(time.perf_counter() - begin)
    return seconds


def ratios(numerator: Sequence[float], denominator: Sequence[float]) -> dict[str, float]:
    """Median of the ratios round by round, and their quartiles."""
    values = [a / b for a, b in zip(numerator, denominator, strict=True)]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"ratio": middle, "ratio_q1": low, "ratio_q3": high}


def emit(row: Row, output: Path | None) -> None:
    """One JSON line on stdout, and appended to `output`."""
    line = json.dumps(row)
    print(line, flush=True)
    if output is not None:
        with open(output, "a", encoding="utf-8") as file:
            file.write(line + "\n")


def print_table(title: str, rows: Iterable[Row], columns: Sequence[tuple[str, str]]) -> None:
    """A table on stderr, beside the JSON on stdout; columns are (key, format)."""
    table = Table(title=title, title_justify="left")
    for key, _ in columns:
        table.add_column(key, justify="right")
    for row in rows:
        table.add_row(*("" if row.get(key) is None else format(row[key], form) for key, form in columns))
    console = Console(file=sys.stderr)
    if not console.is_terminal:  # a file, which has no width: rich would cut the columns to 80
        console.width = FILE_WIDTH
    console.print(table)
