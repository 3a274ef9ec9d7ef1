"""naee: skip experts that weigh little beside the best one (Not All Experts are Equal, arXiv 2402.14800).

    keep rank i while w_i >= beta * w_1             w_1 >= ... >= w_K, the token's selected weights

The paper skips the second of two experts, with beta the median of w_2 / w_1 of each layer over calibration tokens. Here
K is any number, and beta is one knob for all layers (ours), so that it can be swept and needs no calibration.

Weights 0.5, 0.25, 0.125, 0.125 and beta = 0.5: ranks 1 and 2 reach 0.25, two experts stay, renormalised.

>>> import torch
>>> from banpick_exp.policy import build_policy
>>> logits = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()
>>> weights, ids, kept = build_policy("naee", {"beta": 0.5}, num_layers=1, num_experts=4, top_k=4).route(logits, 0)
>>> kept.tolist(), [round(weight, 4) for weight in weights[0].tolist()]
([[True, True, False, False]], [0.6667, 0.3333, 0.0, 0.0])
"""

from typing import TYPE_CHECKING, ClassVar

from pydantic import field_validator

from banpick_exp.models.shape import MoeShape
from banpick_exp.policy.bases.threshold import Threshold, within_unit
from banpick_exp.policy.calibration import Calibration
from banpick_exp.policy.knobs import Number
from banpick_exp.policy.rule import BudgetKnob

if TYPE_CHECKING:
    from banpick_kernels.table import RouterTable


class Naee(Threshold):
    """`naee`: keep experts of at least beta times the weight of the token's best one."""

    name: ClassVar[str] = "naee"
    budget_knob: ClassVar[BudgetKnob | None] = BudgetKnob("beta", 0.0, 1.0)
    beta: Number
    """In [0, 1], higher keeps less: 0 is stock, 1 keeps only the best and its equals."""

    @field_validator("beta")
    @classmethod
    def _beta_in_limits(cls, beta: float) -> float:
        return within_unit(beta, "0 keeps every expert already", "not even the best would stay", "beta=0.5")

    def knobs(self) -> dict[str, object]:
        return {"beta": self.beta, "k_min": self.k_min}

    def keeps_all(self) -> bool:
        return self.beta == 0

    def fill(self, table: "RouterTable", shape: MoeShape, calibration: Calibration | None) -> None:
        super().fill(table, shape, calibration)
        table.min_ratio[0] = self.beta
