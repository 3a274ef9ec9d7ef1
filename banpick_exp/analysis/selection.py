"""Chosen on dev, reported on test: a score that picked a knob is no measure of it.

The best of many settings looks better than it is on the very problems that chose it. So choosing and reporting are two
functions that refuse each other's data, and what passes between them is a `Chosen`, which only `choose` can make.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import polars as pl

from banpick_exp.analysis.pairing import (
    PROBLEM,
    REFERENCE_POLICIES,
    Outcomes,
    answers_of,
    without_repeats,
)
from banpick_exp.analysis.verdict import EQUAL_BUDGET_TOLERANCE, RIVALS, verdicts
from banpick_exp.errors import UserError
from banpick_exp.records import OVERALL, PointRecord
from banpick_exp.tasks.config import GREEDY

DEV, TEST = "dev", "test"
SPLIT_SETTINGS = ("split", "identity", "data_files", "max_problems")
"""What a task may change between dev and test."""

Score = Callable[[PointRecord, pl.DataFrame], float]
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
    dev_records: Iterable[PointRecord],
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
        records, DEV, f"it would be chosen on the problems it is later reported on. Run with task.split={DEV}"
    )
    done = [r for r in records if r.status == "done" and r.policy_name not in REFERENCE_POLICIES]
    if not done:
        raise UserError("No point of a policy is done on dev: there is nothing to choose from. Run the sweep on dev.")
    found = verdicts(records, dev_outcomes).filter(pl.col("domain") == OVERALL)
    differences = dict(found.select("fingerprint", "difference").iter_rows())
    scores = _scores(done, dev_outcomes, score, differences)
    return [
        _best(group, budget, scores, differences)
        for budget in ([None] if per_budget is None else per_budget)
        for group in _groups(_kept_about(done, budget), per_policy)
    ]


def _kept_about(done: list[PointRecord], budget: float | None) -> list[PointRecord]:
    """The points measured at a budget; UserError where there is none."""
    if budget is None:
        return done
    here = [record for record in done if abs(record.mean_kept - budget) <= EQUAL_BUDGET_TOLERANCE]
    if not here:
        kept = sorted(record.mean_kept for record in done)
        raise UserError(
            f"per_budget={budget:g}: no dev point was measured within {EQUAL_BUDGET_TOLERANCE} experts of it, so none"
            f" can be chosen. The points keep {kept[0]:.2f} to {kept[-1]:.2f}; name budgets among them."
        )
    return here


def _groups(records: list[PointRecord], per_policy: bool) -> list[list[PointRecord]]:
    """What one point is chosen from: all of them, or those of each rule."""
    if not per_policy:
        return [records]
    names = sorted({record.series for record in records})
    return [[record for record in records if record.series == name] for name in names]


def _best(
    group: list[PointRecord], budget: float | None, scores: dict[str, float], differences: dict[str, float | None]
) -> Chosen:
    best = min(group, key=lambda record: (-scores[record.fingerprint], record.mean_kept, record.label))
    return Chosen(
        label=_label(best),
        policy=dict(best.policy),
        command=best.command or "",
        budget=budget,
        mean_kept=best.mean_kept,
        dev_score=scores[best.fingerprint],
        dev_difference=differences.get(best.fingerprint),
        candidates=len(group),
        identity=_identity(best),
        dev_data=best.task.identity,
        made_by=_BY_CHOICE,
    )


def report_on_test(
    chosen: Sequence[Chosen],
    test_records: Iterable[PointRecord],
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
    _require_split(records, TEST, f"the problems that chose would be reported. Run with task.split={TEST}")
    wanted = {point.identity: point for point in chosen}
    rivals = [record for record in records if record.series in REFERENCE_POLICIES]
    tested = {_identity(record): record for record in records if record.policy_name not in REFERENCE_POLICIES}
    _require_the_chosen(wanted, tested)
    beside = {tested[identity].fingerprint: point for identity, point in wanted.items()}
    found = verdicts([*rivals, *tested.values()], test_outcomes, against=against)
    found = found.filter(pl.col("fingerprint").is_in(list(beside)))
    points = [beside[fingerprint] for fingerprint in found["fingerprint"]]
    return found.with_columns(
        pl.Series("budget", [p.budget for p in points], dtype=pl.Float64),
        pl.Series("candidates", [p.candidates for p in points], dtype=pl.Int64),
        pl.Series("dev_score", [p.dev_score for p in points], dtype=pl.Float64),
        pl.Series("dev_difference", [p.dev_difference for p in points], dtype=pl.Float64),
    )


def _require_the_chosen(wanted: Mapping[str, Chosen], tested: Mapping[str, PointRecord]) -> None:
    """UserError unless the same points finished on test as were chosen on dev, on other problems; by identity."""
    for identity, record in tested.items():
        if identity not in wanted:
            raise UserError(
                f"{record.label} was not chosen on dev: reporting it would let test choose. Leave its record out, or"
                " choose again on dev with it among the candidates."
            )
    for identity, point in wanted.items():
        if identity not in tested or tested[identity].status != "done":
            raise UserError(
                f"{point.label} was chosen on dev but did not finish on test: the report would lack it. Type"
                f" {point.command} task.split={TEST}"
            )
        if point.dev_data is not None and tested[identity].task.identity == point.dev_data:
            raise UserError(
                f"{point.label} was chosen on the very problems of this test split (data {point.dev_data}): the report"
                " would repeat the choice. Give dev and test files of their own in task.data_files."
            )


def _scores(
    done: list[PointRecord], outcomes: Outcomes, score: str | Score, differences: dict[str, float | None]
) -> dict[str, float]:
    """fingerprint -> score."""
    if callable(score):
        return {record.fingerprint: float(score(record, outcomes[record.fingerprint])) for record in done}
    if score == "difference":
        scores = {}
        for record in done:
            difference = differences.get(record.fingerprint)
            if difference is None:
                raise UserError(
                    f"score=difference: {record.label} has no fixed_k point of its set-up on dev, so it has no score."
                    " Add the fixed_k ladder to the dev sweep, or use score=accuracy."
                )
            scores[record.fingerprint] = difference
        return scores
    if score != "accuracy":
        raise UserError(f"score={score} is unknown: nothing can be ranked. Use accuracy, difference or a function.")
    return _shared_accuracy({record.fingerprint: outcomes[record.fingerprint] for record in done})


def _shared_accuracy(frames: dict[str, pl.DataFrame]) -> dict[str, float]:
    """Accuracy on the problems that all of them answered; UserError where there is none."""
    common = reduce(lambda a, b: a.join(b, on=PROBLEM, how="semi"), frames.values()).select(PROBLEM)
    if common.height == 0:
        raise UserError("score=accuracy: the candidates have no problem in common, so no score compares. Use one task.")
    shared = {name: frame.join(common, on=PROBLEM, how="semi") for name, frame in frames.items()}
    return {name: answers_of(frame).mean("correct") for name, frame in shared.items()}


def _require_split(records: list[PointRecord], split: str, consequence: str) -> None:
    for record in records:
        if record.task.split != split:
            raise UserError(
                f"The point `{record.label}` was asked problems of task.split={record.task.split}, not {split}:"
                f" {consequence}."
            )


def _identity(record: PointRecord) -> str:
    task = GREEDY | {key: value for key, value in record.task.plain().items() if key not in SPLIT_SETTINGS}
    parts = [record.model.plain(), record.engine, task, record.asked_policy(), record.calibration]
    return json.dumps([*parts, record.seed, record.repeat], sort_keys=True, default=str)


def _label(record: PointRecord) -> str:
    return " ".join(part for part in record.label.split() if not part.startswith("task.split="))
