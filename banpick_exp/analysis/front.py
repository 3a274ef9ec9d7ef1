"""The Pareto front of accuracy, speed-up and measured budget, judged with the noise of each.

A point is off the front only when another is at least as good in everything and better beyond noise in something. One
that stays is *sure* when it is better than every other beyond noise in something: whatever the noise did, it would
stay. The rest may stand there by chance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from banpick_exp.analysis.pairing import Answers, Outcomes, answers_by_name
from banpick_exp.records import OVERALL

SAME_BUDGET = 0.05
"""Experts kept a token: budgets nearer than this are one."""
Z = 1.959964
"""Of a two-sided 95 %."""
BLOCK = 256
"""Points that are held against all others at once: every pair of 10,000 points would fill gigabytes."""


def pareto_front(frame: pl.DataFrame, outcomes: Outcomes | None = None) -> pl.DataFrame:
    """The frame with the columns `on_front` and `sure`.

    Higher `accuracy` and `speedup` are better, and a lower `mean_kept` where the frame has it. Noise is the paired
    error of two accuracies where `outcomes` has the answers of both to the same problems, else their intervals
    (`accuracy_lo`, ...); the intervals of two speed-ups; `SAME_BUDGET`. Without intervals there is none.

    Rows compete within their `domain` where there is that column; rows that are not `done`, repeats of other points, or
    rows that lack a value, neither stand on the front nor push others off it. Where no row of a domain was timed,
    speed is left out. Equal rows share the front.

    Rows with `own_speedup` are of checkpoints that were made from another, told apart by `model`. Two of one checkpoint
    are compared in that speed-up. With any other they are compared in accuracy and budget alone: no clock ran in turn
    on both.
    """
    usable = np.ones(frame.height, dtype=bool)
    if "status" in frame.columns:
        usable &= (frame["status"] == "done").to_numpy()
    if "repeat" in frame.columns and frame.height:
        usable &= (frame["repeat"] == frame["repeat"].min()).to_numpy()
    domains = frame["domain"].to_numpy() if "domain" in frame.columns else np.full(frame.height, OVERALL)
    correct = by_problem(frame, outcomes or {})
    on_front, sure = np.zeros(frame.height, dtype=bool), np.zeros(frame.height, dtype=bool)
    for domain in dict.fromkeys(domains.tolist()):
        rows = np.flatnonzero(usable & (domains == domain))
        timed = bool(np.isfinite(_speeds(frame[rows])).any())
        rows = rows[np.all([np.isfinite(values) for values in _compared(frame[rows], timed)], axis=0)]
        part = frame[rows]
        axes = [_accuracy(part, domain, correct), *([_speed(part)] if timed else []), *_budget(part)]
        on_front[rows], sure[rows] = _front(axes)
    return frame.with_columns(
        pl.Series("on_front", on_front, dtype=pl.Boolean), pl.Series("sure", sure, dtype=pl.Boolean)
    )


@dataclass(frozen=True, slots=True)
class _Axis:
    """What n points are compared in; more is better."""

    values: np.ndarray
    """[n]."""
    noise: Callable[[slice], np.ndarray | float]
    """Some of the points -> [those, n] how far each may lie apart from each by noise."""
    group: np.ndarray | None = None
    """[n]: points of different groups are not compared in this; None where all are."""


def _front(axes: Sequence[_Axis]) -> tuple[np.ndarray, np.ndarray]:
    """Which of n points are on the front, and which of these for sure."""
    n = len(axes[0].values)
    on_front, sure = np.ones(n, dtype=bool), np.ones(n, dtype=bool)
    for start in range(0, n, BLOCK):
        some = slice(start, min(n, start + BLOCK))
        own = np.arange(start, some.stop)
        at_least, beyond = np.ones((len(own), n), dtype=bool), np.zeros((len(own), n), dtype=bool)
        for axis in axes:  # [i, j]: i, one of these, beside j
            difference = axis.values[some, None] - axis.values[None, :]
            better = difference > axis.noise(some)
            if axis.group is not None:
                apart = axis.group[some, None] != axis.group[None, :]
                better &= ~apart
                difference[apart] = 0
            at_least &= difference >= 0
            beyond |= better
        on_front &= ~(at_least & beyond).any(axis=0)
        beyond[own - start, own] = True
        sure[some] = beyond.all(axis=1)
    return on_front, on_front & sure


def _compared(frame: pl.DataFrame, timed: bool) -> list[np.ndarray]:
    """The values of all axes: a row that lacks one stands outside."""
    speeds = [_speeds(frame)] if timed else []
    return [_values(frame, "accuracy"), *speeds, *(axis.values for axis in _budget(frame))]


def _accuracy(frame: pl.DataFrame, domain: str, correct: Mapping[str, Answers]) -> _Axis:
    half = _half(frame, "accuracy")
    names = frame["fingerprint"].to_list() if "fingerprint" in frame.columns else []
    by_layout: dict[int, list[int]] = {}
    for row, name in enumerate(names):
        if name in correct:
            by_layout.setdefault(id(correct[name].layout), []).append(row)
    paired = [(np.array(rows), scores([correct[names[row]] for row in rows], domain)) for rows in by_layout.values()]

    def noise(some: slice) -> np.ndarray:
        if len(paired) == 1 and len(paired[0][0]) == frame.height:  # all answered the same problems
            errors = paired_errors(paired[0][1], some)
            return np.multiply(errors, Z, out=errors)
        found = _apart(half, some)
        for rows, scores_PN in paired:
            first, last = np.searchsorted(rows, [some.start, some.stop])
            errors = paired_errors(scores_PN, slice(int(first), int(last)))
            found[np.ix_(rows[first:last] - some.start, rows)] = Z * errors
        return found

    return _Axis(_values(frame, "accuracy"), noise)


def _speed(frame: pl.DataFrame) -> _Axis:
    half = np.maximum(_half(frame, "speedup", log=True), _half(frame, "own_speedup", log=True))
    return _Axis(_speeds(frame), lambda some: _apart(half, some), _clocks(frame))


def _budget(frame: pl.DataFrame) -> list[_Axis]:
    """One, or none where the frame does not say what was kept."""
    if "mean_kept" not in frame.columns:
        return []
    return [_Axis(-_values(frame, "mean_kept"), lambda some: SAME_BUDGET)]


def _speeds(frame: pl.DataFrame) -> np.ndarray:
    found = _values(frame, "speedup")
    if "own_speedup" in frame.columns:
        found = np.where(np.isnan(found), _values(frame, "own_speedup"), found)
    return np.asarray(np.log(found.clip(1e-9)))


def _clocks(frame: pl.DataFrame) -> np.ndarray | None:
    """[n] a number for each stock that speed was measured against; None where that is one."""
    if "own_speedup" not in frame.columns or frame["own_speedup"].is_null().all():
        return None
    own = frame.select(pl.when(pl.col("own_speedup").is_not_null()).then("model").fill_null(""))
    return np.unique(own.to_series().to_numpy().astype(str), return_inverse=True)[1]


def _values(frame: pl.DataFrame, column: str) -> np.ndarray:
    return frame[column].cast(pl.Float64).fill_null(np.nan).to_numpy()


def _half(frame: pl.DataFrame, column: str, *, log: bool = False) -> np.ndarray:
    """[n] half the width of the interval; 0 where there is none."""
    if f"{column}_lo" not in frame.columns:
        return np.zeros(frame.height)
    low, high = _values(frame, f"{column}_lo"), _values(frame, f"{column}_hi")
    return np.nan_to_num((np.log(high) - np.log(low) if log else high - low) / 2)


def _apart(half: np.ndarray, some: slice) -> np.ndarray:
    """[those, n] of two independent values with these intervals."""
    return np.asarray(np.hypot(half[some, None], half[None, :]))


# ---------------------------------------------------------------- answers, problem by problem


def by_problem(frame: pl.DataFrame, outcomes: Outcomes) -> dict[str, Answers]:
    """Fingerprint -> answers of the rows that have them; equal problems share one layout."""
    names = frame["fingerprint"].unique(maintain_order=True) if "fingerprint" in frame.columns else ()
    return answers_by_name((name for name in names if name in outcomes and outcomes[name].height), outcomes)


def scores(answers: list[Answers], domain: str) -> np.ndarray:
    """[points, problems] share of right answers, of points with one layout."""
    layout = answers[0].layout
    rows = slice(None) if domain == OVERALL else layout.domains.get(domain, np.zeros(0, dtype=np.intp))
    return np.stack([each.sums["correct"][rows] / each.samples for each in answers])


def paired_errors(scores_PN: np.ndarray, some: slice = slice(None)) -> np.ndarray:
    """[points, points] standard error of the mean paired difference; 0 on the diagonal. `some`: of these rows alone."""
    n = scores_PN.shape[1]
    if n < 2:
        return np.full((len(scores_PN[some]), len(scores_PN)), np.inf)
    products = scores_PN[some] @ scores_PN.T
    whole = len(products) == len(scores_PN)
    squares = np.diag(products).copy() if whole else np.einsum("pn,pn->p", scores_PN, scores_PN)
    sums = scores_PN.sum(axis=1)
    # In place: of thousands of points each step would fill and read a matrix of its own.
    products *= 2
    variance = squares[some, None] + squares[None, :]
    variance -= products
    variance /= n
    difference = np.subtract(sums[some, None], sums[None, :], out=products)
    difference /= n
    variance -= np.square(difference, out=difference)
    np.maximum(variance, 0, out=variance)
    variance /= n - 1
    return np.sqrt(variance, out=variance)
