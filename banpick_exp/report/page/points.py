"""Every point that the page shows as text: what the script tells under the pointer, and what tables repeat."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from banpick_exp.report.page.section import run_letter
from banpick_exp.report.run import Run
from banpick_exp.report.text import STOCK, Row, against, p_text, points, span, speed_text

FIELDS = (
    "accuracy %",
    "vs stock, points",
    "at equal budget",
    "speed-up",
    "tokens/s",
    "experts kept",
    "cut off %",
    "problems",
)


def page_data(runs: Sequence[Run]) -> dict[str, Any]:
    """What report.js shows: for every point that is shown its label, command, run, and the FIELDS as text by domain."""
    entries = []
    for run in runs:
        rows_of = _rows_of(run)
        named = {"run": f"{run_letter(runs, run)}: {run.name}"} if len(runs) > 1 else {}
        for record in run.shown_done:
            fingerprint, rows = record.fingerprint, rows_of[record.fingerprint]
            texts = {row["domain"]: numbers(row, run.verdict_of.get((fingerprint, row["domain"]))) for row in rows}
            entries.append({"label": rows[0]["label"], "command": rows[0]["command"] or "", "numbers": texts} | named)
    return {"fields": headings(runs), "points": entries}


def _rows_of(run: Run) -> dict[str, list[Row]]:
    """Fingerprint -> its rows, `overall` first, of the points that are shown."""
    found: dict[str, list[Row]] = {name: [] for name in run.shown}
    for row in run.frame.iter_rows(named=True):
        if row["fingerprint"] in found:
            found[row["fingerprint"]].append(row)
    return found


def point_index(runs: Sequence[Run]) -> dict[tuple[Path, str], int]:
    """(run folder, fingerprint) -> index of that point in `page_data`."""
    return {(run.folder.path, fingerprint): i for i, (run, fingerprint) in enumerate(_order(runs))}


def measure_of(runs: Sequence[Run]) -> str:
    """What accuracy is in all these runs: `avg@4` where all sampled so."""
    found = {run.measure for run in runs}
    return found.pop() if len(found) == 1 else "accuracy"


def headings(runs: Sequence[Run]) -> list[str]:
    """FIELDS with the name of their accuracy."""
    return [f"{measure_of(runs)} %", *FIELDS[1:]]


def numbers(row: Row, verdict: Row | None) -> list[str]:
    """FIELDS of one row of `points_frame`, as text."""
    return [
        span(row, "accuracy", ".1f", 100),
        "-" if row["policy"] == STOCK else span(row, "delta", "+z.1f", 100),
        _equal_budget(verdict),
        speed_text(row),
        span(row, "tokens_per_second", ",.0f"),
        span(row, "mean_kept", ".2f"),
        span(row, "truncated_fraction", ".1f", 100),
        f"{row['n_problems']:,}",
    ]


def _equal_budget(verdict: Row | None) -> str:
    if verdict is None:
        return "reference"
    note = f" ({verdict['note']})" if verdict["note"] else ""
    if verdict["difference"] is None:
        return against(verdict) + note
    return f"{against(verdict)} {points(verdict, simultaneous=True)}, {p_text(verdict)}{note}"


def _order(runs: Sequence[Run]) -> list[tuple[Run, str]]:
    return [(run, record.fingerprint) for run in runs for record in run.shown_done]
