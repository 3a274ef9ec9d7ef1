"""How the problems of a trial are cut into blocks: in an order drawn once, the same for all. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


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


def block_ends(total: int, shares: Sequence[float]) -> list[int]:
    """Problems answered after each block: `block_ends(800, [0.0625, 0.5, 1])` is [50, 400, 800].

    A small `total` may leave blocks empty, never the last.
    """
    return [round(share * total) for share in shares]


def drawn_order(total: int, domain: str, seed: int) -> list[int]:
    """The order in which the problems of a domain are asked: drawn once, the same for all points."""
    rng = np.random.default_rng([seed, *domain.encode()])
    return [int(index) for index in rng.permutation(total)]
