"""What vLLM's router of a layer does. The one place that knows vLLM's names for it (0.32, fused_moe/router/)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class RouterSpec:
    """How a router scores, selects and weighs: read once, when its layer is hooked.

    `hook.find_layers` reads it again after the weights have been loaded and refuses a router that has changed.
    """

    num_experts: int
    """E, before redundant experts are added."""
    top_k: int
    """K, experts that a token selects."""
    scoring: str
    """How a logit becomes a score: `softmax`, `sigmoid`, or something that `hook.check_layer` refuses."""
    renormalize: bool
    """Weights of the selected experts are divided by their sum."""
    scaling: float
    """A factor on the weights after that; 1 where the runner scales its output instead, or nobody does."""
    groups: int
    """Groups of neighbouring experts of which a token sees the best `groups_seen` (DeepSeek); 1: it sees them all."""
    groups_seen: int
    corrected: bool
    """Experts are ranked by score plus a bias of their own (`e_score_correction_bias`), and weighed without it."""
    custom: bool
    """A function of the model's own routes."""

    @property
    def grouped(self) -> bool:
        """Whether the router sees only some groups of experts."""
        return 1 < self.groups < self.num_experts

    @staticmethod
    def of(router: Any) -> RouterSpec:
        """Of a vLLM router. What its class does not have stands at the value that changes nothing."""
        # A CPU router keeps the number of groups whether or not it is to use them.
        groups = getattr(router, "num_expert_group", None) if getattr(router, "use_grouped_topk", True) else None
        return RouterSpec(
            num_experts=router.global_num_experts,
            top_k=router.top_k,
            scoring=getattr(router, "scoring_func", "softmax"),
            renormalize=router.renormalize,
            scaling=getattr(router, "routed_scaling_factor", 1.0),
            groups=groups or 1,
            groups_seen=(getattr(router, "topk_group", None) or 1) if groups else 1,
            corrected=getattr(router, "e_score_correction_bias", None) is not None,
            custom=getattr(router, "custom_routing_function", None) is not None,
        )
