"""The rules beyond the table: against their formulas in plain Python, the rule they must equal, and at their ends."""

import doctest
import importlib
import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from banpick_exp.errors import UserError
from banpick_exp.policy import POLICIES, Calibration, MoeShape, Policy, build_policy, parse_policy
from banpick_exp.policy.experts import as_knob
from banpick_exp.policy.rules.expert_sample import gumbel_noise
from banpick_exp.policy.rules.steer import Steer, SteerEdit
from banpick_exp.sweep.plan import plan_sweep
from banpick_kernels import insertion, reference
from banpick_kernels.layer_hooks import LayerEdit

LAYERS, EXPERTS, TOP_K = 2, 16, 4
SHAPE = MoeShape(num_layers=LAYERS, num_experts=EXPERTS, top_k=TOP_K)
LOGITS = torch.randn(400, EXPERTS, generator=torch.Generator().manual_seed(21)) * 2
SIMILARITY = torch.rand(LAYERS, EXPERTS, EXPERTS, generator=torch.Generator().manual_seed(22), dtype=torch.float64)
CALIBRATION: dict[str, Any] = {
    "contrast": [[0.1, -0.3, 0.2] + [0.0] * 13, [0.4, 0.3, 0.2, 0.1, 0.05, -0.1] + [0.0] * 10],
    "npmi": [[0.1, 0.9] + [0.0] * 14, [-1.0, 0.2, 0.8] + [0.0] * 13],
    "similarity": ((SIMILARITY + SIMILARITY.mT) / 2).tolist(),
    "ratio_median": [0.5, 0.8],
}
MARGIN = 1e-6
"""Tokens this near to a threshold are not compared: float32 may fall on either side."""

EXAMPLES: list[tuple[str, dict[str, Any]]] = [
    ("steer", {"on": {0: [3]}, "off": {1: [2, 7]}}),
    ("steer", {"count": 2}),
    ("rice", {"experts": {0: [3]}, "multiplier": 3}),
    ("rice", {"count": 2, "multiplier": 0.5, "renormalize_after": False, "k": 3}),
    ("expert_sample", {}),
    ("expert_sample", {"k": 3, "seed": 5}),
    ("diep", {"k_min": 1}),
    ("rank_k", {"rank": 2}),
    ("rank_k", {"rank": EXPERTS}),
]
SEVERAL = {"scmoe"}
"""Of several rows, one of which has hooks."""


def built(name: str, calibration: dict[str, Any] | None = CALIBRATION, **params: Any) -> Policy:
    return build_policy(name, params, num_layers=LAYERS, num_experts=EXPERTS, top_k=TOP_K, calibration=calibration)


def assert_routes_alike(one: Policy, other: Policy, scoring: str = "softmax") -> None:
    for layer in range(LAYERS):
        routed = one.route(LOGITS, layer, scoring=scoring), other.route(LOGITS, layer, scoring=scoring)
        for mine, theirs in zip(*routed, strict=True):
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize("module", ["steer", "rice", "expert_sample", "diep"])
def test_the_worked_example(module: str) -> None:
    result = doctest.testmod(importlib.import_module(f"banpick_exp.policy.rules.{module}"))
    assert result.attempted >= 4 and result.failed == 0


