"""What rules share that reinforce key experts, named or the calibration's (arXiv 2509.06346, section 3)."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import field_validator

from banpick_exp.errors import UserError
from banpick_exp.models.routing import Routing
from banpick_exp.models.shape import MoeShape
from banpick_exp.policy.calibration import AUTO_MOST, Calibration, most_influential
from banpick_exp.policy.experts import KeyExperts, as_knob, check_named_experts
from banpick_exp.policy.knobs import AUTO, NamedOrAuto, Number, Switch, Whole
from banpick_exp.policy.rule import Needs, Rule, short
from banpick_kernels.insertion import rank_window

if TYPE_CHECKING:
    from banpick_kernels.table import RouterTable

Mode = Literal["boost", "force_add", "force_replace", "range_replace", "range_add"]
ADDING, REPLACING = ("force_add", "range_add"), ("force_replace", "range_replace")
RANGED = ("range_replace", "range_add")
BOOST_LIMIT = 20.0


class Reinforcing(Rule):
    """Key experts get a higher logit (boost) or are inserted into the selection (the other modes)."""

    ends_are_idle: ClassVar[bool] = False  # every token may insert all that it can, or nothing
    needs: ClassVar[Needs] = "a calibration"
    needs_pull: ClassVar[bool] = True
    mode: Mode = "boost"
    """boost adds to the logits; force_* inserts always, range_* within the router's top range_factor*K; *_add lets the
    selection grow, *_replace evicts the lowest-weight expert that is no key expert."""
    boost: Number | None = None
    """Logits added to key experts before scoring, -20 to 20. Mode boost only, and required there."""
    range_factor: Number = 2.0
    """The window of the range modes in multiples of top_k, 1 to num_experts / top_k."""
    key_experts: Whole | None = None
    """How many of the most influential experts, over all layers together. Needs a calibration."""
    per_layer: Switch = False
    """Take `key_experts` in each layer."""
    experts: NamedOrAuto | None = None
    """The key experts by name, {layer: [ids]}; then `key_experts` and the calibration are not read. Or auto: every
    expert that helps for sure, by the calibration's gain."""
    scope: Literal["own", "merged"] = "own"
    """own: each domain's key experts for its own problems; merged: those of all domains for all."""

    @field_validator("boost")
    @classmethod
    def _boost_in_limits(cls, boost: float | None) -> float | None:
        if boost is not None and abs(boost) > BOOST_LIMIT:
            raise ValueError("is outside [-20, 20]: key experts would drown all others. Use a number from -20 to 20.")
        return boost

    @classmethod
    def superseded_knobs(cls, typed: Mapping[str, Any]) -> tuple[str, ...]:
        """Named outright: the default choice by influence steps back."""
        return () if typed.get("experts") is None else ("key_experts", "per_layer")

    @classmethod
    def remarks_on(cls, shape: MoeShape, routing: Routing, *, gpu: bool) -> tuple[str, ...]:
        return (f"inserts only what the {routing.groups_seen} groups of a token hold",) if routing.grouped else ()

    def idle_remedy(self, knob: str) -> str:
        return "Add policy.mode=boost, or leave it out." if knob == "boost" else super().idle_remedy(knob)

    def kept(self, shape: MoeShape) -> int:
        """Experts of the router's own selection that a token keeps."""
        return shape.top_k

    @property
    def named(self) -> KeyExperts | None:
        """The key experts that were typed; None where the calibration says which."""
        return self.experts if isinstance(self.experts, dict) else None

    def needs_calibration(self) -> bool:
        return self.named is None

    def reinforces_by(self) -> str | None:
        return self.mode if self.named is None else None

    def needs_gain(self) -> bool:
        return self.experts == AUTO

    def key_experts_of(self, shape: MoeShape, calibration: Calibration | None) -> KeyExperts | None:
        return self.selected(shape, calibration)

    def check(self, shape: MoeShape) -> None:
        if self.mode == "boost" and self.boost is None:
            raise UserError(
                "policy.boost is missing: mode=boost adds it to the logits of the key experts. Type policy.boost=1."
            )
        if self.named is not None:
            check_named_experts("policy.experts", self.named, shape)
        elif self.experts == AUTO:
            pass
        elif self.key_experts is None:
            raise UserError(
                f"policy={self.name} has no key experts: nothing would change. Type policy.key_experts=4 for the 4"
                " most influential of the calibration, policy.experts=auto for all that help for sure, or name them:"
                " 'policy.experts={0: [3]}'."
            )
        else:
            self._check_key_experts(self.key_experts, shape)
        # The default of 2 is not held against the model: where E < 2K the window is simply every expert.
        widest, chosen = shape.num_experts / shape.top_k, "range_factor" in self.model_fields_set
        if self.mode in RANGED and chosen and not 1 <= self.range_factor <= widest + 1e-9:
            raise UserError(
                f"policy.range_factor={self.range_factor:g} is outside [1, {widest:g}]: the window is that many times "
                f"top_k={shape.top_k} and cannot exceed the {shape.num_experts} experts. Use 1 to {widest:g}."
            )

    def _check_key_experts(self, count: int, shape: MoeShape) -> None:
        most = shape.num_experts * (1 if self.per_layer else shape.num_layers)
        if count < 1:
            problem = "is below 1: nothing would change"
        elif count > most:
            total = f"{shape.num_experts} experts a layer" if self.per_layer else f"{most} experts over all layers"
            problem = f"exceeds the {total} of this checkpoint: there are not so many to pick"
        else:
            return
        raise UserError(f"policy.key_experts={count} {problem}. Use 1..{most}.")

    def knobs(self) -> dict[str, object]:
        knobs: dict[str, object] = {"mode": self.mode}
        if self.mode == "boost":
            knobs["boost"] = self.boost
        elif self.mode in RANGED:
            knobs["range_factor"] = self.range_factor
        if self.named is not None:
            return knobs | {"experts": as_knob(self.named)}
        if self.experts == AUTO:
            knobs["experts"] = AUTO
        else:
            knobs["key_experts"] = self.key_experts
            if self.per_layer:
                knobs["per_layer"] = True
        return knobs | ({} if self.scope == "own" else {"scope": self.scope})

    def label(self) -> str:
        """As in `Rule`, but the mode without `mode=`, and neither the usual mode nor the paper's window of 2K."""
        knobs, usual = self.knobs(), type(self).model_fields
        mode = knobs.pop("mode")
        if knobs.get("range_factor") == usual["range_factor"].default:
            del knobs["range_factor"]
        words = [self.name] if mode == usual["mode"].default else [self.name, str(mode)]
        return " ".join([*words, *(f"{knob}={short(value)}" for knob, value in knobs.items())])

    def selected(self, shape: MoeShape, calibration: Calibration | None) -> KeyExperts:
        """The key experts: layer to ids. Raises UserError where they must come from a calibration that lacks them."""
        if self.named is not None:
            return self.named
        count = None if self.experts == AUTO else self.key_experts
        merged = self.scope == "merged"
        return most_influential(calibration, shape, count, self.name, per_layer=self.per_layer, merged=merged)

    def added(self, shape: MoeShape, calibration: Calibration | None) -> list[float]:
        """Per layer, the most experts insertion can add to a full selection; without a calibration, evenly spread."""
        if self.mode not in ADDING:
            return [0.0] * shape.num_layers
        if self.named is None and calibration is None:
            count = self._planned_count()
            per_layer = [count if self.per_layer else count / shape.num_layers] * shape.num_layers
        else:
            chosen = self.selected(shape, calibration)
            per_layer = [len(chosen.get(layer, ())) for layer in range(shape.num_layers)]
        return [min(float(count), float(shape.num_experts - self.kept(shape))) for count in per_layer]

    def _planned_count(self) -> int:
        """How many key experts to make room for while the calibration is unknown."""
        return AUTO_MOST if self.experts == AUTO else self.key_experts or 0

    def max_kept(self, shape: MoeShape, calibration: Calibration | None = None) -> int:
        if self.mode in ADDING and self.named is None and calibration is None:
            # They may all fall into one layer.
            return min(shape.num_experts, self.kept(shape) + self._planned_count())
        return self.kept(shape) + math.ceil(max(self.added(shape, calibration)))

    def budget(self, shape: MoeShape, calibration: Calibration | None = None) -> tuple[float, float]:
        return float(self.kept(shape)), self.kept(shape) + sum(self.added(shape, calibration)) / shape.num_layers

    def fill(self, table: "RouterTable", shape: MoeShape, calibration: Calibration | None) -> None:
        selected = self.selected(shape, calibration)
        if not selected:
            return  # nothing to reinforce: the very table of a policy that never meant to
        if self.mode in RANGED:
            table.insert_window[0] = rank_window(self.range_factor, shape.top_k, shape.num_experts)
        elif self.mode != "boost":
            table.insert_window[0] = shape.num_experts
        table.insert_replaces[0] = self.mode in REPLACING
        for layer, experts in selected.items():
            for expert in experts:
                if self.mode == "boost":
                    table.logit_bias_PLE[0, layer, expert] = self.boost or 0.0
                else:
                    table.key_PLE[0, layer, expert] = True
