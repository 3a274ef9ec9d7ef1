"""What the rules promise beyond single tokens: budgets, slots, fingerprints, calibration, monotonicity, imports."""

import doctest
import json
import subprocess
import sys
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pytest
import torch
from offsets import offset_file

from banpick_exp.config import fingerprint
from banpick_exp.errors import UserError
from banpick_exp.policy import POLICIES, Calibration, MoeShape, Policy, build, build_policy, parse_policy
from banpick_exp.policy.build import ROUTING_VERSION

SHAPE = MoeShape(num_layers=2, num_experts=16, top_k=4)
CALIBRATION: dict[str, Any] = {
    "influence": [[1, 5, 0.9], [0, 3, 0.5], [1, 2, 0.4], [1, 7, 0.3], [0, 9, 0.2], [0, 1, 0.1]],
    "layer_sensitivity": [0.0, 1.0],
    "r_min": 0.75,
    "r_max": 0.98,
    "usage": [[1.0] * 16] * 2,
    "fisher": [1.0, 3.0],
    "contrast": [[0.2, 0.1] + [0.0] * 14, [-0.1] * 16],
    "npmi": [[0.5] * 16, [-0.5] * 16],
    "similarity": [[[1.0] * 16] * 16] * 2,
    "skip_kl": [0.5, 2.0],
    "ratio_median": [0.4, 0.6],
}


def built(name: str, calibration: Mapping[str, Any] | None = CALIBRATION, **params: Any) -> Policy:
    return build_policy(name, params, num_layers=2, num_experts=16, top_k=4, calibration=calibration)


def ban(lambda_: float, k_min: int, calibration: Mapping[str, Any] = CALIBRATION) -> Policy:
    return built("ban", calibration, **{"lambda": lambda_, "k_min": k_min})


def keys(policy: Policy) -> list[list[int]]:
    return [torch.nonzero(policy.table.key_PLE[0, layer]).flatten().tolist() for layer in range(2)]


def test_importing_and_planning_need_no_torch() -> None:
    code = (
        "import sys; from banpick_exp.policy import Calibration, MoeShape, parse_policy\n"
        "shape = MoeShape(num_layers=2, num_experts=16, top_k=4)\n"
        "rule = parse_policy('ban_pick', {'lambda': 1, 'k_min': 2, 'experts': {0: [1]}}, shape)\n"
        "rule.budget(shape), rule.label(), rule.max_kept(shape)\n"
        "rule.canonical(), rule.budget(shape, Calibration(layer_sensitivity=(0, 1), r_min=0, r_max=1))\n"
        "print(sorted({'torch', 'vllm', 'ray', 'wandb', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": ":".join(sys.path)}
    )
    assert done.stdout.strip() == "[]"


def test_the_example_of_the_docstring() -> None:
    result = doctest.testmod(build)
    assert result.attempted >= 3 and result.failed == 0


