"""What `search=optuna` samples: the axes of a block, an `interval(a,b)` among them, as dimensions of a space.

Imports no optuna: planning describes the space and checks its corners, the run samples it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from banpick_exp.errors import UserError
from banpick_exp.models.shape import MoeShape
from banpick_exp.policy import POLICIES
from banpick_exp.sweep.overrides import Assignment, Block, interval_of, key_of, kinds_of, parse_axis

DIGITS = 3
"""A sampled number is one of 100 to 1,000 steps of its interval: readable in labels, and exact in commands."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Dimension:
    """One axis: the `values` it takes, or the ends of an interval."""

    key: str
    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0

    @property
    def continuous(self) -> bool:
        return not self.values

    def rounded(self, value: float) -> float:
        """`value` to DIGITS of the interval's width, inside the interval."""
        places = DIGITS - math.ceil(math.log10(self.high - self.low))
        return min(max(round(value, places), self.low), self.high)


@dataclass(frozen=True, kw_only=True, slots=True)
class Space:
    """A block: what is fixed in it, and what is sampled."""

    fixed: Assignment
    dimensions: tuple[Dimension, ...]

    def text(self) -> str:
        """`policy=ban policy.k_min=3 policy.lambda=interval(0.2,1.5)`."""
        fixed = [f"{key}={value}" for key, value in self.fixed.items()]
        return " ".join([*fixed, *(_text(dimension) for dimension in self.dimensions)])


def cornered(block: Block) -> Block:
    """The block with the two ends of each interval in its place: what can be checked before anything is sampled."""
    found = []
    for text in block:
        ends = interval_of(text)
        found.append(text if ends is None else f"{key_of(text)}=choice({ends[0]},{ends[1]})")
    return tuple(found)


def space_of(block: Block, shape: MoeShape) -> Space:
    """A block as a space. Raises UserError for an interval of a knob that is no number, and for axes over settings."""
    fixed, dimensions = {}, []
    for text in block:
        ends = interval_of(text)
        if ends is not None:
            _check_continuous(text, block)
            dimensions.append(Dimension(key=key_of(text), low=ends[0], high=ends[1]))
            continue
        axis = parse_axis(text, shape)
        if not axis.swept:
            fixed[axis.key] = axis.values[0]
            continue
        if axis.key.split(".")[0] != "policy":
            raise UserError(
                f"{text} is an axis over a setting, but search=optuna compares points under one setting: others could"
                f" not be paired. Type one value, and run the command once for each; or search=grid."
            )
        dimensions.append(Dimension(key=axis.key, values=axis.values))
    return Space(fixed=fixed, dimensions=tuple(dimensions))


def check_sampled(spaces: Sequence[Space]) -> None:
    """UserError where nothing can be sampled."""
    if not any(space.dimensions for space in spaces):
        raise UserError(
            "search=optuna has no axis to sample: every point is given already. Name one, e.g."
            " 'policy.lambda=interval(0.2,1.5)' or 'policy.k_min=choice(2,3)', or type search=grid."
        )


def _check_continuous(text: str, block: Block) -> None:
    knob = key_of(text).removeprefix("policy.")
    names = [str(value) for each in block if key_of(each) == "policy" for value in parse_axis(each).values]
    for rule in (POLICIES[name] for name in names if name in POLICIES):
        for name, field in rule.model_fields.items():
            if (field.alias or name) == knob and float not in kinds_of(field):
                low, high = interval_of(text) or (0, 0)
                listed = f"range({math.ceil(low)},{math.floor(high) + 1})" if int in kinds_of(field) else "choice(A,B)"
                raise UserError(
                    f"{text} is an interval, but policy.{knob} of {rule.name} takes no fractions: most of what would be"
                    f" sampled means nothing. Type 'policy.{knob}={listed}'."
                )


def _text(dimension: Dimension) -> str:
    if dimension.continuous:
        return f"{dimension.key}=interval({dimension.low:g},{dimension.high:g})"
    return f"{dimension.key}=choice({','.join(map(str, dimension.values))})"
