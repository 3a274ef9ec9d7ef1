"""Which points of a race can no longer reach the front: pure, from the answers given so far.

The front is accuracy against the measured budget. A point is stopped when another that keeps no more experts is better
on the same problems, by the rule of every verdict here (`analysis.compare`): an exact test (McNemar's, or sign flips
where problems have several samples) and an interval, both right for the whole family at once. The family is every look
the race can take: each pair of a candidate and a rival, after each block but the last, which stops nobody. So the
chance that a race stops any point that is no worse than its rival is at most the error rate, however the points depend
on each other and however often it looks. Problems come in a drawn order, the same for all points: a block is a
sample of the problems, and without replacement the test errs on the safe side. Points that tie go on to the end. Where
a small gain is not worth finding they need not: with `search.margin` a point also stops once an exact bound says that
it gains less than that over its reference.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from banpick_exp.analysis.compare import ERROR_RATE, compare_counts, sign_flip_p
from banpick_exp.analysis.pairing import Answers, pair

BUDGET_SLACK = 0.05
"""Experts per token: a rival that keeps at most this many more than a point keeps no more than it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """One point after some blocks."""

    label: str
    answers: Answers
    mean_kept: float
    """Measured over the same problems."""
    stays: bool = False
    """Not to be stopped: references, which verdicts are held against, and points that are over."""
    reference: bool = False
    """Stock or fixed_k."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoppingRule:
    """When a point stops. Both families are those of the whole race, every look counted."""

    comparisons: int
    """Of the rule `loses`: each candidate against each other point, after each block but the last."""
    margin: float = 0.0
    """A gain below this (accuracy, 0..1) is not looked for; 0 stops only points that lie below a rival for sure."""
    alpha: float = 0.0
    """Error of one look for a gain of `margin` over the reference; used where there is a margin."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stopped:
    """Why a point leaves the race: the rival, and either the comparison it lost or the most it can gain."""

    rival: str
    answered: int
    comparison: Mapping[str, Any] | None = None
    """Point minus rival, with the verdict `loses`."""
    gain: float = 0.0
    """Upper bound of point minus rival (0..1), below the margin, where there is no comparison."""

    def reason(self, problems: int) -> str:
        """`after 300 of 2400 problems: 12.0 points [8.1, 15.9] below fixed_k k=8, which keeps no more`."""
        start = f"after {self.answered} of {problems} problems:"
        found = self.comparison
        if found is None:
            return f"{start} at most {100 * self.gain:.1f} points above {self.rival}, which keeps no more (exact bound)"
        low, high = -100 * found["hi_simultaneous"], -100 * found["lo_simultaneous"]
        return (
            f"{start} {-100 * found['difference']:.1f} points [{low:.1f}, {high:.1f}] below {self.rival}, which keeps"
            f" no more (exact p = {found['mcnemar_p']:.2g}, family of {found['comparisons']})"
        )


def rule_of(
    points: int, references: int, rounds: int, error_rate: float = ERROR_RATE, margin: float = 0.0
) -> StoppingRule:
    """The rule under which a whole race errs with chance `error_rate`; a margin takes half of it for its own looks.

    Args: points: all of the race; references: those among them that are never stopped; rounds: blocks, the last too.
    """
    looks = (points - references) * (rounds - 1)
    spent = error_rate / 2 if margin else error_rate
    comparisons = max(1, math.ceil(looks * (points - 1) * ERROR_RATE / spent))
    return StoppingRule(comparisons=comparisons, margin=margin, alpha=spent / max(1, looks) if margin else 0.0)


def stops(standings: Mapping[str, Standing], rule: StoppingRule) -> dict[str, Stopped]:
    """fingerprint -> why, for those of the `standings` (all after the same block) that leave the race now.

    The best of those that keep no more is never stopped without a margin, and each stopped point names the rival it
    lies furthest below.
    """
    found: dict[str, Stopped] = {}
    for name, own in standings.items():
        if own.stays:
            continue
        worst: Stopped | None = None
        lowest = 0.0
        for other, rival in standings.items():
            if other == name or rival.mean_kept > own.mean_kept + BUDGET_SLACK:
                continue
            comparison = _below(own, rival, rule.comparisons)
            if comparison and comparison["difference"] < lowest:
                lowest = comparison["difference"]
                worst = Stopped(rival=rival.label, answered=own.answers.layout.n, comparison=comparison)
        worst = worst or _no_gain(own, standings.values(), rule)
        if worst is not None:
            found[name] = worst
    return found


def _below(own: Standing, rival: Standing, comparisons: int) -> Mapping[str, Any] | None:
    """The comparison, where the point lies below its rival for sure."""
    pairs = pair(own.answers, rival.answers)
    counts, scale = pairs.differences("correct")
    if sum(value * count for value, count in counts.items()) >= 0:
        return None
    p = sign_flip_p(counts)
    if p * comparisons > ERROR_RATE:
        return None  # before the interval, which costs a hundred times as much
    comparison = compare_counts(counts, scale, comparisons, p=p)
    return comparison if comparison["verdict"] == "loses" else None


def _no_gain(own: Standing, standings: Iterable[Standing], rule: StoppingRule) -> Stopped | None:
    """Stopped, where the point gains less than the margin over its reference for sure.

    The reference is the one that keeps most among those that keep no more: chosen by budget, never by score.
    """
    references = [s for s in standings if s.reference and s.mean_kept <= own.mean_kept + BUDGET_SLACK]
    if not rule.margin or not references:
        return None
    reference = max(references, key=lambda standing: standing.mean_kept)
    pairs = pair(own.answers, reference.answers)
    counts, scale = pairs.differences("correct")
    wins, losses = (sum(n for value, n in counts.items() if sign * value > 0) for sign in (1, -1))
    # With several samples a problem a win is worth at most 1 and a loss at least 1/scale; with one, both are worth 1.
    most = upper_share(wins, pairs.n, rule.alpha / 2)
    gain = most - (1 - upper_share(pairs.n - losses, pairs.n, rule.alpha / 2)) / scale
    return Stopped(rival=reference.label, answered=pairs.n, gain=gain) if gain < rule.margin else None


def upper_share(successes: int, n: int, alpha: float) -> float:
    """One-sided exact upper bound of a proportion (Clopper and Pearson 1934).

    Example: upper_share(0, 100, 0.05) = 1 - 0.05 ** (1 / 100).
    """
    if successes >= n:
        return 1.0
    k = np.arange(successes + 1)
    logs = np.array([math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in k])
    low, high = successes / n, 1.0
    for _ in range(60):
        p = (low + high) / 2
        tail = np.exp(logs + k * math.log(p) + (n - k) * math.log1p(-p)).sum() if p < 1 else 0.0
        low, high = (p, high) if tail > alpha else (low, p)
    return high
