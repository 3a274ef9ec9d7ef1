"""What is read of a vLLM router, once: the names of its classes, and what stands where one of them lacks a part."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytestmark = pytest.mark.engine

GROUPED = {"num_expert_group": 8, "topk_group": 3}


def router(name: str, **options: Any) -> Any:
    """vLLM's own router of 64 experts, 6 a token."""
    from vllm.model_executor.layers.fused_moe.router import cpu_router, fused_topk_router

    return {
        "cpu": lambda: cpu_router.CPURouter(top_k=6, global_num_experts=64, **options),
        "fused": lambda: fused_topk_router.FusedTopKRouter(top_k=6, global_num_experts=64, **options),
    }[name]()


def spec(name: str, **options: Any) -> Any:
    from banpick_exp.engine.plugin.router import RouterSpec

    return RouterSpec.of(router(name, **options))


def test_a_plain_router_changes_nothing_after_its_scores() -> None:
    for name in ("cpu", "fused"):
        found = spec(name, renormalize=False)
        assert (found.num_experts, found.top_k, found.scoring, found.renormalize) == (64, 6, "softmax", False)
        assert (found.scaling, found.groups, found.groups_seen) == (1.0, 1, 1)
        assert not (found.grouped or found.corrected or found.custom)
        assert found == spec(name, renormalize=False) != spec(name, renormalize=True)


def test_deepseeks_router_is_read_whole() -> None:
    found = spec(
        "cpu",
        use_grouped_topk=True,
        scoring_func="sigmoid",
        routed_scaling_factor=2.5,
        e_score_correction_bias=torch.zeros(64),
        custom_routing_function=lambda **_: None,
        **GROUPED,
    )
    assert (found.scoring, found.scaling, found.groups, found.groups_seen) == ("sigmoid", 2.5, 8, 3)
    assert found.grouped and found.corrected and found.custom


@pytest.mark.parametrize(
    "options",
    [{"use_grouped_topk": False, **GROUPED}, {"use_grouped_topk": True, "num_expert_group": 1, "topk_group": 1}],
    ids=["not asked for", "one group"],
)
def test_groups_that_do_not_choose_are_none(options: dict[str, Any]) -> None:
    assert not spec("cpu", **options).grouped
