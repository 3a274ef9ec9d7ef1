"""Verdicts at equal measured budget: which rule beats fixed_k at which budget, in a table and in a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from banpick_exp.analysis import EQUAL_BUDGET_TOLERANCE
from banpick_exp.records import OVERALL
from banpick_exp.report.text import MARKS, Row, points

NAMED = 6
"""Single comparisons that a sentence spells out before it counts the rest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VerdictTable:
    """A row a rule, a column a fixed_k point, the largest budget first."""

    references: Sequence[str]
    """Labels of the fixed_k points."""
    cells: Sequence[tuple[str, Sequence[str]]]
    """(rule, a text for each reference); none where nothing was compared."""


def is_near(row: Row) -> bool:
    """Whether a policy and its reference kept as many experts: else a verdict is about the budget too."""
    return row["budget_gap"] is None or abs(row["budget_gap"]) <= EQUAL_BUDGET_TOLERANCE


def has_solved(frame: pl.DataFrame) -> bool:
    """Whether a knob was solved for any of these points (`points_frame`)."""
    return frame["budget_target"].drop_nulls().len() > 0


def at_equal_budget(verdicts: pl.DataFrame) -> pl.DataFrame:
    """Rows of `verdicts` over all domains whose fixed_k reference keeps as many experts; the largest budget first."""
    rows = verdicts.filter((pl.col("domain") == OVERALL) & (pl.col("verdict") != "unmatched"))
    rows = rows.filter(pl.col("budget_gap").abs() <= EQUAL_BUDGET_TOLERANCE)
    return rows.sort("reference_mean_kept", descending=True, maintain_order=True)


def verdict_table(verdicts: pl.DataFrame) -> VerdictTable:
    """The verdicts of each rule at each budget."""
    rows = at_equal_budget(verdicts)
    references = rows["reference_label"].unique(maintain_order=True).to_list()
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows.iter_rows(named=True):
        found.setdefault((row["policy"], row["reference_label"]), []).append(row)
    return VerdictTable(
        references=references,
        cells=[
            (policy, [_cell(found.get((policy, reference), [])) for reference in references])
            for policy in rows["policy"].unique(maintain_order=True)
        ],
    )


def _cell(rows: Sequence[Row]) -> str:
    """`ties -0.3 [-1.2, +0.6]` of one row of `verdicts`; of several how many of each, and the best."""
    if not rows:
        return "-"
    if len(rows) == 1:
        return f"{MARKS[rows[0]['verdict']]} {rows[0]['verdict']} {points(rows[0], simultaneous=True)}".strip()
    count = {verdict: sum(row["verdict"] == verdict for row in rows) for verdict in ("beats", "ties", "loses")}
    best = max(rows, key=lambda row: float(row["difference"]))
    mark = MARKS["beats"] if count["beats"] else MARKS["loses"] if count["loses"] == len(rows) else ""
    verbs = {verdict: verdict if number == 1 else verdict.removesuffix("s") for verdict, number in count.items()}
    said = ", ".join(f"{number} {verbs[verdict]}" for verdict, number in count.items() if number)
    return f"{mark} {said}; best {points(best, simultaneous=True)}".strip()


def equal_budget_sentence(verdicts: pl.DataFrame) -> str:
    """Which rules beat fixed_k and which lose to it, at which budget and by how much; the rest ties."""
    rows = at_equal_budget(verdicts)
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
