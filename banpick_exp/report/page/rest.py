"""Points that the page does not tell one by one: a table of them on demand, and a sentence where all of them are."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from banpick_exp.records import OVERALL
from banpick_exp.report.page.section import run_letter
from banpick_exp.report.run import Run
from banpick_exp.report.terminal import FRONT
from banpick_exp.report.text import Row, in_words, verdict_text

IN_TABLE = "points.parquet has them all"
IN_RECORDS = "their records, points/*.json, have the same numbers"
LISTED_FOR_ONE_SHOWN = 12
"""Rows of the table on demand for every point that may be told one by one: a row is 70 bytes, such a point 2,000."""


def rest_html(runs: Sequence[Run], run: Run) -> str:
    """What unfolds to the table of the others, and where all of it is; empty where the page tells every point."""
    if not run.unshown:
        return ""
    listed = len(_listed(run))
    more = f", the {listed:,} most accurate of {run.unshown:,}" if listed < run.unshown else ""
    summary = f"The other {listed:,} points of {run.name} as a table{more}"
    return (
        f'<p class="small">{escape(all_of_it(run))}</p><details class="rest" data-rest="{list(runs).index(run)}">'
        f'<summary>{escape(summary)}</summary><p class="small">This table is made by the page\'s script.</p></details>'
    )


def all_of_it(run: Run) -> str:
    """What was chosen to be told here, and where every number of every point is."""
    return (
        f"Told one by one: {len(run.shown):,} of {len(run.done):,} points (the front, the references, the best of each"
        " rule at each budget, the largest differences to fixed_k, then the most accurate). Every point with all its"
        f" numbers and its command: {run.folder.table_path('points').name} in the run's folder."
    )


def not_here(count: int, where: str, of: str = "points") -> str:
    """A line below a table that was cut; empty where nothing was. `where`: what has the others."""
    return "" if count <= 0 else f'<p class="small">{count:,} more {of}: {escape(where)}.</p>'


def rest_data(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One table a run, as report.js unfolds it; rows of text, the most accurate point first."""
    return [
        {
            "caption": f"The other points of {f'{run_letter(runs, run)}: ' * (len(runs) > 1)}{run.name}, all domains",
            "head": ["policy", "front", f"{run.measure} %", "vs stock, points", "at equal budget", "speed-up", "kept"],
            "rows": [_row(run, row) for row in _listed(run)],
        }
        for run in runs
    ]


def _listed(run: Run) -> list[Row]:
    rows = run.other_rows().sort("accuracy", descending=True, maintain_order=True)
    return list(rows.head(LISTED_FOR_ONE_SHOWN * run.most_shown).iter_rows(named=True))


def _row(run: Run, row: Row) -> list[str]:
    verdict = run.verdict_of.get((row["fingerprint"], OVERALL))
    return [
        in_words(row["label"]),
        FRONT[row["on_front"], row["sure"]],
        f"{100 * row['accuracy']:.1f}",
        "-" if row["delta"] is None else f"{100 * row['delta']:+z.1f}",
        "reference" if verdict is None else verdict_text(verdict),
        "-" if row["speedup"] is None else f"{row['speedup']:.2f}",
        f"{row['mean_kept']:.2f}",
    ]
