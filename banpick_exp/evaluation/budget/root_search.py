"""Which knob value leads to a wanted budget: a bracketed root search that wastes no probe, because each one generates.

The measured budget is taken to be monotone in the knob; in which direction, the ends of the knob say. Chandrupatla's
method (Advances in Engineering Software 28, 1997): inverse quadratic interpolation while the curve allows it, else
bisection.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from banpick_exp.errors import UserError
from banpick_exp.policy.rule import BudgetKnob

TOLERANCE = 0.05
"""Experts per token: a budget this close to its target is equal to it."""
MAX_PROBES = 12
RESOLUTION = 1e-4
"""Of the knob's range: a bracket this narrow with the target still inside is a jump."""
EDGE = 0.02
"""Of the bracket: no probe lies closer to its ends."""

Probe = tuple[float, float]
"""(knob, measured mean_kept)."""


class UnreachableBudget(UserError):
    """No value of the knob leads to the target; the message has the reachable range."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Solved:
    """The value found and the budget measured there. `gap`: why it is not within the tolerance, None where it is."""

    value: float
    measured: float
    probes: tuple[Probe, ...]
    """In the order they were measured."""
    gap: str | None = None


def solve(
    measure: Callable[[float], float],
    knob: BudgetKnob,
    target: float,
    tolerance: float = TOLERANCE,
    known: Mapping[float, float] | None = None,
    *,
    nearest: bool = False,
) -> Solved:
    """The knob value whose measured budget lies within `tolerance` of `target`, after at most MAX_PROBES probes.

    Args:
        measure: mean_kept at a knob value.
        known: budgets that need no probe, such as those an end of the knob implies by definition.
        nearest: a target out of reach gives the nearer end of the knob and a `gap`.

    Deterministic. A target between two steps of a whole knob, or inside a jump, gives the nearer side and a `gap`.
    Raises: UnreachableBudget for a target outside of what the ends of the knob lead to, unless `nearest`.

    >>> solve(lambda beta: 8 - 7 * beta, BudgetKnob("beta", 0, 1), target=5.0).measured
    5.0
    """
    return driven(search(knob, target, tolerance, known, nearest=nearest), measure)


FoundT = TypeVar("FoundT")


def driven(searching: Generator[float, float, FoundT], measure: Callable[[float], float]) -> FoundT:
    """What a search finds, each value measured as it is asked for."""
    try:
        value = next(searching)
        while True:
            value = searching.send(measure(value))
    except StopIteration as over:
        found: FoundT = over.value
        return found


def search(
    knob: BudgetKnob,
    target: float,
    tolerance: float = TOLERANCE,
    known: Mapping[float, float] | None = None,
    *,
    nearest: bool = False,
) -> Generator[float, float, Solved]:
    """`solve`, for who measures: yields the value to measure next and is sent its mean_kept. So several searches can
    have their values measured at once."""
    searching = _Search(knob, target, tolerance, dict(known or {}))
    low = yield from searching.at(knob.low)
    high = yield from searching.at(knob.high)
    if not min(low, high) - tolerance <= target <= max(low, high) + tolerance:
        reach = (
            f"{knob.name} from {knob.low:g} to {knob.high:g} leads to measured budgets of {min(low, high):.3f} to"
            f" {max(low, high):.3f} on this task"
        )
        if nearest:
            return searching.result(gap=f"the target {target:g} is out of reach: {reach}")
        raise UnreachableBudget(f"budget={target:g} is out of reach: {reach}. Type a policy.budget between them.")
    if not searching.settled() and (low > target) != (high > target):
        yield from searching.whole_steps() if knob.whole else searching.interpolate()
    return searching.result()


@dataclass(slots=True)
class _Search:
    knob: BudgetKnob
    target: float
    tolerance: float
    found: dict[float, float]
    """Every budget known so far, by knob value."""
    probes: list[Probe] = field(default_factory=list)

    def at(self, value: float) -> Generator[float, float, float]:
        if value not in self.found:
            self.found[value] = yield value
            self.probes.append((value, self.found[value]))
        return self.found[value]

    def best(self) -> Probe:
        """The nearest so far; at equal distance the one that keeps fewer."""
        return min(self.found.items(), key=lambda probe: (abs(probe[1] - self.target), probe[1]))

    def settled(self) -> bool:
        return abs(self.best()[1] - self.target) <= self.tolerance

    def over(self) -> bool:
        return self.settled() or len(self.probes) >= MAX_PROBES

    def whole_steps(self) -> Generator[float, float, None]:
        low, high = round(self.knob.low), round(self.knob.high)
        rising = self.found[high] > self.found[low]
        while high - low > 1 and not self.over():
            middle = (low + high) // 2
            if ((yield from self.at(middle)) < self.target) == rising:
                low = middle
            else:
                high = middle

    def interpolate(self) -> Generator[float, float, None]:
        """On the knob, or on its logarithm where it says so: x1 is the newest, x2 lies across, x3 was dropped last."""
        to_knob: Callable[[float], float] = math.exp if self.knob.log else float
        x2, x1 = (math.log(end) if self.knob.log else end for end in (self.knob.low, self.knob.high))
        f2, f1 = (self.found[end] - self.target for end in (self.knob.low, self.knob.high))
        narrow = RESOLUTION * (x1 - x2)
        step = (f1 / (f1 - f2) + 0.5) / 2  # the ends say little of the curve: half-way from their chord to the middle
        while abs(x1 - x2) > narrow and not self.over():
            x = x1 + step * (x2 - x1)
            f = (yield from self.at(float(f"{to_knob(x):.6g}"))) - self.target  # a value short enough to type
            if (f > 0) == (f1 > 0):
                x3, f3 = x1, f1
            else:
                (x3, f3), (x2, f2) = (x2, f2), (x1, f1)
            x1, f1 = x, f
            step = min(max(_step((x1, f1), (x2, f2), (x3, f3)), EDGE), 1 - EDGE)

    def result(self, gap: str | None = None) -> Solved:
        value, measured = self.best()
        gap = gap or (None if self.settled() else self._gap())
        return Solved(value=value, measured=measured, probes=tuple(self.probes), gap=gap)

    def _gap(self) -> str:
        above = min((p for p in self.found.items() if p[1] > self.target), key=lambda p: p[1])
        below = max((p for p in self.found.items() if p[1] < self.target), key=lambda p: p[1])
        return (
            f"the target {self.target:g} falls into a gap: {self.knob.name}={below[0]:g} leads to {below[1]:.3f} and"
            f" {self.knob.name}={above[0]:g} to {above[1]:.3f}, and nothing between was found in"
            f" {len(self.probes)} probes"
        )


def _step(newest: Probe, across: Probe, third: Probe) -> float:
    """Where between `newest` (0) and `across` (1) the root is: interpolated where that stays inside, else half-way."""
    (x1, f1), (x2, f2), (x3, f3) = newest, across, third
    place, level = (x1 - x2) / (x3 - x2), (f1 - f2) / (f3 - f2) if f3 != f2 else 1.0
    if not (level**2 < place and (1 - level) ** 2 < 1 - place):
        return 0.5
    return f1 / (f2 - f1) * f3 / (f2 - f3) + (x3 - x1) / (x2 - x1) * f1 / (f3 - f1) * f2 / (f3 - f2)
