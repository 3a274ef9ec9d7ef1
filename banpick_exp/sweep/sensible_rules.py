"""Which routing rules make sense on a checkpoint, before anything is measured: what each needs, and what is idle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from banpick_exp.models.routing import Routing
from banpick_exp.models.shape import MoeShape
from banpick_exp.policy.registry import POLICIES

PRUNES = ("fixed_k", "naee", "top_p", "ban", "ban_pick", "modes", "adapmoe", "diep")
"""Rules that keep fewer experts than the checkpoint selects."""
Needs = Literal["nothing", "a calibration", "data of your own"]
NEEDS: dict[str, tuple[Needs, str]] = {
    "none": ("nothing", ""),
    "fixed_k": ("nothing", ""),
    "pick": ("a calibration", "or experts named by hand"),
    "ban": ("a calibration", ""),
    "ban_pick": ("a calibration", ""),
    "naee": ("nothing", "beta=median needs a calibration"),
    "top_p": ("nothing", ""),
    "modes": ("a calibration", "none with alpha_min=1"),
    "adapmoe": ("a calibration", ""),
    "diep": ("a calibration", ""),
    "mask": ("data of your own", "experts named by hand"),
    "logit_offset": ("data of your own", "a file of offsets"),
    "steer": ("a calibration", "of several domains, or experts named by hand"),
    "rice": ("a calibration", "or experts named by hand"),
    "expert_sample": ("nothing", ""),
}
"""By rule: what it needs before it can run, and what else would do."""
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
    return tuple(_sense(name, shape, routing, gpu) for name in POLICIES if not POLICIES[name].is_stock)


def _sense(name: str, shape: MoeShape, routing: Routing, gpu: bool) -> Sense:
    idle = _idle(name, shape)
    needs, instead = NEEDS[name]
    remarks = [idle] if idle else [*([instead] if instead else []), *_remarks(name, shape, routing, gpu)]
    return Sense(
        rule=name,
        state="idle" if idle else "sensible",
        needs=needs,
        remark="; ".join(remarks),
        eager=idle is None and gpu and POLICIES[name].in_torch,
    )


def _idle(name: str, shape: MoeShape) -> str | None:
    if shape.top_k == 1 and name in PRUNES:
        return "one expert a token: there is nothing to prune"
    if shape.top_k <= 2 and name == "expert_sample":
        return f"with {shape.top_k} a token nothing is drawn: it is fixed_k"
    if shape.num_experts == shape.top_k and name in ("pick", "ban_pick", "mask", "steer"):
        return "every expert is selected already"
    return None


def _remarks(name: str, shape: MoeShape, routing: Routing, gpu: bool) -> list[str]:
    remarks: list[str] = []
    if name in ("ban", "ban_pick"):
        remarks.append(f"k_min {shape.usual_k_min} unless typed")
    if name == "fixed_k" and shape.top_k == 2:
        remarks.append("k=1 is the only budget below its own")
    if name == "top_p" and routing.scoring == "sigmoid":
        remarks.append("sigmoid scores are no shares: leave raw=false")
    if name in ("pick", "ban_pick") and routing.grouped:
        remarks.append(f"inserts only what the {routing.groups_seen} groups of a token hold")
    if name == "fixed_k" and routing.renormalises is False:
        remarks.append("weights are not renormalised: what is pruned is lost, so outputs shrink with every rule")
    if name == "fixed_k" and routing.corrected:
        remarks.append("keeps the first k by weight, not by corrected rank")
    if name == "mask" and gpu and (routing.grouped or routing.corrected):
        remarks.append("a compiled GPU engine may fill a slot with a masked expert, at weight 0")
    return remarks
