"""A policy that can route: a checked rule with its table filled for one checkpoint."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from banpick_exp.errors import UserError
from banpick_exp.models.shape import MoeShape
from banpick_exp.policy.bases.several import not_one_table
from banpick_exp.policy.calibration import Calibration
from banpick_exp.policy.experts import KeyExperts
from banpick_exp.policy.registry import parse_policy
from banpick_exp.policy.rule import Pull, Rule

if TYPE_CHECKING:
    from torch import Tensor

    from banpick_kernels.layer_hooks import LayerEdit
    from banpick_kernels.table import RouterTable

ROUTING_VERSION = 2
"""Raised when a rule starts to route differently under the same knobs: it is part of every point's fingerprint.
2: experts are ordered by logit, no longer by score, which differs where float32 scores tie."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """A rule, the checkpoint it was built for, and the table a router reads."""

    rule: Rule
    shape: MoeShape
    table: "RouterTable"
    """On the CPU, one row. A running router takes it over with `RouterTable.copy_`."""
    edits: "tuple[LayerEdit | None, ...] | None"
    """What the rule does beyond the table, per layer; None for most rules."""
    max_kept: int
    """The most experts a token can keep in any layer."""
    budget: tuple[float, float]
    """The implied lowest and highest mean_kept."""
    key_experts: KeyExperts | None
    """Those that are reinforced, by layer; empty where the calibration has none to reinforce. None: not such a rule."""

    def __repr__(self) -> str:
        """One line, as a notebook shows it: `<Policy fixed_k k=4: 4 layers, 32 experts, top 8, keeps at most 4>`."""
        shape = f"{self.shape.num_layers} layers, {self.shape.num_experts} experts, top {self.shape.top_k}"
        return f"<Policy {self.rule.label()}: {shape}, keeps at most {self.max_kept}>"

    @property
    def slots(self) -> int:
        """S, the columns `route` returns: max(K, max_kept)."""
        return max(self.shape.top_k, self.max_kept)

    def countable(self, choices: int) -> tuple[float, float]:
        """`budget` as a run may count it over so many tokens x layers: wider where chance decides how many stay."""
        return self.rule.drawn_within(max(choices, 1)) or self.budget

    def digest(self) -> str:
        """SHA-256 in hex of the table, and of the edits where there are any: equal ones route alike."""
        table = self.table.digest()
        if self.edits is None:
            return table
        edits = ["" if edit is None else edit.digest() for edit in self.edits]
        return hashlib.sha256("\n".join([table, *edits]).encode()).hexdigest()

    def pull(self) -> Pull | None:
        """The experts whose share of the selections must move against stock's; None where there are none."""
        return self.rule.pull(self.table, self.edits)

    def route(
        self, router_logits: "Tensor", layer: int, renormalize: bool = True, scoring: str = "softmax"
    ) -> tuple["Tensor", "Tensor", "Tensor"]:
        """Route tokens of one layer with the readable reference router.

        Args:
            router_logits: [T,E], any float type; NaN counts as -inf. T may be 0.
            layer: 0 is the first MoE layer.
            renormalize: weights of the kept experts sum to 1; otherwise they are their raw scores.
            scoring: softmax or sigmoid.

        Returns:
            weights float32, ids int32 and kept bool, each [T,S]: kept slots first and in descending score, equal scores
            by lower id; weight 0 where not kept. An expert at -inf has score 0, so it may fill a slot, with weight 0; a
            row of only -inf takes the lowest ids with weights of 0 and has no routed output.

        Raises UserError for a wrong shape, layer or scoring.
        """
        from banpick_kernels import reference

        if router_logits.ndim != 2 or router_logits.shape[1] != self.shape.num_experts:
            raise UserError(
                f"router_logits has shape {tuple(router_logits.shape)}: this policy routes over "
                f"{self.shape.num_experts} experts. Use [tokens, {self.shape.num_experts}]."
            )
        if not 0 <= layer < self.shape.num_layers:
            raise UserError(f"layer={layer} is no MoE layer of this model. Use 0..{self.shape.num_layers - 1}.")
        if scoring not in ("softmax", "sigmoid"):
            raise UserError(f"scoring={scoring!r} is unknown: logits cannot become weights. Use softmax or sigmoid.")
        values = self.table.layer(layer).to(router_logits.device)
        edit = None if self.edits is None else self.edits[layer]
        edit = None if edit is None else edit.to(router_logits.device)
        return reference.route(router_logits, values, self.shape.top_k, self.slots, renormalize, scoring, edit=edit)


def build_policy(
    name: str,
    params: Mapping[str, Any] | None,
    *,
    num_layers: int,
    num_experts: int,
    top_k: int,
    calibration: Calibration | Mapping[str, Any] | None = None,
) -> Policy:
    """Parse, check and fill in one step; imports torch. Raises UserError for any bad knob or missing calibration, and
    for a rule of several rows (`build_parts`).

    `calibration` may be a mapping of the names in `Calibration` to plain numbers and lists.

    >>> import torch
    >>> policy = build_policy("fixed_k", {"k": 1}, num_layers=1, num_experts=3, top_k=2)
    >>> policy.route(torch.tensor([[0.0, 2.0, 1.0]]), layer=0)
    (tensor([[1., 0.]]), tensor([[1, 1]], dtype=torch.int32), tensor([[ True, False]]))
    """
    shape = MoeShape(num_layers=num_layers, num_experts=num_experts, top_k=top_k)
    rule = parse_policy(name, params, shape)
    if len(rule.parts) > 1:
        raise UserError(f"{not_one_table(rule)}.")
    return _built(rule, shape, None if calibration is None else Calibration.of(calibration))


def build_parts(rule: Rule, shape: MoeShape, calibration: Calibration | None) -> tuple[Policy, ...]:
    """What each row of a checked rule holds, row 0 first; imports torch. UserError where the calibration lacks what it
    needs."""
    return tuple(_built(part, shape, calibration) for part in rule.parts)


def routing_digest(parts: Sequence[Policy]) -> str:
    """What a record keeps of a policy's rows: of one row the beginning of its digest, of several that of them all."""
    digests = [part.digest() for part in parts]
    return (digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest())[:16]


def _built(rule: Rule, shape: MoeShape, known: Calibration | None) -> Policy:
    from banpick_kernels.table import RouterTable

    table = RouterTable.neutral(shape.num_layers, shape.num_experts, shape.top_k)
    rule.fill(table, shape, known)
    edits = rule.edits(shape, known)
    return Policy(
        rule=rule,
        shape=shape,
        table=table,
        edits=None if edits is None else tuple(edits),
        max_kept=rule.max_kept(shape, known),
        budget=rule.budget(shape, known),
        key_experts=rule.key_experts_of(shape, known),
    )
