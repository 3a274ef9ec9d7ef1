"""Two pipeline stages answer and count like one: each has its own layers of the policy, and counts those alone."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from own_process import findings
from prompts import NUM_LAYERS
from run_parallel import SWAPS

pytestmark = [pytest.mark.engine, pytest.mark.slow]

OWN_PROCESS = "run_parallel.py"


@pytest.fixture(scope="module")
def found(request: pytest.FixtureRequest) -> dict[str, Any]:
    return findings(OWN_PROCESS, request)


@pytest.mark.parametrize("turn", range(len(SWAPS)), ids=lambda i: SWAPS[i][0])
def test_two_stages_answer_and_count_like_one(found: dict[str, Any], turn: int) -> None:
    one, two = found["one"]["turns"][turn], found["pipeline"]["turns"][turn]
    assert two["texts"] == one["texts"]
    assert two["counters"] == one["counters"]
    assert len(two["counters"]["tokens"]) == NUM_LAYERS


@pytest.mark.parametrize("turn", range(len(SWAPS)), ids=lambda i: SWAPS[i][0])
def test_demand_is_summed_over_the_stages(found: dict[str, Any], turn: int) -> None:
    one, two = found["one"]["turns"][turn]["demanded"], found["pipeline"]["turns"][turn]["demanded"]
    assert two.pop("touched") == pytest.approx(one["touched"]) and one.pop("touched")[0] > 0
    assert two.pop("touched_without") == [pytest.approx(each) for each in one.pop("touched_without")]
    assert two == one and one["layers"] == NUM_LAYERS


def test_the_policies_differ(found: dict[str, Any]) -> None:
    counters = [turn["counters"] for turn in found["pipeline"]["turns"]]
    assert all(one != other for one, other in itertools.combinations(counters, 2))


def test_each_rank_holds_its_own_layers(found: dict[str, Any]) -> None:
    assert list(map(len, found["one"]["by_rank"])) == [NUM_LAYERS]
    assert list(map(len, found["pipeline"]["by_rank"])) == [NUM_LAYERS // 2] * 2


def test_every_check_of_verify_holds_on_two_stages(found: dict[str, Any]) -> None:
    checks = found["pipeline"]["checks"]
    assert [check for check in checks if check[1] == "FAILED"] == []
    (coverage,) = [finding for name, _, finding in checks if name == "hook coverage"]
    assert coverage.startswith(f"{NUM_LAYERS} of {NUM_LAYERS} MoE layers hooked: ") and " | " in coverage


def test_a_layer_that_is_in_no_stage_is_missed(found: dict[str, Any]) -> None:
    for engine in ("one", "pipeline"):
        assert f"{NUM_LAYERS} of {NUM_LAYERS + 1} MoE layers are hooked" in found[engine]["wrong_total"]


def test_stages_do_not_calibrate(found: dict[str, Any]) -> None:
    """One process does (test_tensor_parallel.py reads what it measured)."""
    assert "2 pipeline stages" in found["pipeline"]["calibration"]
