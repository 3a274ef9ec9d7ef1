"""Guards: what was looked for at every point, what was raised, and which points have no result."""

from __future__ import annotations

from html import escape

import polars as pl

from banpick_exp.analysis import GUARDS
from banpick_exp.report.page.html_tables import html_table
from banpick_exp.report.page.rest import IN_TABLE, not_here
from banpick_exp.report.page.section import Section, by_run
from banpick_exp.report.run import Run


def guards_html(run: Run) -> str:
    """Guards that were raised, the invalid ones first; folded, what may be noise; then points without a result."""
    raised, possible = run.raised, run.may_be_noise
    found = f"{raised.height} were raised." if raised.height else "None was raised."
    parts = [f"<p>Looked for at every point: {', '.join(GUARDS)}. {found}</p>"]
    if raised.height:
        parts.append(_findings(raised, f"Guards raised in {run.name}", run.most_shown))
    if possible.height:
        table = _findings(possible, f"Changes that may be noise in {run.name}", run.most_shown)
        parts.append(
            f"<details><summary>{possible.height:,} changes are large enough to be named, but chance explains them"
            f"</summary>{table}</details>"
        )
    lost = [record for record in run.records if record.status != "done"]
    if lost:
        told = lost[: run.most_shown]
        rows = [[escape(r.label), r.status, escape(r.reason or "no reason recorded")] for r in told]
        caption = f"Points without a result in {run.name}"
        parts.append(html_table(caption, ["policy", "status", "why"], rows, kind="words"))
        parts.append(not_here(len(lost) - len(told), IN_TABLE))
    return "".join(parts)


SECTION = Section(key="guards", title="Guards", html=by_run(guards_html))


def _findings(rows: pl.DataFrame, caption: str, most: int) -> str:
    cells = [
        [
            escape(row["label"]),
            escape(row["domain"]),
            escape(row["guard"]),
            f'<b class="{escape(row["level"])}">{escape(row["level"])}</b>',
            escape(row["detail"] or ""),
        ]
        for row in rows.head(most).iter_rows(named=True)
    ]
    table = html_table(caption, ["policy", "domain", "guard", "level", "what was seen"], cells, kind="words")
    return table + not_here(rows.height - most, "guards.parquet has them all", "findings")
