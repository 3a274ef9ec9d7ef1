"""mask: named experts of a layer are never selected: task-conditioned pruning and expert removal.

    z[t,e] = -inf for every masked expert e of the layer, before scoring and top-k

Source: arXiv 2505.17639 and 2504.06792, which differ in how they choose the experts; the choice is not part of the
rule. The token's K experts are the best K of those left, so the budget stays at K and nothing gets faster; what is
measured is the loss of quality. A mapping that names no expert is refused, it would be `none` (ours). Routers that rank
by score plus a correction bias, or see only some groups of experts (DeepSeek), choose their groups as they would have
and then the best K of them that are not masked; where these are fewer than K, experts of other groups by lower id
(ours). Only a compiled engine on a GPU may there still fill a slot with a masked expert, at weight 0.

Weights 0.5, 0.25, 0.125, 0.125 with expert 0 masked and K = 2: experts 1 and 2 stay, at 2/3 and 1/3.

>>> import torch
>>> from banpick_exp.policy import build_policy
>>> logits = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()
>>> policy = build_policy("mask", {"experts": {0: [0]}}, num_layers=1, num_experts=4, top_k=2)
>>> weights, ids, _ = policy.route(logits, 0)
>>> ids.tolist(), [round(weight, 4) for weight in weights[0].tolist()]
([[1, 2]], [0.6667, 0.3333])
"""

import math
from typing import TYPE_CHECKING, ClassVar

from banpick_exp.models.routing import Routing
from banpick_exp.models.shape import MoeShape
from banpick_exp.policy.calibration import Calibration
from banpick_exp.policy.experts import as_knob, check_enough_stay, check_named_experts
from banpick_exp.policy.knobs import NamedExperts
from banpick_exp.policy.rule import Needs, Rule

if TYPE_CHECKING:
    from banpick_kernels.table import RouterTable


class Mask(Rule):
    """`mask`: exclude the named experts; the next best take their places."""

    name: ClassVar[str] = "mask"
    exchanges: ClassVar[bool] = True
    needs: ClassVar[Needs] = "data of your own"
    needs_instead: ClassVar[str] = "experts named by hand"
    experts: NamedExperts
    """The excluded experts, {layer: [ids]}; at least top_k must stay in each layer."""

    @classmethod
    def remarks_on(cls, shape: MoeShape, routing: Routing, *, gpu: bool) -> tuple[str, ...]:
        if not (gpu and (routing.grouped or routing.corrected)):
            return ()
        return ("a compiled GPU engine may fill a slot with a masked expert, at weight 0",)

    def check(self, shape: MoeShape) -> None:
        at = "policy.experts"
        check_named_experts(at, self.experts, shape)
        check_enough_stay(at, self.experts, shape)

    def knobs(self) -> dict[str, object]:
        return {"experts": as_knob(self.experts)}

    def fill(self, table: "RouterTable", shape: MoeShape, calibration: Calibration | None) -> None:
        for layer, experts in self.experts.items():
            for expert in experts:
                table.logit_bias_PLE[0, layer, expert] = -math.inf
