"""fixed_k with a fraction: which tokens keep one more, how many of them, and that a whole k is what it was."""

from __future__ import annotations

import doctest
import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from banpick_exp.errors import UserError
from banpick_exp.policy import MoeShape, Policy, build_policy, parse_policy
from banpick_exp.policy.rules import fixed_k
from banpick_kernels import stochastic_rounding
from banpick_kernels.stochastic_rounding import rounded, uniform

SHAPE = MoeShape(num_layers=2, num_experts=16, top_k=8)
LOGITS = torch.randn(40_000, 16, generator=torch.Generator().manual_seed(5)) * 2


def built(k: float, top_k: int = 8) -> Policy:
    return build_policy("fixed_k", {"k": k}, num_layers=2, num_experts=16, top_k=top_k)


def counts(k: float, logits_TE: Tensor = LOGITS, **how: Any) -> Tensor:
    """Experts that each token keeps, [T]."""
    return built(k).route(logits_TE, 0, **how)[2].sum(dim=1)


@pytest.mark.parametrize("module", [fixed_k, stochastic_rounding])
def test_the_worked_examples(module: Any) -> None:
    result = doctest.testmod(module)
    assert result.attempted >= 3 and not result.failed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("k", [1.5, 4.05, 4.6, 7.999])
def test_the_mean_is_k(k: float, dtype: torch.dtype) -> None:
    """Within four standard errors of independent coins: 0.01 experts where the fraction is a half."""
    kept, low = counts(k, LOGITS.to(dtype)), math.floor(k)
    assert set(kept.tolist()) == {low, low + 1}
    fraction = k - low
    assert abs(kept.double().mean() - k) < 4 * math.sqrt(fraction * (1 - fraction) / len(kept))


def test_coins_of_layers_and_of_neighbouring_tokens_are_independent() -> None:
    """Other logits, other coins: a correlation of 40,000 pairs has a standard error of 0.005."""
    other = torch.randn(LOGITS.shape, generator=torch.Generator().manual_seed(6)) * 2
    here, there = (counts(4.5, each).double() for each in (LOGITS, other))
    pairs = [(here, there), (here[1:], here[:-1]), (here, LOGITS.max(dim=1).values.double())]
    for one, two in pairs:
        assert abs(torch.corrcoef(torch.stack([one, two]))[0, 1]) < 0.02


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
def test_a_token_routes_as_under_one_neighbour_or_the_other(scoring: str) -> None:
    weights, ids, kept = built(4.6).route(LOGITS, 1, scoring=scoring)
    more_T = kept.sum(dim=1) == 5
    for rows_T, k in ((more_T, 5), (~more_T, 4)):
        for mine, theirs in zip((weights, ids, kept), built(k).route(LOGITS, 1, scoring=scoring), strict=True):
            assert torch.equal(mine[rows_T], theirs[rows_T])


def test_rungs_are_nested() -> None:
    kept = [counts(k) for k in (4, 4.2, 4.6, 4.61, 5, 5.3)]
    assert all((more >= fewer).all() for fewer, more in pairwise(kept))


def test_a_token_rounds_alike_in_any_batch() -> None:
    kept, order_T = counts(4.6), torch.randperm(len(LOGITS), generator=torch.Generator().manual_seed(1))
    assert torch.equal(counts(4.6, LOGITS[order_T]), kept[order_T])
    assert torch.equal(torch.cat([counts(4.6, part) for part in LOGITS[:300].split([1, 7, 64, 228])]), kept[:300])
    assert torch.equal(built(4.6).route(LOGITS, 1)[2], built(4.6).route(LOGITS, 0)[2]), "by its logits alone"


def test_ties_zeros_and_experts_below_the_selection_do_not_matter() -> None:
    zeros = torch.zeros(1, 16)
    assert torch.equal(counts(4.5, zeros), counts(4.5, -zeros))
    changed = LOGITS[:2000].clone()
    below_TE = changed < changed.topk(8, dim=1).values[:, -1:]
    changed[below_TE] -= 1
    assert torch.equal(counts(4.6, changed), counts(4.6, LOGITS[:2000]))
    broken = torch.full((3, 16), -torch.inf)
    broken[1], broken[2, 3] = torch.nan, torch.inf
    assert set(counts(4.6, broken).tolist()) <= {4, 5}


def test_the_last_bit_draws_anew() -> None:
    moved = torch.nextafter(LOGITS, torch.full_like(LOGITS, torch.inf))
    assert 0.45 < float((counts(4.5) != counts(4.5, moved)).double().mean()) < 0.55


def test_the_number_is_uniform_and_rank_matters() -> None:
    top_TK = LOGITS.sort(dim=1, descending=True).values[:, :8].contiguous()
    found = uniform(top_TK)
    assert found.shape == (40_000, 1) and found.dtype == torch.float32 and found.min() >= 0 and found.max() < 1
    shares = torch.histc(found, bins=20, min=0, max=1) / len(found)
    assert (shares - 0.05).abs().max() < 5 * math.sqrt(0.05 * 0.95 / len(found))
    assert (uniform(top_TK.flip(1)) != found).double().mean() > 0.999
    assert rounded(torch.tensor([[3.0]]), top_TK).unique().tolist() == [3], "a whole number is never moved"


def test_a_whole_k_is_what_it_was() -> None:
    """The digest was taken before k could have a fraction."""
    table = build_policy("fixed_k", {"k": 3}, num_layers=2, num_experts=16, top_k=4)
    assert table.digest() == "6c0538e5e1e05f7982c8e5f5092d3fa5f0355c5eee0b368c5ee9f78a423611fe"
    for k in (3, 3.0, 2.9999999):
        rule = parse_policy("fixed_k", {"k": k}, SHAPE)
        assert rule.canonical() == {"name": "fixed_k", "k": 3} and isinstance(rule.canonical()["k"], int)
        assert rule.label() == "fixed_k k=3" and rule.max_kept(SHAPE) == 3 and rule.drawn_within(1000) is None


def test_knobs_label_and_budget() -> None:
    policy = built(4.6)
    assert policy.rule.canonical() == {"name": "fixed_k", "k": 4.6} and policy.rule.label() == "fixed_k k=4.6"
    assert policy.budget == (4.6, 4.6) and policy.max_kept == 5 and policy.rule.is_reference
    assert parse_policy("fixed_k", {"k": 4.6000000000000005}).canonical() == policy.rule.canonical()
    with pytest.raises(UserError, match=r"policy.k=8.5 has a fraction above top_k=8 .*Use a whole number, 8 or 9"):
        built(8.5)
    with pytest.raises(UserError, match=r"policy.k=0.5 is below 1"):
        built(0.5)


def test_what_chance_may_count() -> None:
    """Near k over many coins, all between the neighbours over few; all tokens alike only where that may be."""
    low, high = built(4.6).countable(10**6)
    assert 4.44 < low < 4.46 and 4.74 < high < 4.76
    assert built(4.6).countable(4) == (4, 5) == built(4.6).countable(0)
    low, high = built(7.95).countable(10_000)
    assert low > 7.75 and high == 8 - 1 / 10_000, "stock is no draw"
    low, high = built(4.05).countable(10_000)
    assert low == 4 + 1 / 10_000
    assert built(4).countable(10) == (4, 4)
