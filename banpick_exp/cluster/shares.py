"""How many engines of each kind side by side: as many as were asked for, or what is free of the place, the first first.

What a backend counts itself (GPUs, cores that were stated) is asked for at once, and its slots wait until they are
placed. `cluster.engines=auto` on a CPU is told by memory too (`room`), which no backend counts: there a kind asks for
no more than what the others leave of the place, and for more as they close theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from banpick_exp.engine.config import EngineConfig


@dataclass(frozen=True, slots=True)
class Claim:
    """What one kind of engine may ask for."""

    most: int
    """Engines of it, ever."""
    share: Fraction = Fraction(0)
    """Of the place that each takes; 0 where the backend counts what it has."""
    all_or_none: bool = False
    """Each takes its part of the whole place: by the first ones alone nobody could tell how much that is."""


def claim_of(engine: EngineConfig, engines: int, works: int, *, by_room: bool) -> Claim:
    """`engines`: as many as were asked for or, `by_room`, as fit where nothing else is; `works`: to begin with."""
    most = min(engines, works)
    if not by_room or engine.gpus:
        return Claim(most)
    if engine.cpus is None:
        return Claim(most, Fraction(1, most), all_or_none=True)
    return Claim(most, Fraction(1, engines))


def granted(claims: Sequence[Claim], held: Sequence[int], wanted: Sequence[int]) -> list[int]:
    """Engines that each kind may ask for now. `held`: what it has asked for and not given back; `wanted`: what it could
    use beside that.

    >>> granted([Claim(3, Fraction(1, 4)), Claim(4, Fraction(1, 4))], [0, 0], [3, 4])
    [3, 1]
    >>> granted([Claim(3, Fraction(1, 4)), Claim(4, Fraction(1, 4))], [1, 1], [0, 3])
    [0, 2]
    """
    free = 1 - sum((claim.share * count for claim, count in zip(claims, held, strict=True)), Fraction(0))
    found = []
    for claim, more in zip(claims, wanted, strict=True):
        if claim.share:
            fits = int(free / claim.share) if free == 1 or not claim.all_or_none else 0
            more = max(0, min(more, fits))
            free -= claim.share * more
        found.append(more)
    return found
