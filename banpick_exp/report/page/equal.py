"""Solved budgets: which rule beats fixed_k at which of them, and how each knob was found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

import polars as pl
from rich.console import Console
from rich.markup import escape as plain
from rich.table import Table

from banpick_exp.analysis import BUDGET_TOLERANCE
from banpick_exp.records import OVERALL
from banpick_exp.report.page.tables import html_table, verdict_cell
from banpick_exp.report.run import Run
from banpick_exp.report.text import NAMED, points, rival

COLOURS = {"▲": "green", "▼": "red"}


def solved(frame: pl.DataFrame) -> bool:
    """Whether a knob was solved for any of these points (`points_frame`)."""
    return frame["budget_target"].drop_nulls().len() > 0


def at_equal_budgets(found: pl.DataFrame) -> pl.DataFrame:
    """Rows of `verdicts` over all domains whose fixed_k reference keeps as many experts; the largest budget first."""
    rows = found.filter((pl.col("domain") == OVERALL) & (pl.col("against") == "fixed_k"))
    rows = rows.filter((pl.col("verdict") != "unmatched") & (pl.col("budget_gap").abs() <= BUDGET_TOLERANCE))
    return rows.sort("reference_mean_kept", descending=True, maintain_order=True)


def rule_by_budget(found: pl.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Heading and body of the table: a row a rule, a column a fixed_k point, cells as `tables.verdict_cell`."""
    rows = at_equal_budgets(found)
    references = rows["reference_label"].unique(maintain_order=True).to_list()
    body = []
    for policy in rows["policy"].unique(maintain_order=True):
        own = rows.filter(pl.col("policy") == policy)
        body.append(
            [policy, *(verdict_cell(own.filter(pl.col("reference_label") == each).to_dicts()) for each in references)]
        )
    return ["policy", *(rival({"reference_label": each}) for each in references)], body


def print_equal_budgets(frame: pl.DataFrame, found: pl.DataFrame, console: Console) -> None:
    """The table and its sentence, where a knob was solved for any of the points."""
    if not solved(frame) or not (table_of := rule_by_budget(found))[1]:
        return
    head, body = table_of
    table = Table(title="Against fixed_k at equal budget (points, simultaneous interval)", title_justify="left")
    for name in head:
        table.add_column(plain(name))
    for policy, *cells in body:
        styled = (f"[{colour}]{plain(cell)}[/]" if (colour := COLOURS.get(cell[:1])) else plain(cell) for cell in cells)
        table.add_row(plain(policy), *styled)
    console.print(table)
    console.print(plain(equal_budget_sentence(found)))


def equal_budget_sentence(found: pl.DataFrame) -> str:
    """Which rules beat fixed_k and which lose to it, at which budget and by how much; the rest ties."""
    rows = at_equal_budgets(found)
    if rows.height == 0:
        return ""
    said = [f"{len(set(rows['policy']))} rules at equal measured budgets, {rows.height} comparisons with fixed_k:"]
    for verdict, word in (("beats", "beat it"), ("loses", "lose to it")):
        some = rows.filter(pl.col("verdict") == verdict).sort(pl.col("difference").abs(), descending=True)
        named = [f"{row['label']} {points(row, simultaneous=True)}" for row in some.head(NAMED).iter_rows(named=True)]
        more = f" and {some.height - NAMED} more" if some.height > NAMED else ""
        said.append(f"{some.height} {word}" + (f" ({'; '.join(named)}{more})" if named else "") + ",")
    ties = rows.filter(pl.col("verdict") == "ties").height
    return " ".join(said) + f" {ties} tie" + (": no difference shown, which is not the same as none." if ties else ".")


def solved_table(run: Run) -> str:
    """A row a solved knob: what was asked for, found and measured; empty where the run solved none."""
    rows = [list(map(escape, _solved_row(record))) for record in _solved_records(run)]
    if not rows:
        return ""
    head = ["policy", "target", "knob found", "measured", "off by", "probes on a sample (knob: experts kept)", "note"]
    return html_table(f"Knobs solved for a budget, {run.name}", head, rows)


def _solved_records(run: Run) -> Iterator[Mapping[str, Any]]:
    records = [record for record in run.records if record.get("budget")]
    yield from sorted(records, key=lambda r: (-r["budget"]["target"], r["policy"]["name"]))


def _solved_row(record: Mapping[str, Any]) -> list[str]:
    spent = record["budget"]
    probes = ", ".join(f"{value:g}: {measured:.2f}" for value, measured in spent["probes"])
    notes = {
        "solved before": spent["cached"],
        "corrected by what all problems showed": spent["corrected"],
        str(record["reason"]): record["status"] != "done",
    }
    return [
        record["label"], f"{spent['target']:g}", f"{spent['knob']} = {spent['value']:g}", f"{spent['measured']:.3f}",
        f"{spent['measured'] - spent['target']:+.3f}",
        f"{len(spent['probes'])} on {spent['sample_problems']} problems ({probes})" if probes else "none needed",
        "; ".join(note for note, holds in notes.items() if holds),
    ]  # fmt: skip
