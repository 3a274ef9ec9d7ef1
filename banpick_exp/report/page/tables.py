"""Tables of whole points: the runs side by side, verdicts by budget, every point."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import polars as pl

from banpick_exp.analysis import BUDGET_TOLERANCE
from banpick_exp.records import OVERALL
from banpick_exp.report.figures.styles import REFERENCES
from banpick_exp.report.page.front import FIELDS, fields, numbers, point_index, run_letter
from banpick_exp.report.run import Run
from banpick_exp.report.text import against, p_text, points, rival, span

MARKS = {"beats": "▲", "loses": "▼", "ties": "", "unmatched": ""}


def html_table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]], *, kind: str = "") -> str:
    """A table with a caption and row headers. Cells are HTML already, `head` and `caption` are text."""
    columns = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "".join(
        f'<tr><th scope="row">{first}</th>' + "".join(_cell(cell) for cell in rest) + "</tr>" for first, *rest in rows
    )
    table = f"<table><caption>{escape(caption)}</caption><thead><tr>{columns}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll {kind}" tabindex="0" role="group" aria-label="{escape(caption)}">{table}</div>'


def _cell(text: str) -> str:
    for verdict in ("beats", "loses"):
        if text.startswith(MARKS[verdict]):
            return f'<td class="{verdict}">{text}</td>'
    return f"<td>{text}</td>"


def overview_table(runs: Sequence[Run]) -> str:
    """One row a run: what it ran, how many finished, stock's accuracy and the conclusion."""
    rows = []
    for run in runs:
        stock = run.frame.filter((pl.col("policy") == "none") & (pl.col("domain") == OVERALL))
        stock = stock.filter(pl.col("status") == "done")
        accuracy = span(stock.row(0, named=True), "accuracy", ".1f", 100) if stock.height else "-"
        rows.append(
            [f"{run_letter(runs, run)}: {escape(run.name)}", escape(run.models), escape(run.tasks),
             f"{sum(r['status'] == 'done' for r in run.records)} of {len(run.records)}", accuracy,
             escape(run.headline)]
        )  # fmt: skip
    return html_table(
        "The runs", ["run", "model", "task", "points done", "stock accuracy %", "verdict"], rows, kind="words"
    )


def side_by_side_table(runs: Sequence[Run]) -> str:
    """Every policy of any run in one row, a group of columns a run."""
    by_run = [
        {
            row["label"]: row
            for row in run.frame.filter((pl.col("status") == "done") & (pl.col("domain") == OVERALL)).iter_rows(
                named=True
            )
        }
        for run in runs
    ]
    everyone = [row for rows in by_run for row in rows.values()]
    everyone.sort(key=lambda row: (row["policy"] not in REFERENCES, -row["mean_kept"], -row["accuracy"]))
    labels = list(dict.fromkeys(row["label"] for row in everyone))
    head = ["policy"]
    for run in runs:
        letter = run_letter(runs, run)
        head += [
            f"{letter} {run.measure} %",
            f"{letter} vs stock",
            f"{letter} speed-up",
            f"{letter} kept",
            f"{letter} verdict",
        ]
    body = []
    for label in labels:
        line = [escape(label)]
        for run, rows in zip(runs, by_run, strict=True):
            row = rows.get(label)
            if row is None:
                line += ["-"] * 5
                continue
            verdict = run.verdict_of.get((row["fingerprint"], OVERALL))
            said = "reference" if verdict is None else f"{MARKS[verdict['verdict']]} {escape(against(verdict))}"
            values = dict(zip(FIELDS, numbers(row, verdict), strict=True))
            line += [values[name] for name in ("accuracy %", "vs stock, points", "speed-up", "experts kept")]
            line.append(said.strip())
        body.append(line)
    return html_table("The runs side by side, all domains", head, body)


