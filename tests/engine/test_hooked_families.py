"""The hook on other families: softmax and sigmoid, raw and renormalised weights, shared experts, groups."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from own_process import findings
from run_families import CONFIGS

pytestmark = [pytest.mark.engine, pytest.mark.slow]

OWN_PROCESS = "run_families.py"

TOLERANCE = 1e-4
"""Nats; measured: a few 1e-6."""

LAYERS = {
    "mixtral": ["model.layers.0.block_sparse_moe.experts", "model.layers.1.block_sparse_moe.experts"],
    "qwen2_moe": ["model.layers.0.mlp.experts", "model.layers.1.mlp.experts"],
    "deepseek_v3": ["model.layers.1.mlp.experts", "model.layers.2.mlp.experts"],
}


@pytest.fixture(scope="module", params=CONFIGS)
def family(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return request.param, findings(OWN_PROCESS, request)[request.param]


Family = tuple[str, dict[str, Any]]


def difference(ours: list[list[float]], theirs: list[list[float]]) -> float:
    return float((torch.tensor(ours) - torch.tensor(theirs)).abs().max())


def test_every_moe_layer_is_hooked_and_reproduced(family: Family) -> None:
    name, found = family
    assert found["described"]["layers"] == LAYERS[name]
    assert found["problems"] == []


def test_none_is_the_model_itself(family: Family) -> None:
    _, found = family
    assert difference(found["scores"]["none"], found["expected"]["none"]) < TOLERANCE
    assert found["scores"]["none again"] == found["scores"]["none"], "a swap and back left something behind"


def test_fixed_k_equals_transformers_with_fewer_experts(family: Family) -> None:
    """By weight also under DeepSeek's correction bias, which ranks the experts otherwise."""
    _, found = family
    assert difference(found["scores"]["fixed_k"], found["expected"]["fixed_k"]) < TOLERANCE
    assert difference(found["scores"]["fixed_k"], found["expected"]["none"]) > 100 * TOLERANCE


@pytest.mark.parametrize("policy", ["none", "fixed_k", "range_replace"])
def test_counters(family: Family, policy: str) -> None:
    _, found = family
    counters, tokens = found["counters"][policy], found["tokens"]
    k = found["top_k"] // 2 if policy == "fixed_k" else found["top_k"]
    assert counters["tokens"] == [tokens] * 2
    assert counters["kept"] == [tokens * k] * 2
    assert [sum(row) for row in counters["usage"]] == counters["kept"]


def test_range_replace_engages(family: Family) -> None:
    _, found = family
    stock, policy = (found["counters"][label]["usage"] for label in ("none", "range_replace"))
    for layer, expert in ((0, 1), (0, 2), (1, 5)):
        assert policy[layer][expert] > stock[layer][expert]
    assert difference(found["scores"]["range_replace"], found["scores"]["none"]) > 100 * TOLERANCE
