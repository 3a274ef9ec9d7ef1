"""diep: skip experts that weigh little beside the best one, sooner where they resemble it (DiEP, arXiv 2509.16105).

    keep rank i while w_i >= w_1 * beta * gamma2(e_1, e_i)^alpha        w_1 >= ... >= w_K, the selected weights

gamma2(e, e') is the similarity of two experts of a layer, 0 to 1. The paper states the rule for the second of two
experts; here K is any number, every rank is held against the best one, and all after the first that falls short are
dropped, as in `naee` (ours). Which similarity is meant is unsettled in the sources we could read: ours is the
calibration's `similarity`, linear CKA between the experts' outputs on the same tokens. One beta and one alpha serve all
layers, so that they can be swept; alpha = 1 unless typed (both ours). At alpha = 0 similarity does not count and no
calibration is read: that is `naee`, token for token.

Weights 0.5, 0.25, 0.125, 0.125, beta = 0.8, alpha = 1. Expert 1 is like expert 0 by 0.9: it needs 0.36 and falls. Were
it unlike it by as much, 0.1, it would need 0.04.

>>> import torch
>>> from banpick_exp.policy import build_policy
>>> logits = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()
>>> for gamma in (0.9, 0.1):
...     similarity = torch.full((1, 4, 4), gamma).tolist()
...     shape = dict(num_layers=1, num_experts=4, top_k=4, calibration={"similarity": similarity})
...     print(build_policy("diep", {"beta": 0.8}, **shape).route(logits, 0)[2].tolist())
[[True, False, False, False]]
[[True, True, True, True]]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pydantic import field_validator

from banpick_exp.models.shape import MoeShape
from banpick_exp.policy.bases.threshold import Threshold, within_unit
from banpick_exp.policy.calibration import Calibration, similarity
from banpick_exp.policy.knobs import Number
from banpick_exp.policy.rule import BudgetKnob
from banpick_kernels.layer_hooks import LayerEdit

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class DiepEdit(LayerEdit):
    """What an expert must weigh in one layer beside the best one."""

    limit_EE: Tensor
    """float32, row: the token's best expert. Share of its weight that the other needs to stay."""

    def keep(self, share_TK: Tensor, ids_TK: Tensor) -> Tensor:
        limit_TK = self.limit_EE[ids_TK[:, :1], ids_TK]
        stays_TK = share_TK >= limit_TK * share_TK[:, :1]
        return stays_TK.long().cumprod(dim=-1).sum(dim=-1, keepdim=True).float()


class Diep(Threshold):
    """`diep`: keep experts of at least beta times the best one's weight, less where they differ from it."""

    name: ClassVar[str] = "diep"
    in_torch: ClassVar[bool] = True
    budget_knob: ClassVar[BudgetKnob | None] = BudgetKnob("beta", 0.0, 1.0)
    beta: Number
    """In [0, 1], higher keeps less: 0 is stock."""
    alpha: Number = 1.0
    """0 to 20, how much similarity counts: at 0 not at all, the higher the fewer pairs are like enough to skip one."""

    @field_validator("beta")
    @classmethod
    def _beta_in_limits(cls, beta: float) -> float:
        return within_unit(beta, "0 keeps every expert already", "not even the best would stay", "beta=0.5")

    @field_validator("alpha")
    @classmethod
    def _alpha_in_limits(cls, alpha: float) -> float:
        if not 0 <= alpha <= 20:
            raise ValueError(
                "is outside [0, 20]: unlike experts would be skipped first. Use for example policy.alpha=1."
            )
        return alpha

    def needs_calibration(self) -> bool:
        return self.beta > 0 and self.alpha > 0

    def knobs(self) -> dict[str, object]:
        return {"beta": self.beta, "alpha": self.alpha, "k_min": self.k_min}

    def keeps_all(self) -> bool:
        return self.beta == 0

    def edits(self, shape: MoeShape, calibration: Calibration | None) -> Sequence[LayerEdit | None] | None:
        if self.keeps_all() or self.k_min == shape.top_k:
            return None
        import torch

        if self.needs_calibration():
            gamma_LEE = torch.tensor(similarity(calibration, shape, self.name), dtype=torch.float64)
        else:
            gamma_LEE = torch.ones(shape.num_layers, shape.num_experts, shape.num_experts, dtype=torch.float64)
        return [DiepEdit(limit_EE=limit_EE) for limit_EE in (self.beta * gamma_LEE**self.alpha).float()]
