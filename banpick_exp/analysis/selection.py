"""Chosen on dev, reported on test: a score that picked a knob is no measure of it.

The best of many settings looks better than it is on the very problems that chose it. So choosing and reporting are two
functions that refuse each other's data, and what passes between them is a `Chosen`, which only `choose` can make.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import polars as pl

from banpick_exp.analysis.pairing import (
    PROBLEM,
    REFERENCE_POLICIES,
    Outcomes,
    Record,
    answers_of,
    asked_policy,
    mean_kept,
    repeat_of,
    without_repeats,
)
from banpick_exp.analysis.verdict import BUDGET_TOLERANCE, RIVALS, verdicts
from banpick_exp.errors import UserError
from banpick_exp.records import OVERALL
from banpick_exp.tasks.config import GREEDY

DEV, TEST = "dev", "test"
SPLIT_SETTINGS = ("split", "identity", "data_files", "max_problems")
"""What a task may change between dev and test."""

Score = Callable[[Record, pl.DataFrame], float]
_BY_CHOICE = object()


@dataclass(frozen=True, kw_only=True, slots=True)
class Chosen:
    """A point that `choose` picked on dev; it cannot be made by hand. Hand it to `report_on_test`."""

    label: str
    policy: dict[str, Any]
    command: str
    """What made the dev point; with task.split=test it makes the one to report."""
    budget: float | None
    """The target it was chosen for, None where one was chosen for all."""
    mean_kept: float
    dev_score: float
    """Highest of `candidates`, so too good: it is shown beside the test result and never instead of it."""
    dev_difference: float | None
    """Against fixed_k at the nearest budget, on dev."""
    candidates: int
    identity: str
    """Everything but the split: the test point must have it too."""
    dev_data: str | None
    made_by: object = field(repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.made_by is not _BY_CHOICE:
            raise UserError(
                f"Chosen(label={self.label!r}) was made by hand: nothing says that dev chose it, so test would be"
                " reported on what test itself may have picked. Use choose(dev_records, dev_outcomes)."
            )


def choose(
    dev_records: Iterable[Record],
    dev_outcomes: Outcomes,
    *,
    score: str | Score = "accuracy",
    per_budget: Sequence[float] | None = None,
    per_policy: bool = False,
) -> list[Chosen]:
    """The best finished policy point on dev: of all, or of each budget, or of each policy (rule name), or of both.

    Args:
        dev_records, dev_outcomes: points of the dev split; `none` and `fixed_k` are rivals and never chosen.
        score: `accuracy` on the problems that all candidates answered; `difference` to fixed_k at the nearest budget,
            paired; or a function of (record, its outcomes). Higher is better. Equal scores: the one that keeps fewer.
        per_budget: targets in experts per token; candidates are the points measured within 0.25 of one.
        per_policy: one for each rule instead of one for all.

    Raises: UserError for a record of another split than dev, an unknown score, and where there is nothing to choose.
    """
    records = without_repeats(dev_records)
    _require_split(
        records, DEV, f"choose() would pick on the problems it is later reported on. Run with task.split={DEV}"
    )
    done = [r for r in records if r["status"] == "done" and r["policy"]["name"] not in REFERENCE_POLICIES]
    if not done:
        raise UserError("choose() got no finished policy point: there is nothing to choose from. Run the sweep on dev.")
    found = verdicts(records, dev_outcomes).filter(pl.col("domain") == OVERALL)
    differences = dict(found.select("fingerprint", "difference").iter_rows())
    scores = _scores(done, dev_outcomes, score, differences)
    chosen = []
    for budget in [None] if per_budget is None else per_budget:
        here = [r for r in done if budget is None or abs(mean_kept(r) - budget) <= BUDGET_TOLERANCE]
        if not here:
            kept = sorted(mean_kept(r) for r in done)
            raise UserError(
                f"per_budget={budget:g}: no dev point was measured within {BUDGET_TOLERANCE} experts of it, so none can"
                f" be chosen. The points keep {kept[0]:.2f} to {kept[-1]:.2f}; name budgets among them."
            )
        groups = sorted({r["policy"]["name"] for r in here}) if per_policy else [None]
        for name in groups:
            group = [r for r in here if name is None or r["policy"]["name"] == name]
            best = min(group, key=lambda r: (-scores[r["fingerprint"]], mean_kept(r), r["label"]))
            chosen.append(
                Chosen(
                    label=_label(best), policy=dict(best["policy"]), command=best["command"], budget=budget,
                    mean_kept=mean_kept(best), dev_score=scores[best["fingerprint"]], candidates=len(group),
                    dev_difference=differences.get(best["fingerprint"]), identity=_identity(best),
                    dev_data=best["task"].get("identity"), made_by=_BY_CHOICE,
                )
            )  # fmt: skip
    return chosen


def report_on_test(
    chosen: Sequence[Chosen],
    test_records: Iterable[Record],
    test_outcomes: Outcomes,
    *,
    against: Sequence[str] = RIVALS,
) -> pl.DataFrame:
    """`verdicts` of the chosen points on test, adjusted over them alone, beside what dev had promised.

    Args:
        chosen: from `choose`.
        test_records, test_outcomes: the same points, and the `none` and `fixed_k` points, on the test split.

    Returns: the columns of `verdicts`, then budget, candidates, dev_score and dev_difference (the last against fixed_k
        and overall, whatever the row).
    Raises: UserError for records of another split, a policy that was not chosen, a chosen one that did not finish on
        test, or a test set that is the dev set.
    """
    records = without_repeats(test_records)
    if strangers := [point for point in chosen if not isinstance(point, Chosen)]:
        raise UserError(f"report_on_test() got {strangers[0]!r}, which choose() did not make. Choose on dev first.")
    _require_split(records, TEST, f"report_on_test() would report the problems that chose. Run with task.split={TEST}")
    wanted = {point.identity: point for point in chosen}
    rivals = [r for r in records if r["policy"]["name"] in REFERENCE_POLICIES]
    tested = {_identity(r): r for r in records if r["policy"]["name"] not in REFERENCE_POLICIES}
    for identity, record in tested.items():
        if identity not in wanted:
            raise UserError(
                f"{record['label']} was not chosen on dev: reporting it would let test choose. Leave its record out, or"
                " choose again on dev with it among the candidates."
            )
    for identity, point in wanted.items():
        if identity not in tested or tested[identity]["status"] != "done":
            raise UserError(
                f"{point.label} was chosen on dev but did not finish on test: the report would lack it. Type"
                f" {point.command} task.split={TEST}"
            )
        if point.dev_data is not None and tested[identity]["task"].get("identity") == point.dev_data:
            raise UserError(
                f"{point.label} was chosen on the very problems of this test split (data {point.dev_data}): the report"
                " would repeat the choice. Give dev and test files of their own in task.data_files."
            )
    beside = {tested[identity]["fingerprint"]: point for identity, point in wanted.items()}
    found = verdicts([*rivals, *tested.values()], test_outcomes, against=against)
    found = found.filter(pl.col("fingerprint").is_in(list(beside)))
    points = [beside[fingerprint] for fingerprint in found["fingerprint"]]
    return found.with_columns(
        pl.Series("budget", [p.budget for p in points], dtype=pl.Float64),
        pl.Series("candidates", [p.candidates for p in points], dtype=pl.Int64),
        pl.Series("dev_score", [p.dev_score for p in points], dtype=pl.Float64),
        pl.Series("dev_difference", [p.dev_difference for p in points], dtype=pl.Float64),
    )


def _scores(
    done: list[Record], outcomes: Outcomes, score: str | Score, differences: dict[str, Any]
) -> dict[str, float]:
    if callable(score):
        return {r["fingerprint"]: float(score(r, outcomes[r["fingerprint"]])) for r in done}
    if score == "difference":
        if unmatched := [r["label"] for r in done if differences.get(r["fingerprint"]) is None]:
            raise UserError(
                f"score=difference: {unmatched[0]} has no fixed_k point of its set-up on dev, so it has no score. Add"
                " the fixed_k ladder to the dev sweep, or use score=accuracy."
            )
        return {r["fingerprint"]: differences[r["fingerprint"]] for r in done}
    if score != "accuracy":
        raise UserError(f"score={score} is unknown: nothing can be ranked. Use accuracy, difference or a function.")
    frames = {r["fingerprint"]: outcomes[r["fingerprint"]] for r in done}
    common = reduce(lambda a, b: a.join(b, on=PROBLEM, how="semi"), frames.values()).select(PROBLEM)
    if common.height == 0:
        raise UserError("score=accuracy: the candidates have no problem in common, so no score compares. Use one task.")
    shared = {name: frame.join(common, on=PROBLEM, how="semi") for name, frame in frames.items()}
    return {name: answers_of(frame).mean("correct") for name, frame in shared.items()}


def _require_split(records: list[Record], split: str, consequence: str) -> None:
    for record in records:
        found = record["task"].get("split")
        if found != split:
            raise UserError(f"{record['label']} is a record of task.split={found}, not {split}: {consequence}.")


def _identity(record: Record) -> str:
    task = GREEDY | {key: value for key, value in record["task"].items() if key not in SPLIT_SETTINGS}
    parts = [record["model"], record["engine"], task, asked_policy(record), record["calibration"]]
    return json.dumps([*parts, record.get("seed"), repeat_of(record)], sort_keys=True, default=str)


def _label(record: Record) -> str:
    return " ".join(part for part in record["label"].split() if not part.startswith("task.split="))
