"""Which experts score highest, found with fewer samples than all of them take; and how sure that is.

Only the top of a ranking is used. So the candidates of all layers are scored on some samples, the lower half is
dropped, the rest goes on with as many again: successive halving (Karnin, Koren and Somekh, ICML 2013), which fixes the
work and not the certainty. The certainty is measured afterwards and said.

Whatever is dropped early, nothing is claimed by chance: `lower_bounds` corrects for every candidate that was tried,
on all samples of those that are left.

Shapes: C candidates, S samples.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

SPARE = 1.25
"""In a race's last rounds so many times the number that is wanted stay in it."""
CONFIDENCE = 0.95

Measure = Callable[[Sequence[int], Sequence[int]], tuple[np.ndarray, np.ndarray]]
"""(candidates, samples) to values [C,S] and the weights [S] that they are averaged with."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Scored:
    """What came of scoring C candidates."""

    value: np.ndarray
    """[C] float64: the weighted mean over the samples that were used of it."""
    error: np.ndarray
    """[C]: its standard error; NaN for one sample."""
    samples: np.ndarray
    """[C] int64: how many were used."""


def rounds(samples: int, first_share: float) -> list[range]:
    """The samples of each round, none twice: as many as `first_share` says, then twice as many in all, and so on.

    >>> rounds(64, 1 / 4), rounds(64, 1)
    ([range(0, 16), range(16, 32), range(32, 64)], [range(0, 64)])
    """
    ends, end = [], max(2.0, first_share * samples)
    while end < samples:
        ends.append(math.ceil(end))
        end *= 2
    return [range(begin, end) for begin, end in itertools.pairwise([0, *ends, samples])]


def planned(candidates: int, samples: int, *, first_share: float, wanted: int) -> int:
    """How many values `score` will measure.

    >>> planned(128, 64, first_share=1, wanted=16), planned(128, 64, first_share=1 / 8, wanted=16)
    (8192, 2688)
    """
    return sum(
        changes_of_round(candidates, samples, number, first_share=first_share, wanted=wanted)
        for number in range(len(rounds(samples, first_share)))
    )


def changes_of_round(candidates: int, samples: int, number: int, *, first_share: float, wanted: int) -> int:
    """The same of one round, counted from 0."""
    return len(rounds(samples, first_share)[number]) * _stay(candidates, number, wanted)


def _stay(candidates: int, number: int, wanted: int) -> int:
    """Of all candidates, how many are in round `number`, counted from 0."""
    return min(candidates, max(math.ceil(SPARE * wanted), math.ceil(candidates / 2**number)))


class Race:
    """A race whose rounds are measured by others: who is in the next one, and what came of all."""

    def __init__(self, candidates: int, samples: int, *, first_share: float, wanted: int) -> None:
        self._values = np.full((candidates, samples), np.nan)
        self._weights = np.ones(samples)
        self._plan, self._wanted, self._number = rounds(samples, first_share), wanted, 0
        self._live = np.arange(candidates)

    @property
    def over(self) -> bool:
        return self._number == len(self._plan)

    @property
    def live(self) -> list[int]:
        """The candidates of the next round, ascending."""
        found: list[int] = self._live.tolist()
        return found

    @property
    def samples(self) -> range:
        """Those of the next round."""
        return self._plan[self._number]

    def add(self, values: np.ndarray, weights: np.ndarray) -> None:
        """What the next round measured: [live,samples] and [samples]."""
        part = self.samples
        self._values[self._live[:, None], np.array(part)] = values
        self._weights[part.start : part.stop] = weights
        self._number += 1
        if not self.over:
            means = _means(self._values[self._live], self._weights)[0]
            stay = _stay(len(self._values), self._number, self._wanted)
            self._live = np.sort(self._live[np.argsort(-means, kind="stable")[:stay]])

    def scored(self) -> Scored:
        mean, error, used = _means(self._values, self._weights)
        return Scored(value=mean, error=error, samples=used)


def score(candidates: int, samples: int, measure: Measure, *, first_share: float, wanted: int) -> Scored:
    """Score all candidates, in a race for the highest `wanted`; each on all samples where `first_share` is 1."""
    race = Race(candidates, samples, first_share=first_share, wanted=wanted)
    while not race.over:
        race.add(*measure(race.live, list(race.samples)))
    return race.scored()


def _means(values_CS: np.ndarray, weights_S: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sum of values over sum of weights, its standard error (delta method, samples independent), and their number.

    >>> [part.tolist() for part in _means(np.array([[1.0, 3.0, np.nan]]), np.array([1.0, 1.0, 1.0]))]
    [[2.0], [1.0], [2]]
    """
    there = ~np.isnan(values_CS)
    used = there.sum(-1)
    total = np.where(there, weights_S, 0).sum(-1)
    mean = np.where(there, values_CS, 0).sum(-1) / total
    off = np.where(there, values_CS - mean[:, None] * weights_S, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.sqrt((off**2).sum(-1) * used / (used - 1)) / total
    return mean, np.where(used > 1, error, np.nan), used


def lower_bounds(scored: Scored, tried: int, confidence: float = CONFIDENCE) -> np.ndarray:
    """Lower bounds [C] of the means; that those above 0 are right holds for all together with `confidence` (Holm 1979).

    One-sided t. The values hold each for itself: of means far apart, some bound is too high more often than that.

    From the most certain down, each is bounded at the level that is left for it among `tried`, and claims to be above
    0 only if all before it do. Those with fewer samples than the most, which a race dropped, claim nothing: -inf.
    """
    whole = scored.samples == scored.samples.max(initial=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(whole & (scored.error > 0), scored.value / scored.error, -np.inf)
    lower = np.full(len(scored.value), -np.inf)
    claims = True
    for place, index in enumerate(np.argsort(-t, kind="stable")):
        if not np.isfinite(t[index]):
            break
        quantile = t_quantile(1 - (1 - confidence) / (tried - place), int(scored.samples[index]) - 1)
        bound = scored.value[index] - quantile * scored.error[index]
        claims = claims and bound > 0
        lower[index] = bound if claims else min(bound, 0.0)
    return lower


def t_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t by its expansion around the normal one (Abramowitz and Stegun 26.7.5).

    Right to 1 % from 10 degrees of freedom on, even far out; a little small below.

    >>> round(t_quantile(0.975, 30), 3), round(t_quantile(0.9996, 149), 2)
    (2.042, 3.42)
    """
    z = NormalDist().inv_cdf(probability)
    n = max(freedom, 1)
    terms = (
        (z**3 + z) / (4 * n),
        (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2),
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3),
    )
    return z + sum(terms)


def surely_above(scored: Scored, wanted: int, confidence: float = CONFIDENCE) -> int:
    """Of the highest `wanted`, how many are above the one that follows them beyond the noise of both."""
    order = np.argsort(-scored.value, kind="stable")
    if len(order) <= wanted:
        return len(order)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    next_value, next_error = scored.value[order[wanted]], scored.error[order[wanted]]
    top = order[:wanted]
    with np.errstate(invalid="ignore"):
        sure = scored.value[top] - next_value > z * np.hypot(scored.error[top], next_error)
    return int(sure.sum())


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's: Pearson's of the ranks, ties sharing theirs; NaN where one of them is constant.

    >>> rank_correlation(np.array([1.0, 2.0, 3.0]), np.array([10.0, 30.0, 20.0]))
    0.5
    """
    first, second = _ranks(np.ravel(one)), _ranks(np.ravel(other))
    if first.std() == 0 or second.std() == 0:
        return math.nan
    return float(np.corrcoef(first, second)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[inverse]
