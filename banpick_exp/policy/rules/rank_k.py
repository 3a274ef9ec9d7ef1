"""rank_k: route every token to the one expert of that rank (rank-k routing of SCMoE, arXiv 2405.14507, section 2.2).

    keep rank k alone, of all experts in the router's own order

k may lie beyond the checkpoint's K: an expert that stock routing never asks there. Rank 1 keeps what `fixed_k` keeps at
k=1. The weight is that expert's own router score, renormalised to 1 where the checkpoint renormalises. By itself it is
a weak model, and that is its use: the one that `scmoe` contrasts the checkpoint with.

Ranks are the router's own: by score plus correction bias where it has one, experts of groups that it does not see last.

Logits 5, 4, 3 and K = 2: the third is one that the checkpoint leaves out.

>>> import torch
>>> from banpick_exp.policy import build_policy
>>> policy = build_policy("rank_k", {"rank": 3}, num_layers=1, num_experts=3, top_k=2)
>>> policy.route(torch.tensor([[5.0, 4.0, 3.0]]), 0)
(tensor([[1., 0.]]), tensor([[2, 2]], dtype=torch.int32), tensor([[ True, False]]))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from banpick_exp.errors import UserError
from banpick_exp.models.shape import MoeShape
from banpick_exp.policy.calibration import Calibration
from banpick_exp.policy.knobs import Whole
from banpick_exp.policy.rule import Rule
from banpick_kernels.layer_hooks import LayerEdit

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class RankEdit(LayerEdit):
    """Another base selection for one layer: the expert of one rank."""

    rank: int
    """1 is the best."""

    def select(self, logits_TE: Tensor, ranking_TE: Tensor, ids_TK: Tensor) -> Tensor:
        from banpick_kernels.reference import best_first

        return best_first(ranking_TE)[:, self.rank - 1 : self.rank]


class RankK(Rule):
    """`rank_k`: the one expert of a rank."""

    name: ClassVar[str] = "rank_k"
    in_torch: ClassVar[bool] = True
    rank: Whole
    """1 to the number of experts."""

    @classmethod
    def idle_on(cls, shape: MoeShape) -> str | None:
        return "one expert in all: there is no other" if shape.num_experts == 1 else None

    def check(self, shape: MoeShape) -> None:
        if not 1 <= self.rank <= shape.num_experts:
            raise UserError(
                f"policy.rank={self.rank} is no rank among the {shape.num_experts} experts of a layer: a token would"
                f" keep none. Use 1..{shape.num_experts}."
            )

    def knobs(self) -> dict[str, object]:
        return {"rank": self.rank}

    def max_kept(self, shape: MoeShape, calibration: Calibration | None = None) -> int:
        return 1

    def budget(self, shape: MoeShape, calibration: Calibration | None = None) -> tuple[float, float]:
        return 1.0, 1.0

    def edits(self, shape: MoeShape, calibration: Calibration | None) -> Sequence[LayerEdit | None] | None:
        return [RankEdit(rank=self.rank)] * shape.num_layers
