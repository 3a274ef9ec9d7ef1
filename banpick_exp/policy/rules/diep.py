"""diep: skip experts that weigh little beside the best one, sooner where they resemble it (DiEP, arXiv 2509.16105).

    drop rank i where w_i < w_1 * beta * gamma1 * gamma2(e_1, e_i)^alpha        w_1 >= ... >= w_K, the selected weights
    gamma1          = the layer's median of w_2 / w_1 over calibration tokens
    gamma2(e, e')   = CKA(e, e') / the mean CKA of two experts of the layer

At beta = 1 and alpha = 1, the defaults, that is the published rule (eq. 12, as arXiv 2609.25809 quotes it). Each rank
is held against the best one on its own: one that falls may stand between two that stay. The first k_min ranks always
stay, two unless typed, as in that study. CKA is the calibration's `similarity`, linear CKA between the experts' outputs
on the same tokens (which CKA is meant the sources leave open); where all of it is 0, gamma2 is 1 (ours).

beta, which `policy.budget` solves, and alpha are ours. At alpha = 0 similarity does not count: that is `naee` with the
medians times beta, token for token, and so it is where all experts are equally alike.

Weights 0.5, 0.25, 0.125, 0.125 and gamma1 = 0.6. Expert 2 is as unlike the others as can be, and 0.5 is the mean CKA:
it needs nothing, experts 1 and 3, at twice the mean, need 0.5 * 0.6 * 2. With k_min = 1 these fall, and expert 2 stays.

>>> import torch
>>> from banpick_exp.policy import build_policy
>>> logits = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()
>>> similarity = [[1, 1, 0, 1], [1, 1, 0, 1], [0, 0, 1, 0], [1, 1, 0, 1]]
>>> calibration = {"similarity": [similarity], "ratio_median": [0.6]}
>>> shape = dict(num_layers=1, num_experts=4, top_k=4, calibration=calibration)
>>> weights, ids, kept = build_policy("diep", {"k_min": 1}, **shape).route(logits, 0)
>>> ids[kept].tolist(), [round(weight, 2) for weight in weights[kept].tolist()]
([0, 2], [0.8, 0.2])
>>> ids, kept = build_policy("diep", {}, **shape).route(logits, 0)[1:]
>>> ids[kept].tolist()
[0, 1, 2]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import field_validator

from banpick_exp.models.shape import MoeShape
from banpick_exp.policy.bases.threshold import Threshold, usual_floor
from banpick_exp.policy.calibration import Calibration, ratio_median, similarity
from banpick_exp.policy.knobs import Number, Whole
from banpick_exp.policy.rule import BudgetKnob, Needs
from banpick_kernels.layer_hooks import LayerEdit

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class DiepEdit(LayerEdit):
    """What an expert must weigh in one layer beside the best one."""

    limit_EE: Tensor
    """float32, row: the token's best expert. Share of its weight that the other needs to stay."""

    def keep(self, share_TK: Tensor, ids_TK: Tensor) -> Tensor:
        # The best one itself stays because the floor is at least 1: its own row may ask for more than it weighs.
        return share_TK >= self.limit_EE[ids_TK[:, :1], ids_TK] * share_TK[:, :1]


class Diep(Threshold):
    """`diep`: drop experts below a share of the best one's weight, a lower share where they differ from it."""

    name: ClassVar[str] = "diep"
    needs: ClassVar[Needs] = "a calibration"
    in_torch: ClassVar[bool] = True
    budget_knob: ClassVar[BudgetKnob | None] = BudgetKnob("beta", 1e-2, 1e3, log=True)
    k_min: Whole = 2
    beta: Number = 1.0
    """0 to 1000, higher keeps less: 1 is the published rule, 0 is stock."""
    alpha: Number = 1.0
    """0 to 20, how much similarity counts: 1 is the published rule, at 0 not at all."""

    @field_validator("beta")
    @classmethod
    def _beta_in_limits(cls, beta: float) -> float:
        if not 0 <= beta <= 1000:
            happens = "0 keeps every expert already" if beta < 0 else "none beyond k_min would stay"
            raise ValueError(f"is outside [0, 1000]: {happens}. Use for example policy.beta=1, the published rule.")
        return beta

    @field_validator("alpha")
    @classmethod
    def _alpha_in_limits(cls, alpha: float) -> float:
        if not 0 <= alpha <= 20:
            raise ValueError(
                "is outside [0, 20]: unlike experts would be skipped first. Use for example policy.alpha=1."
            )
        return alpha

    @classmethod
    def derived_knobs(cls, shape: MoeShape) -> dict[str, Any]:
        return {"k_min": usual_floor(shape)}

    def needs_calibration(self) -> bool:
        return self.beta > 0

    def knobs(self) -> dict[str, object]:
        return {"beta": self.beta, "alpha": self.alpha, "k_min": self.k_min}

    def keeps_all(self) -> bool:
        return self.beta == 0

    def edits(self, shape: MoeShape, calibration: Calibration | None) -> Sequence[LayerEdit | None] | None:
        if self.keeps_all() or self.k_min == shape.top_k:
            return None
        import torch

        median_L = torch.tensor(ratio_median(calibration, shape, self.name), dtype=torch.float64)
        limit_LEE = (self.beta * median_L)[:, None, None].expand(-1, shape.num_experts, shape.num_experts)
        if self.alpha > 0:
            limit_LEE = limit_LEE * _gamma2(calibration, shape, self.name) ** self.alpha
        return [DiepEdit(limit_EE=limit_EE) for limit_EE in limit_LEE.float()]


def _gamma2(calibration: Calibration | None, shape: MoeShape, name: str) -> Tensor:
    """Similarity over its mean in the layer, an expert's with itself left out of the mean; float64 [L,E,E]."""
    import torch

    similarity_LEE = torch.tensor(similarity(calibration, shape, name), dtype=torch.float64)
    pairs = shape.num_experts * (shape.num_experts - 1)
    own_L = similarity_LEE.diagonal(dim1=-2, dim2=-1).sum(-1)
    mean_L11 = ((similarity_LEE.sum((-2, -1)) - own_L) / max(pairs, 1))[:, None, None]
    return torch.where(mean_L11 > 0, similarity_LEE / mean_L11, 1.0)
