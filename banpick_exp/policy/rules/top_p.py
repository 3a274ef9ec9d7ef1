"""top_p: as many experts as it takes to hold a share of the weight (Harder Tasks Need More Experts, arXiv 2403.07652).

    keep the smallest k with w_1 + ... + w_k >= p   w_1 >= ... >= w_K, the selected weights divided by their sum

The paper trains with it and lets the sum run over all experts. Here it prunes a trained top-k router, and a token
never gets more experts than the checkpoint gives it: the sum runs over the K selected ones (ours), or with raw=true
over the weights as they are before that division, a softmax router's shares of all E experts, as in the paper; where
the K hold less than p of those, all stay. (Scores of a sigmoid router are no shares: their raw sums mean little.)
p = 1 keeps all K, also those whose weight is lost in rounding (ours).

Weights 0.5, 0.25, 0.125, 0.125 and p = 0.8: two hold 0.75, three 0.875, so three stay. With four more
experts that share a fifth of the mass, the raw weights are 0.4, 0.2, 0.1, 0.1: p = 0.65 takes three of them, not two.

>>> import torch
>>> from banpick_exp.policy import build_policy
>>> logits = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()
>>> build_policy("top_p", {"p": 0.8}, num_layers=1, num_experts=4, top_k=4).route(logits, 0)[2].tolist()
[[True, True, True, False]]
>>> logits = torch.tensor([[0.4, 0.2, 0.1, 0.1, 0.05, 0.05, 0.05, 0.05]]).log()
>>> for raw in (False, True):
...     policy = build_policy("top_p", {"p": 0.65, "raw": raw}, num_layers=1, num_experts=8, top_k=4)
...     print(policy.route(logits, 0)[2].tolist())
[[True, True, False, False]]
[[True, True, True, False]]
"""

from typing import TYPE_CHECKING, ClassVar

from pydantic import field_validator

from banpick_exp.models.routing import Routing
from banpick_exp.models.shape import MoeShape
from banpick_exp.policy.bases.threshold import Threshold, within_unit
from banpick_exp.policy.calibration import Calibration
from banpick_exp.policy.knobs import Number, Switch
from banpick_exp.policy.rule import BudgetKnob

if TYPE_CHECKING:
    from banpick_kernels.table import RouterTable


class TopP(Threshold):
    """`top_p`: keep the shortest prefix of the selection that holds the share p of its weight."""

    name: ClassVar[str] = "top_p"
    budget_knob: ClassVar[BudgetKnob | None] = BudgetKnob("p", 0.0, 1.0)
    p: Number
    """In [0, 1], higher keeps more: 0 keeps k_min everywhere, 1 is stock."""
    raw: Switch = False
    """Sum the weights as they are before they are divided by their sum over the K."""

    @field_validator("p")
    @classmethod
    def _p_in_limits(cls, p: float) -> float:
        return within_unit(p, "0 keeps k_min experts already", "1 keeps every expert already", "p=0.8")

    def knobs(self) -> dict[str, object]:
        knobs: dict[str, object] = {"p": self.p, "k_min": self.k_min}
        return {**knobs, "raw": True} if self.raw else knobs

    @classmethod
    def remarks_on(cls, shape: MoeShape, routing: Routing, *, gpu: bool) -> tuple[str, ...]:
        return ("sigmoid scores are no shares: leave raw=false",) if routing.scoring == "sigmoid" else ()

    def keeps_all(self) -> bool:
        return self.p == 1

    def budget(self, shape: MoeShape, calibration: Calibration | None = None) -> tuple[float, float]:
        low, high = super().budget(shape, calibration)
        return (low, low) if self.p == 0 else (low, high)

    def fill(self, table: "RouterTable", shape: MoeShape, calibration: Calibration | None) -> None:
        super().fill(table, shape, calibration)
        if not self.keeps_all():
            table.mass[0] = self.p
            table.raw_mass[0] = self.raw
