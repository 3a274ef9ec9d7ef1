"""rice: selected experts that go with reasoning weigh more (Reinforcing Cognitive Experts, arXiv 2505.14681).

    w_i *= multiplier               for every selected expert i among the reinforced ones, after selection

The selection stays the router's own, so the budget stays at K (or k) and nothing gets faster. The paper reinforces two
experts of the whole model: those whose normalised pointwise mutual information with tokens such as `<think>` is highest
(the calibration's `npmi`; `count` of them over all layers), or experts named outright.

Whether the multiplied weights are normalised again is unsettled in the sources we could read, so it is a knob (ours).
`renormalize_after=true`, the default, does as the checkpoint does: where that renormalises, the weights sum to 1 again
and the layer's output keeps its scale, at the cost of the other experts. `false` multiplies last, and the output grows.
The two are the same where the checkpoint does not renormalise.

Weights 0.5, 0.25 of K = 2, expert 1 reinforced with 3: 0.5 and 0.75 over their sum; or, multiplied last, 0.6667 and 1.

>>> import torch
>>> from banpick_exp.policy import build_policy
>>> logits, knobs = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log(), {"experts": {0: [1]}, "multiplier": 3}
>>> for after in (True, False):
...     policy = build_policy("rice", knobs | {"renormalize_after": after}, num_layers=1, num_experts=4, top_k=2)
...     print([round(weight, 4) for weight in policy.route(logits, 0)[0][0].tolist()])
[0.4, 0.6]
[0.6667, 1.0]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pydantic import field_validator

from banpick_exp.errors import UserError
from banpick_exp.models.shape import MoeShape
from banpick_exp.policy.bases.truncated import Truncated
from banpick_exp.policy.calibration import Calibration, npmi
from banpick_exp.policy.experts import KeyExperts, as_knob, check_named_experts, highest
from banpick_exp.policy.knobs import NamedExperts, Number, Switch, Whole
from banpick_exp.policy.rule import Needs
from banpick_kernels.layer_hooks import LayerEdit

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class RiceEdit(LayerEdit):
    """A factor on each expert's weight in one layer."""

    factor_E: Tensor
    """float32, 1 for an expert that is not reinforced."""
    last: bool

    @property
    def weights_last(self) -> bool:
        return self.last

    def weights(self, weights_TS: Tensor, ids_TS: Tensor) -> Tensor:
        return weights_TS * self.factor_E[ids_TS]


class Rice(Truncated):
    """`rice`: multiply the weights of named experts, or of those that go with the calibration's marker tokens."""

    name: ClassVar[str] = "rice"
    needs: ClassVar[Needs] = "a calibration"
    needs_instead: ClassVar[str] = "or experts named by hand"
    in_torch: ClassVar[bool] = True
    multiplier: Number
    """Above 0 and at most 1000: 1 is stock, more reinforces, less weakens."""
    experts: NamedExperts | None = None
    """The reinforced experts, {layer: [ids]}; then `count` and the calibration are not read."""
    count: Whole | None = None
    """How many of the experts with the highest npmi, over all layers."""
    renormalize_after: Switch = True
    """Renormalise after the multiplication where the checkpoint renormalises; false multiplies last."""

    @field_validator("multiplier")
    @classmethod
    def _multiplier_in_limits(cls, multiplier: float) -> float:
        if not 0 < multiplier <= 1000:
            problem = "removes the expert, for which there is policy=mask" if multiplier <= 0 else "drowns all others"
            raise ValueError(f"is outside (0, 1000]: it {problem}. Use for example policy.multiplier=2.")
        return multiplier

    def needs_calibration(self) -> bool:
        return self.experts is None and self.multiplier != 1

    def check(self, shape: MoeShape) -> None:
        super().check(shape)
        if self.experts is not None:
            check_named_experts("policy.experts", self.experts, shape)
        elif self.count is None or self.count < 1:
            given = "has no experts" if self.count is None else f"has count={self.count}"
            raise UserError(
                f"policy={self.name} {given}: nothing would change. Type policy.count=2 for the 2 that go most with"
                " the calibration's markers, or name them: 'policy.experts={0: [3]}'."
            )

    def knobs(self) -> dict[str, object]:
        which: dict[str, object] = {"count": self.count} if self.experts is None else {"experts": as_knob(self.experts)}
        last = {} if self.renormalize_after else {"renormalize_after": False}
        return {"multiplier": self.multiplier, **which, **last, **super().knobs()}

    def reinforced(self, shape: MoeShape, calibration: Calibration | None) -> KeyExperts:
        """The reinforced experts. Raises UserError where the calibration must name them and cannot."""
        if self.experts is not None:
            return self.experts
        return highest(npmi(calibration, shape, self.name), self.count or 0, "policy.count")

    def edits(self, shape: MoeShape, calibration: Calibration | None) -> Sequence[LayerEdit | None] | None:
        if self.multiplier == 1:
            return None
        import torch

        edits: list[LayerEdit | None] = [None] * shape.num_layers
        for layer, experts in self.reinforced(shape, calibration).items():
            factor_E = torch.ones(shape.num_experts)
            factor_E[list(experts)] = self.multiplier
            edits[layer] = RiceEdit(factor_E=factor_E, last=not self.renormalize_after)
        return edits