def verdict_table(run: Run) -> str:
    """A row a family, a column a fixed_k point: the verdicts at that budget. Empty where nothing was compared."""
    rows = run.found.filter((pl.col("domain") == OVERALL) & (pl.col("verdict") != "unmatched"))
    rows = rows.filter(pl.col("budget_gap").abs() <= BUDGET_TOLERANCE).sort("reference_mean_kept", descending=True)
    if rows.height == 0:
        return ""
    budgets = rows["reference_label"].unique(maintain_order=True).to_list()
    body = []
    for policy in rows["policy"].unique(maintain_order=True):
        line = [escape(policy)]
        for budget in budgets:
            here = rows.filter((pl.col("policy") == policy) & (pl.col("reference_label") == budget)).to_dicts()
            line.append(verdict_cell(here))
        body.append(line)
    head = ["policy", *(f"at the budget of {'stock' if budget == 'none' else budget}" for budget in budgets)]
    return html_table("Verdicts at equal measured budget, all domains (points, simultaneous interval)", head, body)


def verdict_cell(rows: list[dict[str, Any]]) -> str:
    """`ties -0.3 [-1.2, +0.6]` of one row of `verdicts`; of several how many of each, and the best."""
    if not rows:
        return "-"
    if len(rows) == 1:
        return f"{MARKS[rows[0]['verdict']]} {rows[0]['verdict']} {points(rows[0], simultaneous=True)}".strip()
    count = {verdict: sum(row["verdict"] == verdict for row in rows) for verdict in ("beats", "ties", "loses")}
    best = max(rows, key=lambda row: row["difference"])
    mark = MARKS["beats"] if count["beats"] else MARKS["loses"] if count["loses"] == len(rows) else ""
    said = ", ".join(f"{number} {verdict}" for verdict, number in count.items() if number)
    return f"{mark} {said}; best {points(best, simultaneous=True)}".strip()


def points_table(runs: Sequence[Run], run: Run) -> str:
    """Every done point of a run, all domains together, best accuracy first, with a button for its command."""
    index, body = point_index(runs), []
    rows = run.frame.filter((pl.col("status") == "done") & (pl.col("domain") == OVERALL)).sort(
        "accuracy", descending=True
    )
    for row in rows.iter_rows(named=True):
        verdict = run.verdict_of.get((row["fingerprint"], OVERALL))
        cells = [escape(text) for text in numbers(row, verdict)]
        cells[FIELDS.index("at equal budget")] = at_equal_budget(verdict)
        number = index[run.folder, row["fingerprint"]]
        button = f'<button type="button" class="copy" data-copy="{number}">copy</button>'
        ring = '<span title="on the front">◉</span> ' if row["on_front"] else ""
        label = f'{ring}<span data-row="{number}">{escape(row["label"])}</span>{_warning(run, row["fingerprint"])}'
        body.append([label, button, *cells[:-1]])
    return html_table(
        f"Every point of {run.name}, all domains (◉ on the front, ⚠ a guard was raised)",
        ["policy", "run again", *fields([run])[:-1]],
        body,
    )


def _warning(run: Run, fingerprint: str) -> str:
    raised = run.guards.filter((pl.col("fingerprint") == fingerprint) & (pl.col("level") != "ok"))
    details = "; ".join(f"{row['guard']}: {row['detail']}" for row in raised.iter_rows(named=True))
    return f' <abbr title="{escape(details)}">⚠</abbr>' if details else ""


def at_equal_budget(verdict: dict[str, Any] | None, *, short: bool = False) -> str:
    """`▼ loses to stock -6.3 [-11.3, -1.7]` as a cell, a * for a note; `short` leaves words out."""
    if verdict is None:
        return "reference"
    interval = "" if verdict["difference"] is None else points(verdict, simultaneous=True)
    if interval and not short:
        interval += f", {p_text(verdict)}"
    note = f' <abbr title="{escape(verdict["note"])}">*</abbr>' if verdict["note"] else ""
    said = against(verdict)
    if short and verdict["verdict"] != "unmatched":
        said = f"{verdict['verdict']} {rival(verdict).removeprefix('fixed_k ')}"
    return f"{MARKS[verdict['verdict']]} {escape(said)} {interval}".strip() + note
