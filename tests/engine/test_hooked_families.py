"""The hook on families in miniature: softmax and sigmoid, raw and renormalised weights, shared experts, groups,
correction biases, scaling factors; against an independent forward of Transformers. docs/families.md has the table.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from miniatures import MINIATURES, REFUSED, Miniature, build
from own_process import findings
from run_families import FIRST

from banpick_exp.models.config import ModelConfig
from banpick_exp.models.inspect import inspect_checkpoint

pytestmark = [pytest.mark.engine, pytest.mark.slow]

OWN_PROCESS = "run_families.py"

TOLERANCE = 1e-4
"""Nats; measured: up to 5e-6."""


def measured(name: str, request: pytest.FixtureRequest) -> dict[str, Any]:
    script = OWN_PROCESS if name in FIRST else "run_more_families.py"
    found: dict[str, Any] = findings(script, request)[name]
    return found


@pytest.fixture(scope="module", params=MINIATURES)
def family(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return request.param, measured(request.param, request)


Family = tuple[str, dict[str, Any]]


def difference(ours: list[list[float]], theirs: list[list[float]]) -> float:
    return float((torch.tensor(ours) - torch.tensor(theirs)).abs().max())


def test_every_moe_layer_is_hooked_and_reproduced(family: Family) -> None:
    name, found = family
    assert found["described"]["layers"] == MINIATURES[name].layer_names
    assert found["problems"] == []


def test_none_is_the_model_itself(family: Family) -> None:
    _, found = family
    assert difference(found["scores"]["none"], found["expected"]["none"]) < TOLERANCE
    assert found["scores"]["none again"] == found["scores"]["none"], "a swap and back left something behind"


def test_fixed_k_equals_transformers_with_fewer_experts(family: Family) -> None:
    """By weight also under a correction bias, which ranks the experts otherwise."""
    name, found = family
    assert found["wrapped"] == len(MINIATURES[name].layers)
    assert difference(found["scores"]["fixed_k"], found["expected"]["fixed_k"]) < TOLERANCE
    assert difference(found["scores"]["fixed_k"], found["expected"]["none"]) > 100 * TOLERANCE


@pytest.mark.parametrize("policy", ["none", "fixed_k", "range_replace"])
def test_counters(family: Family, policy: str) -> None:
    name, found = family
    counters, tokens, small = found["counters"][policy], found["tokens"], MINIATURES[name]
    k = small.top_k // 2 if policy == "fixed_k" else small.top_k
    assert counters["tokens"] == [tokens] * len(small.layers)
    assert counters["kept"] == [tokens * k] * len(small.layers)
    assert [sum(row) for row in counters["usage"]] == counters["kept"]


def test_range_replace_engages(family: Family) -> None:
    _, found = family
    stock, policy = (found["counters"][label]["usage"] for label in ("none", "range_replace"))
    for layer, expert in ((0, 1), (0, 2), (1, 5)):
        assert policy[layer][expert] > stock[layer][expert]
    assert difference(found["scores"]["range_replace"], found["scores"]["none"]) > 100 * TOLERANCE


@pytest.mark.parametrize("small", [*MINIATURES.values(), *REFUSED.values()], ids=lambda small: small.config)
def test_its_config_is_read_as_the_engine_counts_it(small: Miniature, tmp_path: Path) -> None:
    """As Transformers writes a config.json of the family today."""
    build(small, tmp_path)
    shape = inspect_checkpoint(ModelConfig(name="local", path=str(tmp_path))).shape
    experts = next(value for key, value in small.options.items() if key.endswith("experts") and "shared" not in key)
    assert (shape.num_layers, shape.num_experts, shape.top_k) == (len(small.layers), experts, small.top_k)


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_engine_routes_wrongly_is_refused(name: str, request: pytest.FixtureRequest) -> None:
    """The self-test of every start says so, and it is right: the engine is far from Transformers without any policy."""
    found = measured(name, request)
    assert found["described"]["layers"] == REFUSED[name].layer_names
    assert "under none" in found["problems"][0] and "other experts than the reference" in found["problems"][0]
    assert difference(found["scores"]["none"], found["expected"]["none"]) > 1000 * TOLERANCE