class TestMechanism:
    def test_the_example_of_insertion(self) -> None:
        assert doctest.testmod(insertion).attempted >= 3 and doctest.testmod(insertion).failed == 0

    @pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
    def test_an_edit_that_overrides_nothing_changes_nothing(self, scoring: str) -> None:
        calibration = {"layer_sensitivity": [0.0, 1.0], "r_min": 0.6, "r_max": 0.95}
        for policy in (
            built("none"),
            built("naee", beta=0.5, k_min=2),
            built("ban_pick", calibration, **{"lambda": 1.0, "k_min": 1, "experts": {0: [3, 4]}}),
        ):
            table, slots = policy.table.layer(0), policy.slots
            routed = reference.route(LOGITS, table, TOP_K, slots, True, scoring, edit=LayerEdit())
            for mine, theirs in zip(routed, policy.route(LOGITS, 0, scoring=scoring), strict=True):
                assert torch.equal(mine, theirs)

    def test_what_both_the_table_and_the_edit_keep_stays_and_the_floor_holds(self) -> None:
        class Keep(LayerEdit):
            def keep(self, share_TK: torch.Tensor, ids_TK: torch.Tensor) -> torch.Tensor:
                assert share_TK.sum(-1).allclose(torch.ones(len(ids_TK)))
                return torch.tensor([False, False, True, True]).expand(ids_TK.shape)

        def ranks(edit: LayerEdit) -> set[tuple[int, ...]]:
            _, ids, kept = reference.route(LOGITS, table.layer(0), TOP_K, TOP_K, True, edit=edit)
            place_TE = LOGITS.argsort(-1, descending=True).argsort(-1)
            found = place_TE.gather(1, ids.long())
            return {tuple(row[stays].tolist()) for row, stays in zip(found, kept, strict=True)}

        table = built("none").table
        assert ranks(Keep()) == {(0, 2, 3)}, "the best one always stays"
        table.keep[0] = 3
        assert ranks(Keep()) == {(0, 2)} and ranks(LayerEdit()) == {(0, 1, 2)}
        table.floor[0] = 2
        assert ranks(Keep()) == {(0, 1, 2)}
        table.keep[0] = 1
        assert ranks(Keep()) == {(0,)}

    def test_a_key_expert_that_an_edit_dropped_comes_back(self) -> None:
        class Best(LayerEdit):
            def keep(self, share_TK: torch.Tensor, ids_TK: torch.Tensor) -> torch.Tensor:
                return torch.zeros(ids_TK.shape, dtype=torch.bool)

        policy = built("pick", mode="force_add", experts={0: [3]})
        _, ids, kept = reference.route(LOGITS, policy.table.layer(0), TOP_K, TOP_K + 1, True, edit=Best())
        for best, row, stays in zip(LOGITS.argmax(-1).tolist(), ids, kept, strict=True):
            assert row[stays].tolist() == ([3] if best == 3 else [best, 3])

    @pytest.mark.parametrize(("name", "params"), EXAMPLES)
    def test_ranks_can_be_compared(self, name: str, params: dict[str, Any]) -> None:
        policy, again = built(name, **params), built(name, **params)
        assert policy.edits is not None and policy.rule.in_torch
        assert policy.digest() == again.digest() != policy.table.digest()
        assert built("none").digest() == built("none").table.digest()
        for edit in filter(None, policy.edits):
            assert edit.to("cpu").digest() == edit.digest() != LayerEdit().digest()
            assert set(edit.to("meta").tensors()) == set(edit.tensors())
            assert all(value.device.type == "meta" for value in edit.to("meta").tensors().values())

    def test_a_digest_follows_every_number_and_tensor(self) -> None:
        on, off = torch.zeros(4, dtype=torch.bool), torch.ones(4, dtype=torch.bool)
        edits = [SteerEdit(on_E=on, off_E=off, epsilon=0.01), SteerEdit(on_E=off, off_E=on, epsilon=0.01)]
        edits.append(SteerEdit(on_E=on, off_E=off, epsilon=0.02))
        assert len({edit.digest() for edit in edits}) == 3
        digests = [built("expert_sample", seed=seed).digest() for seed in range(3)]
        assert len(set(digests)) == 3

    @pytest.mark.parametrize(("name", "params"), EXAMPLES)
    def test_each_token_is_routed_by_its_own_row(self, name: str, params: dict[str, Any]) -> None:
        policy, shuffled = built(name, **params), torch.randperm(len(LOGITS))
        for whole, part, one in zip(
            policy.route(LOGITS, 1), policy.route(LOGITS[shuffled], 1), policy.route(LOGITS[7:8], 1), strict=True
        ):
            assert torch.equal(whole[shuffled], part) and torch.equal(whole[7:8], one)
        assert [part.shape[0] for part in policy.route(LOGITS[:0], 1)] == [0, 0, 0]

    @pytest.mark.parametrize(("name", "params"), EXAMPLES)
    @pytest.mark.parametrize("spare", [0, 2])
    def test_slots_hold_distinct_experts_first_and_then_the_filler(
        self, name: str, params: dict[str, Any], spare: int
    ) -> None:
        policy = built(name, **params)
        assert policy.edits is not None
        for layer, edit in enumerate(policy.edits):
            weights, ids, kept = reference.route(
                LOGITS, policy.table.layer(layer), TOP_K, TOP_K + spare, True, edit=edit
            )
            assert torch.equal(kept, kept.sort(-1, descending=True).values)
            for row, used in zip(ids.tolist(), kept.sum(-1).tolist(), strict=True):
                assert len(set(row[:used])) == used and set(row[used:]) <= {row[0]}
            assert (weights[~kept] == 0).all()
            low, high = policy.budget
            assert low <= kept.sum(-1).float().mean() <= high

    def test_a_compiled_engine_on_a_gpu_is_refused_while_planning(self) -> None:
        command = [
            "policy=steer",
            "policy.on={0:[3]}",
            "model=qwen3_30b_a3b",
            "task=tiny",
            "engine=cuda",
            "dry_run=true",
        ]
        with pytest.raises(UserError, match=r"policy=steer routes in torch.*Type engine.compile=false"):
            plan_sweep(command)
        plan = plan_sweep([*command, "engine.compile=false"])
        assert [point.rule.name for point in plan.points] == ["none", "steer"]

    def test_only_rules_that_say_so_have_hooks(self) -> None:
        assert {name for name, rule in POLICIES.items() if rule.in_torch} == {name for name, _ in EXAMPLES} | SEVERAL


