"""One paired comparison, and many at once: exact p values, Holm's adjustment, and when a verdict is one.

The rule: `beats` or `loses` needs a Holm-adjusted exact p of at most 5 % and a simultaneous interval on the same side
of zero. Why Holm and not Bonferroni: both keep the chance of any false verdict in a family at 5 %, however the policies
depend on each other, and Holm never finds less; where one policy wins clearly, the next is no longer charged for it.
Why the interval too, and why that one stays Bonferroni's: Holm has no intervals of equal meaning, and a reader must
never see `beats` beside an interval that holds zero. It costs little: the bootstrap is the more optimistic of the two.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Literal, TypedDict

import numpy as np

from banpick_exp.analysis.intervals import MAX_LATTICE, BootstrapMean, bootstrap_intervals

ERROR_RATE = 0.05
SMALLEST_P = 1e-12
"""What a Fourier transform in double precision can tell from zero."""

Verdict = Literal["beats", "ties", "loses"]


class Comparison(TypedDict):
    """One paired comparison over problems, as one of `comparisons` made together."""

    difference: float
    """Policy minus reference, -1 to 1."""
    lo: float
    """Of its 95 % interval, as `hi`."""
    hi: float
    lo_simultaneous: float
    """Of the interval at 1 - 0.05 / comparisons, as `hi_simultaneous`."""
    hi_simultaneous: float
    wins: int
    """Problems, as `losses` and `n_pairs`."""
    losses: int
    n_pairs: int
    mcnemar_p: float
    """Exact and two-sided; its sign-flip generalisation where there are several samples."""
    p_holm: float
    comparisons: int
    """Size of the family."""
    verdict: Verdict


def paired_bootstrap(
    difference: np.ndarray, *, confidence: float = 0.95, resamples: int | None = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """Percentile bootstrap over problems for the mean of paired differences.

    A difference is only ever -1, 0 or +1, so drawing problems with replacement is drawing their three counts from a
    multinomial: the same distribution at a thousandth of the cost.

    Args:
        difference: [n] values in {-1, 0, 1}: policy correct minus reference correct, on the same problem.
        confidence: of the two-sided interval.
        resamples: how many draws; None takes the limit of infinitely many, computed exactly (no seed, no noise), which
            is what an interval at 99.9 % needs.

    Returns: (mean, low, high). Raises: ValueError on an empty array or another value.
    """
    values = np.asarray(difference).astype(np.int64)
    n = values.size
    if n == 0 or not np.isin(values, (-1, 0, 1)).all() or not np.array_equal(values, np.asarray(difference)):
        raise ValueError("paired differences must be a non-empty array of -1, 0 and 1")
    losses, wins = int((values == -1).sum()), int((values == 1).sum())
    if resamples is None:
        low, high = BootstrapMean({-1: losses, 0: n - wins - losses, 1: wins}).interval(confidence)
    else:
        counts = np.random.default_rng(seed).multinomial(n, [losses / n, (n - wins - losses) / n, wins / n], resamples)
        means = (counts[:, 2] - counts[:, 0]) / n
        low, high = (float(q) for q in np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2]))
    return (wins - losses) / n, low, high


@functools.lru_cache(maxsize=1 << 14)
def mcnemar_exact_p(b: int, c: int) -> float:
    """Two-sided exact McNemar test: is b of b + c discordant pairs compatible with a fair coin?

    Example: mcnemar_exact_p(7, 0) = 2 / 2**7 = 0.015625; no discordant pair gives 1.
    """
    n, k = b + c, min(b, c)
    if k < 0:
        raise ValueError(f"{b} and {c} are not counts")
    # Logarithms: 2**-n underflows from about a thousand discordant pairs on.
    logs = [math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) - n * math.log(2) for i in range(k + 1)]
    return min(1.0, 2 * math.fsum(math.exp(value) for value in logs))


def sign_flip_p(counts: Mapping[int, int]) -> float:
    """Two-sided exact test that each problem's difference is as likely to have the other sign.

    Problems are the unit, so samples of one problem may depend on each other. On differences of -1, 0 and 1 it is the
    exact McNemar test, and is computed as such; otherwise from the distribution of all sign patterns, down to 1e-12.

    Args: counts: how often each integer difference occurs (a difference in right answers, say).
    Example: sign_flip_p({2: 3}) = 2 / 2**3: three problems, all better.
    """
    sizes: dict[int, int] = {}
    for value, count in counts.items():
        if value and count:
            sizes[abs(value)] = sizes.get(abs(value), 0) + count
    if len(sizes) <= 1:  # one size: the signs alone decide
        wins = sum(count for value, count in counts.items() if value > 0)
        return mcnemar_exact_p(wins, sum(sizes.values()) - wins)
    observed = abs(sum(value * count for value, count in counts.items()))
    total = sum(value * count for value, count in sizes.items())
    if 2 * total >= MAX_LATTICE:
        raise ValueError(f"differences that add up to {total} make too many sums: use coarser steps")
    size = 1 << (2 * total).bit_length()  # holds every sum from -total to total
    angle = 2 * np.pi / size * np.arange(size // 2 + 1)
    transform = np.prod([np.cos(angle * value) ** count for value, count in sizes.items()], axis=0)
    probability = np.fft.irfft(transform, size).clip(0)  # index s is the sum s, modulo size
    p = float(probability[observed : total + 1].sum())
    return min(1.0, max(SMALLEST_P, 2 * p)) if observed else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p values (Holm 1979), in the order given: at most `rate` where all of them may be
    called at an error rate of `rate` for the whole family.

    Example: holm([0.01, 0.04, 0.03]) = [0.03, 0.06, 0.06].
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def compare_counts(
    counts: Mapping[int, int], scale: int, comparisons: int, *, p: float | None = None, p_holm: float | None = None
) -> Comparison:
    """One paired comparison over problems, as one of `comparisons` made together.

    With few discordant pairs the bootstrap is too sure of itself (7 wins, 0 losses exclude zero at 99.75 %, although a
    fair coin does that once in 64), so there the exact test decides.

    Args:
        counts: how often each difference occurs, as an integer in units of 1/scale.
        comparisons: size of the family; the simultaneous interval has confidence 1 - 0.05 / comparisons.
        p: `sign_flip_p(counts)`, where a caller has it already.
        p_holm: adjusted in its family; None takes Bonferroni's bound, which is Holm's for the family's smallest p.
    """
    p = sign_flip_p(counts) if p is None else p
    p_holm = min(1.0, comparisons * p) if p_holm is None else p_holm
    (low, high), (low_all, high_all) = bootstrap_intervals(counts, 1 - ERROR_RATE, 1 - ERROR_RATE / comparisons)
    n = sum(counts.values())
    difference = sum(value * count for value, count in counts.items()) / n / scale
    apart = p_holm <= ERROR_RATE and (low_all > 0 if difference > 0 else high_all < 0)
    return Comparison(
        difference=difference,
        lo=low / scale,
        hi=high / scale,
        lo_simultaneous=low_all / scale,
        hi_simultaneous=high_all / scale,
        wins=sum(count for value, count in counts.items() if value > 0),
        losses=sum(count for value, count in counts.items() if value < 0),
        n_pairs=n,
        mcnemar_p=p,
        p_holm=p_holm,
        comparisons=comparisons,
        verdict=("beats" if difference > 0 else "loses") if apart else "ties",
    )
