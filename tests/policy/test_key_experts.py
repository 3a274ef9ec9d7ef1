"""Key experts by a score with a sign: only those that help for sure, fewer than asked, none, those of all domains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from banpick_exp.errors import UserError
from banpick_exp.policy import MoeShape, Policy, build_policy, parse_policy
from banpick_exp.policy.calibration import AUTO_MOST
from banpick_exp.policy.rule import Rule
from banpick_exp.sweep.plan import plan_sweep

GAIN: dict[str, Any] = {
    # layer, expert, gain, lower bound: the third is high and unsure, the last two do harm
    "influence": [[1, 5, 0.9, 0.5], [0, 3, 0.5, 0.2], [1, 2, 0.45, -0.1], [1, 7, 0.3, 0.1], [0, 9, -0.2, -0.4],
                  [0, 1, -0.6, -0.9]],
    "influence_elsewhere": [
        [[0, 11, 0.8, 0.3], [1, 5, 0.7, 0.2], [0, 12, 0.1, 0.0]],
        [[1, 0, 0.05, -0.1]],
    ],
}  # fmt: skip
NOTHING: dict[str, Any] = {"influence": [[0, 3, 0.5, -0.2], [1, 5, 0.1, 0.0]], "influence_elsewhere": []}
UNSIGNED: dict[str, Any] = {
    "influence": [[1, 5, 0.9], [0, 3, 0.5], [1, 2, 0.4]],
    "influence_elsewhere": [[[0, 11, 0.8], [0, 3, 0.7]]],
}


def pick(calibration: dict[str, Any] | None, **params: Any) -> Policy:
    params = {"mode": "range_add", **params}
    return build_policy("pick", params, num_layers=2, num_experts=16, top_k=4, calibration=calibration)


def pick_rule() -> Rule:
    return parse_policy("pick", {"mode": "range_add", "experts": "auto"})


class TestAuto:
    def test_it_takes_all_that_help_for_sure(self) -> None:
        assert pick(GAIN, experts="auto").key_experts == {0: (3,), 1: (5, 7)}

    def test_at_most_so_many(self) -> None:
        many = [[layer, expert, 1 - expert / 20 - layer / 100, 0.1] for expert in range(16) for layer in range(2)]
        found = pick({"influence": many}, experts="auto").key_experts
        assert found == {0: tuple(range(8)), 1: tuple(range(8))} and AUTO_MOST == 16

    def test_nothing_to_reinforce_is_stock_routing(self) -> None:
        policy = pick(NOTHING, experts="auto")
        stock = build_policy("none", {}, num_layers=2, num_experts=16, top_k=4)
        assert policy.key_experts == {} and not policy.table.key_PLE.any()
        assert policy.budget == (4, 4) and policy.max_kept == 4
        draw = torch.Generator().manual_seed(0)
        for layer in range(2):
            logits = torch.randn(50, 16, generator=draw)
            ours, theirs = (each.route(logits, layer) for each in (policy, stock))
            for one, other in zip(ours, theirs, strict=True):
                assert torch.equal(one, other)

    def test_boosts_too(self) -> None:
        bias_LE = pick(GAIN, mode="boost", boost=0.5, experts="auto").table.logit_bias_PLE[0]
        assert torch.nonzero(bias_LE).tolist() == [[0, 3], [1, 5], [1, 7]]
        assert not pick(NOTHING, mode="boost", boost=0.5, experts="auto").table.logit_bias_PLE.any()

    def test_a_calibration_without_a_sign_is_refused_where_it_is_read(self) -> None:
        with pytest.raises(UserError, match=r"has no sign. Type calibration.score=gain, or a number"):
            pick(UNSIGNED, experts="auto")

    def test_before_there_is_a_calibration_there_is_room(self) -> None:
        assert pick_rule().max_kept(MoeShape(num_layers=2, num_experts=128, top_k=4)) == 4 + AUTO_MOST
        rule = pick_rule()
        assert rule.needs_calibration() and rule.needs_gain() and rule.reinforces_by() == "range_add"
        assert rule.knobs()["experts"] == "auto" and "key_experts" not in rule.knobs()


class TestCounted:
    @pytest.mark.parametrize(
        ("count", "expected"),
        [(1, {1: (5,)}), (2, {0: (3,), 1: (5,)}), (3, {0: (3,), 1: (5, 7)}), (9, {0: (3,), 1: (5, 7)})],
    )
    def test_the_highest_that_help_for_sure(self, count: int, expected: dict[int, tuple[int, ...]]) -> None:
        """The fourth by value is the third that is sure; where fewer are, fewer are taken."""
        assert pick(GAIN, key_experts=count).key_experts == expected

    def test_in_each_layer(self) -> None:
        assert pick(GAIN, key_experts=1, per_layer=True).key_experts == {0: (3,), 1: (5,)}
        assert pick(GAIN, key_experts=2, per_layer=True).key_experts == {0: (3,), 1: (5, 7)}

    def test_without_a_sign_too_few_are_still_an_error(self) -> None:
        assert pick(UNSIGNED, key_experts=3).key_experts == {0: (3,), 1: (2, 5)}
        with pytest.raises(UserError, match=r"ranks only 3 experts.*Type policy.key_experts=3"):
            pick(UNSIGNED, key_experts=4)

    def test_the_order_of_the_artifact_stands_where_there_is_a_sign(self) -> None:
        """Those that a race dropped come last, with whatever value they had then."""
        raced = {"influence": [[0, 3, 0.5, 0.2], [1, 5, 0.9, 0.1]]}
        assert pick(raced, key_experts=1).key_experts == {0: (3,)}


class TestMerged:
    def test_it_is_the_union_over_domains(self) -> None:
        assert pick(GAIN, experts="auto", scope="merged").key_experts == {0: (3, 11), 1: (5, 7)}
        assert pick(GAIN, experts="auto").key_experts == pick(GAIN, experts="auto", scope="own").key_experts

    def test_of_as_many_in_each_domain(self) -> None:
        assert pick(GAIN, key_experts=1, scope="merged").key_experts == {0: (11,), 1: (5,)}
        assert pick(UNSIGNED, key_experts=1, scope="merged").key_experts == {0: (11,), 1: (5,)}

    def test_it_is_the_same_from_each_domain(self) -> None:
        first, (second, third) = GAIN["influence"], GAIN["influence_elsewhere"]
        turned = [
            {"influence": own, "influence_elsewhere": others}
            for own, others in ((first, [second, third]), (second, [first, third]), (third, [first, second]))
        ]
        assert len({pick(view, experts="auto", scope="merged").digest() for view in turned}) == 1
        assert len({pick(view, experts="auto").digest() for view in turned}) == 3

    def test_nothing_here_and_something_elsewhere(self) -> None:
        elsewhere = {**NOTHING, "influence_elsewhere": [[[0, 11, 0.8, 0.3]]]}
        assert pick(elsewhere, experts="auto").key_experts == {}
        assert pick(elsewhere, experts="auto", scope="merged").key_experts == {0: (11,)}

    def test_one_of_another_model_is_refused_elsewhere_too(self) -> None:
        wrong = {**GAIN, "influence_elsewhere": [[[0, 99, 0.8, 0.3]]]}
        with pytest.raises(UserError, match=r"another model: influence names expert 99 of layer 0"):
            pick(wrong, experts="auto", scope="merged")


def test_named_experts_have_no_key_experts_to_be_found() -> None:
    assert pick(None, experts={0: [3]}).key_experts == {0: (3,)}
    assert build_policy("fixed_k", {"k": 2}, num_layers=2, num_experts=16, top_k=4).key_experts is None


class TestPlanning:
    def plan(self, tmp_path: Path, *words: str) -> Any:
        return plan_sweep([*words, "policy.experts=auto", f"output_dir={tmp_path}", "dry_run=true"]).points[-1]

    def test_auto_needs_a_score_with_a_sign(self, tmp_path: Path) -> None:
        point = self.plan(tmp_path, "policy=pick", "policy.mode=range_add")
        assert point.score == "gain_add" and point.rule.knobs()["experts"] == "auto"
        with pytest.raises(UserError, match=r"calibration.score=insertion_kl has no sign. Type calibration.score=gain"):
            self.plan(tmp_path, "policy=pick", "policy.mode=range_add", "calibration.score=insertion_kl")

    def test_nor_does_a_corpus_have_one(self, tmp_path: Path) -> None:
        (tmp_path / "c4.txt").write_text("a document\n" * 64)
        with pytest.raises(UserError, match=r"has no sign \(calibration.text has no right answers\)"):
            self.plan(tmp_path, "policy=pick", "policy.mode=range_add", f"calibration.text={tmp_path / 'c4.txt'}")

    def test_merged_is_another_point(self, tmp_path: Path) -> None:
        typed = ["policy=pick", "policy.mode=range_add"]
        own, merged = self.plan(tmp_path, *typed), self.plan(tmp_path, *typed, "policy.scope=merged")
        assert own.fingerprint != merged.fingerprint and "scope=merged" in merged.label and "scope" not in own.label
