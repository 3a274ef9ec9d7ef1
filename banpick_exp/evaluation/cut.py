"""How the problems of a trial are cut into blocks: in an order drawn once, the same for all. Imports nothing heavy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

TOLERANCE = 1e-9
"""Of a share times a count, which is not quite whole."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cut:
    """`shares`: cumulative shares of the problems after each block, the last 1; `seed`: of the order."""

    shares: tuple[float, ...]
    seed: int

    def __len__(self) -> int:
        """Blocks."""
        return len(self.shares)

    def indices(self, total: int, domain: str, block: int) -> list[int]:
        """Which of a domain's problems the block asks, in file order inside the block."""
        ends = [0, *block_ends(total, self.shares)]
        return sorted(drawn_order(total, domain, self.seed)[ends[block] : ends[block + 1]])


def divided(rounds: Sequence[float], problems: int, block_problems: int) -> list[list[float]]:
    """Cumulative shares of the blocks in each of some rounds (cumulative shares themselves, the last 1).

    A round is cut evenly into as few blocks as hold `block_problems` of the `problems` at most.

    >>> divided([1.0], 1000, 400)
    [[0.333..., 0.666..., 1.0]]
    >>> divided([0.25, 1.0], 800, 400)
    [[0.25], [0.625, 1.0]]
    """
    found, begin = [], 0.0
    for end in rounds:
        pieces = max(1, math.ceil((end - begin) * problems / block_problems - TOLERANCE))
        found.append([*(begin + (end - begin) * piece / pieces for piece in range(1, pieces)), end])
        begin = end
    return found


def block_ends(total: int, shares: Sequence[float]) -> list[int]:
    """Problems answered after each block: `block_ends(800, [0.0625, 0.5, 1])` is [50, 400, 800].

    A small `total` may leave blocks empty, never the last.
    """
    return [round(share * total) for share in shares]


def drawn_order(total: int, domain: str, seed: int) -> list[int]:
    """The order in which the problems of a domain are asked: drawn once, the same for all points."""
    rng = np.random.default_rng([seed, *domain.encode()])
    return [int(index) for index in rng.permutation(total)]
