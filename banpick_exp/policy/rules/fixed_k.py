"""fixed_k: one number of experts for every token: the ladder that every claim is held against (2609.25809)."""

import math
from typing import TYPE_CHECKING, ClassVar

from banpick_exp.models.routing import Routing
from banpick_exp.models.shape import MoeShape
from banpick_exp.policy.calibration import Calibration
from banpick_exp.policy.knobs import Whole, check_count
from banpick_exp.policy.rule import BudgetKnob, Rule

if TYPE_CHECKING:
    from banpick_kernels.table import RouterTable


class FixedK(Rule):
    """`fixed_k`: keep the k highest-weight experts of the checkpoint's own selection in every layer."""

    name: ClassVar[str] = "fixed_k"
    reference_rank: ClassVar[int | None] = 1
    prunes: ClassVar[bool] = True
    budget_knob: ClassVar[BudgetKnob | None] = BudgetKnob("k", 1, math.inf, whole=True)
    k: Whole
    """Experts kept, 1 to top_k; at top_k it is stock routing."""

    @classmethod
    def remarks_on(cls, shape: MoeShape, routing: Routing, *, gpu: bool) -> tuple[str, ...]:
        remarks = {
            "k=1 is the only budget below its own": shape.top_k == 2,
            "weights are not renormalised: what is pruned is lost, so outputs shrink with every rule": (
                routing.renormalises is False
            ),
            "keeps the first k by weight, not by corrected rank": routing.corrected,
        }
        return tuple(remark for remark, holds in remarks.items() if holds)

    def check(self, shape: MoeShape) -> None:
        check_count(self.name, "k", self.k, shape)

    def knobs(self) -> dict[str, object]:
        return {"k": self.k}

    def max_kept(self, shape: MoeShape, calibration: Calibration | None = None) -> int:
        return self.k

    def budget(self, shape: MoeShape, calibration: Calibration | None = None) -> tuple[float, float]:
        return float(self.k), float(self.k)

    def fill(self, table: "RouterTable", shape: MoeShape, calibration: Calibration | None) -> None:
        table.keep[0] = self.k
