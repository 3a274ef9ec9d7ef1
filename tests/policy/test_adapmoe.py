"""adapmoe: against its formula in plain Python, against the rules it must equal, and at its ends."""

import doctest
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from banpick_exp.errors import UserError
from banpick_exp.policy import MoeShape, Policy, build_policy, parse_policy
from banpick_exp.policy.rules import adapmoe

LAYERS, EXPERTS, TOP_K = 3, 16, 4
SHAPE = MoeShape(num_layers=LAYERS, num_experts=EXPERTS, top_k=TOP_K)
CALIBRATION: dict[str, Any] = {"fisher": [0.5, 4.0, 1.5]}
LOGITS = torch.randn(400, EXPERTS, generator=torch.Generator().manual_seed(21)) * 2
MARGIN = 1e-6
"""Tokens this near to the threshold are not compared: float32 may fall on either side."""


def built(name: str = "adapmoe", calibration: dict[str, Any] | None = CALIBRATION, **params: Any) -> Policy:
    return build_policy(name, params, num_layers=LAYERS, num_experts=EXPERTS, top_k=TOP_K, calibration=calibration)


def kept_of(policy: Policy, layer: int) -> torch.Tensor:
    return policy.route(LOGITS, layer)[2].sum(dim=-1)


def assert_routes_alike(one: Policy, other: Policy) -> None:
    for layer in range(LAYERS):
        for mine, theirs in zip(one.route(LOGITS, layer), other.route(LOGITS, layer), strict=True):
            assert torch.equal(mine, theirs)


def test_the_worked_example() -> None:
    result = doctest.testmod(adapmoe)
    assert result.attempted >= 5 and result.failed == 0


def test_a_threshold_of_0_is_stock_and_reads_no_calibration() -> None:
    policy = built(calibration=None, threshold=0)
    assert_routes_alike(policy, built("none"))
    assert policy.budget == (TOP_K, TOP_K) and not policy.rule.needs_calibration()
    lost = torch.tensor([[100.0] + [0.0] * (EXPERTS - 1)])  # weights of 1 and of 0 after rounding
    assert policy.route(lost, 0)[2].all()


@pytest.mark.parametrize("k_min", [1, 2, TOP_K])
def test_a_huge_threshold_is_fixed_k_at_the_floor(k_min: int) -> None:
    policy = built(threshold=1e30, k_min=k_min)
    assert policy.budget == (k_min, TOP_K)
    assert_routes_alike(policy, built("fixed_k", k=k_min))


def test_important_layers_keep_more_and_a_factor_changes_nothing() -> None:
    policy = built(threshold=0.02)
    means = [kept_of(policy, layer).float().mean().item() for layer in range(LAYERS)]
    assert 1 < means[0] < means[2] < means[1] < TOP_K
    other = built(calibration={"fisher": [value * 1000 for value in CALIBRATION["fisher"]]}, threshold=0.02)
    assert_routes_alike(policy, other)


def test_a_layer_that_feels_nothing_keeps_the_floor() -> None:
    policy = built(calibration={"fisher": [0.0, 1.0, 2.0]}, threshold=1e-6, k_min=2)
    assert (kept_of(policy, 0) == 2).all() and (kept_of(policy, 2) == TOP_K).all()


@given(
    steps=st.lists(st.integers(-12, 12), min_size=6, max_size=6),
    threshold=st.integers(0, 40).map(lambda step: step / 200),
    fisher=st.lists(st.integers(1, 9), min_size=2, max_size=2),
    k_min=st.integers(1, 4),
    scoring=st.sampled_from(["softmax", "sigmoid"]),
)
@settings(max_examples=100, deadline=None, derandomize=True, database=None)
def test_against_a_plain_loop(steps: list[int], threshold: float, fisher: list[int], k_min: int, scoring: str) -> None:
    knobs, calibration = {"threshold": threshold, "k_min": k_min}, {"fisher": fisher}
    policy = build_policy("adapmoe", knobs, num_layers=2, num_experts=6, top_k=4, calibration=calibration)
    logits = torch.tensor([[step / 4 for step in steps]])
    scores = logits[0].double().softmax(-1) if scoring == "softmax" else logits[0].double().sigmoid()
    best = sorted(range(6), key=lambda expert: (-steps[expert], expert))[:4]
    weights = [scores[expert].item() / sum(scores[other].item() for other in best) for expert in best]
    dropped, count = 0.0, 4
    while count > k_min:
        dropped += weights[count - 1] ** 2
        felt = fisher[1] / (sum(fisher) / 2) * dropped
        if abs(felt - threshold) < MARGIN and threshold > 0:
            return
        if felt >= threshold:
            break
        count -= 1
    got, ids, kept = policy.route(logits, layer=1, scoring=scoring)
    assert ids[0][kept[0]].tolist() == best[:count]
    share = sum(scores[expert].item() for expert in best[:count])
    assert got[0][kept[0]].tolist() == pytest.approx([scores[e].item() / share for e in best[:count]], abs=1e-6)


def test_the_routing_follows_fisher_alone() -> None:
    base = built(threshold=0.02).digest()
    assert built(calibration={**CALIBRATION, "r_min": 0.3}, threshold=0.02).digest() == base
    assert built(calibration={"fisher": [0.5, 4.0, 1.6]}, threshold=0.02).digest() != base
    assert built(threshold=0.021).digest() != base
    assert built(calibration={"fisher": [1.0] * 3}, threshold=0).digest() == built(threshold=0).digest()


@pytest.mark.parametrize(
    ("params", "calibration", "message"),
    [
        ({}, CALIBRATION, "policy.threshold is missing: policy=adapmoe cannot work without it. Type for"),
        ({"threshold": -1}, CALIBRATION, "policy.threshold=-1 is below 0: 0 keeps every expert already"),
        ({"threshold": "x"}, CALIBRATION, "policy.threshold='x' is not a number"),
        ({"threshold": 1, "k_min": 5}, CALIBRATION, "policy.k_min=5 exceeds top_k=4"),
        ({"threshold": 1}, None, "policy=adapmoe cannot start: it needs a calibration. Run `python -m"),
        ({"threshold": 1}, {"layer_sensitivity": [1.0]}, "policy=adapmoe cannot start: the calibration has no fisher"),
        ({"threshold": 1}, {"fisher": [1.0]}, "of another model: fisher has 1 values"),
        ({"threshold": 1}, {"fisher": [1.0, -1.0, 1.0]}, "the calibration has fisher=[1.0, -1.0, 1.0], outside 0"),
        ({"threshold": 1}, {"fisher": [1.0, float("inf"), 1.0]}, "the calibration has fisher=[1.0, inf, 1.0]"),
        ({"threshold": 1}, {"fisher": [0.0] * 3}, "fisher is 0 in every layer"),
    ],
)  # fmt: skip
def test_what_it_refuses(params: dict[str, Any], calibration: dict[str, Any] | None, message: str) -> None:
    with pytest.raises(UserError) as raised:
        built(calibration=calibration, **params)
    assert message in str(raised.value)


def test_it_is_parsed_as_it_is_written() -> None:
    rule = parse_policy("adapmoe", {"threshold": 0.02, "k_min": 2}, SHAPE)
    assert rule.label() == "adapmoe threshold=0.02 k_min=2"
    assert rule.canonical() == {"name": "adapmoe", "threshold": 0.02, "k_min": 2}
