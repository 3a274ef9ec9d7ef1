"""pick: reinforce key experts in the router's own selection (arXiv 2509.06346, section 3)."""

import math
from typing import TYPE_CHECKING, ClassVar

from banpick_exp.models.shape import MoeShape
from banpick_exp.policy.bases.reinforcing import Reinforcing
from banpick_exp.policy.calibration import Calibration
from banpick_exp.policy.knobs import Whole, check_count
from banpick_exp.policy.rule import BudgetKnob

if TYPE_CHECKING:
    from banpick_kernels.table import RouterTable


class Pick(Reinforcing):
    """`pick`: reinforce key experts in the router's selection, or in its first k."""

    name: ClassVar[str] = "pick"
    exchanges: ClassVar[bool] = True
    needs_instead: ClassVar[str] = "or experts named by hand"
    budget_knob: ClassVar[BudgetKnob | None] = BudgetKnob("k", 1, math.inf, whole=True)
    k: Whole | None = None
    """Experts kept of the router's own selection before any is inserted, 1 to top_k; absent keeps them all."""

    def kept(self, shape: MoeShape) -> int:
        return shape.top_k if self.k is None else self.k

    def check(self, shape: MoeShape) -> None:
        super().check(shape)
        if self.k is not None:
            check_count(self.name, "k", self.k, shape)

    def knobs(self) -> dict[str, object]:
        return {**super().knobs(), **({} if self.k is None else {"k": self.k})}

    def fill(self, table: "RouterTable", shape: MoeShape, calibration: Calibration | None) -> None:
        super().fill(table, shape, calibration)
        table.keep[0] = self.kept(shape)