class TestSteer:
    @pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
    @pytest.mark.parametrize("off", [[expert] for expert in range(EXPERTS)] + [[0, 5, 9], list(range(12))])
    def test_off_is_mask(self, off: list[int], scoring: str) -> None:
        steered = built("steer", off={1: off}).route(LOGITS, 1, scoring=scoring)
        masked = built("mask", experts={1: off}).route(LOGITS, 1, scoring=scoring)
        assert torch.equal(steered[1], masked[1])
        assert (steered[0] - masked[0]).abs().max() < 1e-6

    @given(
        steps=st.lists(st.integers(-12, 12), min_size=8, max_size=8),
        on=st.sets(st.integers(0, 3), max_size=3),
        off=st.sets(st.integers(4, 7), max_size=3),
        epsilon=st.sampled_from([0.01, 0.1, 2.0]),
    )
    @settings(max_examples=60, deadline=None, derandomize=True, database=None)
    def test_against_the_paper_written_out(self, steps: list[int], on: set[int], off: set[int], epsilon: float) -> None:
        named = {knob: {0: sorted(ids)} for knob, ids in (("on", on), ("off", off)) if ids}
        if not named:
            return
        policy = build_policy("steer", named | {"epsilon": epsilon}, num_layers=1, num_experts=8, top_k=3)
        logits = [step / 4 for step in steps]
        total = math.log(sum(math.exp(z) for z in logits))
        scores = [z - total for z in logits]
        high, low = max(scores), min(scores)
        for expert in range(8):
            scores[expert] = high + epsilon if expert in on else low - epsilon if expert in off else scores[expert]
        best = sorted(range(8), key=lambda e: (-scores[e] if e not in on else -high - epsilon, e))[:3]
        weights, ids, _ = policy.route(torch.tensor([logits]), 0)
        if len({steps[e] for e in range(8) if e not in on | off}) == 8 - len(on | off):  # else rounding may order ties
            assert ids[0].tolist() == best
        share = sum(math.exp(scores[e]) for e in best)
        assert weights[0].tolist() == pytest.approx([math.exp(scores[e]) / share for e in best], abs=1e-5)

    def test_what_is_on_comes_first_by_id_and_other_layers_stay_stock(self) -> None:
        policy, stock = built("steer", on={1: [9, 2, 14]}), built("none")
        assert policy.edits is not None and policy.edits[0] is None
        ids = policy.route(LOGITS, 1)[1]
        assert (ids[:, :3] == torch.tensor([2, 9, 14])).all()
        assert torch.equal(policy.route(LOGITS, 0)[0], stock.route(LOGITS, 0)[0])
        assert (built("steer", on={1: [9, 2, 14]}, k=3).route(LOGITS, 1)[1][:, :3] == ids[:, :3]).all()

    def test_a_budget(self) -> None:
        policy = built("steer", on={0: [1]}, k=2)
        assert policy.budget == (2, 2) and policy.max_kept == 2
        assert (policy.route(LOGITS, 0)[2].sum(-1) == 2).all()
        assert "k" not in built("steer", on={0: [1]}).rule.canonical()

    def test_the_calibration_names_the_experts(self) -> None:
        def named(**params: Any) -> dict[str, object]:
            rule = parse_policy("steer", params, SHAPE)
            assert isinstance(rule, Steer)
            return {key: as_knob(experts) for key, experts in rule.steered(SHAPE, Calibration.of(CALIBRATION)).items()}

        assert named(count=3) == {"on": {"0": [2], "1": [0, 1]}, "off": {}}
        assert named(count=5, k=3) == {"on": {"0": [0, 2], "1": [0, 1, 2]}, "off": {}}, "no more than k of one layer"
        assert named(count=2, direction="off") == {"on": {}, "off": {"0": [1], "1": [5]}}
        assert_routes_alike(built("steer", count=3), built("steer", on={0: [2], 1: [0, 1]}))
        with pytest.raises(UserError, match=r"count=3, but the calibration has only 2 experts that qualify"):
            named(count=3, direction="off")
        base, other = built("steer", count=2).digest(), {**CALIBRATION, "contrast": [[0.5] * 16, [0.0] * 16]}
        assert built("steer", other, count=2).digest() != base
        assert built("steer", {**CALIBRATION, "npmi": None}, count=2).digest() == base