class TestBudget:
    @pytest.mark.parametrize(
        ("name", "params", "budget", "max_kept"),
        [
            ("none", {}, (4, 4), 4),
            ("fixed_k", {"k": 3}, (3, 3), 4),
            ("fixed_k", {"k": 2.5}, (2.5, 2.5), 4),
            ("pick", {"boost": 1, "key_experts": 3}, (4, 4), 4),
            ("pick", {"mode": "force_replace", "key_experts": 3}, (4, 4), 4),
            ("pick", {"mode": "range_replace", "key_experts": 3}, (4, 4), 4),
            ("pick", {"mode": "force_add", "key_experts": 3}, (4, 5.5), 6),  # keys 1 and 2
            ("pick", {"mode": "range_add", "key_experts": 3}, (4, 5.5), 6),
            ("pick", {"mode": "range_add", "key_experts": 3, "per_layer": True}, (4, 7), 7),
            ("pick", {"mode": "force_add", "experts": {1: list(range(16))}}, (4, 10), 16),  # at most all 16 in layer 1
            ("ban", {"lambda": 1, "k_min": 2}, (2, 4), 4),
            ("naee", {"beta": 0.5}, (2, 4), 4),
            ("naee", {"beta": "median", "k_min": 1}, (1, 4), 4),
            ("naee", {"beta": 0, "k_min": 2}, (4, 4), 4),
            ("top_p", {"p": 0.8, "k_min": 2}, (2, 4), 4),
            ("top_p", {"p": 1}, (4, 4), 4),
            ("modes", {"tau": 0.2, "k_min": 2}, (2, 4), 4),
            ("adapmoe", {"threshold": 0.02, "k_min": 2}, (2, 4), 4),
            ("adapmoe", {"threshold": 0}, (4, 4), 4),
            ("pick", {"mode": "force_add", "key_experts": 3, "k": 2}, (2, 3.5), 4),
            ("pick", {"boost": 1, "key_experts": 3, "k": 2}, (2, 2), 4),
            ("diep", {}, (2, 4), 4),
            ("diep", {"beta": 0.5, "k_min": 1}, (1, 4), 4),
            ("diep", {"beta": 0, "k_min": 2}, (4, 4), 4),
            ("steer", {"count": 2}, (4, 4), 4),
            ("steer", {"off": {0: [1]}, "k": 3}, (3, 3), 4),
            ("rice", {"multiplier": 2, "count": 2}, (4, 4), 4),
            ("expert_sample", {"k": 3}, (3, 3), 4),
            ("mask", {"experts": {0: [1]}}, (4, 4), 4),
            ("logit_offset", {"path": offset_file("twos", torch.full((2, 16), 2.0))}, (4, 4), 4),
            ("ban_pick", {"lambda": 1, "k_min": 2, "key_experts": 3}, (2, 5.5), 6),
            ("ban_pick", {"lambda": 1, "k_min": 2, "key_experts": 3, "mode": "range_replace"}, (2, 4), 4),
        ],
    )
    def test_budget_and_slots(self, name: str, params: dict, budget: tuple[float, float], max_kept: int) -> None:
        policy = built(name, **params)
        assert policy.budget == budget
        assert max(policy.max_kept, 4) == max_kept == policy.slots

    def test_before_calibration_the_budget_is_known_and_the_slots_are_bounded(self) -> None:
        rule = parse_policy("pick", {"mode": "force_add", "key_experts": 3}, SHAPE)
        calibration = Calibration.of(CALIBRATION)
        assert rule.budget(SHAPE) == (4, 5.5) == rule.budget(SHAPE, calibration)
        assert rule.max_kept(SHAPE) == 7 >= rule.max_kept(SHAPE, calibration)

    def test_measured_mean_kept_is_within_the_budget_and_moves(self) -> None:
        logits = torch.randn(500, 16, generator=torch.Generator().manual_seed(3)) * 2
        ban_pick: dict[str, Any] = {"lambda": 1.0, "k_min": 1, "key_experts": 6}
        for policy in (ban(1.0, 1), built("ban_pick", **ban_pick), built("pick", mode="force_add", key_experts=6)):
            kept = [policy.route(logits, layer)[2].sum(-1).float().mean().item() for layer in range(2)]
            assert policy.budget[0] < sum(kept) / 2 < policy.budget[1]


class TestBan:
    LOGITS = torch.randn(300, 16, generator=torch.Generator().manual_seed(4)) * 2

    def counts(self, lambda_: float, k_min: int = 1, **changes: Any) -> torch.Tensor:
        policy = ban(lambda_, k_min, {**CALIBRATION, **changes})
        return torch.stack([policy.route(self.LOGITS, layer)[2].sum(-1) for layer in range(2)])

    def test_a_larger_lambda_never_keeps_less(self) -> None:
        ladder = [self.counts(lambda_ / 10) for lambda_ in range(1, 21)]
        assert all((low <= high).all() for low, high in pairwise(ladder))
        assert ladder[0].float().mean() < ladder[9].float().mean() < ladder[19].float().mean()

    def test_extremes(self) -> None:
        assert (self.counts(1e-6, k_min=2) == 2).all()
        assert (self.counts(2.0)[1] == 4).all()  # the most sensitive layer: lambda * 0.5 * (1 + Tn) >= 1
        assert (self.counts(0.3, k_min=4) == 4).all()

    def test_equal_r_min_and_r_max_leave_only_the_layer(self) -> None:
        counts = self.counts(1.0, k_min=2, r_min=0.9, r_max=0.9)
        assert (counts[0] == 2).all() and (counts[1] == 3).all()

    def by(self, use: str, calibration: Mapping[str, Any] = CALIBRATION) -> torch.Tensor:
        policy = built("ban", calibration, **{"lambda": 1.0, "k_min": 1, "use": use})
        return torch.stack([policy.route(self.LOGITS, layer)[2].sum(-1) for layer in range(2)])

    def test_by_the_layer_alone_all_tokens_of_a_layer_keep_as_many(self) -> None:
        """1 + 3 * sensitivity, whatever R is: it need not be known."""
        for sensitivity, kept in (((0, 1), (1, 4)), ((0.4, 0.6), (2, 3)), ((0.5, 0.1), (2, 1))):
            counts = self.by("layer", {"layer_sensitivity": sensitivity})
            assert (counts == torch.tensor(kept)[:, None]).all()

    def test_by_the_token_alone_all_layers_are_alike(self) -> None:
        """And the sensitivity need not be known: 1 + 3 * Tn, twice what the token adds to both."""
        ranges = {key: CALIBRATION[key] for key in ("r_min", "r_max")}
        alone = self.by("token", ranges)
        assert torch.equal(alone[0], alone[1]) and set(alone[0].tolist()) == {1, 2, 3, 4}
        assert torch.equal(alone, self.counts(2.0, layer_sensitivity=[0, 0]))

    def test_scoring_and_renormalising_do_not_change_softmax_counts(self) -> None:
        policy = ban(1.0, 1)
        raw, normalised = (policy.route(self.LOGITS, 1, renormalize=flag) for flag in (False, True))
        assert torch.equal(raw[1], normalised[1]) and torch.equal(raw[2], normalised[2])
        assert normalised[0].sum(-1).allclose(torch.ones(300))
        assert (raw[0].sum(-1) < 1).all()


