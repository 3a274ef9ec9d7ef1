"""Two ranks answer and count like one. `set_policy` itself refuses when the ranks' digests differ."""

from __future__ import annotations

from typing import Any

import pytest
from own_process import findings
from run_tensor_parallel import SWAPS

pytestmark = [pytest.mark.engine, pytest.mark.slow]

OWN_PROCESS = "run_tensor_parallel.py"


@pytest.fixture(scope="module")
def found(request: pytest.FixtureRequest) -> dict[str, Any]:
    return findings(OWN_PROCESS, request)


@pytest.mark.parametrize("turn", range(len(SWAPS)), ids=lambda i: SWAPS[i][0])
def test_two_ranks_answer_and_count_like_one(found: dict[str, Any], turn: int) -> None:
    one, two = found["one"][turn], found["two"][turn]
    assert two["texts"] == one["texts"]
    assert two["counters"] == one["counters"]
    assert two["swap_seconds"] < 0.05


def test_the_policies_differ(found: dict[str, Any]) -> None:
    assert found["two"][1]["counters"] != found["two"][0]["counters"] != found["two"][2]["counters"]
