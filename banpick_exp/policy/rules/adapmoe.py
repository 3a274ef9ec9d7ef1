"""adapmoe: drop the tail that the layer cannot feel (AdapMoE, arXiv 2408.10284).

    drop ranks from the end while H_l * (the sum of the dropped w_i^2) < threshold

w_1 >= ... >= w_K are the token's selected weights divided by their sum. H_l says how much the loss minds a change of
the layer's output; the paper takes the diagonal of its Fisher information, and K = 2 experts of which the second may
go. Ours: any K, with the dropped weights' squares added up; H_l without labels and gradients, from the calibration
(`fisher`: 2 * KL / mean dropped square when layer l alone is pruned); and divided by its mean over the layers, so
that thresholds compare between models. A layer of H_l = 0 keeps k_min.

Weights 0.5, 0.25, 0.125, 0.125: the squares from a rank on sum to 0.344, 0.094, 0.031 and 0.016. H of 1 and 3 becomes
0.5 and 1.5, so threshold = 0.04 drops what sums to less than 0.08 and 0.027: two and three experts stay.

>>> import torch
>>> from banpick_exp.policy import build_policy
>>> logits, calibration = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log(), {"fisher": [1.0, 3.0]}
>>> knobs, shape = {"threshold": 0.04}, {"num_layers": 2, "num_experts": 4, "top_k": 4}
>>> policy = build_policy("adapmoe", knobs, **shape, calibration=calibration)
>>> [policy.route(logits, layer)[2].sum().item() for layer in (0, 1)]
[2, 3]
"""

from typing import TYPE_CHECKING, ClassVar

from pydantic import field_validator

from banpick_exp.errors import UserError
from banpick_exp.models.shape import MoeShape
from banpick_exp.policy.bases.threshold import Threshold, limit_of_layer
from banpick_exp.policy.calibration import RUN_IT, Calibration, fisher
from banpick_exp.policy.knobs import Number
from banpick_exp.policy.rule import BudgetKnob, Needs

if TYPE_CHECKING:
    from banpick_kernels.table import RouterTable


class AdapMoe(Threshold):
    """`adapmoe`: drop the experts whose squared weights, times their layer's importance, stay below a threshold."""

    name: ClassVar[str] = "adapmoe"
    needs: ClassVar[Needs] = "a calibration"
    budget_knob: ClassVar[BudgetKnob | None] = BudgetKnob("threshold", 1e-5, 10.0, log=True)
    threshold: Number
    """At least 0, higher keeps less: 0 is stock."""

    @field_validator("threshold")
    @classmethod
    def _threshold_in_limits(cls, threshold: float) -> float:
        if threshold < 0:
            raise ValueError("is below 0: 0 keeps every expert already. Use for example policy.threshold=0.01.")
        return threshold

    def needs_calibration(self) -> bool:
        return self.threshold > 0

    def knobs(self) -> dict[str, object]:
        return {"threshold": self.threshold, "k_min": self.k_min}

    def keeps_all(self) -> bool:
        return self.threshold == 0

    def importances(self, shape: MoeShape, calibration: Calibration | None) -> list[float]:
        """H_l over its mean, [L]. Raises UserError where the calibration lacks it or it is 0 everywhere."""
        fisher_L = fisher(calibration, shape, self.name)
        mean = sum(fisher_L) / len(fisher_L)
        if mean == 0:
            raise UserError(
                f"policy={self.name} cannot start: fisher is 0 in every layer, because dropping experts changed "
                f"nothing while calibrating. {RUN_IT} with calibration.k_min below top_k={shape.top_k}."
            )
        return [value / mean for value in fisher_L]

    def fill(self, table: "RouterTable", shape: MoeShape, calibration: Calibration | None) -> None:
        super().fill(table, shape, calibration)
        if self.keeps_all():
            return
        for layer, importance in enumerate(self.importances(shape, calibration)):
            table.tail_square[0, layer] = limit_of_layer(self.threshold, importance)
