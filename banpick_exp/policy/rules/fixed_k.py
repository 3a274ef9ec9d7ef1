"""The two references: stock routing, and one number of experts for every token (what every claim is held against)."""

import math
from typing import TYPE_CHECKING, ClassVar

from banpick_exp.errors import UserError
from banpick_exp.models.shape import MoeShape
from banpick_exp.policy.knobs import Whole
from banpick_exp.policy.rule import BudgetKnob, Calibration, Rule

if TYPE_CHECKING:
    from banpick_kernels.table import RouterTable


class Stock(Rule):
    """`none`: route as the checkpoint does."""

    name: ClassVar[str] = "none"


class FixedK(Rule):
    """`fixed_k`: keep the k highest-weight experts of the checkpoint's own selection in every layer (2609.25809)."""

    name: ClassVar[str] = "fixed_k"
    budget_knob: ClassVar[BudgetKnob | None] = BudgetKnob("k", 1, math.inf, whole=True)
    k: Whole
    """Experts kept, 1 to top_k; at top_k it is stock routing."""

    def check(self, shape: MoeShape) -> None:
        check_count("fixed_k", "k", self.k, shape)

    def knobs(self) -> dict[str, object]:
        return {"k": self.k}

    def max_kept(self, shape: MoeShape, calibration: Calibration | None = None) -> int:
        return self.k

    def budget(self, shape: MoeShape, calibration: Calibration | None = None) -> tuple[float, float]:
        return float(self.k), float(self.k)

    def fill(self, table: "RouterTable", shape: MoeShape, calibration: Calibration | None) -> None:
        table.keep[0] = self.k


def check_count(name: str, knob: str, value: int, shape: MoeShape) -> None:
    """Raise UserError unless 1 <= value <= top_k."""
    if value > shape.top_k:
        problem = f"exceeds top_k={shape.top_k} of this checkpoint: nothing would be pruned"
    elif value < 1:
        problem = "is below 1: a token would keep no expert"
    else:
        return
    raise UserError(f"policy.{name}.{knob}={value} {problem}. Use 1..{shape.top_k}.")