class TestKeyExperts:
    def test_the_most_influential_over_all_layers_and_in_each(self) -> None:
        assert keys(built("pick", mode="range_add", key_experts=3)) == [[3], [2, 5]]
        assert keys(built("pick", mode="range_add", key_experts=2, per_layer=True)) == [[3, 9], [2, 5]]
        assert keys(built("pick", mode="range_add", key_experts=1)) == [[], [5]]

    def test_influence_is_sorted_by_value_and_an_expert_counts_once(self) -> None:
        shuffled = {"influence": [[0, 9, 0.2], [1, 5, 0.9], [1, 5, 0.9], [0, 3, 0.5]]}
        assert keys(built("pick", shuffled, mode="range_add", key_experts=2)) == [[3], [5]]

    def test_named_experts_need_no_calibration_and_win_over_a_count(self) -> None:
        policy = built("pick", None, mode="range_add", experts={"1": [7, 2], 0: []}, key_experts=999)
        assert keys(policy) == [[], [2, 7]]
        assert not policy.rule.needs_calibration()
        assert policy.rule.canonical() == {
            "name": "pick", "mode": "range_add", "range_factor": 2.0, "experts": {"1": [2, 7]},
        }  # fmt: skip

    def test_boost_is_a_bias_and_inserts_nothing(self) -> None:
        table = built("pick", boost=1.5, key_experts=2).table
        assert table.logit_bias_PLE[0, 1, 5] == table.logit_bias_PLE[0, 0, 3] == 1.5
        assert table.logit_bias_PLE.sum() == 3.0
        assert not table.key_PLE.any() and not table.insert_window.any()

    @pytest.mark.parametrize(
        ("mode", "params", "window", "replaces"),
        [
            ("force_add", {}, 16, False),
            ("force_replace", {}, 16, True),
            ("range_add", {}, 8, False),
            ("range_replace", {"range_factor": 1.4}, 5, True),  # 5.6 experts: ranks 1 to 5
            ("range_replace", {"range_factor": 4}, 16, True),
        ],
    )
    def test_windows(self, mode: str, params: dict, window: int, replaces: bool) -> None:
        table = built("pick", mode=mode, key_experts=1, **params).table
        assert table.insert_window.unique().tolist() == [window]
        assert table.insert_replaces.unique().tolist() == [replaces]

    def test_a_whole_window_stays_whole_and_the_usual_one_fits_any_model(self) -> None:
        params = {"mode": "range_add", "experts": {0: [0]}, "range_factor": 61 / 7}
        table = build_policy("pick", params, num_layers=1, num_experts=64, top_k=7).table
        assert table.insert_window.item() == 61
        params = {"mode": "range_add", "experts": {0: [0]}}
        assert build_policy("pick", params, num_layers=1, num_experts=6, top_k=4).table.insert_window.item() == 6

    def test_defaults_of_the_mode(self) -> None:
        assert built("pick", boost=1, key_experts=1).rule.canonical()["mode"] == "boost"
        assert parse_policy("ban_pick", {"key_experts": 1, "k_min": 2, "lambda": 1}).canonical()["mode"] == "range_add"


