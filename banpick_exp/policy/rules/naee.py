"""naee: skip experts that weigh little beside the best one (Not All Experts are Equal, arXiv 2402.14800).

    keep rank i while w_i >= beta * w_1             w_1 >= ... >= w_K, the token's selected weights

The paper skips the second of two experts, with beta the median of w_2 / w_1 of each layer over calibration tokens:
`beta=median`. Here K is any number, and beta may also be a number, one for all layers (ours): it can be swept and needs
no calibration. The first k_min ranks always stay: two unless typed, as in the comparison of arXiv 2609.25809, where K
is 6 or 8; the paper's own K of 2 leaves one. With such a floor it is also the expert reduction of ik_llama.cpp
(pull request 239 there, `-ser Kmin,t`): ranks after Kmin stay where w_i > t * w_1, the same but for weights that meet
the limit exactly.

Weights 0.5, 0.25, 0.125, 0.125 and beta = 0.5: ranks 1 and 2 reach 0.25, two experts stay, renormalised. A median of
0.6 asks for 0.3: with k_min = 1 one stays.

>>> import torch
>>> from banpick_exp.policy import build_policy
>>> logits, shape = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log(), dict(num_layers=1, num_experts=4, top_k=4)
>>> weights, ids, kept = build_policy("naee", {"beta": 0.5}, **shape).route(logits, 0)
>>> kept.tolist(), [round(weight, 4) for weight in weights[0].tolist()]
([[True, True, False, False]], [0.6667, 0.3333, 0.0, 0.0])
>>> calibration = {"ratio_median": [0.6]}
>>> build_policy("naee", {"beta": "median", "k_min": 1}, **shape, calibration=calibration).route(logits, 0)[2].tolist()
[[True, False, False, False]]
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import field_validator

from banpick_exp.models.shape import MoeShape
from banpick_exp.policy.bases.threshold import Threshold, usual_floor, within_unit
from banpick_exp.policy.calibration import Calibration, ratio_median
from banpick_exp.policy.knobs import Whole, as_number
from banpick_exp.policy.rule import BudgetKnob

if TYPE_CHECKING:
    from banpick_kernels.table import RouterTable


class Naee(Threshold):
    """`naee`: keep experts of at least beta times the weight of the token's best one."""

    name: ClassVar[str] = "naee"
    needs_instead: ClassVar[str] = "beta=median needs a calibration"
    budget_knob: ClassVar[BudgetKnob | None] = BudgetKnob("beta", 0.0, 1.0)
    k_min: Whole = 2
    beta: float | Literal["median"]
    """In [0, 1], higher keeps less: 0 is stock, 1 keeps only the best and its equals. Or `median`: each layer's own."""

    @field_validator("beta", mode="before")
    @classmethod
    def _beta_in_limits(cls, beta: Any) -> float | str:
        if beta == "median":
            return "median"
        if isinstance(beta, str):
            raise ValueError("is neither a number nor median. Write policy.beta=0.5, or policy.beta=median.")
        happens = "0 keeps every expert already", "not even the best would stay"
        return within_unit(as_number(beta), *happens, "beta=0.5")

    @classmethod
    def derived_knobs(cls, shape: MoeShape) -> dict[str, Any]:
        return {"k_min": usual_floor(shape)}

    def needs_calibration(self) -> bool:
        return self.beta == "median"

    def knobs(self) -> dict[str, object]:
        return {"beta": self.beta, "k_min": self.k_min}

    def keeps_all(self) -> bool:
        return self.beta == 0

    def betas(self, shape: MoeShape, calibration: Calibration | None) -> Sequence[float]:
        """beta of each layer, [L]. Raises UserError where it must come from a calibration that lacks it."""
        if isinstance(self.beta, str):
            return ratio_median(calibration, shape, self.name)
        return [self.beta] * shape.num_layers

    def fill(self, table: "RouterTable", shape: MoeShape, calibration: Calibration | None) -> None:
        super().fill(table, shape, calibration)
        for layer, beta in enumerate(self.betas(shape, calibration)):
            table.min_ratio[0, layer] = beta