class TestRice:
    @pytest.mark.parametrize("renormalize", [True, False])
    @pytest.mark.parametrize("after", [True, False])
    def test_the_weights(self, after: bool, renormalize: bool) -> None:
        policy, stock = built("rice", multiplier=4, experts={1: [3, 5]}, renormalize_after=after), built("none")
        weights, ids, _ = policy.route(LOGITS, 1, renormalize=renormalize)
        plain, same_ids, _ = stock.route(LOGITS, 1, renormalize=renormalize)
        assert torch.equal(ids, same_ids)
        expected = plain * torch.where((ids == 3) | (ids == 5), 4.0, 1.0)
        if renormalize and after:
            expected = expected / expected.sum(-1, keepdim=True)
        assert weights.allclose(expected, atol=1e-6) and not weights.allclose(plain)
        assert torch.equal(policy.route(LOGITS, 0)[0], stock.route(LOGITS, 0)[0])

    def test_1_is_stock_and_needs_no_calibration(self) -> None:
        policy = built("rice", None, multiplier=1, count=2)
        assert policy.edits is None and not policy.rule.needs_calibration()
        assert_routes_alike(policy, built("none"))

    def test_the_knob_about_renormalising_is_part_of_the_name_where_it_is_off(self) -> None:
        last = parse_policy("rice", {"multiplier": 2, "count": 2, "renormalize_after": False}, SHAPE)
        assert last.label() == "rice multiplier=2 count=2 renormalize_after=False"
        again = last.canonical()
        assert parse_policy(str(again.pop("name")), again, SHAPE) == last
        assert built("rice", multiplier=2, count=2, renormalize_after=True).rule.label() == "rice multiplier=2 count=2"

    def test_the_calibration_names_the_experts(self) -> None:
        policy, named = built("rice", multiplier=2, count=2), built("rice", multiplier=2, experts={0: [1], 1: [2]})
        assert policy.digest() == named.digest()
        assert_routes_alike(policy, named)

    def test_a_budget(self) -> None:
        policy, fixed = built("rice", multiplier=2, experts={0: [1]}, k=2), built("fixed_k", k=2)
        assert policy.budget == (2, 2)
        assert torch.equal(policy.route(LOGITS, 0)[1], fixed.route(LOGITS, 0)[1])


