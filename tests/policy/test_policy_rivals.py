"""The rival rules: against their formulas in plain Python, against the rule they must equal, and at their ends."""

import doctest
import importlib
import importlib.util
import json
import struct
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from offsets import FOLDER, offset_file

from banpick_exp.errors import UserError
from banpick_exp.policy import MoeShape, Policy, build_policy, parse_policy
from banpick_exp.policy.offset_file import read_offset

LAYERS, EXPERTS, TOP_K = 2, 16, 4
SHAPE = MoeShape(num_layers=LAYERS, num_experts=EXPERTS, top_k=TOP_K)
CALIBRATION: Mapping[str, Any] = {"skip_kl": [1.0, 2.0]}
LOGITS = torch.randn(400, EXPERTS, generator=torch.Generator().manual_seed(11)) * 2
OFFSET = torch.randn(LAYERS, EXPERTS, generator=torch.Generator().manual_seed(12))
MARGIN = 1e-5
"""Tokens this near to a threshold are not compared: float32 may fall on either side."""


def built(name: str, calibration: Mapping[str, Any] | None = CALIBRATION, **params: Any) -> Policy:
    return build_policy(name, params, num_layers=LAYERS, num_experts=EXPERTS, top_k=TOP_K, calibration=calibration)


def assert_routes_alike(one: Policy, other: Policy) -> None:
    for layer in range(LAYERS):
        for mine, theirs in zip(one.route(LOGITS, layer), other.route(LOGITS, layer), strict=True):
            assert torch.equal(mine, theirs)


def kept_of(policy: Policy, layer: int) -> torch.Tensor:
    return policy.route(LOGITS, layer)[2].sum(dim=-1)


@pytest.mark.parametrize("module", ["naee", "top_p", "modes", "mask", "logit_offset"])
def test_the_worked_example(module: str) -> None:
    result = doctest.testmod(importlib.import_module(f"banpick_exp.policy.rules.{module}"))
    assert result.attempted >= 4 and result.failed == 0


class TestThresholds:
    @pytest.mark.parametrize(("name", "params"), [("naee", {"beta": 0}), ("top_p", {"p": 1}), ("modes", {"tau": 0})])
    def test_where_nothing_is_dropped_it_is_stock(self, name: str, params: dict[str, Any]) -> None:
        policy = built(name, None, **params)
        assert_routes_alike(policy, built("none"))
        assert policy.budget == (TOP_K, TOP_K)
        lost = torch.tensor([[100.0] + [0.0] * (EXPERTS - 1)])  # weights of 1 and of 0 after rounding
        assert policy.route(lost, 0)[2].all()

    @pytest.mark.parametrize(
        ("name", "params"),
        [("naee", {"beta": 0.9}), ("top_p", {"p": 0.05}), ("top_p", {"p": 0}), ("modes", {"tau": 0.9})],
    )
    def test_the_floor_holds(self, name: str, params: dict[str, Any]) -> None:
        policy = built(name, k_min=3, **params)
        assert policy.budget[0] == 3
        assert all(kept_of(policy, layer).min() == 3 for layer in range(LAYERS))
        assert_routes_alike(built(name, k_min=TOP_K, **params), built("none"))
        assert built(name, k_min=TOP_K, **params).budget == (TOP_K, TOP_K)

    @pytest.mark.parametrize(("name", "knob"), [("naee", "beta"), ("modes", "tau"), ("top_p", "p")])
    def test_the_knob_moves_the_budget_one_way_and_stays_inside_it(self, name: str, knob: str) -> None:
        ladder = [kept_of(built(name, CALIBRATION, **{knob: step / 10}), 1) for step in range(11)]
        if name == "top_p":
            ladder.reverse()
        assert all((low <= high).all() for high, low in pairwise(ladder))
        assert ladder[0].float().mean() == TOP_K > ladder[2].float().mean() > ladder[5].float().mean() >= 1

    def test_p_of_0_is_exactly_the_floor(self) -> None:
        policy = built("top_p", p=0, k_min=2)
        assert policy.budget == (2, 2)
        assert_routes_alike(policy, built("fixed_k", k=2))

    @given(
        steps=st.lists(st.integers(-12, 12), min_size=6, max_size=6),
        name=st.sampled_from(["naee", "top_p", "modes"]),
        knob=st.integers(0, 20).map(lambda step: step / 20),
        k_min=st.integers(1, 3),
        scoring=st.sampled_from(["softmax", "sigmoid"]),
    )
    @settings(max_examples=200, deadline=None, derandomize=True, database=None)
    def test_against_a_plain_loop(self, steps: list[int], name: str, knob: float, k_min: int, scoring: str) -> None:
        knobs = {{"naee": "beta", "top_p": "p", "modes": "tau"}[name]: knob, "k_min": k_min}
        policy = build_policy(
            name, knobs, num_layers=3, num_experts=6, top_k=3, calibration={"skip_kl": [2.0, 1.5, 0.0]}
        )
        logits = torch.tensor([[step / 4 for step in steps]])
        scores = logits[0].double().softmax(-1) if scoring == "softmax" else logits[0].double().sigmoid()
        best = sorted(range(6), key=lambda expert: (-steps[expert], expert))[:3]
        weights = [scores[expert].item() / sum(scores[other].item() for other in best) for expert in best]
        count, total = 0, 0.0
        for weight in weights:
            # layer 1: alpha = 1.5 / 2
            measure, limit = {
                "naee": (weight, knob * weights[0]), "modes": (0.75 * weight, knob), "top_p": (knob, total),
            }[name]  # fmt: skip
            if abs(measure - limit) < MARGIN and knob not in (0, 1):
                return
            if (name == "top_p" and knob == 1) or (measure > limit if name == "top_p" else measure >= limit):
                count += 1
                total += weight
            else:
                break
        expected = best[: max(count, k_min)]
        got, ids, kept = policy.route(logits, layer=1, scoring=scoring)
        assert ids[0][kept[0]].tolist() == expected
        share = sum(scores[expert].item() for expert in expected)
        assert got[0][kept[0]].tolist() == pytest.approx([scores[e].item() / share for e in expected], abs=1e-6)