class TestIdentity:
    RULES: tuple[tuple[str, dict[str, Any], str], ...] = (
        ("none", {}, "none"),
        ("fixed_k", {"k": 3}, "fixed_k k=3"),
        ("fixed_k", {"k": 3.25}, "fixed_k k=3.25"),
        ("pick", {"boost": 1, "key_experts": 4}, "pick boost=1 key_experts=4"),
        ("pick", {"mode": "range_replace", "key_experts": 4, "boost": 3}, "pick range_replace key_experts=4"),
        ("pick", {"mode": "range_add", "range_factor": 1.5, "experts": {1: [2], 0: [3, 1]}},
         "pick range_add range_factor=1.5 experts=L0E1+L0E3+L1E2"),
        ("pick", {"mode": "force_add", "key_experts": 2, "per_layer": True},
         "pick force_add key_experts=2 per_layer=True"),
        ("ban", {"lambda": 0.85, "k_min": 2}, "ban lambda=0.85 k_min=2"),
        ("ban", {"lambda": 1, "k_min": 2, "use": "both"}, "ban lambda=1 k_min=2"),
        ("ban", {"lambda": 1, "k_min": 2, "use": "layer"}, "ban lambda=1 k_min=2 use=layer"),
        ("ban_pick", {"lambda": 1, "k_min": 2, "key_experts": 4}, "ban_pick lambda=1 k_min=2 key_experts=4"),
        ("ban_pick", {"lambda": 1, "k_min": 2, "key_experts": 4, "use": "token"},
         "ban_pick lambda=1 k_min=2 use=token key_experts=4"),
        ("naee", {"beta": 0.5}, "naee beta=0.5 k_min=2"),
        ("naee", {"beta": "median", "k_min": 1}, "naee beta=median k_min=1"),
        ("top_p", {"p": 0.8, "k_min": 2}, "top_p p=0.8 k_min=2"),
        ("top_p", {"p": 0.8, "raw": True}, "top_p p=0.8 k_min=1 raw=True"),
        ("modes", {"tau": 0.2}, "modes tau=0.2 alpha_min=0 k_min=1"),
        ("adapmoe", {"threshold": 0.02}, "adapmoe threshold=0.02 k_min=1"),
        ("pick", {"boost": 1, "key_experts": 4, "k": 3}, "pick boost=1 key_experts=4 k=3"),
        ("diep", {"beta": 0.5}, "diep beta=0.5 alpha=1 k_min=2"),
        ("steer", {"on": {1: [2]}, "off": {0: [3, 1]}}, "steer on=L1E2 off=L0E1+L0E3 epsilon=0.01"),
        ("steer", {"count": 2, "k": 3}, "steer count=2 direction=on epsilon=0.01 k=3"),
        ("rice", {"multiplier": 2, "experts": {0: [1]}}, "rice multiplier=2 experts=L0E1"),
        ("rice", {"multiplier": 2, "count": 2, "k": 3}, "rice multiplier=2 count=2 k=3"),
        ("expert_sample", {"k": 3}, "expert_sample temperature=1 pool_factor=4 seed=0 k=3"),
        ("dynamic_experts", {"ks": [5, 3, 4.0]}, "dynamic_experts ks=3..5"),
        ("rank_k", {"rank": 2.0}, "rank_k rank=2"),
        ("scmoe", {"beta": 1}, "scmoe beta=1 alpha=0.1 weak_rank=2"),
        ("mask", {"experts": {1: [2], 0: [3, 1]}}, "mask experts=L0E1+L0E3+L1E2"),
        ("logit_offset", {"path": offset_file("twos", torch.full((2, 16), 2.0))}, "logit_offset twos f01ace90"),
    )  # fmt: skip

    @pytest.mark.parametrize(("name", "params", "label"), RULES)
    def test_labels_and_a_round_trip_through_json(self, name: str, params: dict, label: str) -> None:
        rule = parse_policy(name, params, SHAPE)
        assert rule.label() == label
        again = json.loads(json.dumps(rule.canonical()))
        assert parse_policy(again.pop("name"), again, SHAPE).canonical() == rule.canonical()

    def test_every_policy_has_a_case(self) -> None:
        assert {name for name, _, _ in self.RULES} == set(POLICIES)

    @pytest.mark.parametrize(
        ("name", "params", "expected"),
        [
            ("none", {}, "ebba39b44fb7cfd7"),
            ("fixed_k", {"k": 3}, "f027d6b4c48d6328"),
            ("pick", {"boost": 1, "key_experts": 3}, "60d61dc6f87d3a21"),
            ("pick", {"mode": "range_replace", "experts": {0: [1]}}, "e3a05050c55b0599"),
            ("ban", {"lambda": 0.85, "k_min": 2}, "0494a69ddc73db5d"),
            ("ban", {"lambda": 0.85, "k_min": 2, "use": "both"}, "0494a69ddc73db5d"),
            ("ban_pick", {"lambda": 0.85, "k_min": 2, "key_experts": 3}, "67eafb3068ffec83"),
            ("naee", {"beta": 0.5, "k_min": 1}, "cfa5fc47e35f9b38"),
            ("top_p", {"p": 0.8, "k_min": 2}, "4e9c90c08927ad66"),
            ("modes", {"tau": 0.2, "alpha_min": 0.5}, "df9387215908c397"),
            ("adapmoe", {"threshold": 0.02}, "11160cccf87d2c64"),
            ("diep", {"beta": 0.5, "k_min": 1}, "3863d36071d34eed"),
            ("steer", {"count": 2, "k": 3}, "b1fa005e72664815"),
            ("rice", {"multiplier": 2, "count": 2}, "1bce80dcf623850c"),
            ("expert_sample", {"k": 3}, "68b0adae452c1177"),
            ("mask", {"experts": {0: [1]}}, "dfe7b138ecfedc50"),
        ],
    )
    def test_golden_fingerprints(self, name: str, params: dict, expected: str) -> None:
        """What a policy puts into its points' fingerprints: changing one makes every finished run of it recompute.

        Raise ROUTING_VERSION only on purpose. (An offset file's path is part of it, and ours is temporary: not here.)
        """
        rule = parse_policy(name, params, SHAPE)
        assert fingerprint({"routing": ROUTING_VERSION, "policy": rule.canonical()}) == expected

    def test_what_the_identity_follows(self) -> None:
        def identity(**params: Any) -> str:
            return fingerprint(parse_policy("pick", params, SHAPE).canonical())

        base = identity(boost=1, key_experts=3)
        assert identity(boost=1.0, key_experts=3.0, range_factor=3) == base, "mode boost does not read the window"
        assert len({base, identity(boost=1.01, key_experts=3), identity(boost=1, key_experts=2)}) == 3
        assert identity(boost=-0.0, key_experts=1) == identity(boost=0, key_experts=1)

    def test_what_the_routing_follows(self) -> None:
        """Of a calibration, only what the rule reads."""
        base = built("pick", boost=1, key_experts=3).digest()
        ignored = {**CALIBRATION, "layer_sensitivity": [1.0, 0.0], "influence": CALIBRATION["influence"][:4]}
        assert built("pick", ignored, boost=1.0, key_experts=3.0, range_factor=3).digest() == base
        other = {**CALIBRATION, "influence": CALIBRATION["influence"][2:]}
        assert built("pick", boost=1.01, key_experts=3).digest() != base
        assert built("pick", other, boost=1, key_experts=3).digest() != base
        assert ban(1, 2).digest() != ban(1, 2, {**CALIBRATION, "r_max": 0.99}).digest()


