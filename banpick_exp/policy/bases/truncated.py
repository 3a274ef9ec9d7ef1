"""What rules share that keep every selected expert of their own accord: an optional k, to run them at a budget."""

import math
from typing import TYPE_CHECKING, ClassVar

from banpick_exp.models.shape import MoeShape
from banpick_exp.policy.calibration import Calibration
from banpick_exp.policy.knobs import Whole, check_count
from banpick_exp.policy.rule import BudgetKnob, Rule

if TYPE_CHECKING:
    from banpick_kernels.table import RouterTable


class Truncated(Rule):
    """A rule that changes which experts are selected or what they weigh, and may keep only the first k of them."""

    budget_knob: ClassVar[BudgetKnob | None] = BudgetKnob("k", 1, math.inf, whole=True)
    k: Whole | None = None
    """Experts kept, 1 to top_k; absent keeps them all."""

    def kept(self, shape: MoeShape) -> int:
        return shape.top_k if self.k is None else self.k

    def check(self, shape: MoeShape) -> None:
        if self.k is not None:
            check_count(self.name, "k", self.k, shape)

    def knobs(self) -> dict[str, object]:
        return {} if self.k is None else {"k": self.k}

    def max_kept(self, shape: MoeShape, calibration: Calibration | None = None) -> int:
        return self.kept(shape)

    def budget(self, shape: MoeShape, calibration: Calibration | None = None) -> tuple[float, float]:
        return float(self.kept(shape)), float(self.kept(shape))

    def fill(self, table: "RouterTable", shape: MoeShape, calibration: Calibration | None) -> None:
        table.keep[0] = self.kept(shape)
