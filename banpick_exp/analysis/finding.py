"""What a guard has to say about a point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from banpick_exp.records import OVERALL, PointRecord

StockGuard = Literal["nothing_found", "stock_at_zero", "all_alike", "stock_at_chance"]
"""Of stock's own answers: what they raise makes every comparison on that domain meaningless, or nearly so."""
STOCK_GUARDS: tuple[StockGuard, ...] = get_args(StockGuard)
Guard = Literal[
    StockGuard,
    "mixed_setups",
    "calibration_overlap",
    "pattern_timeout",
    "grader_timeout",
    "score_cut",
    "engaged",
    "failed_problems",
    "truncation",
    "length_drift",
    "duplicated_scores",
    "repetition",
    "subtask_drop",
]
GUARDS: tuple[Guard, ...] = get_args(Guard)
READ_FIRST: tuple[Guard, ...] = (*STOCK_GUARDS, "mixed_setups")
"""What is said before the verdict: it decides what the table can mean."""
AGAINST_STOCK: tuple[Guard, ...] = ("truncation", "length_drift", "subtask_drop")
"""Guards with an `ok` row for each change that is large enough to be named, but that chance explains."""
Level = Literal["ok", "warning", "invalid"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One row of `guards`."""

    record: PointRecord
    guard: Guard
    domain: str = OVERALL
    level: Level = "ok"
    value: float | None = None
    """What it is, each guard says for itself; null where it could not look."""
    detail: str