class TestExpertSample:
    @pytest.mark.parametrize("k", [1, 2, 3, 4])
    def test_without_noise_it_is_fixed_k(self, k: int) -> None:
        assert_routes_alike(built("expert_sample", temperature=0, k=k), built("fixed_k", k=k))
        assert_routes_alike(built("expert_sample", pool_factor=1, k=k), built("fixed_k", k=k))
        assert built("expert_sample", k=k).budget == (k, k)
        assert (built("expert_sample", k=k).edits is None) == (k <= 2), "1 and 2 are all head"

    def test_the_head_stays_and_the_tail_comes_from_the_pool(self) -> None:
        shape: dict[str, Any] = {"num_layers": 1, "num_experts": 64, "top_k": 8}
        logits = torch.randn(500, 64, generator=torch.Generator().manual_seed(5))
        ranking = logits.argsort(dim=-1, descending=True)
        ids = build_policy("expert_sample", {}, **shape).route(logits, 0)[1].long()
        rank = ranking.argsort(-1).gather(1, ids)
        assert torch.equal(rank[:, :5], torch.arange(5).expand(500, 5)), "floor(8 / 2) + 1"
        assert (rank[:, 5:] >= 5).all() and rank.max() == 31, "4 * 8"
        assert (rank.diff(dim=-1) > 0).all(), "best first, none twice"
        narrow = build_policy("expert_sample", {"pool_factor": 1.25}, **shape).route(logits, 0)[1].long()
        assert ranking.argsort(-1).gather(1, narrow).max() == 9

    def test_seeds_layers_and_tokens_draw_apart_and_reruns_alike(self) -> None:
        assert_routes_alike(built("expert_sample", seed=3), built("expert_sample", seed=3))
        first, second = built("expert_sample", seed=0), built("expert_sample", seed=1)
        assert 0.2 < (first.route(LOGITS, 0)[1] != second.route(LOGITS, 0)[1]).any(-1).float().mean() < 0.95
        assert (first.route(LOGITS, 0)[1] != first.route(LOGITS, 1)[1]).any()
        minus = LOGITS.clone()
        minus[:, 15] = -0.0
        plus = minus.clone()
        plus[:, 15] = 0.0
        assert torch.equal(first.route(minus, 0)[1], first.route(plus, 0)[1]), "equal logits are one token state"

    def test_one_draw_follows_the_softmax_of_the_pool(self) -> None:
        """The last logit, far outside the pool, makes each row another token state; k = 3 draws one expert."""
        top = torch.tensor([6.0, 5.0, 2.0, 1.5, 1.0, 0.5, 0.0, -0.5, -1.0, -1.5, -2.0, -2.5])
        rows = 10_000
        logits = torch.cat([top.expand(rows, 12), -30 - torch.arange(rows)[:, None] / 1024], dim=-1)
        policy = build_policy("expert_sample", {"k": 3, "pool_factor": 4}, num_layers=1, num_experts=13, top_k=3)
        drawn = policy.route(logits, 0)[1][:, 2].long().bincount(minlength=13)
        expected = torch.cat([torch.zeros(2), top[2:].softmax(-1), torch.zeros(1)])
        assert (drawn / rows - expected).abs().max() < 4 * math.sqrt(0.25 / rows)
        flat = build_policy("expert_sample", {"k": 3, "temperature": 100}, num_layers=1, num_experts=13, top_k=3)
        even = flat.route(logits, 0)[1][:, 2].long().bincount(minlength=13)[2:12] / rows
        assert (even - 0.1).abs().max() < 0.02

    def test_the_noise_is_gumbel_and_independent(self) -> None:
        logits = torch.randn(20_000, 16, generator=torch.Generator().manual_seed(6))
        noise, other = gumbel_noise(logits, 0, 0), gumbel_noise(logits, 1, 0)
        assert noise.isfinite().all()
        assert noise.mean().item() == pytest.approx(0.5772, abs=0.01)
        assert noise.var().item() == pytest.approx(math.pi**2 / 6, abs=0.03)
        assert torch.corrcoef(noise.T).fill_diagonal_(0).abs().max() < 0.05
        assert torch.corrcoef(torch.stack([noise.flatten(), other.flatten()]))[0, 1].abs() < 0.01


