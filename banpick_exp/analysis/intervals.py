"""Intervals of a proportion, a ratio of means and a median; the exact bootstrap distribution that paired ones share."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from statistics import NormalDist

import numpy as np

MAX_LATTICE = 1 << 26
"""Points of a distribution of sums that still fit comfortably in memory."""
BERNSTEIN = 37.5
"""2 * exp(-37.5) is about 1e-16."""


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of a proportion (Wilson 1927): near its coverage even at 0 or n successes, where Wald collapses.

    Returns: (low, high) in 0..1; (0, 1) for n = 0. Example: wilson(8, 10) is about (0.490, 0.943).
    Raises: ValueError unless 0 <= successes <= n.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} is not a proportion")
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # The ends are exactly 0 and 1 in theory; rounding must not leave 1e-18 there.
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == n else centre + half)


def ratio_of_means(ours: np.ndarray, theirs: np.ndarray, confidence: float = 0.95) -> tuple[float, float, float, float]:
    """Ratio of two paired means by the delta method (Cochran 1977, ch. 6), from 30 pairs on about at its coverage.

    Args: ours and theirs: [n] values of the same problems; the mean of `theirs` must be positive.
    Returns: (ratio, low, high, p), p two-sided for a ratio of 1; (ratio, ratio, ratio, 1) where nothing varies.
    Raises: ValueError for fewer than two pairs, unequal lengths or a mean of 0.
    """
    x, y = np.asarray(theirs, dtype=np.float64), np.asarray(ours, dtype=np.float64)
    if x.size < 2 or x.shape != y.shape or not x.mean() > 0:
        raise ValueError("a ratio of means needs two or more pairs and a positive reference")
    ratio = float(y.mean() / x.mean())
    error = float((y - ratio * x).std(ddof=1) / (math.sqrt(x.size) * x.mean()))
    if error == 0:  # every answer longer by the same factor: no noise to speak of
        return ratio, ratio, ratio, 1.0 if ratio == 1 else 0.0
    half = NormalDist().inv_cdf(0.5 + confidence / 2) * error
    return ratio, ratio - half, ratio + half, math.erfc(abs(ratio - 1) / error / math.sqrt(2))


def median_interval(values: np.ndarray, confidence: float = 0.95) -> tuple[float, float, float]:
    """The median with an interval between two of the values themselves: right whatever they are distributed like.

    As many of the lowest and of the highest are left out as a fair coin allows (the sign test's interval). Fewer than 6
    values hold no 95 %: then it is their whole range, which claims less than it says.

    Returns: (median, low, high). Raises: ValueError for no values. Example: of 1, 2, ..., 9 it is (5, 2, 8).
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    if not ordered.size:
        raise ValueError("no values have no median")
    out = _left_out(ordered.size, confidence)
    return float(np.median(ordered)), float(ordered[out]), float(ordered[-1 - out])


@functools.cache
def _left_out(n: int, confidence: float) -> int:
    """The most values that an interval of the median of `n` may leave out at each end."""
    tail, out = 0.0, 0
    for k in range(n // 2):  # the probability that k or fewer of n fall below the median
        tail += math.exp(math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2))
        if 2 * tail > 1 - confidence:
            break
        out = k
    return min(out, (n - 1) // 2)


class BootstrapMean:
    """The percentile bootstrap of a mean of integers, with infinitely many resamples: no seed and no noise.

    The sum of n draws with replacement has the characteristic function phi(t)^n. Its values at M equal steps are the
    discrete Fourier transform of the probabilities of all sums modulo M. M is the width of a window around the expected
    sum outside of which no more than 1e-16 of the probability lies (Bernstein's inequality), so nothing that a double
    could show wraps around.
    """

    def __init__(self, counts: Mapping[int, int]) -> None:
        """`counts`: how often each integer occurs. Raises ValueError without any, or for too wide a lattice."""
        counts = {value: count for value, count in counts.items() if count}
        self.n = n = sum(counts.values())
        if not n or min(counts.values()) < 0:
            raise ValueError("no values to resample")
        low, width = min(counts), max(counts) - min(counts)
        mean = sum(value * count for value, count in counts.items()) / n
        variance = sum((value - mean) ** 2 * count for value, count in counts.items())
        reach = BERNSTEIN * width / 3 + math.sqrt((BERNSTEIN * width / 3) ** 2 + 2 * BERNSTEIN * variance)
        first, last = max(n * low, math.floor(n * mean - reach)), min(n * (low + width), math.ceil(n * mean + reach))
        size = 1 << (last - first).bit_length()
        if size > MAX_LATTICE:
            raise ValueError(f"{n} values that span {width} steps make {size} sums: use coarser steps")
        step = np.exp(-2j * np.pi / size * np.arange(size // 2 + 1))
        transform = np.zeros(len(step), dtype=np.complex128)
        for value in range(low + width, low - 1, -1):  # Horner: a power of the step for each value
            transform *= step
            transform += counts.get(value, 0) / n
        probability = np.fft.irfft(transform**n, size) if size > 1 else np.ones(1)
        sums = np.arange(first, last + 1)
        self._first, self._cumulative = first, np.cumsum(probability[(sums - n * low) % size].clip(0))

    def interval(self, confidence: float) -> tuple[float, float]:
        """(low, high) of the mean, in the integers' own unit."""
        tail = (1 - confidence) / 2
        # Half of 1e-12 of slack: the transform's rounding must not move a quantile past a sum that cannot occur.
        ends = np.searchsorted(self._cumulative, [tail + 5e-13, self._cumulative[-1] - tail - 5e-13])
        low, high = ((int(end) + self._first) / self.n for end in np.minimum(ends, len(self._cumulative) - 1))
        return low, high


def bootstrap_intervals(counts: Mapping[int, int], *confidences: float) -> list[tuple[float, float]]:
    """`BootstrapMean(counts).interval` at each confidence, from memory where the same counts were asked before.

    Of many points on the same few problems most differ from their rival by the same counts as another: thousands of
    comparisons have some hundreds of answers. Kept are the intervals alone, for a distribution can be large.
    Raises: ValueError as `BootstrapMean`.
    """
    return list(_intervals(tuple(sorted((value, count) for value, count in counts.items() if count)), confidences))


@functools.lru_cache(maxsize=1 << 14)
def _intervals(counts: tuple[tuple[int, int], ...], confidences: tuple[float, ...]) -> tuple[tuple[float, float], ...]:
    distribution = BootstrapMean(dict(counts))
    return tuple(distribution.interval(confidence) for confidence in confidences)


def average_interval(correct: np.ndarray, samples: int, confidence: float = 0.95) -> tuple[float, float, float]:
    """avg@n with an interval that resamples problems, each with all of its samples: samples of a problem are alike.

    One sample a problem is a plain proportion and gets Wilson's interval. So do problems that all score the same
    (all right, all wrong), as if each had been asked once: a bootstrap of equal values has no width at all.

    Args: correct: [problems] right answers among the `samples` given to each.
    Returns: (mean, low, high) in 0..1. Raises: ValueError for no problems or counts outside 0..samples.
    """
    counts = np.asarray(correct)
    if counts.size == 0 or counts.min() < 0 or counts.max() > samples:
        raise ValueError(f"right answers must be counts of 0..{samples}, one a problem")
    values, times = np.unique(counts.astype(np.int64), return_counts=True)
    mean = float(counts.mean() / samples)
    if samples == 1 or len(values) == 1:
        return mean, *wilson(round(mean * counts.size), counts.size, confidence)
    ((low, high),) = bootstrap_intervals(dict(zip(values.tolist(), times.tolist(), strict=True)), confidence)
    return mean, low / samples, high / samples
