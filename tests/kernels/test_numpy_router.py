"""The numpy router against the torch reference: experts and counts to the bit, weights within 1e-6."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from banpick_kernels import reference
from banpick_kernels.numpy_router import NumpyRouter, count_few
from banpick_kernels.table import LayerTable, RouterTable

PARTS = ("keep", "mixed", "ban", "thresholds", "bias", "inserts")


def table_of(parts: frozenset[str], experts: int, top_k: int, draw: random.Random) -> tuple[LayerTable, int]:
    """A policy with random values for the named parts, and the slots it needs."""
    table, slots = RouterTable.neutral(1, experts, top_k), top_k
    if "keep" in parts:
        table.keep.fill_(draw.randint(1, top_k))
    if "mixed" in parts and "ban" not in parts:
        table.keep.fill_(draw.uniform(1, top_k))
    if "ban" in parts:
        table.ban.fill_(1)
        table.ban_k_min.fill_(draw.randint(1, top_k))
        table.ban_lambda.fill_(draw.uniform(0.05, 4))
        table.sensitivity.fill_(draw.choice([0.0, draw.random()]))
        table.ratio_min.fill_(0.4)
        table.ratio_max.fill_(draw.choice([0.4, 0.7, 0.95]))
        if draw.random() < 0.2:  # the layer alone decides
            table.ratio_min.fill_(0), table.ratio_max.fill_(0)
    if "thresholds" in parts:
        table.min_ratio.fill_(draw.random())
        table.mass.fill_(draw.choice([2.0, draw.random()]))
        table.raw_mass.fill_(draw.choice([0.0, 1.0]))
        table.min_weight.fill_(draw.choice([0.0, 0.1]))
        table.tail_square.fill_(draw.choice([0.0, 0.02]))
        table.floor.fill_(draw.randint(1, top_k))
    if "bias" in parts:
        table.logit_bias_PLE[0, 0, : experts // 2] = draw.uniform(-2, 2)
        table.logit_bias_PLE[0, 0, draw.randrange(experts)] = -torch.inf
    if "inserts" in parts:
        keys = draw.sample(range(experts), draw.randint(1, min(6, experts)))
        table.key_PLE[0, 0, keys] = True
        table.insert_window.fill_(draw.choice([min(2 * top_k, experts), experts]))
        table.insert_replaces.fill_(draw.choice([0.0, 1.0]))
        slots = min(experts, top_k + len(keys))
    return table.layer(0), slots


def logits_of(tokens: int, experts: int, kind: str, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if kind == "ties":
        return torch.randint(-3, 3, (tokens, experts), generator=generator).float()
    logits_TE = torch.randn(tokens, experts, generator=generator) * 2
    if kind == "broken" and tokens:
        logits_TE[0, : experts // 2] = torch.nan
        logits_TE[-1] = -torch.inf
        logits_TE[tokens // 2, 0] = torch.inf
    return logits_TE.bfloat16() if kind == "bfloat16" else logits_TE


@settings(max_examples=150, deadline=None)
@given(
    parts=st.frozensets(st.sampled_from(PARTS)),
    tokens=st.sampled_from([0, 1, 5, 64]),
    experts=st.sampled_from([8, 60, 128]),
    top_k=st.sampled_from([1, 4, 8]),
    kind=st.sampled_from(["plain", "bfloat16", "ties", "broken"]),
    scoring=st.sampled_from(["softmax", "sigmoid"]),
    renormalize=st.booleans(),
    seed=st.integers(0, 2**16),
)
@example(frozenset({"ban", "inserts"}), 64, 128, 8, "ties", "softmax", True, 1)
@example(frozenset({"mixed"}), 64, 128, 8, "ties", "softmax", True, 3)
@example(frozenset({"mixed", "bias"}), 64, 128, 8, "broken", "softmax", True, 4)
@example(frozenset({"thresholds"}), 64, 128, 8, "broken", "sigmoid", False, 2)
def test_equals_the_reference(
    parts: frozenset[str], tokens: int, experts: int, top_k: int, kind: str, scoring: str, renormalize: bool, seed: int
) -> None:
    layer, slots = table_of(parts, experts, top_k, random.Random(seed))
    logits_TE = logits_of(tokens, experts, kind, seed)
    weights, ids, kept = reference.route(logits_TE, layer, top_k, slots, renormalize, scoring)
    found = NumpyRouter(layer).route(
        logits_TE, top_k, slots, renormalize, scoring,
        biased="bias" in parts, inserts="inserts" in parts, thresholds="thresholds" in parts,
    )  # fmt: skip
    assert np.array_equal(found.kept_TS, kept.numpy())
    assert np.array_equal(found.ids_TS, ids.numpy())
    np.testing.assert_allclose(found.weights_TS, weights.numpy(), rtol=1e-6, atol=1e-6)
    assert found.weights_TS.dtype == np.float32


@settings(max_examples=120, deadline=None)
@given(
    parts=st.lists(st.frozensets(st.sampled_from(PARTS)), min_size=2, max_size=5),
    tokens=st.sampled_from([0, 1, 7, 64]),
    experts=st.sampled_from([8, 60]),
    top_k=st.sampled_from([1, 4, 8]),
    kind=st.sampled_from(["plain", "bfloat16", "ties", "broken"]),
    scoring=st.sampled_from(["softmax", "sigmoid"]),
    renormalize=st.booleans(),
    seed=st.integers(0, 2**16),
)
@example([frozenset({"ban", "inserts"}), frozenset({"mixed"}), frozenset()], 64, 60, 8, "ties", "softmax", True, 1)
@example([frozenset({"thresholds"}), frozenset({"bias", "keep"})], 64, 60, 8, "broken", "sigmoid", False, 2)
def test_each_token_is_routed_as_in_a_batch_of_its_row_alone(
    parts: list[frozenset[str]], tokens: int, experts: int, top_k: int, kind: str, scoring: str, renormalize: bool,
    seed: int,
) -> None:  # fmt: skip
    """Reference and numpy, to the bit: a row's own table routes the whole batch, and its tokens are looked at."""
    draw = random.Random(seed)
    tables = [table_of(each, experts, top_k, draw) for each in parts]
    slots = max(needed for _, needed in tables)
    mixed = RouterTable.neutral(1, experts, top_k, rows=len(parts)).layer(0)
    for row, (table, _) in enumerate(tables):
        mixed.values[row], mixed.logit_bias_PE[row], mixed.key_PE[row] = (
            table.values[0], table.logit_bias_PE[0], table.key_PE[0],
        )  # fmt: skip
    logits_TE = logits_of(tokens, experts, kind, seed)
    row_T = torch.randint(len(parts), (tokens,), generator=torch.Generator().manual_seed(seed))
    given_as = (logits_TE, top_k, slots, renormalize, scoring)
    found = NumpyRouter(mixed).route(*given_as, row_T=row_T.numpy())
    torch_found = reference.route(logits_TE, mixed, top_k, slots, renormalize, scoring, row_T=row_T)
    for row, (table, _) in enumerate(tables):
        of_row = (row_T == row).numpy()
        alone = NumpyRouter(table).route(*given_as)
        torch_alone = reference.route(logits_TE, table, top_k, slots, renormalize, scoring)
        for mine, own in zip(found, alone, strict=True):
            assert np.array_equal(mine[of_row], own[of_row])
        for tensor, of_alone in zip(torch_found, torch_alone, strict=True):
            assert torch.equal(tensor[of_row], of_alone[of_row])
        assert np.array_equal(found.ids_TS[of_row], torch_alone[1].numpy()[of_row])
        assert np.array_equal(found.kept_TS[of_row], torch_alone[2].numpy()[of_row])


