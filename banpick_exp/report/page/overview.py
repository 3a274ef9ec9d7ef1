"""A page of many runs: a line each, from their tables; no record is read where these tell all.

A page that draws each run takes seconds a run and says of hundreds what nobody reads. So beyond MOST_DRAWN runs each is
one line: what it found, its best policy at equal budget, and the way to its own report.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from urllib.parse import quote

import polars as pl

from banpick_exp.analysis import EQUAL_BUDGET_TOLERANCE
from banpick_exp.disk import write_atomically
from banpick_exp.errors import UserError
from banpick_exp.records import OVERALL
from banpick_exp.report.page.html_tables import html_table
from banpick_exp.report.tables import table_of, what_was_found
from banpick_exp.report.text import against, points
from banpick_exp.run_folder import RunFolder

MOST_DRAWN = 24
"""Runs that a page tells side by side, each with figures."""
HEAD = ("run", "model", "task", "done", "verdict", "best at equal budget [points]")


def write_overview(folders: Sequence[RunFolder], path: Path) -> Path:
    """Write the page, whole or not at all. Raises OSError where it cannot be written, UserError for records that cannot
    be opened."""
    write_atomically(path.resolve(), overview_html(folders, path.resolve().parent).encode())
    return path


def overview_html(folders: Sequence[RunFolder], beside: Path) -> str:
    """The whole page. `beside`: the folder that its links begin from."""
    rows, verdicts = [], Counter[str]()
    for folder in folders:
        found = what_was_found(folder)
        verdicts[found.headline.partition(":")[0]] += 1
        done = f"{found.points.get('done', 0)} of {sum(found.points.values())}"
        model, task = _asked(folder)
        rows.append([_link(folder, beside), model, task, done, escape(found.headline), _best(folder)])
    title = f"Routing policies: {len(folders)} runs"
    counted = ", ".join(f"{count} × {escape(said)}" for said, count in verdicts.most_common())
    how = (
        f"Verdicts are those of the runs' own reports. Equal budgets: within {EQUAL_BUDGET_TOLERANCE} experts a token."
    )
    assets = files("banpick_exp.report.page") / "assets"
    css, script = ((assets / name).read_text(encoding="utf-8") for name in ("report.css", "tables.js"))
    table = html_table(f"{len(folders)} runs", HEAD, rows, kind="words")
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark">'
        f"<title>{title}</title><style>{css}</style></head><body><header><h1>{title}</h1></header><main><section>"
        f"<h2>Verdicts</h2><p><b>{counted}</b></p><p>{how}</p>"
        f"{table}</section></main><script>{script}</script></body></html>\n"
    )


def _link(folder: RunFolder, beside: Path) -> str:
    """The run's name, as a link to its report where it has one."""
    if not folder.report.is_file():
        return escape(folder.name)
    to = quote(os.path.relpath(folder.report.resolve(), beside))
    return f'<a href="{escape(to)}">{escape(folder.name)}</a>'


def _asked(folder: RunFolder) -> tuple[str, str]:
    """Model and task, as `run.json` names them."""
    try:
        manifest = folder.manifest()
    except UserError:
        return "-", "-"
    return _names(manifest.models), _names(manifest.tasks)


def _names(by_identity: Mapping[str, str]) -> str:
    return escape(", ".join(sorted(set(by_identity.values()))) or "-")


def _best(folder: RunFolder) -> str:
    """The policy that is furthest above fixed_k at equal budget, all domains together."""
    near = pl.col("budget_gap").abs() <= EQUAL_BUDGET_TOLERANCE
    compared = (pl.col("domain") == OVERALL) & (pl.col("verdict") != "unmatched") & (pl.col("against") == "fixed_k")
    best = table_of(folder, "verdicts").filter(compared & near).sort("difference", descending=True).head(1).collect()
    if best.height == 0:
        return "-"
    row = best.row(0, named=True)
    return escape(f"{row['label']} {against(row)}: {points(row, simultaneous=True)}")
