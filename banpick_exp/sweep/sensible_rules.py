"""Which routing rules make sense on a checkpoint, before anything is measured: what each needs, and what is idle.

Each rule says it of itself (`policy.rule.Rule`: `needs`, `idle_on`, `remarks_on`); here they are only gone over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from banpick_exp.models.routing import Routing
from banpick_exp.models.shape import MoeShape
from banpick_exp.policy.registry import POLICIES
from banpick_exp.policy.rule import Needs, Rule

EAGER = "engine.compile=false"
"""What a rule with hooks in torch needs on an engine of conf/engine/cuda*."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sense:
    """One rule on one checkpoint."""

    rule: str
    state: Literal["sensible", "idle"]
    needs: Needs
    remark: str
    """Empty where there is none."""
    eager: bool
    """Needs `EAGER` typed: the fused kernel does not know it."""


def rules_for(shape: MoeShape, routing: Routing, *, gpu: bool) -> tuple[Sense, ...]:
    """Every rule but stock, in the registry's order. `gpu`: on an engine of conf/engine/cuda*, which is compiled."""
    return tuple(_sense(rule, shape, routing, gpu) for rule in POLICIES.values() if not rule.is_stock)


def _sense(rule: type[Rule], shape: MoeShape, routing: Routing, gpu: bool) -> Sense:
    idle = rule.idle_on(shape)
    remarks = [idle] if idle else [rule.needs_instead, *rule.remarks_on(shape, routing, gpu=gpu)]
    return Sense(
        rule=rule.name,
        state="idle" if idle else "sensible",
        needs=rule.needs,
        remark="; ".join(remark for remark in remarks if remark),
        eager=idle is None and gpu and rule.in_torch,
    )
