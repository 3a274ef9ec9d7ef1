"""Domains and sub-tasks: what lies below a point's mean, and how far it moves between repeats."""

from __future__ import annotations

from html import escape

import polars as pl

from banpick_exp.analysis import holm, subtasks, without_repeats
from banpick_exp.records import OVERALL
from banpick_exp.report.page.html_tables import html_table, verdict_cell
from banpick_exp.report.page.rest import not_here
from banpick_exp.report.page.section import Section, by_run
from banpick_exp.report.repeats import HEAD, overall_repeats, repeat_cells
from banpick_exp.report.run import Run
from banpick_exp.report.text import MARKS, STOCK, Row, points, span

ERROR_RATE = 0.05
REPEATS_NOTE = (
    "Repeats ask the same problems in other batches and another order. Their spread is not in the intervals above,"
    " which are about the choice of problems. Where the sd is well below the sampling error, no conclusion hangs on it."
)


def domains_html(run: Run) -> str:
    """One table a domain: accuracy, verdict at equal budget, difference to stock there and in each of its sub-tasks."""
    found = subtasks(without_repeats(run.records), run.outcomes)
    found = found.with_columns(p_holm=pl.Series(holm(found["p"].to_list()), dtype=pl.Float64))
    chance = round(ERROR_RATE * found.height)
    note = (
        "Differences to stock are on the same problems, in points, with 95 % paired bootstrap intervals, each for "
        f"itself: of the {found.height:,} of sub-tasks about {chance:,} exclude zero by chance. ▲ ▼ and colour: apart "
        "from stock in an exact test right for all of them at once (Holm). At equal budget: against the nearest "
        "fixed_k point, with the interval that is right for all policies and domains at once; * has a note under the "
        "pointer. "
        "Stock's own row has its accuracy."
    )
    tables = "".join(_domain_table(run, domain, found) for domain in run.domains if domain != OVERALL)
    more = not_here(run.unshown, "points.parquet has their domains")
    return f'<p class="small">{note}</p>{tables}{more}{repeats_table(run)}'


SECTION = Section(key="domains", title="Domains and sub-tasks", html=by_run(domains_html))


def _domain_table(run: Run, domain: str, found: pl.DataFrame) -> str:
    tasks = found.filter(pl.col("domain") == domain)
    row_of = {(row["fingerprint"], row["task"]): row for row in tasks.iter_rows(named=True)}
    stock = {row["task"]: row["stock_accuracy"] for row in row_of.values()}
    sizes = dict(tasks.group_by("task", maintain_order=True).agg(pl.col("n_problems").max()).iter_rows())
    body = []
    for row in run.shown_rows(domain).sort("mean_kept", "accuracy", descending=True).iter_rows(named=True):
        own = row["policy"] == STOCK
        line = [escape(row["label"]), f"{100 * row['accuracy']:.1f}"]
        line.append(verdict_cell(run.verdict_of.get((row["fingerprint"], domain)), short=True))
        line.append("-" if own else span(row, "delta", "+z.1f", 100))
        for task in sizes:
            line.append(f"{100 * stock[task]:.1f} %" if own else _difference(row_of.get((row["fingerprint"], task))))
        body.append(line)
    head = ["policy", f"{run.measure} %", "at equal budget", f"{domain} vs stock"]
    head += [f"{task} (n\u00a0=\u00a0{size:,})" for task, size in sizes.items()]
    kind = "subtasks" if len(sizes) > 1 else ""
    return html_table(f"{domain}: accuracy, and differences to stock by sub-task (points)", head, body, kind=kind)


def _difference(row: Row | None) -> str:
    if row is None:
        return "-"
    mark = MARKS["beats" if row["difference"] > 0 else "loses"] if row["p_holm"] <= ERROR_RATE else ""
    return f"{mark} {points(row)}".strip()


def repeats_table(run: Run) -> str:
    """How much accuracy moves between points that differ only in batch size, seed or repeat; empty without any."""
    rows = overall_repeats(run)
    if rows.height == 0:
        return ""
    told = rows.head(run.most_shown).iter_rows(named=True)
    body = [[*map(escape, repeat_cells(row)), escape("; ".join(row["settings"]))] for row in told]
    caption = "Repeats: the same point when nothing that should matter changes"
    more = not_here(rows.height - len(body), "repeats.parquet has them all")
    return f'<p class="small">{REPEATS_NOTE}</p>{html_table(caption, [*HEAD, "differ in"], body)}{more}'