def test_counts_follow_the_table_only_after_a_read() -> None:
    """The scalars are copied: whoever writes the table must call `read`."""
    layer = RouterTable.neutral(1, 8, 4).layer(0)
    few, logits_TE = NumpyRouter(layer), torch.randn(3, 8)
    layer.keep.fill_(2)
    few.read()
    assert few.route(logits_TE, 4, 4, True).kept_TS.sum() == 6


@pytest.mark.parametrize("pruned", [False, True])
def test_counters(pruned: bool) -> None:
    """Tokens and use, added to what is there; -1 in a padding row counts as expert 0, as in the torch path."""
    tokens_P, usage_PE = torch.tensor([5]), torch.tensor([[1, 1, 1]])
    ids, kept = torch.tensor([[0, 2], [2, 2], [-1, -1]]), torch.tensor([[True, True], [True, False], [False, False]])
    count_few(tokens_P, usage_PE, ids, kept if pruned else None)
    assert tokens_P.tolist() == [8]
    assert usage_PE.tolist() == ([[2, 1, 3]] if pruned else [[4, 1, 4]])


@pytest.mark.parametrize("pruned", [False, True])
def test_counters_by_row(pruned: bool) -> None:
    tokens_P, usage_PE = torch.tensor([5, 0, 0]), torch.zeros(3, 3, dtype=torch.int64)
    ids, kept = torch.tensor([[0, 2], [2, 2], [-1, -1]]), torch.tensor([[True, True], [True, False], [False, False]])
    count_few(tokens_P, usage_PE, ids, kept if pruned else None, np.array([2, 0, 2]))
    assert tokens_P.tolist() == [6, 0, 2]
    assert usage_PE.tolist() == ([[0, 0, 1], [0] * 3, [1, 0, 1]] if pruned else [[0, 0, 2], [0] * 3, [3, 0, 1]])
