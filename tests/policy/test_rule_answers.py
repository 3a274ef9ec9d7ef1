"""What others ask a rule instead of its name: what must show in the counters, what steps back, what to type instead."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from offsets import offset_file

from banpick_exp.policy import POLICIES, MoeShape, Policy, build_policy, parse_policy

SHAPE = MoeShape(num_layers=2, num_experts=4, top_k=2)
OFFSET = torch.tensor([[0.5, 0, 0, -0.25], [0, 0, 1.5, 0]])


def built(name: str, **params: Any) -> Policy:
    calibration = {"contrast": [[0.5, 0, 0, 0], [0, 0, -0.5, 0]], "layer_sensitivity": [0, 1], "r_min": 0.4, "r_max": 1}
    return build_policy(name, params, num_layers=2, num_experts=4, top_k=2, calibration=calibration)


@pytest.mark.parametrize(
    ("name", "params", "weights", "down"),
    [
        ("pick", {"mode": "range_add", "experts": {0: [1], 1: [2]}}, [[0, 1, 0, 0], [0, 0, 1, 0]], False),
        ("pick", {"boost": 1, "experts": {0: [1]}}, [[0, 1, 0, 0], [0, 0, 0, 0]], False),
        ("pick", {"boost": -1, "experts": {0: [1]}}, [[0, 1, 0, 0], [0, 0, 0, 0]], True),
        ("ban_pick", {"lambda": 1, "k_min": 1, "experts": {1: [3]}}, [[0, 0, 0, 0], [0, 0, 0, 1]], False),
        ("mask", {"experts": {0: [3]}}, [[0, 0, 0, 1], [0, 0, 0, 0]], True),
        ("logit_offset", {"path": "offset"}, OFFSET.tolist(), False),
        ("steer", {"on": {0: [1]}, "off": {1: [2]}}, [[0, 1, 0, 0], [0, 0, -1, 0]], False),
        ("steer", {"off": {1: [2]}}, [[0, 0, 0, 0], [0, 0, 1, 0]], True),
        ("steer", {"count": 1, "direction": "off"}, [[0, 0, 0, 0], [0, 0, 1, 0]], True),
    ],
)
def test_whose_share_must_move(name: str, params: dict[str, Any], weights: list[list[float]], down: bool) -> None:
    if "path" in params:
        params = {"path": offset_file("pull", OFFSET)}
    pull = built(name, **params).pull()
    assert pull is not None and pull.down is down
    assert pull.weights_LE.float().tolist() == weights


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("none", {}),
        ("fixed_k", {"k": 1}),
        ("ban", {"lambda": 1, "k_min": 1}),
        ("naee", {"beta": 0.5}),
        ("pick", {"boost": 0, "experts": {0: [1]}}),
        ("rice", {"multiplier": 2, "experts": {0: [1]}}),
        ("expert_sample", {}),
    ],
)
def test_who_pulls_no_expert(name: str, params: dict[str, Any]) -> None:
    assert built(name, **params).pull() is None


def test_who_must_pull_and_whose_ends_are_idle() -> None:
    assert {name for name, rule in POLICIES.items() if rule.needs_pull} == {"pick", "ban_pick"}
    assert {name for name, rule in POLICIES.items() if not rule.ends_are_idle} == {"pick"}


def test_references() -> None:
    assert [name for name, rule in POLICIES.items() if rule.reference_rank is not None] == ["none", "fixed_k"]
    assert parse_policy("none", {}).is_reference and parse_policy("fixed_k", {"k": 2}).is_reference
    assert not parse_policy("naee", {"beta": 0}).is_reference, "stock by its knob, but not the one to compare with"
    assert parse_policy("none", {}).is_stock and not parse_policy("fixed_k", {"k": 2}, SHAPE).is_stock


@pytest.mark.parametrize("name", ["pick", "ban_pick"])
def test_named_experts_take_the_place_of_a_count(name: str) -> None:
    rule = POLICIES[name]
    assert rule.superseded_knobs({"experts": {0: [1]}}) == ("key_experts", "per_layer")
    assert rule.superseded_knobs({}) == rule.superseded_knobs({"experts": None, "mode": "range_add"}) == ()
    assert POLICIES["mask"].superseded_knobs({"experts": {0: [1]}}) == ()


def test_what_to_type_for_an_idle_knob() -> None:
    rule = parse_policy("pick", {"mode": "range_add", "experts": {0: [1]}})
    assert rule.idle_remedy("boost") == "Add policy.mode=boost, or leave it out."
    assert rule.idle_remedy("per_layer") == "Leave it out, or choose a mode that uses it."
    assert parse_policy("none", {}).idle_remedy("k") == "Leave it out, or choose a mode that uses it."
