"""Experts on CPU, kept pairs only: against the sum by definition, and vLLM's own kernel against itself."""

from __future__ import annotations

import doctest

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from banpick_kernels import cpu_dispatch
from banpick_kernels.cpu_dispatch import COPY_COST, pays, run_kept

HIDDEN = 64


def banned(tokens: int, slots: int, experts: int, kept: list[int], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Weights and ids [T,S]; token t keeps kept[t % len(kept)] slots, the others repeat its first id with weight 0."""
    generator = torch.Generator().manual_seed(seed)
    scores, ids = torch.rand(tokens, experts, generator=generator).topk(slots)
    kept_T1 = torch.tensor(kept)[torch.arange(tokens) % len(kept)][:, None]
    kept_TS = torch.arange(slots) < kept_T1
    weights = (scores * kept_TS) / (scores * kept_TS).sum(-1, keepdim=True)
    return weights, ids.where(kept_TS, ids[:, :1]).int()


class Scale:
    """Stands in for the kernel: expert e multiplies by e + 1. Remembers how many slots it was asked to compute."""

    computed = 0

    def __call__(self, output: Tensor, hidden: Tensor, weights: Tensor, ids: Tensor) -> None:
        assert weights.is_contiguous() and ids.is_contiguous() and weights.shape == ids.shape
        assert hidden.numel() == 0 or output.data_ptr() != hidden.data_ptr(), (
            "the kernel reads its input while it writes"
        )
        self.computed += ids.numel()
        output.copy_(hidden * (weights * (ids + 1)).sum(-1, keepdim=True))


def test_the_examples_of_the_docstrings() -> None:
    result = doctest.testmod(cpu_dispatch)
    assert result.attempted >= 1 and result.failed == 0


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(0, 20),
    slots=st.integers(2, 10),
    kept=st.lists(st.integers(1, 10), min_size=1, max_size=5),
    seed=st.integers(0, 1000),
)
def test_every_token_gets_the_sum_of_its_kept_experts(tokens: int, slots: int, kept: list[int], seed: int) -> None:
    kept = [min(k, slots) for k in kept]
    weights, ids = banned(tokens, slots, 12, kept, seed)
    hidden = torch.randn(tokens, HIDDEN)
    output, run = torch.full((tokens, HIDDEN), torch.nan), Scale()
    run_kept(output, hidden, weights, ids, run, expert_numbers=1 << 40)
    assert output.allclose(hidden * (weights * (ids + 1)).sum(-1, keepdim=True), atol=1e-5)
    used = [kept[t % len(kept)] for t in range(tokens)]
    assert run.computed == sum(used), "exactly the kept slots are computed"


def test_where_copies_cost_more_the_rectangle_is_only_narrowed() -> None:
    weights, ids = banned(4, 8, 12, [5, 5, 5, 4])
    run, output = Scale(), torch.full((4, HIDDEN), torch.nan)
    run_kept(output, torch.randn(4, HIDDEN), weights, ids, run, expert_numbers=COPY_COST)
    assert run.computed == 4 * 5 and output.isfinite().all()
    small, narrow = Scale(), torch.full((4, HIDDEN), torch.nan)
    run_kept(narrow, torch.randn(4, HIDDEN), weights, ids, small, expert_numbers=100)
    assert small.computed == 4 * 8, "for experts this small not even looking pays"


def test_skipping_pays_for_a_real_expert_and_not_for_the_embedded_one() -> None:
    real, embedded = 3 * 2048 * 768, 3 * 128 * 32
    assert pays(saved=320, pairs=480, expert_numbers=real) and pays(saved=8, pairs=100, expert_numbers=real)
    assert not pays(saved=3, pairs=100, expert_numbers=real)
    assert not pays(saved=700, pairs=100, expert_numbers=embedded)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(("tokens", "slots"), [(1, 8), (3, 8), (33, 8), (64, 10), (200, 4)])
def test_vllms_kernel_gives_the_same_either_way(dtype: torch.dtype, tokens: int, slots: int) -> None:
    """Slots beyond the checkpoint's K are what `range_add` needs. bfloat16: each pair is rounded before it is added."""
    from banpick_exp.engine.plugin.standalone import BareExperts

    experts = BareExperts(16, HIDDEN, 32, dtype)
    weights, ids = banned(tokens, slots, 16, [3, slots, 1, slots - 1])
    hidden = torch.randn(tokens, HIDDEN, generator=torch.Generator().manual_seed(1)).to(dtype)
    rectangle, pairs = torch.full_like(hidden, torch.nan), torch.full_like(hidden, torch.nan)
    experts.run(rectangle, hidden, weights, ids)
    run_kept(pairs, hidden, weights, ids, experts.run, expert_numbers=1 << 40)
    largest = float(rectangle.float().abs().max())
    tolerance = largest * (2**-7 if dtype == torch.bfloat16 else 1e-6)
    assert float((rectangle.float() - pairs.float()).abs().max()) <= tolerance
    assert largest > 0


def test_nothing_banned_is_the_stock_kernel_bit_for_bit() -> None:
    from banpick_exp.engine.plugin.standalone import BareExperts

    experts = BareExperts(16, HIDDEN, 32, torch.bfloat16)
    weights, ids = banned(40, 8, 16, [8])
    hidden = torch.randn(40, HIDDEN).to(torch.bfloat16)
    stock, ours = torch.empty_like(hidden), torch.empty_like(hidden)
    experts.run(stock, hidden, weights, ids)
    run_kept(ours, hidden, weights, ids, experts.run, expert_numbers=1 << 40)
    assert torch.equal(stock, ours)
