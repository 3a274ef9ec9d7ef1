"""How the router of a checkpoint scores and selects, read from its config.json as vLLM 0.32 reads it.

The engine has the last word: `engine.plugin.router` reads the same of the loaded layer, and the hook refuses what it
cannot reproduce.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from banpick_exp.models.moe_layers import first_int

REPRODUCED = ("softmax", "sigmoid")
"""Scores that the hook can make itself."""
SHARED_KEYS = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts")
SHARED_WIDTHS = ("shared_expert_intermediate_size", "shared_intermediate_size")
"""Where the width of all shared experts together stands, in families that do not count them."""
SCORING_KEYS = ("scoring_func", "score_function", "moe_router_activation_func")


@dataclass(frozen=True, kw_only=True, slots=True)
class Conventions:
    """What a family's code in vLLM does where its config.json has no key for it. None: it was not read."""

    scoring: str | None = None
    """Where none of `SCORING_KEYS` is there."""
    renormalises: bool | None = None
    """Where `norm_topk_prob` is not."""
    fixed: bool = False
    """Whether vLLM looks at no key for renormalisation."""
    bias: Literal["always", "never", "by key"] | None = None
    """Whether experts are ranked by score plus a bias of their own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Routing:
    """Of the routers of a checkpoint, all alike. None: its config.json and what was read of vLLM do not say."""

    scoring: str | None
    renormalises: bool | None
    """The weights of a token's experts are divided by their sum."""
    groups: int
    """Groups of neighbouring experts; 1: none."""
    groups_seen: int
    """Of which a token sees so many."""
    corrected: bool | None
    """Ranked by score plus a bias, weighed without it."""
    scaling: float
    """A factor on the output of the routed experts."""
    shared_experts: int
    """Always on, never counted."""

    @property
    def grouped(self) -> bool:
        return self.groups > 1

    @property
    def kind(self) -> str:
        """`top-k`, `grouped top-k (the best 4 of 8 groups) with a correction bias`."""
        kind = f"grouped top-k (the best {self.groups_seen} of {self.groups} groups)" if self.grouped else "top-k"
        return f"{kind} with a correction bias" if self.corrected else kind


def routing_of(config: Mapping[str, Any], usual: Conventions) -> Routing:
    """Of the language part of a config.json."""
    scoring = next((value for key in SCORING_KEYS if isinstance(value := config.get(key), str)), usual.scoring)
    said = config.get("norm_topk_prob")
    renormalises = said if isinstance(said, bool) and not usual.fixed else usual.renormalises
    groups, seen = first_int(config, ("n_group",), 1), first_int(config, ("topk_group",), 1)
    scaling = config.get("routed_scaling_factor")
    return Routing(
        scoring=scoring,
        renormalises=renormalises,
        groups=groups if groups > 1 else 1,
        groups_seen=seen if groups > 1 else 1,
        corrected=_corrected(config, usual),
        scaling=float(scaling) if isinstance(scaling, (int, float)) and not isinstance(scaling, bool) else 1.0,
        shared_experts=first_int(config, SHARED_KEYS) or int(first_int(config, SHARED_WIDTHS) > 0),
    )


def _corrected(config: Mapping[str, Any], usual: Conventions) -> bool | None:
    if config.get("topk_method") == "noaux_tc" or config.get("moe_router_enable_expert_bias") is True:
        return True
    return {"always": True, "never": False, "by key": False, None: None}[usual.bias]