class TestDiep:
    """The published form is held against its formula in test_as_published.py; here what is ours, and the ends."""

    @given(
        beta=st.integers(0, 30).map(lambda step: step / 20),
        k_min=st.integers(1, TOP_K),
        scoring=st.sampled_from(["softmax", "sigmoid"]),
        spread=st.sampled_from([0.1, 1.0, 4.0]),
    )
    @settings(max_examples=20, deadline=None, derandomize=True, database=None)
    def test_alpha_0_is_naee(self, beta: float, k_min: int, scoring: str, spread: float) -> None:
        diep = built("diep", {"ratio_median": [0.5] * LAYERS}, beta=beta, alpha=0, k_min=k_min)
        naee = built("naee", beta=beta * 0.5, k_min=k_min)
        for mine, theirs in zip(
            diep.route(LOGITS * spread, 0, scoring=scoring),
            naee.route(LOGITS * spread, 0, scoring=scoring),
            strict=True,
        ):
            assert torch.equal(mine, theirs)

    def test_alpha_counts_similarity_the_more_the_higher(self) -> None:
        policy, compared = built("diep", beta=0.7, alpha=0.5, k_min=1), 0
        similarity_EE = torch.tensor(CALIBRATION["similarity"][1], dtype=torch.float64)
        mean = (similarity_EE.sum() - similarity_EE.trace()) / (EXPERTS * (EXPERTS - 1))
        _, ids, kept = policy.route(LOGITS, 1)
        for token, logits in enumerate(LOGITS.double().tolist()):
            best = sorted(range(EXPERTS), key=lambda expert: -logits[expert])[:TOP_K]
            weights = [math.exp(logits[expert]) for expert in best]
            likeness = [float(similarity_EE[best[0], expert] / mean) for expert in best]
            needed = [weights[0] * 0.7 * 0.8 * each**0.5 for each in likeness]
            if any(abs(w - n) < MARGIN * w for w, n in zip(weights[1:], needed[1:], strict=True)):
                continue
            stays = [rank == 0 or w >= n for rank, (w, n) in enumerate(zip(weights, needed, strict=True))]
            assert ids[token][kept[token]].tolist() == [best[rank] for rank in range(TOP_K) if stays[rank]]
            compared += 1
        assert compared > 390

    def test_unlike_experts_are_kept(self) -> None:
        pair = torch.eye(EXPERTS)
        pair[0, 1] = pair[1, 0] = 1.0  # all others are as unlike as can be
        policy = built("diep", {**CALIBRATION, "similarity": pair.expand(LAYERS, -1, -1).tolist()}, k_min=1)
        kept = policy.route(LOGITS, 0)[2]
        stock = built("none").route(LOGITS, 0)[1]
        both = ((stock == 0).any(-1) & (stock == 1).any(-1)) & (stock[:, 0] <= 1)
        assert both.any() and torch.equal(kept.sum(-1) < TOP_K, both)

    def test_the_ends_of_its_knobs(self) -> None:
        assert_routes_alike(built("diep", None, beta=0), built("none"))
        assert not parse_policy("diep", {"beta": 0}, SHAPE).needs_calibration()
        assert_routes_alike(built("diep", beta=1000, k_min=2), built("fixed_k", k=2))
        assert_routes_alike(built("diep", None, k_min=TOP_K), built("none"))
        assert built("diep", k_min=3).budget == (3, TOP_K)

    def test_the_routing_follows_the_similarity(self) -> None:
        base = built("diep").digest()
        changed = {**CALIBRATION, "similarity": (SIMILARITY**2).tolist()}
        assert built("diep", changed).digest() != base
        assert built("diep", {**CALIBRATION, "npmi": None}).digest() == base
        assert built("diep", changed, alpha=0).digest() == built("diep", alpha=0).digest() != base


