"""The verdict: the first screen, then facts and verdicts by budget; of several runs first what they have in common."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import polars as pl

from banpick_exp.analysis.pairing import REFERENCE_POLICIES
from banpick_exp.records import OVERALL
from banpick_exp.report.equal_budget import verdict_table
from banpick_exp.report.maps import Maps
from banpick_exp.report.page.first_screen import best_table, first_screen, first_screen_of_several, sentence_html
from banpick_exp.report.page.html_tables import html_table
from banpick_exp.report.page.points import FIELDS, numbers
from banpick_exp.report.page.rest import IN_TABLE, not_here
from banpick_exp.report.page.section import Section, run_letter
from banpick_exp.report.run import Run
from banpick_exp.report.selected import CHOSEN, dev_rows, result_rows
from banpick_exp.report.sentences import alarms, sentences
from banpick_exp.report.text import MARKS, STOCK, Row, against, in_words, span

SIDE_BY_SIDE = {
    "accuracy %": "{measure} %",
    "vs stock, points": "vs stock",
    "speed-up": "speed-up",
    "experts kept": "kept",
}
"""Of FIELDS, and what they are called in the table of several runs."""


def verdict_html(runs: Sequence[Run], maps: Sequence[Maps]) -> str:
    if len(runs) == 1:
        return first_screen(runs[0]) + _words(runs[0])
    words = (
        f"<h3>{run_letter(runs, run)}: {escape(run.name)} ({escape(run.models)})</h3>"
        f"{sentence_html(run)}{best_table(run)}{_words(run)}"
        for run in runs
    )
    return "".join([first_screen_of_several(runs, _overview_table(runs)), _side_by_side_table(runs), *words])


SECTION = Section(key="verdict", title="Verdict", html=verdict_html)


def _words(run: Run) -> str:
    """The facts below the first screen, which has the alarms that these begin with."""
    facts = "".join(f"<li>{escape(line)}</li>" for line in sentences(run)[len(alarms(run)) :])
    words = f'<ul class="facts">{facts}</ul>'
    return "".join([words, _budgets_table(run), _selection_tables(run)])


def _budgets_table(run: Run) -> str:
    """A row a rule, a column a fixed_k point: the verdicts at that budget. Empty where nothing was compared."""
    found = verdict_table(run.verdicts)
    if not found.cells:
        return ""
    head = ["policy", *(f"at the budget of {in_words(reference)}" for reference in found.references)]
    rows = [[escape(policy), *map(escape, cells)] for policy, cells in found.cells]
    return html_table("Verdicts at equal measured budget, all domains (points, simultaneous interval)", head, rows)


def _selection_tables(run: Run) -> str:
    """What dev chose, and what that gains by domain; empty under any search but select."""
    if not run.picks:
        return ""
    captions = ("Chosen on dev: difference to stock on the split of the result (points)", "What dev chose from")
    tables = zip(captions, (result_rows(run), dev_rows(run)), strict=True)
    return "".join(_cut_table(name, head, rows, run.most_shown) for name, (head, rows) in tables)


def _cut_table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]], most: int) -> str:
    """The first `most` rows, and those that dev chose."""
    told = [row for place, row in enumerate(rows) if place < most or row[-1] == CHOSEN]
    more = not_here(len(rows) - len(told), "their records are in points/", "rows")
    return html_table(caption, head, [list(map(escape, row)) for row in told]) + more


def _overview_table(runs: Sequence[Run]) -> str:
    """One row a run: what it ran, how many finished, stock's accuracy and the conclusion."""
    rows = []
    for run in runs:
        stock = run.done_rows().filter(pl.col("policy") == STOCK)
        done = sum(record.status == "done" for record in run.records)
        rows.append(
            [
                f"{run_letter(runs, run)}: {escape(run.name)}",
                escape(run.models),
                escape(run.tasks),
                f"{done} of {run.recorded}",
                span(stock.row(0, named=True), "accuracy", ".1f", 100) if stock.height else "-",
                escape(run.headline),
            ]
        )
    head = ["run", "model", "task", "points done", "stock accuracy %", "verdict"]
    return html_table("The runs", head, rows, kind="words")


def _side_by_side_table(runs: Sequence[Run]) -> str:
    """Every policy of any run in one row, a group of columns a run."""
    by_run = [{row["label"]: row for row in run.done_rows().iter_rows(named=True)} for run in runs]
    shown = {row["label"] for run in runs for row in run.shown_rows().iter_rows(named=True)}
    everyone = [row for rows in by_run for row in rows.values() if row["label"] in shown]
    everyone.sort(key=lambda row: (row["policy"] not in REFERENCE_POLICIES, -row["mean_kept"], -row["accuracy"]))
    head = ["policy"]
    for run in runs:
        columns = [name.format(measure=run.measure) for name in (*SIDE_BY_SIDE.values(), "verdict")]
        head += [f"{run_letter(runs, run)} {name}" for name in columns]
    body = [
        [
            escape(label),
            *(cell for run, rows in zip(runs, by_run, strict=True) for cell in _cells(run, rows.get(label))),
        ]
        for label in dict.fromkeys(row["label"] for row in everyone)
    ]
    more = not_here(len({label for rows in by_run for label in rows} - shown), f"each run's {IN_TABLE}")
    return html_table("The runs side by side, all domains", head, body) + more


def _cells(run: Run, row: Row | None) -> list[str]:
    """What one run found of a policy."""
    if row is None:
        return ["-"] * (len(SIDE_BY_SIDE) + 1)
    verdict = run.verdict_of.get((row["fingerprint"], OVERALL))
    said = "reference" if verdict is None else f"{MARKS[verdict['verdict']]} {escape(against(verdict))}"
    values = dict(zip(FIELDS, numbers(row, verdict), strict=True))
    return [*(values[name] for name in SIDE_BY_SIDE), said.strip()]
