"""Which requests of a step belong together, and whether they are in step; imports no torch.

Shapes: R requests of a step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TWIN = "contrast"
"""What a request calls its pair in `extra_args`: [number of the pair, whether it is the weak one, alpha, beta]."""


@dataclass(frozen=True, slots=True)
class Twin:
    """One request of a pair."""

    pair: int
    weak: bool
    alpha: float
    beta: float

    def wire(self) -> list[int | float]:
        """As it travels to the workers."""
        return [self.pair, int(self.weak), self.alpha, self.beta]

    @staticmethod
    def of(extra_args: Mapping[str, Any] | None) -> Twin | None:
        """What `wire` sent; None for a request of its own."""
        if not (wire := (extra_args or {}).get(TWIN)):
            return None
        pair, weak, alpha, beta = wire
        return Twin(int(pair), bool(weak), float(alpha), float(beta))


@dataclass(frozen=True, slots=True)
class Pair:
    """Where the two requests of a pair stand in a step."""

    twin: Twin
    """The strong one's."""
    strong: int
    weak: int


def pairs_of(
    twin_R: Sequence[Twin | None], length_R: Sequence[int], answers_R: Sequence[bool]
) -> tuple[list[Pair], list[str]]:
    """The pairs of a step that are answered in it, and what is wrong with the others.

    `length_R`: tokens of each request after the step; `answers_R`: whether the step ends with a token for it, which a
    prompt in chunks is without until its last.
    """
    places: dict[int, list[int]] = {}
    for place, twin in enumerate(twin_R):
        if twin is not None and answers_R[place]:
            places.setdefault(twin.pair, []).append(place)
    pairs, faults = [], []
    for number, standing in places.items():
        twins = sorted(((twin, place) for place in standing if (twin := twin_R[place])), key=lambda each: each[0].weak)
        (first, strong), (last, weak) = twins[0], twins[-1]
        if len(twins) != 2 or first.weak or not last.weak:
            kinds = ", ".join("weak" if twin.weak else "strong" for twin, _ in twins)
            faults.append(f"pair {number} has in a step: {kinds}, at token {length_R[strong]}")
        elif length_R[strong] != length_R[weak]:
            faults.append(f"pair {number}: the strong one is at token {length_R[strong]}, the weak at {length_R[weak]}")
        elif (first.alpha, first.beta) != (last.alpha, last.beta):
            faults.append(f"pair {number} has two contrasts: {first}, {last}")
        else:
            pairs.append(Pair(first, strong, weak))
    return pairs, faults
