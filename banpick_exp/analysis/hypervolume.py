"""One number for a sweep: how much better an answer it offers than the fixed_k ladder, at whatever price one may pay.

For each budget (or speed-up) between the ladder's ends, take the most accurate point that is no dearer; average its
accuracy over that range. It is the hypervolume under the front, divided by the length of the axis, so it is in points
of accuracy. The number of a sweep is that of all its points less that of the ladder alone.

The best of many noisy points looks better than it is. So points are chosen on nine tenths of the problems and scored on
the tenth left out, ten times over; policies that are no better than the ladder then gain nothing on average, however
many there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl

from banpick_exp.analysis.front import SAME_BUDGET, Z, by_problem, scores
from banpick_exp.analysis.pairing import REFERENCE_POLICIES, Outcomes
from banpick_exp.records import OVERALL

FOLDS = 10
DRAWS = 200
"""Of all speed-ups within their intervals: what their noise does to the number."""
MIN_PROBLEMS = 50
MARGIN = {"mean_kept": SAME_BUDGET, "speedup": 0.0}
"""Less than this from the dear end of the range is at its end."""

AxisName = Literal["mean_kept", "speedup"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Gain:
    """Hypervolume over the ladder's."""

    axis: AxisName
    low: float
    """Where the range begins: the ladder's smallest budget, or stock's speed, 1."""
    high: float
    points: float
    """Points of accuracy, averaged over the range."""
    ci95: tuple[float, float]

    @property
    def decided(self) -> bool:
        """The interval leaves out 0."""
        return not self.ci95[0] <= 0 <= self.ci95[1]


def hypervolume_gain(frame: pl.DataFrame, outcomes: Outcomes, axis: AxisName, domain: str = OVERALL) -> Gain | None:
    """The gain of the done points of `frame` (as `points_frame` returns it) in one domain.

    None where there is nothing to compare: no policy beside the ladder or none that is cheaper than stock, fewer than
    two ladder points with an `axis` value of their own, fewer than `MIN_PROBLEMS` problems. Points that answered other
    problems than the ladder's first point are left out.
    """
    rows = frame.filter((pl.col("domain") == domain) & (pl.col("status") == "done") & pl.col(axis).is_not_null())
    answers = by_problem(rows, outcomes)
    is_ladder = pl.col("policy").is_in(REFERENCE_POLICIES)
    layout = next((answers[name].layout for name in rows.filter(is_ladder)["fingerprint"] if name in answers), None)
    rows = rows.filter(pl.col("fingerprint").is_in([n for n, found in answers.items() if found.layout is layout]))
    ladder = rows.select(is_ladder)["policy"].to_numpy()
    if layout is None or ladder.all() or not ladder.any():
        return None
    scores_PN = scores([answers[name] for name in rows["fingerprint"]], domain)
    place, error = _places(rows, axis)
    low, high = float(place[ladder].min()), float(place[ladder].max())
    cheaper = (place[~ladder] > low + MARGIN[axis]).any()  # else every policy stands where the range begins
    if scores_PN.shape[1] < MIN_PROBLEMS or high - low < 1e-6 or not cheaper:
        return None
    folds = _folds(scores_PN)
    gains_N = _gains(folds, ladder, place)
    variance = float(gains_N.var(ddof=1)) / len(gains_N)
    if error.any():
        rng = np.random.default_rng(0)
        drawn = (place + error * rng.standard_normal(len(place)) for _ in range(DRAWS))
        variance += float(np.var([_gains(folds, ladder, each).mean() for each in drawn], ddof=1))
    middle, half = 100 * float(gains_N.mean()), 100 * Z * variance**0.5
    ends = (low, high) if axis == "speedup" else (-high, -low)
    return Gain(axis=axis, low=ends[0], high=ends[1], points=middle, ci95=(middle - half, middle + half))


def _places(rows: pl.DataFrame, axis: AxisName) -> tuple[np.ndarray, np.ndarray]:
    """[P] place on the axis, more is better, and its standard error; stock's speed is 1 by definition."""
    place = rows[axis].to_numpy().astype(np.float64)
    if axis == "mean_kept":
        return -place, np.zeros(len(place))
    stock = (rows["policy"] == "none").to_numpy()
    half = ((rows["speedup_hi"] - rows["speedup_lo"]) / 2).fill_null(0).to_numpy()
    return np.where(stock, 1.0, place), np.where(stock, 0.0, half / Z)


@dataclass(frozen=True, slots=True)
class _Fold:
    """A tenth of the problems, M of N, on which points are scored that the others chose."""

    out: np.ndarray
    """[N] whether a problem is one of them."""
    train_P: np.ndarray
    """Accuracy on the others."""
    scores_PM: np.ndarray
    """On these."""


def _folds(scores_PN: np.ndarray) -> list[_Fold]:
    n = scores_PN.shape[1]
    fold_N = np.random.default_rng(0).permutation(n) % FOLDS
    totals_P = scores_PN.sum(axis=1)
    folds = []
    for fold in range(FOLDS):
        out = fold_N == fold
        scores_PM = scores_PN[:, out]
        folds.append(_Fold(out, (totals_P - scores_PM.sum(axis=1)) / max(1, n - out.sum()), scores_PM))
    return folds


def _gains(folds: list[_Fold], ladder_P: np.ndarray, place_P: np.ndarray) -> np.ndarray:
    """[N] what each problem gains, by points that were chosen without it.

    Beyond the ladder's ends nothing counts, wherever noise has put them: what no ladder point reaches has no rival.
    """
    low, high = float(place_P[ladder_P].min()), float(place_P[ladder_P].max())
    ends = low, max(high, low + 1e-6)
    place_P = np.clip(place_P, *ends)
    every, rungs = _steps(place_P, np.ones_like(ladder_P), ends), _steps(place_P, ladder_P, ends)
    gains_N = np.empty(len(folds[0].out))
    for fold in folds:
        weight_P = _weights(fold.train_P, *every)
        weight_P -= _weights(fold.train_P, *rungs)
        gains_N[fold.out] = weight_P @ fold.scores_PM
    return gains_N


def _steps(place_P: np.ndarray, among_P: np.ndarray, ends: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """([R] some points, the dearest first; [R] the share of the range from each down to the next)."""
    rows_R = np.flatnonzero(among_P)[np.argsort(-place_P[among_P], kind="stable")]
    low, high = ends
    until_R = np.append(place_P[rows_R[1:]], low)
    return rows_R, (place_P[rows_R] - until_R) / (high - low)


def _weights(accuracy_P: np.ndarray, rows_R: np.ndarray, share_R: np.ndarray) -> np.ndarray:
    """[P] over which share of the range each point is the most accurate of those that are no dearer."""
    accuracy_R = accuracy_P[rows_R]
    best_R = np.maximum.accumulate(accuracy_R)
    leads_R = np.append(True, accuracy_R[1:] > best_R[:-1])  # equal ones: the first stays
    leader_R = rows_R[np.maximum.accumulate(np.where(leads_R, np.arange(len(rows_R)), 0))]
    return np.bincount(leader_R, weights=share_R, minlength=len(accuracy_P))
