"""Which controls there are: per kind the experts that are planted, how, and what reinforcing them must do. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from banpick_exp.models.config import ControlKind


@dataclass(frozen=True, kw_only=True, slots=True)
class Planting:
    """How an expert is planted (`planting.plant`), on the tokens that selected it in the healthy model."""

    rank: int
    """Its logit becomes the midpoint of the other experts at `rank` and `rank` + 1 (1 is the best), where that is less
    than its own: rank K + 1 puts it just outside the top K, rank K - 1 makes it the K-th."""
    boost: float
    """The boost under which its contribution is what `contribution` says."""
    contribution: float
    """Times what it contributed in the healthy model, once it is selected with `boost`: a factor of its down_proj."""


OUTSIDE = Planting(rank=9, boost=0.0, contribution=1.0)
"""Its output is lost, and it is whole again as soon as it is inserted."""
WEAK = Planting(rank=7, boost=0.5, contribution=1.0)
"""It is about the K-th of its tokens, in or just out, and contributes too little; boosted by 0.5 it is whole again."""
HARMFUL = Planting(rank=10, boost=0.0, contribution=-2.0)
"""It does nothing while it is left out, and twice the opposite of what it did once it is inserted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Control:
    """The embedded model with experts planted in it."""

    domain: str
    """The domain whose problems show them."""
    planted: tuple[tuple[int, int], ...]
    """(layer, expert), each planted in the model that the one before has left."""
    how: Planting
    reinforcing: Literal["recovers", "harms"]
    """What Pick with the planted experts must do to the domain's accuracy."""
    line: str
    """For the help page."""


PLANTED: dict[ControlKind, Control] = {
    "math": Control(
        domain="math",
        planted=((0, 2),),
        how=OUTSIDE,
        reinforcing="recovers",
        line="one expert just outside the top K",
    ),
    "knowledge": Control(
        domain="knowledge",
        planted=((0, 11), (0, 25), (3, 14), (3, 16)),
        how=OUTSIDE,
        reinforcing="recovers",
        line="four experts in two layers just outside the top K",
    ),
    "weak_math": Control(
        domain="math",
        planted=((1, 11), (1, 18)),
        how=WEAK,
        reinforcing="recovers",
        line="two experts still about the K-th, with too little weight",
    ),
    "demoted_code": Control(
        domain="code",
        planted=((3, 22),),
        how=OUTSIDE,
        reinforcing="recovers",
        line="one expert of the last layer just outside the top K",
    ),
    "harmful_math": Control(
        domain="math",
        planted=((1, 22),),
        how=HARMFUL,
        reinforcing="harms",
        line="one expert outside the top K that harms when it comes in",
    ),
}
"""Found by search on the shipped checkpoint (`PLANTED_IN`); docs/tiny-model.md says how. Raise `CONTROL_RECIPE` when
the weights of a kind change: cached folders and the fingerprints of points follow it."""

PLANTED_IN = "98debebb27290228"
"""Fingerprint of the weights the search ran on."""
