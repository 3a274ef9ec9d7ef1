"""modes: a weight threshold that is lower in layers that matter more (MoDES, arXiv 2511.15690).

    keep rank i while alpha_l * w_i >= tau          w_1 >= ... >= w_K, the selected weights divided by their sum

alpha_l is the importance of the layer: the KL when its routed experts are skipped altogether, the calibration's
`skip_kl`. The paper has one tau per modality; a language model has one. A common factor of alpha only shifts tau, so it
is taken over its largest value, which makes tau comparable between models (ours). alpha_min lifts it off 0 (ours):

    alpha_l = alpha_min + (1 - alpha_min) * skip_kl[l] / max skip_kl

At 0, the default, that is the published rule; at 1 all layers share the threshold tau and no calibration is read.

Weights 0.5, 0.25, 0.125, 0.125, tau = 0.2, KLs of 1 and 2 nats: alpha is 0.5 and 1, so the thresholds are 0.4 and 0.2,
and one and two experts stay.

>>> import torch
>>> from banpick_exp.policy import build_policy
>>> logits, calibration = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log(), {"skip_kl": [1.0, 2.0]}
>>> policy = build_policy("modes", {"tau": 0.2}, num_layers=2, num_experts=4, top_k=4, calibration=calibration)
>>> [policy.route(logits, layer)[2].sum().item() for layer in (0, 1)]
[1, 2]
"""

from typing import TYPE_CHECKING, ClassVar

from pydantic import field_validator

from banpick_exp.errors import UserError
from banpick_exp.models.shape import MoeShape
from banpick_exp.policy.bases.threshold import Threshold, limit_of_layer, within_unit
from banpick_exp.policy.calibration import RUN_IT, Calibration, skip_kl
from banpick_exp.policy.knobs import Number
from banpick_exp.policy.rule import BudgetKnob, Needs

if TYPE_CHECKING:
    from banpick_kernels.table import RouterTable


class Modes(Threshold):
    """`modes`: keep experts whose weight times their layer's importance reaches tau."""

    name: ClassVar[str] = "modes"
    needs: ClassVar[Needs] = "a calibration"
    needs_instead: ClassVar[str] = "none with alpha_min=1"
    budget_knob: ClassVar[BudgetKnob | None] = BudgetKnob("tau", 1e-6, 1.0, log=True)
    tau: Number
    """In [0, 1], higher keeps less: 0 is stock."""
    alpha_min: Number = 0.0
    """In [0, 1], the importance of a layer that could be skipped; the most important has 1. At 1 all are equal."""

    @field_validator("tau")
    @classmethod
    def _tau_in_limits(cls, tau: float) -> float:
        return within_unit(tau, "0 keeps every expert already", "no weight could reach it", "tau=0.1")

    @field_validator("alpha_min")
    @classmethod
    def _alpha_min_in_limits(cls, alpha_min: float) -> float:
        return within_unit(alpha_min, "importance is not negative", "the order of layers would turn", "alpha_min=0.5")

    def needs_calibration(self) -> bool:
        return self.tau > 0 and self.alpha_min < 1

    def knobs(self) -> dict[str, object]:
        return {"tau": self.tau, "alpha_min": self.alpha_min, "k_min": self.k_min}

    def keeps_all(self) -> bool:
        return self.tau == 0

    def alphas(self, shape: MoeShape, calibration: Calibration | None) -> list[float]:
        """alpha_l, [L]. Raises UserError where it must come from a calibration that lacks it."""
        if not self.needs_calibration():
            return [1.0] * shape.num_layers
        skip_kl_L = skip_kl(calibration, shape, self.name)
        if not (most := max(skip_kl_L)):
            raise UserError(
                f"policy={self.name} cannot start: skip_kl is 0 in every layer, so skipping its experts changes nothing"
                f" and no layer matters more than another. {RUN_IT} again, or type policy.alpha_min=1."
            )
        return [self.alpha_min + (1 - self.alpha_min) * value / most for value in skip_kl_L]

    def fill(self, table: "RouterTable", shape: MoeShape, calibration: Calibration | None) -> None:
        super().fill(table, shape, calibration)
        for layer, alpha in enumerate(self.alphas(shape, calibration)):
            table.min_weight[0, layer] = limit_of_layer(self.tau, alpha)
