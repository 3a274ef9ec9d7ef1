"""The typed calibration: a mapping is taken once or refused readably, and no digit is lost on the way to workers."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from banpick_exp.errors import UserError
from banpick_exp.policy import Calibration, build_policy
from banpick_exp.policy.calibration import Influence

PLAIN: dict[str, Any] = {
    "influence": [[1, 5, 0.9], [0, 3, 0.5]],
    "layer_sensitivity": [0, 1],
    "r_min": 0.75,
    "r_max": 0.98,
    "similarity": [[[1.0, 0.25], [0.25, 1.0]]] * 2,
}


def test_a_mapping_becomes_a_calibration_once() -> None:
    made = Calibration.of(PLAIN)
    assert made.influence == (Influence(1, 5, 0.9), Influence(0, 3, 0.5))
    assert made.layer_sensitivity == (0.0, 1.0) and made.similarity is not None and made.similarity[1][0] == (1.0, 0.25)
    assert made.fisher is None and made.npmi is None
    assert Calibration.of(made) is made
    with pytest.raises(ValidationError, match="frozen"):
        made.r_min = 0.5


def test_build_policy_takes_either() -> None:
    knobs = {"lambda": 0.8, "k_min": 1}
    built = [
        build_policy("ban", knobs, num_layers=2, num_experts=16, top_k=4, calibration=calibration)
        for calibration in (PLAIN, Calibration.of(PLAIN), Calibration.from_json(Calibration.of(PLAIN).to_json()))
    ]
    assert len({policy.digest() for policy in built}) == 1


@given(values=st.lists(st.floats(), max_size=8), kl=st.floats(allow_nan=False))
@settings(max_examples=100, deadline=None, derandomize=True, database=None)
def test_the_way_to_the_workers_keeps_every_digit(values: list[float], kl: float) -> None:
    """Also of numbers that no sound calibration has: they are refused where they are read, with their value."""
    sent = Calibration(influence=(Influence(0, 3, kl),), fisher=tuple(values), r_min=math.nan)
    received = Calibration.from_json(sent.to_json())
    assert received.influence == sent.influence and received.r_max is None
    assert repr(received.fisher) == repr(sent.fisher) and repr(received.r_min) == "nan"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"influense": [], "fisher": 3},
            "has influense, which no policy reads: it would have no effect. Did you mean in",
        ),
        ({"zzz": []}, "Use some of influence, influence_elsewhere, layer_sensitivity, r_min, r_max"),
        ({"influence": [[0, 1.5, 0.2]]}, "has influence[0][1]=1.5: routing needs numbers there"),
        ({"fisher": [1.0, "x"]}, "has fisher[1]=x: routing needs numbers there"),
        ({"fisher": "abc"}, "has fisher=abc: routing needs numbers there"),
        ({"similarity": [[1.0]]}, "has similarity[0][0]=1.0: routing needs numbers there, in the shape that a"),
        ({"r_min": [0.5]}, "Run `python -m banpick_exp calibrate` for this model again."),
    ],
)
def test_what_is_no_calibration(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as raised:
        build_policy("none", {}, num_layers=1, num_experts=4, top_k=2, calibration=values)
    assert str(raised.value).startswith("the calibration has ") and message in str(raised.value)
    assert "pydantic" not in str(raised.value) and "\n" not in str(raised.value)
