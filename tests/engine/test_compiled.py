"""Under torch.compile: policies take effect and are swapped, counters are exact, the width is kept (float32)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from own_process import findings
from prompts import NUM_LAYERS, TOP_K
from run_compiled import SWAPS

pytestmark = [pytest.mark.engine, pytest.mark.slow]

OWN_PROCESS = "run_compiled.py"

TOLERANCE = 1e-3
"""Nats; measured: 1e-5."""


@pytest.fixture(scope="module")
def found(request: pytest.FixtureRequest) -> dict[str, Any]:
    return findings(OWN_PROCESS, request)


def difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    pairs = zip(one["scores"], other["scores"], strict=True)
    return float(max((torch.tensor(a) - torch.tensor(b)).abs().max() for a, b in pairs))


def test_the_engine_is_compiled(found: dict[str, Any]) -> None:
    assert found["mode"] != 0
    assert found["eager_mode"] == 0
    assert found["custom_op_calls"] >= NUM_LAYERS * len(SWAPS), "compiled code must call the op"


@pytest.mark.parametrize("turn", range(len(SWAPS)), ids=lambda i: f"{i} {SWAPS[i][0]}")
def test_each_policy_equals_eager(found: dict[str, Any], turn: int) -> None:
    eager, compiled = found["eager"][turn], found["compiled"][turn]
    assert difference(eager, compiled) < TOLERANCE
    assert compiled["tokens"] == [found["tokens"]] * NUM_LAYERS
    assert compiled["kept"] == eager["kept"]
    assert [sum(row) for row in compiled["usage"]] == compiled["kept"]
    if SWAPS[turn][0] != "none":
        assert difference(found["eager"][0], compiled) > 10 * TOLERANCE, "the policy was frozen at trace time"


def test_a_mixed_k_is_drawn_by_the_tokens_in_compiled_code_too(found: dict[str, Any]) -> None:
    """Not held against eager: there logits differ in their last bits, and those draw anew."""
    one, again = found["mixed"]
    assert one == again, "the same tokens, the same coins"
    assert one["tokens"] == [found["tokens"]] * NUM_LAYERS
    assert all(3 * found["tokens"] < kept < 4 * found["tokens"] for kept in one["kept"])
    assert abs(sum(one["kept"]) / sum(one["tokens"]) - 3.6) < 0.1
    assert difference(found["compiled"][2], one) > 10 * TOLERANCE, "that was fixed_k 3"


def test_the_last_swap_leads_back_to_the_first_answers(found: dict[str, Any]) -> None:
    assert found["compiled"][-1]["scores"] == found["compiled"][0]["scores"]
    assert found["compiled"][-1]["usage"] == found["compiled"][0]["usage"]


def test_a_policy_with_more_slots_is_refused_and_changes_nothing(found: dict[str, Any]) -> None:
    assert "keeps up to 10 experts a token, the compiled engine has 8 slots" in found["refusal"]
    assert "engine.extra_slots=2" in found["refusal"]
    before, after = found["after"]["fingerprint"]
    assert before == after
    assert found["after"]["kept"] == [3 * found["tokens"]] * NUM_LAYERS, "fixed_k 3 was set before and still is"
    assert found["after"]["scores"] == found["compiled"][2]["scores"]


def test_extra_slots_allow_it(found: dict[str, Any]) -> None:
    assert difference(found["wide_eager"], found["wide"]) < TOLERANCE
    assert found["wide"]["kept"] == found["wide_eager"]["kept"]
    assert found["wide"]["kept"][1] > TOP_K * found["tokens"]


def test_unused_extra_slots_change_nothing(found: dict[str, Any]) -> None:
    assert difference(found["eager"][0], found["wide_none"]) < TOLERANCE
    assert found["wide_none"]["kept"] == [TOP_K * found["tokens"]] * NUM_LAYERS
