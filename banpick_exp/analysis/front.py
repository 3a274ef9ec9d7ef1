"""The Pareto front of accuracy, speed-up and measured budget, judged with the noise of each.

A point is off the front only when another is at least as good in everything and better beyond noise in something. One
that stays is *sure* when it is better than every other beyond noise in something: whatever the noise did, it would
stay. The rest may stand there by chance.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl

from banpick_exp.analysis.pairing import Answers, Outcomes, answers_by_name
from banpick_exp.records import OVERALL

SAME_BUDGET = 0.05
"""Experts kept a token: budgets nearer than this are one."""
Z = 1.959964
"""Of a two-sided 95 %."""


def pareto_front(frame: pl.DataFrame, outcomes: Outcomes | None = None) -> pl.DataFrame:
    """The frame with the columns `on_front` and `sure`.

    Higher `accuracy` and `speedup` are better, and a lower `mean_kept` where the frame has it. Noise is the paired
    error of two accuracies where `outcomes` has the answers of both to the same problems, else their intervals
    (`accuracy_lo`, ...); the intervals of two speed-ups; `SAME_BUDGET`. Without intervals there is none.

    Rows compete within their `domain` where there is that column; rows that are not `done`, repeats of other points, or
    rows that lack a value, neither stand on the front nor push others off it. Where no row of a domain was timed,
    speed is left out. Equal rows share the front.
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
        part = frame[rows]
        better = [axis for axis in (_accuracy(part, domain, correct), _speed(part), _budget(part)) if axis is not None]
        has_all = np.all([np.isfinite(values) for values, _ in better], axis=0)
        front = _front([(v[has_all], noise[np.ix_(has_all, has_all)]) for v, noise in better])
        on_front[rows[has_all]], sure[rows[has_all]] = front
    return frame.with_columns(
        pl.Series("on_front", on_front, dtype=pl.Boolean), pl.Series("sure", sure, dtype=pl.Boolean)
    )


Axis = tuple[np.ndarray, np.ndarray]
"""([n] values, more is better; [n, n] how far two of them may lie apart by noise)."""


def _front(axes: list[Axis]) -> tuple[np.ndarray, np.ndarray]:
    """Which of n points are on the front, and which of these for sure."""
    n = len(axes[0][0])
    at_least, beyond = np.ones((n, n), dtype=bool), np.zeros((n, n), dtype=bool)
    for values, noise in axes:  # [i, j]: i beside j
        difference = values[:, None] - values[None, :]
        at_least &= difference >= 0
        beyond |= difference > noise
    on_front = ~(at_least & beyond).any(axis=0)
    np.fill_diagonal(beyond, True)
    return on_front, on_front & beyond.all(axis=1)


def _accuracy(frame: pl.DataFrame, domain: str, correct: Mapping[str, Answers]) -> Axis:
    noise = _apart(_half(frame, "accuracy"))
    names = frame["fingerprint"].to_list() if "fingerprint" in frame.columns else []
    by_layout: dict[int, list[int]] = {}
    for row, name in enumerate(names):
        if name in correct:
            by_layout.setdefault(id(correct[name].layout), []).append(row)
    for rows in by_layout.values():
        noise[np.ix_(rows, rows)] = Z * paired_errors(scores([correct[names[row]] for row in rows], domain))
    return _values(frame, "accuracy"), noise


def _speed(frame: pl.DataFrame) -> Axis | None:
    values = np.log(_values(frame, "speedup").clip(1e-9))
    return None if np.isnan(values).all() and len(values) else (values, _apart(_half(frame, "speedup", log=True)))


def _budget(frame: pl.DataFrame) -> Axis | None:
    if "mean_kept" not in frame.columns:
        return None
    return -_values(frame, "mean_kept"), np.full((frame.height, frame.height), SAME_BUDGET)


def _values(frame: pl.DataFrame, column: str) -> np.ndarray:
    return frame[column].cast(pl.Float64).fill_null(np.nan).to_numpy()


def _half(frame: pl.DataFrame, column: str, *, log: bool = False) -> np.ndarray:
    """[n] half the width of the interval; 0 where there is none."""
    if f"{column}_lo" not in frame.columns:
        return np.zeros(frame.height)
    low, high = _values(frame, f"{column}_lo"), _values(frame, f"{column}_hi")
    return np.nan_to_num((np.log(high) - np.log(low) if log else high - low) / 2)


def _apart(half: np.ndarray) -> np.ndarray:
    """[n, n] of two independent values with these intervals."""
    return np.asarray(np.hypot(half[:, None], half[None, :]))


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


def paired_errors(scores_PN: np.ndarray) -> np.ndarray:
    """[points, points] standard error of the mean paired difference; 0 on the diagonal."""
    n = scores_PN.shape[1]
    if n < 2:
        return np.full((len(scores_PN), len(scores_PN)), np.inf)
    products = scores_PN @ scores_PN.T
    squares = np.diag(products)
    sums = scores_PN.sum(axis=1)
    difference = (sums[:, None] - sums[None, :]) / n
    variance = (squares[:, None] + squares[None, :] - 2 * products) / n - difference**2
    return np.asarray(np.sqrt(np.clip(variance, 0, None) / (n - 1)))