class TestModes:
    def test_equal_alphas_are_one_threshold_and_need_no_calibration(self) -> None:
        policy = built("modes", None, tau=0.25, alpha_min=1)
        assert not policy.rule.needs_calibration()
        weights = LOGITS.topk(TOP_K).values.softmax(-1)
        for layer in range(LAYERS):
            assert torch.equal(kept_of(policy, layer), (weights >= 0.25).sum(-1).clamp_min(1))
        assert policy.table.min_weight.unique().tolist() == [0.25]
        even = {"skip_kl": [0.2, 0.2]}
        assert_routes_alike(policy, built("modes", even, tau=0.25, alpha_min=0.3))

    def test_important_layers_keep_more(self) -> None:
        policy = built("modes", tau=0.2)
        assert policy.table.min_weight[0].tolist() == pytest.approx([0.4, 0.2])
        assert (kept_of(policy, 0) <= kept_of(policy, 1)).all()
        assert kept_of(policy, 0).float().mean() < kept_of(policy, 1).float().mean()
        lifted = built("modes", {"skip_kl": [0.0, 2.0]}, tau=0.2, alpha_min=0.5)
        assert_routes_alike(lifted, policy)

    def test_the_routing_follows_the_importance_alone(self) -> None:
        base = built("modes", tau=0.2).digest()
        assert built("modes", {**CALIBRATION, "r_min": 0.3}, tau=0.2).digest() == base
        assert built("modes", {"skip_kl": [0.1, 1.0]}, tau=0.2).digest() != base


class TestMask:
    def test_masked_experts_are_never_selected_and_weights_are_renormalised(self) -> None:
        masked = {0: [0, 5, 9], 1: list(range(12))}
        policy = built("mask", experts=masked)
        for layer, experts in masked.items():
            weights, ids, kept = policy.route(LOGITS, layer)
            assert kept.all() and not torch.isin(ids, torch.tensor(experts)).any()
            assert weights.sum(-1).allclose(torch.ones(len(LOGITS)))
            left = [expert for expert in range(EXPERTS) if expert not in experts]
            order = LOGITS[:, left].argsort(dim=-1, descending=True, stable=True)[:, :TOP_K]
            assert torch.equal(ids.long(), torch.tensor(left)[order])
        assert policy.budget == (TOP_K, TOP_K) and not policy.rule.needs_calibration()

    def test_layers_and_tokens_that_never_used_them_stay_stock(self) -> None:
        policy, stock = built("mask", experts={1: [7]}), built("none")
        unused = (stock.route(LOGITS, 1)[1] != 7).all(-1)
        assert unused.any() and not unused.all()
        for mine, theirs in zip(policy.route(LOGITS, 0), stock.route(LOGITS, 0), strict=True):
            assert torch.equal(mine, theirs)
        assert torch.equal(policy.route(LOGITS, 1)[1][unused], stock.route(LOGITS, 1)[1][unused])