SEVERAL = {"dynamic_experts", "scmoe"}
"""Rules that are no table."""
ROUTED = [(name, params) for name, params, _ in TestIdentity.RULES if name not in SEVERAL]


class TestRoute:
    @pytest.mark.parametrize(
        ("shape", "layer", "scoring", "message"),
        [
            ((3, 15), 0, "softmax", r"shape \(3, 15\).*16 experts"),
            ((16,), 0, "softmax", r"shape \(16,\)"),
            ((3, 16), 2, "softmax", r"layer=2 is no MoE layer.*0\.\.1"),
            ((3, 16), -1, "softmax", "layer=-1"),
            ((3, 16), 0, "tanh", r"scoring='tanh' is unknown.*softmax or sigmoid"),
        ],
    )
    def test_wrong_calls(self, shape: tuple[int, ...], layer: int, scoring: str, message: str) -> None:
        with pytest.raises(UserError, match=message):
            built("none").route(torch.zeros(shape), layer, scoring=scoring)

    @pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
    @pytest.mark.parametrize(("name", "params"), ROUTED)
    def test_rows_without_any_number(self, name: str, params: dict, scoring: str) -> None:
        logits = torch.tensor([[float("nan")] * 16, [float("-inf")] * 16, [float("inf")] * 16, [0.0] * 16])
        weights, _, kept = built(name, **params).route(logits, 0, scoring=scoring)
        assert weights.isfinite().all() and kept[:, 0].all()
        assert weights[:2].sum() == 0
        assert weights[2:].sum(-1).allclose(torch.ones(2))
