"""steer: switch experts on or off whatever the token says (SteerMoE, arXiv 2509.09660).

    s = log_softmax(z);  s[on] = max(s) + epsilon;  s[off] = min(s) - epsilon;  then the usual softmax and top-k

max and min are the token's own, taken before the edit. epsilon is 0.01, as in the authors' published code for vLLM: an
expert that is switched on weighs about as much as the token's best one. Neither softmax nor top-k sees the shift
between log_softmax(z) and z, so the logits themselves are edited: the other experts' order cannot suffer from rounding,
and a sigmoid router, which the paper does not have, scores them as before (ours). Several experts that are on are
equal, hence in the order of their ids; at most top_k (or k) are on in a layer, and at least top_k must not be off.

Which experts: named, or the `count` that the calibration's `contrast` sets apart, over all layers: the share of this
domain's tokens that select an expert, minus the mean of the other domains (the paper: the difference between two sets
of paired prompts). `direction=on` switches on those with the largest positive contrast, `direction=off` switches off
those with the largest negative one. Where one layer has more of them than fit, the next best of other layers follow
(ours).

Under a correction bias or groups of experts (DeepSeek) the router's own preferences still count: an expert that is on
may then stay out of the selection.

Logits 2, 1, 0, -1, K = 2, expert 3 on and expert 0 off: the edited logits are -1.01, 1, 0 and 2.01.

>>> import torch
>>> from banpick_exp.policy import build_policy
>>> knobs = {"on": {0: [3]}, "off": {0: [0]}}
>>> policy = build_policy("steer", knobs, num_layers=1, num_experts=4, top_k=2)
>>> weights, ids, _ = policy.route(torch.tensor([[2.0, 1.0, 0.0, -1.0]]), 0)
>>> ids.tolist(), [round(weight, 4) for weight in weights[0].tolist()]
([[3, 1]], [0.733, 0.267])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import field_validator

from banpick_exp.errors import UserError
from banpick_exp.models.shape import MoeShape
from banpick_exp.policy.bases.truncated import Truncated
from banpick_exp.policy.calibration import Calibration, contrast
from banpick_exp.policy.experts import KeyExperts, as_knob, check_enough_stay, check_named_experts, highest
from banpick_exp.policy.knobs import NamedExperts, Number, Whole
from banpick_exp.policy.rule import Needs
from banpick_kernels.layer_hooks import LayerEdit

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class SteerEdit(LayerEdit):
    """The logits of one layer's steered experts, put beyond those of all others."""

    on_E: Tensor
    """bool."""
    off_E: Tensor
    """bool."""
    epsilon: float

    def logits(self, logits_TE: Tensor) -> Tensor:
        above_T1 = logits_TE.amax(dim=-1, keepdim=True) + self.epsilon
        below_T1 = logits_TE.amin(dim=-1, keepdim=True) - self.epsilon
        return logits_TE.where(~self.on_E, above_T1).where(~self.off_E, below_T1)

    def pull(self) -> Tensor:
        return self.on_E.int() - self.off_E.int()


class Steer(Truncated):
    """`steer`: named or contrasting experts are always, or never, selected."""

    name: ClassVar[str] = "steer"
    exchanges: ClassVar[bool] = True
    needs: ClassVar[Needs] = "a calibration"
    needs_instead: ClassVar[str] = "of several domains, or experts named by hand"
    in_torch: ClassVar[bool] = True
    on: NamedExperts | None = None
    """Experts that every token selects, {layer: [ids]}."""
    off: NamedExperts | None = None
    """Experts that no token selects, {layer: [ids]}."""
    count: Whole | None = None
    """How many experts of the calibration's contrast, over all layers; not read where `on` or `off` names them."""
    direction: Literal["on", "off"] = "on"
    """What happens to these."""
    epsilon: Number = 0.01
    """How far beyond the token's highest or lowest logit, above 0."""

    @field_validator("epsilon")
    @classmethod
    def _epsilon_above_0(cls, epsilon: float) -> float:
        if not 0 < epsilon <= 20:
            raise ValueError(
                "is outside (0, 20]: at 0 steered experts tie with others. Use for example policy.epsilon=0.01."
            )
        return epsilon

    @property
    def named(self) -> bool:
        return self.on is not None or self.off is not None

    def needs_calibration(self) -> bool:
        return not self.named

    def check(self, shape: MoeShape) -> None:
        super().check(shape)
        on, off = self.on or {}, self.off or {}
        check_named_experts("policy.on", on, shape)
        check_named_experts("policy.off", off, shape)
        if not self.named and (self.count is None or self.count < 1):
            given = "has no experts" if self.count is None else f"has count={self.count}"
            raise UserError(
                f"policy={self.name} {given}: nothing would change. Type policy.count=4 for the 4 that the calibration "
                "sets apart, or name them: 'policy.on={0: [3]}' or 'policy.off={0: [3]}'."
            )
        check_enough_stay("policy.off", off, shape)
        for layer, experts in on.items():
            if len(experts) > self.kept(shape):
                raise UserError(
                    f"policy.on names {len(experts)} experts of layer {layer}, but a token keeps {self.kept(shape)}:"
                    f" the others would never be selected. Name at most {self.kept(shape)} there."
                )
            if both := sorted(set(experts) & set(off.get(layer, ()))):
                raise UserError(
                    f"policy={self.name} switches expert {both[0]} of layer {layer} both on and off. Leave it"
                    " out of one of them."
                )

    def knobs(self) -> dict[str, object]:
        if self.named:
            given = {"on": self.on, "off": self.off}
            chosen: dict[str, object] = {knob: as_knob(experts) for knob, experts in given.items() if experts}
        else:
            chosen = {"count": self.count, "direction": self.direction}
        return {**chosen, "epsilon": self.epsilon, **super().knobs()}

    def steered(self, shape: MoeShape, calibration: Calibration | None) -> dict[str, KeyExperts]:
        """The experts that are `on` and `off`. Raises UserError where the calibration must name them and cannot."""
        if self.named:
            return {"on": self.on or {}, "off": self.off or {}}
        sign = 1 if self.direction == "on" else -1
        scores_LE = [[sign * value for value in values_E] for values_E in contrast(calibration, shape, self.name)]
        room = self.kept(shape) if self.direction == "on" else shape.num_experts - shape.top_k
        chosen = highest(scores_LE, self.count or 0, "policy.count", per_layer=room)
        return {"on": {}, "off": {}, self.direction: chosen}

    def edits(self, shape: MoeShape, calibration: Calibration | None) -> Sequence[LayerEdit | None]:
        import torch

        steered_LE = {key: torch.zeros(shape.num_layers, shape.num_experts, dtype=torch.bool) for key in ("on", "off")}
        for key, experts_of in self.steered(shape, calibration).items():
            for layer, experts in experts_of.items():
                steered_LE[key][layer, list(experts)] = True
        pairs = zip(steered_LE["on"], steered_LE["off"], strict=True)
        return [
            SteerEdit(on_E=on_E, off_E=off_E, epsilon=self.epsilon) if bool((on_E | off_E).any()) else None
            for on_E, off_E in pairs
        ]