class TestLogitOffset:
    def test_zeros_are_stock(self) -> None:
        policy = built("logit_offset", path=offset_file("zeros", torch.zeros(LAYERS, EXPERTS)))
        assert_routes_alike(policy, built("none"))
        assert policy.budget == (TOP_K, TOP_K) and not policy.rule.needs_calibration()

    def test_the_vector_of_a_boost_is_pick_boost(self) -> None:
        boost = torch.zeros(LAYERS, EXPERTS)
        boost[0, 3], boost[1, 2], boost[1, 5] = 1.5, 1.5, 1.5
        policy = built("logit_offset", path=offset_file("boost", boost))
        assert_routes_alike(policy, built("pick", boost=1.5, experts={0: [3], 1: [2, 5]}))

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
    def test_every_float_type_reads_as_safetensors_does(self, dtype: torch.dtype) -> None:
        offset = OFFSET.to(dtype)
        table = built("logit_offset", path=offset_file("typed", offset)).table
        assert torch.equal(table.logit_bias_PLE[0], offset.float())

    def test_the_canonical_form_follows_the_content(self) -> None:
        path = offset_file("moving", OFFSET)
        rule = parse_policy("logit_offset", {"path": path}, SHAPE)
        before = rule.canonical()
        again = json.loads(json.dumps(rule.canonical()))
        assert parse_policy(again.pop("name"), again, SHAPE).canonical() == rule.canonical()

        changed = OFFSET.clone()
        changed[1, 15] += 1e-6
        offset_file("moving", changed)
        other = parse_policy("logit_offset", {"path": path}, SHAPE)
        assert other.canonical() != before and other.label() != rule.label()
        assert rule.canonical() == before, "a planned point keeps its name"
        with pytest.raises(UserError, match=r"sha256='[0-9a-f]{64}' is not that of .* leave sha256 out"):
            parse_policy("logit_offset", again, SHAPE)
        with pytest.raises(UserError, match="has changed since it was planned"):
            rule.fill(built("none").table, SHAPE, None)
        offset_file("moving", OFFSET)
        assert parse_policy("logit_offset", again, SHAPE).canonical() == before

    def test_a_relative_path_means_the_same_elsewhere(self, monkeypatch: pytest.MonkeyPatch) -> None:
        path = offset_file("here", OFFSET)
        monkeypatch.chdir(FOLDER.name)
        rule = parse_policy("logit_offset", {"path": "here.safetensors"}, SHAPE)
        assert rule.canonical() == parse_policy("logit_offset", {"path": path}).canonical()

    @pytest.mark.parametrize(
        ("offset", "key", "message"),
        [
            (torch.zeros(LAYERS, EXPERTS), "offset", "has no tensor logit_offset, it holds offset. Write it with"),
            (torch.zeros(LAYERS, 15), "logit_offset", "of shape [2, 15], but this checkpoint has 2 MoE layers of 16"),
            (torch.zeros(LAYERS * EXPERTS), "logit_offset", "Use a file with shape [2, 16]."),
            (torch.zeros(LAYERS, EXPERTS, dtype=torch.int64), "logit_offset", "holds logit_offset as I64: logits are"),
            (torch.full((LAYERS, EXPERTS), torch.nan), "logit_offset", "holds nan at layer 0, expert 0"),
            (OFFSET.log().nan_to_num(-torch.inf), "logit_offset", "to exclude an expert use policy=mask."),
            (torch.full((LAYERS, EXPERTS), 1e39, dtype=torch.float64), "logit_offset", "holds 1e+39 at layer 0"),
        ],
    )  # fmt: skip
    def test_a_wrong_file(self, offset: torch.Tensor, key: str, message: str) -> None:
        with pytest.raises(UserError) as raised:
            parse_policy("logit_offset", {"path": offset_file("wrong", offset, key)}, SHAPE)
        assert str(raised.value).startswith("policy.path=")
        assert message in str(raised.value)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (None, "does not exist: there is nothing to add"),
            (b"", "its header cannot be read"),
            (b"\xff" * 64, "its header cannot be read"),
            (struct.pack("<Q", 2) + b"[]", "its header cannot be read"),
            (struct.pack("<Q", 21) + b'{"logit_offset": {}} ', "the entry of logit_offset is damaged"),
        ],
    )
    def test_no_file_or_not_of_this_format(self, content: bytes | None, message: str, tmp_path: Path) -> None:
        path = tmp_path / "offset.safetensors"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UserError) as raised:
            parse_policy("logit_offset", {"path": str(path)}, SHAPE)
        assert message in str(raised.value)
        with pytest.raises(UserError, match="cannot be read"):
            parse_policy("logit_offset", {"path": str(tmp_path)}, SHAPE)

    @given(cut=st.integers(0, 400), flip=st.integers(0, 400), value=st.integers(0, 255))
    @settings(max_examples=100, deadline=None, derandomize=True, database=None)
    def test_a_damaged_file_is_read_or_refused(self, cut: int, flip: int, value: int) -> None:
        content = bytearray(Path(offset_file("damaged", OFFSET)).read_bytes())
        content[flip % len(content)] = value
        path = Path(FOLDER.name) / "damaged.safetensors"
        path.write_bytes(content[: len(content) - cut])
        try:
            assert read_offset(str(path)).values
        except ValueError as error:
            assert "Write it with" in str(error) or "routing cannot compute" in str(error)
