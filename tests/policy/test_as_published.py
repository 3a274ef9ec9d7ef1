"""Rivals as their papers have them, each against the formula written once more in numpy, one token at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from banpick_exp.errors import UserError
from banpick_exp.policy import MoeShape, Policy, build_policy, parse_policy
from banpick_exp.sweep.compose import Composer

LAYERS, EXPERTS, TOP_K = 3, 12, 6
SHAPE = MoeShape(num_layers=LAYERS, num_experts=EXPERTS, top_k=TOP_K)
NEAR = 1e-5
"""Tokens with a comparison this close are left out: float32 may fall on either side."""


def calibration_of(rng: np.random.Generator) -> dict[str, Any]:
    """Made up: any symmetric similarity, any medians, any KLs, over decades."""
    similarity_LEE = rng.uniform(0, 1, (LAYERS, EXPERTS, EXPERTS)) ** 2
    similarity_LEE = (similarity_LEE + similarity_LEE.swapaxes(1, 2)) / 2
    similarity_LEE[:, range(EXPERTS), range(EXPERTS)] = 1
    return {
        "similarity": similarity_LEE.tolist(),
        "ratio_median": rng.uniform(0.3, 1, LAYERS).tolist(),
        "skip_kl": (10 ** rng.uniform(-2, 1, LAYERS)).tolist(),
    }


def built(name: str, calibration: dict[str, Any] | None, **knobs: Any) -> Policy:
    return build_policy(name, knobs, num_layers=LAYERS, num_experts=EXPERTS, top_k=TOP_K, calibration=calibration)


def stays_by_formula(
    name: str, knobs: dict[str, Any], found: dict[str, Any], layer: int, score_E: np.ndarray, best: list[int]
) -> tuple[list[bool], bool]:
    """Of each rank, whether the published formula lets it stay; and whether some comparison is too close to tell."""
    w = score_E[best]
    if name == "top_p":
        total = score_E.sum() if knobs.get("raw") else w.sum()
        before = [w[:rank].sum() / total for rank in range(TOP_K)]
        return [held < knobs["p"] for held in before], any(abs(held - knobs["p"]) < NEAR for held in before)
    if name == "modes":
        alpha = found["skip_kl"][layer] / max(found["skip_kl"])
        have, need = [alpha * each / w.sum() for each in w], [knobs["tau"]] * TOP_K
    elif name == "naee":
        have, need = list(w), [w[0] * found["ratio_median"][layer]] * TOP_K
    else:
        cka = found["similarity"][layer]
        pairs = [cka[a][b] for a in range(EXPERTS) for b in range(EXPERTS) if a < b]
        gamma1 = found["ratio_median"][layer]
        need = [w[0] * gamma1 * cka[best[0]][expert] / (sum(pairs) / len(pairs)) for expert in best]
        have = list(w)
    close = any(abs(h - n) < NEAR * max(h, n) for h, n in zip(have[1:], need[1:], strict=True))
    return [h >= n for h, n in zip(have, need, strict=True)], close


PUBLISHED: list[tuple[str, dict[str, Any]]] = [
    ("diep", {}),
    ("diep", {"k_min": 1}),
    ("naee", {"beta": "median"}),
    ("naee", {"beta": "median", "k_min": 1}),
    ("modes", {"tau": 0.05}),
    ("modes", {"tau": 0.002, "k_min": 2}),
    ("top_p", {"p": 0.6}),
    ("top_p", {"p": 0.6, "raw": True}),
    ("top_p", {"p": 0.4, "raw": True, "k_min": 2}),
]
FLOORS = {"diep": 2, "naee": 2, "modes": 1, "top_p": 1}
"""Where k_min is not typed."""


@given(
    case=st.sampled_from(PUBLISHED),
    seed=st.integers(0, 2**32 - 1),
    layer=st.integers(0, LAYERS - 1),
    spread=st.sampled_from([0.3, 1.0, 3.0]),
    sigmoid=st.booleans(),
)
@settings(max_examples=120, deadline=None, derandomize=True, database=None)
def test_against_the_formula(
    case: tuple[str, dict[str, Any]], seed: int, layer: int, spread: float, sigmoid: bool
) -> None:
    name, knobs = case
    rng = np.random.default_rng(seed)
    found = calibration_of(rng)
    logits = torch.from_numpy(rng.normal(size=(40, EXPERTS)) * spread).float()
    scoring = "sigmoid" if sigmoid and not knobs.get("raw") else "softmax"
    weights, ids, kept = built(name, found, **knobs).route(logits, layer, scoring=scoring)
    compared = 0
    for token, logit_E in enumerate(logits.double().numpy()):
        score_E = 1 / (1 + np.exp(-logit_E)) if scoring == "sigmoid" else np.exp(logit_E) / np.exp(logit_E).sum()
        best = sorted(range(EXPERTS), key=lambda expert: -logit_E[expert])[:TOP_K]
        stays, close = stays_by_formula(name, knobs, found, layer, score_E, best)
        if close:
            continue
        floor = knobs.get("k_min", FLOORS[name])
        expected = [expert for rank, expert in enumerate(best) if stays[rank] or rank < floor]
        count = int(kept[token].sum())
        assert ids[token, :count].tolist() == expected and kept[token, :count].all()
        assert set(ids[token, count:].tolist()) <= {best[0]} and (weights[token, count:] == 0).all()
        share = score_E[expected] / score_E[expected].sum()
        assert weights[token, :count].numpy() == pytest.approx(share, abs=1e-5)
        compared += 1
    assert compared >= 35


LOGITS = torch.randn(300, EXPERTS, generator=torch.Generator().manual_seed(31)) * 2
FOUND = calibration_of(np.random.default_rng(7))


def assert_routes_alike(one: Policy, other: Policy, scoring: str = "softmax") -> None:
    for layer in range(LAYERS):
        routed = one.route(LOGITS, layer, scoring=scoring), other.route(LOGITS, layer, scoring=scoring)
        for mine, theirs in zip(*routed, strict=True):
            assert torch.equal(mine, theirs)


class TestDiep:
    def test_a_token_by_hand(self) -> None:
        """w = 0.4, 0.3, 0.2, 0.1; mean CKA of the six pairs and median are 0.5: limits are CKA(e1, ei) * w_1."""
        similarity = np.full((4, 4), 0.5)
        similarity[0, 1:] = similarity[1:, 0] = [0.8, 0.4, 0.3]
        similarity[3, 1:3] = similarity[1:3, 3] = 0.5
        similarity[1, 2] = similarity[2, 1] = 0.5
        similarity[range(4), range(4)] = 1
        assert similarity[np.triu_indices(4, 1)].mean() == pytest.approx(0.5)
        found = {"similarity": [similarity.tolist()], "ratio_median": [0.5]}
        logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()

        def kept(**knobs: Any) -> list[int]:
            policy = build_policy("diep", knobs, num_layers=1, num_experts=4, top_k=4, calibration=found)
            _, ids, kept = policy.route(logits, 0)
            return list(ids[kept].tolist())

        # Limits 0.32, 0.16, 0.12: expert 1 (0.3) falls, 2 (0.2) stays, 3 (0.1) falls.
        assert kept(k_min=1) == [0, 2] and kept() == [0, 1, 2] and kept(k_min=3) == [0, 1, 2]
        assert kept(k_min=1, beta=0.5) == [0, 1, 2, 3] and kept(k_min=1, beta=2) == [0]

    def test_ranks_fall_independently(self) -> None:
        policy = built("diep", FOUND, k_min=1)
        gaps = 0
        for logit_E, ids, kept in zip(LOGITS, *policy.route(LOGITS, 1)[1:], strict=True):
            ranking = logit_E.argsort(descending=True).tolist()
            ranks = [ranking.index(expert) for expert in ids[kept].tolist()]
            assert ranks == sorted(ranks) and ranks[0] == 0
            gaps += ranks != list(range(len(ranks)))
        assert gaps > 50, "a prefix would pass what follows"

    @pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
    @pytest.mark.parametrize("k_min", [1, 2, TOP_K])
    def test_without_similarity_it_is_naee_by_the_medians(self, k_min: int, scoring: str) -> None:
        naee = built("naee", {"ratio_median": FOUND["ratio_median"]}, beta="median", k_min=k_min)
        assert_routes_alike(built("diep", FOUND, alpha=0, k_min=k_min), naee, scoring)
        for alike in (0.0, 0.4, 1.0):  # experts that are all equally alike, each one to itself apart
            similarity = np.full((LAYERS, EXPERTS, EXPERTS), alike)
            similarity[:, range(EXPERTS), range(EXPERTS)] = 1
            even = {**FOUND, "similarity": similarity.tolist()}
            assert_routes_alike(built("diep", even, k_min=k_min), naee, scoring)

    def test_without_similarity_none_is_read(self) -> None:
        half = {"ratio_median": [0.5] * LAYERS}
        assert_routes_alike(built("diep", half, alpha=0, beta=0.8), built("naee", None, beta=0.4))

    def test_more_beta_keeps_no_expert_that_less_beta_drops(self) -> None:
        before = torch.ones(len(LOGITS), EXPERTS, dtype=torch.bool)
        for beta in (0.01, 0.1, 0.5, 1, 2, 10, 1000):
            _, ids, kept = built("diep", FOUND, beta=beta).route(LOGITS, 0)
            now = torch.zeros(before.shape, dtype=torch.long).scatter_add(1, ids.long(), kept.long()) > 0
            assert not (now & ~before).any()
            before = now
        assert (before.sum(-1) == 2).all(), "at the end of the knob there is the floor"

    def test_what_it_reads(self) -> None:
        base = built("diep", FOUND).digest()
        assert built("diep", {**FOUND, "skip_kl": None}).digest() == base
        assert built("diep", {**FOUND, "ratio_median": [0.5] * LAYERS}).digest() != base
        with pytest.raises(UserError, match="the calibration has no ratio_median"):
            built("diep", {**FOUND, "ratio_median": None})
        with pytest.raises(UserError, match="the calibration has no similarity"):
            built("diep", {**FOUND, "similarity": None})


class TestNaee:
    def test_a_median_of_its_own_for_each_layer(self) -> None:
        policy = built("naee", {"ratio_median": [0.25, 0.5, 1.0]}, beta="median", k_min=1)
        assert policy.table.min_ratio[0].tolist() == [0.25, 0.5, 1.0]
        for layer, beta in enumerate([0.25, 0.5, 1.0]):
            alone = built("naee", None, beta=beta, k_min=1)
            for mine, theirs in zip(policy.route(LOGITS, layer), alone.route(LOGITS, layer), strict=True):
                assert torch.equal(mine, theirs)

    def test_only_the_median_needs_a_calibration(self) -> None:
        median = parse_policy("naee", {"beta": "median"}, SHAPE)
        assert median.needs_calibration() and not parse_policy("naee", {"beta": 0.5}, SHAPE).needs_calibration()
        assert median.label() == "naee beta=median k_min=2"
        assert median.canonical() == {"name": "naee", "beta": "median", "k_min": 2}
        with pytest.raises(UserError, match="policy=naee cannot start: it needs a calibration"):
            built("naee", None, beta="median")
        with pytest.raises(UserError, match=r"ratio_median=\[1.5, 0.5, 0.5\], outside 0 to 1"):
            built("naee", {"ratio_median": [1.5, 0.5, 0.5]}, beta="median")


class TestModes:
    def test_a_factor_of_all_layers_changes_nothing(self) -> None:
        tenfold = {"skip_kl": [10 * value for value in FOUND["skip_kl"]]}
        assert_routes_alike(built("modes", FOUND, tau=0.03), built("modes", tenfold, tau=0.03))
        assert built("modes", {**FOUND, "layer_sensitivity": [0, 1, 0]}, tau=0.03).digest() == (
            built("modes", FOUND, tau=0.03).digest()
        )

    def test_a_layer_that_may_be_skipped_keeps_the_floor(self) -> None:
        policy = built("modes", {"skip_kl": [0.0, 1.0, 2.0]}, tau=1e-6, k_min=2)
        assert [policy.route(LOGITS, layer)[2].sum(-1).max() for layer in range(LAYERS)] == [2, TOP_K, TOP_K]

    def test_layers_that_all_may_be_skipped_are_no_order(self) -> None:
        with pytest.raises(UserError, match="skip_kl is 0 in every layer"):
            built("modes", {"skip_kl": [0.0] * LAYERS}, tau=0.1)


class TestTopP:
    def test_raw_mass_keeps_at_least_as_many(self) -> None:
        for p in (0.2, 0.5, 0.8):
            divided, raw = (built("top_p", None, p=p, raw=raw).route(LOGITS, 0)[2].sum(-1) for raw in (False, True))
            assert (raw >= divided).all() and (raw > divided).any()

    def test_where_the_selection_is_all_there_is_both_are_one(self) -> None:
        shape: dict[str, Any] = {"num_layers": 1, "num_experts": EXPERTS, "top_k": EXPERTS}
        counts = [
            build_policy("top_p", {"p": 0.7, "raw": raw}, **shape).route(LOGITS, 0)[2].sum(-1) for raw in (False, True)
        ]
        assert (counts[0] == counts[1]).float().mean() > 0.99  # a sum of 1 after rounding

    def test_its_identity_is_as_before_where_it_is_not_raw(self) -> None:
        assert parse_policy("top_p", {"p": 0.8, "raw": False}).canonical() == {"name": "top_p", "p": 0.8, "k_min": 1}
        raw = parse_policy("top_p", {"p": 0.8, "raw": True})
        assert raw.canonical() == {"name": "top_p", "p": 0.8, "k_min": 1, "raw": True}
        assert_routes_alike(built("top_p", None, p=1, raw=True), built("none", None))


@pytest.mark.parametrize(("top_k", "floor"), [(1, 1), (2, 1), (4, 2), (8, 2)])
@pytest.mark.parametrize(("name", "beta"), [("naee", "median"), ("diep", 1)])
def test_the_floor_that_is_published_for_a_top_k(name: str, beta: Any, top_k: int, floor: int) -> None:
    shape = MoeShape(num_layers=2, num_experts=16, top_k=top_k)
    typed = {"policy": name} | ({"policy.beta": "median"} if name == "naee" else {})
    rule, budget = Composer().policy(typed, shape)
    assert budget is None and rule.canonical() == {**rule.canonical(), "beta": beta, "k_min": floor}
