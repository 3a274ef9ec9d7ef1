"""Random tokens routed by Ban at a chosen mean kept: what the layer benchmark hands to the experts.

Shapes: T tokens, E experts, K slots.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from banpick_exp.evaluation.budget.root_search import solve
from banpick_exp.policy.rules.ban import Ban
from banpick_kernels.reference import route
from banpick_kernels.table import RouterTable

LOGIT_SPREAD = (0.7, 3.0)
"""Standard deviation of a token's random router logits, from flat tokens to peaked ones, evenly."""
CALIBRATION_TOKENS = 4096
CANDIDATE_BATCHES = 64
assert Ban.budget_knob is not None
LAMBDA = Ban.budget_knob
TABLE_TOLERANCE = 0.002
"""Experts kept a token, over CALIBRATION_TOKENS."""


@dataclass(frozen=True, slots=True)
class Routed:
    """The same T tokens routed three ways: weights float32 and ids int32 [T, slots]."""

    stock: tuple[Tensor, Tensor]
    banned: tuple[Tensor, Tensor]
    """Ban; a banned slot repeats the first id with weight 0."""
    fixed: tuple[Tensor, Tensor]
    mean_kept: float
    bound: float
    """What the time of the banned batch can at best be, as a share of stock's."""


def ban_table(experts: int, top_k: int, mean_kept: float) -> RouterTable:
    """Ban with k_min 3 at the lambda that keeps `mean_kept` of random tokens, or nearest to it."""
    logits_TE = _logits(CALIBRATION_TOKENS, experts, seed=-1)
    table = RouterTable.neutral(1, experts, top_k)
    weights, _, _ = route(logits_TE, table.layer(0), top_k, top_k, True)
    ratio_T = weights[:, :3].sum(-1)
    table.ban.fill_(1)
    table.ban_k_min.fill_(3)
    table.sensitivity.fill_(0.5)
    table.ratio_min.fill_(float(ratio_T.min()))
    table.ratio_max.fill_(float(ratio_T.max()))

    def measured(value: float) -> float:
        table.ban_lambda.fill_(value)
        return float(route(logits_TE, table.layer(0), top_k, top_k, True)[2].sum(-1).float().mean())

    table.ban_lambda.fill_(solve(measured, LAMBDA, mean_kept, tolerance=TABLE_TOLERANCE, nearest=True).value)
    return table


def routed_tokens(tokens: int, table: RouterTable, top_k: int, mean_kept: float, fixed_k: int) -> Routed:
    """The batch, of several drawn, whose measured mean kept is nearest to the one asked for."""
    experts = table.key_PLE.shape[-1]
    layer, neutral = table.layer(0), RouterTable.neutral(1, experts, top_k).layer(0)
    batches = (_logits(tokens, experts, seed) for seed in range(CANDIDATE_BATCHES))
    logits_TE = min(
        batches, key=lambda z: abs(float(route(z, layer, top_k, top_k, True)[2].sum() / tokens) - mean_kept)
    )
    weights, ids, kept = route(logits_TE, layer, top_k, top_k, True)
    stock_weights, stock_ids, _ = route(logits_TE, neutral, top_k, top_k, True)
    fixed = stock_weights[:, :fixed_k] / stock_weights[:, :fixed_k].sum(-1, keepdim=True)
    pairs, experts_read = kept.sum() / ids.numel(), ids[kept].unique().numel() / stock_ids.unique().numel()
    return Routed(
        stock=(stock_weights, stock_ids),
        banned=(weights, ids),
        fixed=(fixed.contiguous(), stock_ids[:, :fixed_k].contiguous()),
        mean_kept=float(kept.sum() / tokens),
        bound=max(float(pairs), experts_read),
    )


def _logits(tokens: int, experts: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 1000)
    low, high = LOGIT_SPREAD
    spread_T1 = low + (high - low) * torch.rand(tokens, 1, generator=generator)
    return torch.randn(tokens, experts, generator=generator) * spread_T1
