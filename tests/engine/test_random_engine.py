"""The engine that `bench engine` times: it runs in both dtypes, and its routers choose as trained ones might."""

from __future__ import annotations

from typing import Any

import pytest
from own_process import findings

from banpick_exp.evaluation.bench.layer import DTYPES, MEAN_KEPT

pytestmark = pytest.mark.engine

OWN_PROCESS = "run_random_engine.py"


@pytest.fixture(params=DTYPES)
def found(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What one dtype answered."""
    answer: dict[str, Any] = findings(OWN_PROCESS, request)[request.param]
    assert answer["computed"] == f"torch.{request.param}"
    return answer


def test_every_variant_is_measured(found: dict[str, Any]) -> None:
    rows = {row["variant"]: row for row in found["rows"]}
    assert set(rows) == {"stock", "none", "fixed_k 5", "ban at 4.8", "ban at 5", "ban_pick at 4.8"}
    assert rows["none"]["mean_kept"] == 8 and rows["fixed_k 5"]["mean_kept"] == 5
    assert all(row["milliseconds"] > 0 for row in rows.values())


def test_rows_are_timed_as_they_say(found: dict[str, Any]) -> None:
    """Each variant of `bench rows` counts a step's 16 tokens where its label says."""
    assert {row["variant"]: row["aim"] for row in found["held"]} == {
        "row 0 of 16, none": 1.01, "16 rows, none": 1.05, "row 0 of 16, ban": 1.01, "16 rows, ban": 1.05,
        "16 rows, 4 policies": 1.05,
    }  # fmt: skip
    assert all(row["wall"] > 0 and row["cpu"] > 0 for row in found["held"])
    for label, tokens in found["spread"].items():
        assert sum(tokens) == 16, label
        assert tokens == ([1] * 16 if label.startswith("16 rows") else [16, *[0] * (len(tokens) - 1)]), label


def test_ban_finds_tokens_that_can_spare_experts(found: dict[str, Any]) -> None:
    """Were all weights of a token equal, no lambda would lead to a budget between k_min and all."""
    kept = next(row["mean_kept"] for row in found["rows"] if row["variant"] == "ban at 4.8")
    assert kept == pytest.approx(MEAN_KEPT, abs=0.5)


def test_tokens_spread_over_the_experts(found: dict[str, Any]) -> None:
    for usage_E in found["usage"]:
        routed = sum(usage_E)
        assert sum(count > 0 for count in usage_E) > 0.8 * len(usage_E)
        assert max(usage_E) < routed / 8, "one expert is in every token's choice"


def test_a_decode_wanders_over_the_vocabulary(found: dict[str, Any]) -> None:
    """A sequence that repeats one token would ask for the same experts at every step."""
    assert all(len(set(tokens)) > len(tokens) / 2 for tokens in found["answers"])