class TestPickAtABudget:
    LOGITS = LOGITS

    def test_without_insertion_it_is_fixed_k(self) -> None:
        assert_routes_alike(built("pick", boost=0, experts={0: [3]}, k=2), built("fixed_k", k=2))

    def test_insertion_comes_after_the_cut(self) -> None:
        policy = built("pick", mode="force_add", experts={0: [3], 1: [3, 4]}, k=2)
        assert policy.budget == (2, 3.5) and policy.max_kept == 4
        counts = [policy.route(LOGITS, layer)[2].sum(-1) for layer in range(LAYERS)]
        assert counts[0].max() == 3 and counts[1].max() == 4
        top = built("fixed_k", k=2).route(LOGITS, 0)[1][:, :2]
        assert torch.equal(counts[0] == 2, (top == 3).any(-1))
        replaced = built("pick", mode="force_replace", experts={0: [3]}, k=2)
        assert replaced.budget == (2, 2) and (replaced.route(LOGITS, 0)[2].sum(-1) == 2).all()

    def test_what_had_no_k_keeps_its_name(self) -> None:
        assert "k" not in parse_policy("pick", {"boost": 1, "key_experts": 2}, SHAPE).canonical()
        with pytest.raises(UserError, match=r"policy.k=9 exceeds top_k=4"):
            parse_policy("pick", {"boost": 1, "key_experts": 2, "k": 9}, SHAPE)
        with pytest.raises(UserError, match=r"policy.k is unknown"):
            parse_policy("ban_pick", {"lambda": 1, "k_min": 2, "key_experts": 2, "k": 3}, SHAPE)


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("steer", {}, "policy=steer has no experts: nothing would change. Type policy.count=4"),
        ("steer", {"count": 0}, "policy=steer has count=0: nothing would change"),
        ("steer", {"on": {2: [0]}}, "policy.on names layer 2, but this checkpoint has 2 MoE layers"),
        ("steer", {"off": {0: list(range(13))}}, "policy.off masks 13 of the 16 experts of layer 0"),
        ("steer", {"on": {0: list(range(5))}}, "policy.on names 5 experts of layer 0, but a token keeps 4"),
        ("steer", {"on": {0: [1, 2, 3]}, "k": 2}, "policy.on names 3 experts of layer 0, but a token keeps 2"),
        ("steer", {"on": {0: [1]}, "off": {0: [1, 2]}}, "policy=steer switches expert 1 of layer 0 both on and off"),
        ("steer", {"on": {0: [1]}, "epsilon": 0}, "policy.epsilon=0 is outside (0, 20]"),
        ("steer", {"count": 2, "direction": "of"}, "policy.direction='of' is unknown. Did you mean off?"),
        ("steer", {"on": {0: [1]}, "k": 5}, "policy.k=5 exceeds top_k=4"),
        ("rice", {"experts": {0: [1]}}, "policy.multiplier is missing"),
        ("rice", {"multiplier": 2}, "policy=rice has no experts: nothing would change. Type policy.count=2"),
        ("rice", {"multiplier": 0, "count": 2}, "policy.multiplier=0 is outside (0, 1000]: it removes the expert"),
        ("rice", {"multiplier": 2, "experts": {0: [16]}}, "policy.experts names expert 16 of layer 0"),
        ("expert_sample", {"temperature": -1}, "policy.temperature=-1 is outside [0, 100]"),
        ("expert_sample", {"pool_factor": 0.5}, "policy.pool_factor=0.5 is below 1"),
        ("expert_sample", {"seed": -1}, "policy.seed=-1 is outside [0, 2147483647]"),
        ("expert_sample", {"k": 5}, "policy.k=5 exceeds top_k=4"),
        ("diep", {"beta": -1}, "policy.beta=-1 is outside [0, 1000]: 0 keeps every expert already. Use for example"),
        ("diep", {"beta": 1001}, "policy.beta=1001 is outside [0, 1000]: none beyond k_min would stay"),
        ("diep", {"beta": 0.5, "alpha": -1}, "policy.alpha=-1 is outside [0, 20]"),
        ("diep", {"beta": 0.5, "k_min": 5}, "policy.k_min=5 exceeds top_k=4"),
    ],
)
def test_the_message(name: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as raised:
        parse_policy(name, params, SHAPE)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("name", "params", "key"),
    [
        ("steer", {"count": 1}, "contrast"),
        ("rice", {"count": 1, "multiplier": 2}, "npmi"),
        ("diep", {}, "ratio_median"),
    ],
)
def test_a_calibration_without_what_is_needed(name: str, params: dict[str, Any], key: str) -> None:
    assert parse_policy(name, params, SHAPE).needs_calibration()
    with pytest.raises(UserError, match=f"policy={name} cannot start: it needs a calibration"):
        built(name, None, **params)
    with pytest.raises(UserError, match=f"the calibration has no {key}"):
        built(name, {}, **params)


def test_a_larger_pool_or_temperature_moves_the_draw_further_down() -> None:
    def mean_rank(**params: Any) -> float:
        ids = built("expert_sample", **params).route(LOGITS, 0)[1].long()
        return LOGITS.argsort(-1, descending=True).argsort(-1).gather(1, ids).float().mean().item()

    temperatures = [mean_rank(temperature=value) for value in (0.0, 0.5, 1.0, 4.0)]
    assert all(lower < higher for lower, higher in pairwise(temperatures))
    assert mean_rank(temperature=4.0, pool_factor=2) < mean_rank(temperature=4.0)
