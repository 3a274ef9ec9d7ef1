"""fixed_k: one number of experts for every token: the ladder that every claim is held against (2609.25809).

    keep ranks 1 .. floor(k), and rank floor(k) + 1 where u < k - floor(k)

A k with a fraction is ours: a rung between two rungs, so that a policy of any measured budget has a rival that keeps
as many. Each token in each layer keeps floor(k) or floor(k) + 1 experts, with probabilities of which the mean is k;
what is kept are ranks of the checkpoint's own selection, as with a whole k.

Where u comes from: a hash of the bits of the token's K selected logits in that layer, in rank order, read as a number
in [0, 1) (`banpick_kernels.stochastic_rounding`). There is no generator, no seed and no state. So the same token state
rounds alike in any row of any batch, on every rank, in every rerun and in every implementation, and rungs are nested: a
token that keeps 5 under k=4.6 keeps 5 under k=4.7 too. Logits that differ in their last bit (another batch size,
another kernel) draw anew.

Each token and layer is a coin of its own. Nothing comes closer to k than such coins by what a router sees of one token:
it knows neither the other tokens nor the token's other layers. So the measured mean differs from k by about
sqrt(f (1 - f) / (tokens x layers)), f the fraction of k: less than 0.002 experts over 100,000 of them. Beginnings that
prompts share are few states, counted often, and add to that: on the embedded model, which has four layers and 2,400
problems that begin alike, the means of four runs were off by 0.002 to 0.021, of one domain by up to 0.03 (`ALIKE`).

A whole k above K, up to all experts (and the slots of the kernel), keeps the first k by the router's own ranking: the
selection goes on where the checkpoint's ends, and the weights are renormalised over all k as the checkpoint does it
over K. So a policy that keeps more than K has a rival too. No fraction is there: the coin is thrown over the K selected
logits.

k is read to six decimals, so that 4.6 and 4.6000000000000005 (of a range in a sweep) are one point.

K = 2 and k = 1.85: of two tokens the second keeps two.

>>> import torch
>>> from banpick_exp.policy import build_policy
>>> policy = build_policy("fixed_k", {"k": 1.85}, num_layers=1, num_experts=4, top_k=2)
>>> policy.route(torch.tensor([[2.0, 1.0, 0.0, 0.0], [2.0, 1.0000001, 0.0, 0.0]]), 0)[2].tolist()
[[True, False], [True, True]]
"""

import math
from typing import TYPE_CHECKING, ClassVar

from banpick_exp.errors import UserError
from banpick_exp.models.routing import Routing
from banpick_exp.models.shape import MoeShape
from banpick_exp.policy.calibration import Calibration
from banpick_exp.policy.knobs import Count, check_count
from banpick_exp.policy.rule import BudgetKnob, Pull, Rule
from banpick_kernels.insertion import MAX_SLOTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from banpick_kernels.layer_hooks import LayerEdit
    from banpick_kernels.table import RouterTable

ALIKE = 0.15
"""Experts a token that the measured mean may differ from k beyond what independent coins explain: equal token states
draw alike, and of a few states (the first tokens of every prompt) a run may count many. One layer alone was seen 0.11
off."""
DEVIATIONS = 6
"""Standard deviations of independent coins that are left to chance."""
IMPOSSIBLE = 1e-9
"""What is less probable is taken for a policy that did not engage."""


class FixedK(Rule):
    """`fixed_k`: keep the k highest-weight experts in every layer, of the checkpoint's own selection or beyond it."""

    name: ClassVar[str] = "fixed_k"
    reference_rank: ClassVar[int | None] = 1
    prunes: ClassVar[bool] = True
    budget_knob: ClassVar[BudgetKnob | None] = BudgetKnob("k", 1, math.inf, is_budget=True)
    k: Count
    """Experts kept, at top_k stock routing. With a fraction, below top_k alone: that many on average."""

    @classmethod
    def remarks_on(cls, shape: MoeShape, routing: Routing, *, gpu: bool) -> tuple[str, ...]:
        remarks = {
            "k=1 is the only whole budget below its own": shape.top_k == 2,
            "weights are not renormalised: what is pruned is lost, so outputs shrink with every rule": (
                routing.renormalises is False
            ),
            "keeps the first k by weight, not by corrected rank": routing.corrected,
        }
        return tuple(remark for remark, holds in remarks.items() if holds)

    def check(self, shape: MoeShape) -> None:
        most = most_kept(shape)
        if self.k <= shape.top_k:
            check_count(self.name, "k", self.k, shape)
        elif self.k > most:
            raise UserError(
                f"policy.k={self.k} exceeds the {most} experts that a token of this checkpoint can keep: no more can be"
                f" selected. Use 1..{most}."
            )
        elif not isinstance(self.k, int):
            raise UserError(
                f"policy.k={self.k} has a fraction above top_k={shape.top_k} of this checkpoint: who keeps one more is"
                f" drawn by the logits of the {shape.top_k} selected experts, and all of them stay. Use a whole number,"
                f" {math.floor(self.k)} or {math.ceil(self.k)}."
            )

    def knobs(self) -> dict[str, object]:
        return {"k": self.k}

    def max_kept(self, shape: MoeShape, calibration: Calibration | None = None) -> int:
        return math.ceil(self.k)

    def budget(self, shape: MoeShape, calibration: Calibration | None = None) -> tuple[float, float]:
        return float(self.k), float(self.k)

    def drawn_within(self, choices: int) -> tuple[float, float] | None:
        whole = math.floor(self.k)
        fraction = self.k - whole
        if not fraction:
            return None
        reach = ALIKE + DEVIATIONS * math.sqrt(fraction * (1 - fraction) / choices)
        # All tokens alike is no draw at all (it is stock where k > K - 1), but for a handful or the smallest fractions.
        least, most = (1 / choices if share**choices < IMPOSSIBLE else 0.0 for share in (1 - fraction, fraction))
        return max(whole + least, self.k - reach), min(whole + 1 - most, self.k + reach)

    def fill(self, table: "RouterTable", shape: MoeShape, calibration: Calibration | None) -> None:
        if self.k <= shape.top_k:
            table.keep[0] = self.k
            return
        # One stays, the best, and the first k come in: so ties around the K-th decide nothing.
        table.keep[0], table.insert_window[0] = 1, self.k
        table.key_PLE[0] = True

    def pull(self, table: "RouterTable", edits: "Sequence[LayerEdit | None] | None") -> Pull | None:
        """None: how many it keeps is what it does, whoever they are."""
        return None


def most_kept(shape: MoeShape) -> int:
    """The most experts that a token can keep on any engine."""
    return max(shape.top_k, min(shape.num_experts, MAX_SLOTS))
