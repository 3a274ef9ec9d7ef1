"""Accuracy of each sub-task against stock: a mean that ties can hide one that fell."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import polars as pl

from banpick_exp.analysis.compare import ERROR_RATE, sign_flip_p
from banpick_exp.analysis.drift import Change
from banpick_exp.analysis.intervals import bootstrap_intervals
from banpick_exp.analysis.pairing import Outcomes, Pairs, References, all_answers, pair
from banpick_exp.records import PointRecord

DROP = 0.05
"""Accuracy, 0..1: a sub-task that loses more than this is named."""

_SCHEMA: dict[str, Any] = {
    "fingerprint": pl.String, "label": pl.String, "domain": pl.String, "task": pl.String, "accuracy": pl.Float64,
    "stock_accuracy": pl.Float64, "difference": pl.Float64, "lo": pl.Float64, "hi": pl.Float64, "p": pl.Float64,
    "n_problems": pl.Int64,
}  # fmt: skip


def subtasks(records: Iterable[PointRecord], outcomes: Outcomes) -> pl.DataFrame:
    """Every done policy on every sub-task, on the problems it shares with stock of the same set-up.

    Returns: one row a point x domain x sub-task: fingerprint, label, domain, task, accuracy, stock_accuracy,
        difference (0..1) with its paired 95 % interval lo..hi, the exact p (not adjusted), n_problems.
    """
    done = [record for record in records if record.status == "done"]
    answers = all_answers(done, outcomes)
    references = References(done)
    rows = []
    for record in done:
        stock = references.stock(record)
        if stock is None or stock.fingerprint == record.fingerprint:
            continue
        paired = pair(answers[record.fingerprint], answers[stock.fingerprint])
        for domain, task, pairs in paired.by_subtask():
            counts, scale = pairs.differences("correct")
            ((low, high),) = bootstrap_intervals(counts, 1 - ERROR_RATE)
            ours, theirs = pairs.mean("correct")
            rows.append({
                "fingerprint": record.fingerprint, "label": record.label, "domain": domain, "task": task,
                "accuracy": ours, "stock_accuracy": theirs, "difference": ours - theirs, "lo": low / scale,
                "hi": high / scale, "p": sign_flip_p(counts), "n_problems": pairs.n,
            })  # fmt: skip
    return pl.DataFrame(rows, schema=_SCHEMA)


def subtask_change(record: PointRecord, domain: str, task: str, pairs: Pairs) -> Change:
    """The change of one sub-task as a guard reads it."""
    counts, scale = pairs.differences("correct")
    ours, theirs = pairs.mean("correct")
    difference = ours - theirs

    def sentence() -> str:
        low, high = (100 * end / scale for end in bootstrap_intervals(counts, 1 - ERROR_RATE)[0])
        return (
            f"{task}: {ours:.1%} right, stock {theirs:.1%}: {100 * difference:+.1f} points [{low:+.1f}, {high:+.1f}] "
            f"on {pairs.n} problems"
        )

    return Change(
        record=record,
        guard="subtask_drop",
        domain=domain,
        value=difference,
        p=sign_flip_p(counts),
        large=difference < -DROP - 1e-12,
        sentence=sentence,
    )
