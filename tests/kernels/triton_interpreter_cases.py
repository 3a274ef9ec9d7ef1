"""Router inputs, and the comparison of the kernel with the reference. Imported only by triton_interpreter.py.

A case is a shape, its flags and a seed; the seed fills logits, policies, rows, padding and stock answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from banpick_kernels import triton_router
from banpick_kernels.reference import biased_logits, keep_count, route
from banpick_kernels.table import LayerTable, RouterTable

POLICIES: tuple[str, ...] = ("neutral", "keep", "ban", "thresholds", "tail", "boost")
POLICIES += ("force_add", "force_replace", "range_add", "range_replace", "beyond")
ALL = (*POLICIES, "mixed")
CLOSE = 1e-6
POISON_ID, GUARD = -7, 128 * 32


@dataclass(frozen=True, kw_only=True)
class Case:
    num_tokens: int = 24
    num_experts: int = 24
    top_k: int = 4
    slots: int = 6
    dtype: str = "float32"
    scoring: str = "softmax"
    logits: str = "normal"
    renormalize: bool = True
    correction: bool = False
    rows: bool = True
    padding: bool = True
    counters: bool = True
    stock: bool = False
    filler: str = "dup"
    policies: tuple[str, ...] = POLICIES
    scale: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Inputs:
    logits_TE: Tensor
    layer: LayerTable
    correction_E: Tensor | None
    row_T: Tensor | None
    is_padding_T: Tensor | None
    stock: tuple[Tensor, Tensor] | None
    neutral_P: Tensor


def inputs_of(case: Case) -> Inputs:
    """Everything the router reads; the layer is a strided view of a table of three layers."""
    rng = torch.Generator().manual_seed(case.seed)
    num_tokens, num_experts, top_k = case.num_tokens, case.num_experts, case.top_k
    logits_TE = torch.randn(num_tokens, num_experts, generator=rng) * 2
    if case.logits != "normal":
        logits_TE = logits_TE.round() / 2 * (-1) ** torch.arange(num_experts)  # ties, and zeros of both signs
    if case.logits == "extreme":
        for value in (float("nan"), float("-inf"), float("inf")):
            logits_TE[torch.rand(logits_TE.shape, generator=rng) < 0.08] = value
            logits_TE[torch.rand(num_tokens, generator=rng) < 0.08] = value
    table = RouterTable.neutral(3, num_experts, top_k, rows=len(case.policies))
    for row, policy in enumerate(case.policies):
        _set_policy(table, row, policy, case, rng)
    table.skips.fill_(case.filler == "skip")

    def flip(share: float) -> Tensor:
        return torch.rand(num_tokens, generator=rng) < share

    row_T = torch.randint(len(case.policies), (num_tokens,), generator=rng, dtype=torch.int32)
    stock_ids_TK = torch.rand(num_tokens, num_experts, generator=rng).argsort(dim=1)[:, :top_k].int()
    stock_ids_TK[flip(0.2)] = -1
    return Inputs(
        logits_TE.to(getattr(torch, case.dtype)),
        table.layer(1),
        (torch.rand(num_experts, generator=rng) * 4).round() / 16 if case.correction else None,
        row_T if case.rows else None,
        flip(0.3) if case.padding else None,
        (torch.rand(num_tokens, top_k, generator=rng), stock_ids_TK) if case.stock else None,
        torch.tensor([policy == "neutral" for policy in case.policies])
        | (torch.tensor([policy in ("keep", "mixed") for policy in case.policies]) & (table.keep[:, 1] == top_k)),
    )


def _set_policy(table: RouterTable, row: int, policy: str, case: Case, rng: torch.Generator) -> None:
    def draw(low: float, high: float) -> float:
        return low + (high - low) * torch.rand(1, generator=rng).item()

    num_experts, top_k = case.num_experts, case.top_k
    keys = torch.randperm(num_experts, generator=rng)[: min(num_experts, 1 + int(draw(0, 4)))]
    values: dict[str, float] = {}
    if policy == "neutral":
        values = {"insert_window": num_experts}  # without a key expert
    elif policy == "boost":
        table.logit_bias_PLE[row, :, keys] = 1.5
        table.logit_bias_PLE[row, :, int(draw(0, num_experts))] = float("-inf")
    elif policy == "keep":
        values = {"keep": 1 + int(draw(0, top_k))}
    elif policy == "mixed":
        values = {"keep": draw(1, top_k)}
    elif policy == "beyond":  # the first k, more than the base selection holds
        table.key_PLE[row] = True
        values = {"keep": 1, "insert_window": min(case.slots, num_experts, top_k + 1 + int(draw(0, 3)))}
    elif policy == "tail":
        values = {"tail_square": draw(0, 0.3)}
    elif policy == "thresholds":
        values = {"min_ratio": draw(0, 0.5), "mass": draw(0.5, 1.2), "min_weight": draw(0, 0.2)}
        values |= {"tail_square": draw(0, 0.1), "floor": 1 + int(draw(0, 2)), "raw_mass": int(draw(0, 2))}
    if policy in ("ban", "force_replace", "range_add"):
        ratio = 3 / max(3, top_k)
        keep = 1 + int(draw(top_k / 2, top_k))
        values = {"keep": keep, "ban": 1, "ban_k_min": 1 + int(draw(0, keep)), "ban_lambda": draw(0.3, 2)}
        values |= {"sensitivity": draw(0, 1), "ratio_min": draw(0, ratio), "ratio_max": draw(ratio, 1.1)}
    if policy.startswith(("force", "range")):
        table.key_PLE[row, :, keys] = True
        table.logit_bias_PLE[row, :, int(draw(0, num_experts))] = draw(-1, 1) if policy.startswith("range") else 0.0
        values |= {"insert_window": num_experts if policy.startswith("force") else min(num_experts, 2 * top_k)}
        values |= {"insert_replaces": float(policy.endswith("replace"))}
    for name, value in values.items():
        getattr(table, name)[row] = value


def undecided(case: Case, given: Inputs) -> Tensor:
    """Bool [T]: tokens with a float decision within 1e-6 of its boundary, by float64. Exact comparisons never are."""
    double = LayerTable(
        values=given.layer.values.double(), logit_bias_PE=given.layer.logit_bias_PE, key_PE=given.layer.key_PE
    )
    logits_TE = biased_logits(given.logits_TE, given.layer, given.row_T).double()
    scores_TE = logits_TE.softmax(-1).nan_to_num(0) if case.scoring == "softmax" else logits_TE.sigmoid()
    near_T = torch.zeros(case.num_tokens, dtype=torch.bool)
    row_T = torch.zeros(case.num_tokens, dtype=torch.long) if given.row_T is None else given.row_T.long()
    ranking_TE = logits_TE
    if given.correction_E is not None:
        ranking_TE = scores_TE + given.correction_E
        differs_TEE = (scores_TE[:, :, None] != scores_TE[:, None]) | (
            given.correction_E[:, None] != given.correction_E
        )
        close_TEE = (ranking_TE[:, :, None] - ranking_TE[:, None]).abs() < CLOSE
        rank_TE = ranking_TE.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        window_T1 = given.layer.insert_window[row_T][:, None]
        for edge_T1 in (torch.full_like(window_T1, case.top_k), window_T1):
            behind_TE = rank_TE >= edge_T1
            near_T |= (close_TEE & differs_TEE & behind_TE[:, None] & ~behind_TE[:, :, None]).any(-1).any(-1)
    ids_TK = ranking_TE.argsort(dim=1, descending=True, stable=True)[:, : case.top_k]
    weight_TK = scores_TE.gather(1, ids_TK).sort(dim=1, descending=True).values
    # Each value that a rule compares moves by 1e-6 both ways: does the count change?
    count_T1 = keep_count(weight_TK, double, row_T)
    for name in ("ratio_max", "ratio_min", "ban_lambda", "min_ratio", "mass", "min_weight", "tail_square"):
        for step in (-CLOSE, CLOSE):
            moved = double.clone()
            column = getattr(moved, name)
            column += torch.where((column != 0) & (column != 2), step, 0)
            near_T |= (keep_count(weight_TK, moved, row_T) != count_T1)[:, 0]
    return near_T


def compare(case: Case, block_tokens: int = 16, given: Inputs | None = None, exact: bool = False) -> tuple[str, int]:
    """What is wrong ("" if nothing), and how many tokens were skipped as undecided. Outputs are poisoned first."""
    given = inputs_of(case) if given is None else given
    num_rows, size = given.layer.values.shape[0], case.num_tokens * case.slots
    weights, ids = torch.full((size + GUARD,), float("nan")), torch.full((size + GUARD,), POISON_ID, dtype=torch.int32)
    got_TS, got_ids_TS = (flat[:size].view(-1, case.slots) for flat in (weights, ids))
    tokens_P = torch.full((num_rows,), 5) if case.counters else None
    usage_PE = torch.full((num_rows, case.num_experts), 9) if case.counters else None
    triton_router.launch(
        got_TS, got_ids_TS, given.logits_TE, given.layer, case.top_k, case.renormalize, case.scoring,
        given.correction_E, given.row_T, given.is_padding_T, tokens_P, usage_PE, case.scale, given.stock,
        block_tokens,
    )  # fmt: skip
    want_TS, want_ids_TS, kept_TS = expected(case, given)
    skipped_T = torch.zeros(case.num_tokens, dtype=torch.bool) if exact else undecided(case, given)
    if not (weights[size:].isnan().all() and (ids[size:] == POISON_ID).all()):
        return "wrote behind its outputs", 0
    wrong_T = (got_ids_TS != want_ids_TS).any(dim=1) & ~skipped_T
    if wrong_T.any():
        t = int(wrong_T.nonzero()[0])
        return f"ids of token {t}: {got_ids_TS[t].tolist()}, not {want_ids_TS[t].tolist()}", 0
    off_TS = ~((got_TS - want_TS).abs() <= CLOSE) & ~skipped_T[:, None]
    if off_TS.any():
        t = int(off_TS.any(dim=1).nonzero()[0])
        return f"weights of token {t}: {got_TS[t].tolist()}, not {want_TS[t].tolist()}", 0
    if case.counters and not skipped_T.any():
        assert tokens_P is not None and usage_PE is not None
        padding_T = given.is_padding_T
        counts_T = torch.ones(case.num_tokens, dtype=torch.bool) if padding_T is None else ~padding_T
        row_T = torch.zeros(case.num_tokens, dtype=torch.long) if given.row_T is None else given.row_T.long()
        want_tokens_P = torch.full((num_rows,), 5).index_add(0, row_T, counts_T.long())
        want_usage_PE = torch.full((num_rows, case.num_experts), 9)
        counted_TS = kept_TS & counts_T[:, None]
        at = (row_T[:, None].expand_as(kept_TS)[counted_TS], want_ids_TS.long()[counted_TS])
        want_usage_PE.index_put_(at, torch.ones(len(at[0]), dtype=torch.long), accumulate=True)
        if not torch.equal(tokens_P, want_tokens_P):
            return f"tokens counted: {tokens_P}, not {want_tokens_P}", 0
        if not torch.equal(usage_PE, want_usage_PE):
            return "experts counted differ", 0
    return "", int(skipped_T.sum())


def expected(case: Case, given: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """The reference's weights, ids and kept [T,S], with fillers, scale and stock answers put in by plain torch."""
    keywords: dict[str, Any] = {"correction_E": given.correction_E, "row_T": given.row_T}
    weights_TS, ids_TS, kept_TS = route(
        given.logits_TE, given.layer, case.top_k, case.slots, case.renormalize, case.scoring, **keywords
    )
    shown_TS = kept_TS.clone()
    if given.stock is not None:
        row_T = torch.zeros(case.num_tokens, dtype=torch.long) if given.row_T is None else given.row_T.long()
        stock_T = given.neutral_P[row_T]
        stock_weights_TK, stock_ids_TK = given.stock
        weights_TS[stock_T], kept_TS[stock_T], shown_TS[stock_T] = 0, False, False
        weights_TS[stock_T, : case.top_k] = stock_weights_TK[stock_T]
        ids_TS[stock_T, : case.top_k] = stock_ids_TK[stock_T]
        kept_TS[stock_T, : case.top_k] = stock_ids_TK[stock_T] >= 0
        shown_TS[stock_T, : case.top_k] = True
    filler_T1 = ids_TS[:, :1] if case.filler == "dup" else torch.full_like(ids_TS[:, :1], -1)
    return weights_TS * case.scale, ids_TS.where(shown_TS, filler_T1), kept_TS
