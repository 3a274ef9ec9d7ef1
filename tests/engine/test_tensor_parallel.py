"""Two ranks answer and count like one, and ranks that hold different policies are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from own_process import findings
from run_parallel import SWAPS

pytestmark = [pytest.mark.engine, pytest.mark.slow]

OWN_PROCESS = "run_parallel.py"


@pytest.fixture(scope="module")
def found(request: pytest.FixtureRequest) -> dict[str, Any]:
    return findings(OWN_PROCESS, request)


@pytest.mark.parametrize("turn", range(len(SWAPS)), ids=lambda i: SWAPS[i][0])
def test_two_ranks_answer_and_count_like_one(found: dict[str, Any], turn: int) -> None:
    one, two = found["one"]["turns"][turn], found["tensor"]["turns"][turn]
    assert two["texts"] == one["texts"]
    assert two["counters"] == one["counters"]
    assert two["swap_seconds"] < 0.05


def test_two_ranks_calibrate_like_one(found: dict[str, Any]) -> None:
    """Each rank holds a part of every expert: only the sum of their outputs can be compared."""
    one, two = found["one"], found["tensor"]
    assert two["seen"]["usage"] == one["seen"]["usage"]
    assert two["seen"]["tail_square"] == pytest.approx(one["seen"]["tail_square"], rel=1e-4)
    assert two["seen"]["ratio_median"] == pytest.approx(one["seen"]["ratio_median"], rel=1e-4)
    for alone, both in zip(one["outputs"], two["outputs"], strict=True):
        first, second = both["similarity_by_rank"]
        assert first == second == both["similarity"]
        similarity_EE = np.array(alone["similarity"])
        assert np.array(first) == pytest.approx(similarity_EE, abs=1e-4)
        assert (similarity_EE == 1).sum() == len(similarity_EE) and similarity_EE.min() >= 0
        for name in ("reap", "man", "easy_ep", "removal_shift", "limit_shift"):
            assert both[name] == pytest.approx(alone[name], rel=1e-3), name


def test_the_policies_differ(found: dict[str, Any]) -> None:
    first, *others = (turn["counters"] for turn in found["tensor"]["turns"])
    assert all(counters != first for counters in others)


def test_ranks_that_hold_different_policies_are_refused(found: dict[str, Any]) -> None:
    assert found["one"]["refusal"] is None
    assert "ranks hold different policies" in found["tensor"]["refusal"]
