"""Experts on CPU, kept (token, expert) pairs only.

vLLM's CPU kernel (`cpu_fused_moe`) takes a rectangle of ids [T,S] and computes every slot; an id of -1 crashes it. A
banned slot repeats its token's first expert with weight 0 (`edit_selection`), which is exact and saves nothing once
the batch is large. Here the kept slots are handed over instead, in one of three forms:

- nothing is banned: the rectangle as it is (stock);
- every token keeps the same k: the first k columns;
- otherwise: each kept pair as a token of its own with one expert, and the weighted outputs are added per token.

The last form groups the pairs by expert just as the rectangle would, so an expert's weights are still read once. It
costs copies of [N,H] numbers: small beside any real model's experts, not beside the embedded one's, hence `pays`.

Shape suffixes: T tokens, S slots, H hidden size, N kept pairs.
"""

from collections.abc import Callable

import torch
from torch import Tensor

RunExperts = Callable[[Tensor, Tensor, Tensor, Tensor], None]
"""(output [T,H] written in place, hidden [T,H], weights float32 [T,S], ids int32 [T,S]) by the stock kernel."""

COPY_COST = 1 << 18
"""What handing over one pair costs, in weights multiplied: a Qwen3-30B expert has 18 times as many, so there skipping
pays from about 5 % of the slots on; an expert of the embedded model has 12,288, so there it never does."""

COUNTED_IN_PYTHON = 16
"""Tokens up to which kept slots are counted in Python, not in torch."""


def pays(saved: int, pairs: int, expert_numbers: int) -> bool:
    """Whether not computing `saved` slots is worth copying `pairs` of them; `expert_numbers`: weights of one expert."""
    return saved * expert_numbers > pairs * COPY_COST


def kept_slots(ids_TS: Tensor) -> Tensor:
    """How many slots of each token are kept, int64 [T]: those before the first repetition of its first id.

    A router never selects an expert twice, so a repeated id can only be a filler.

    >>> kept_slots(torch.tensor([[3, 1, 3], [2, 0, 1], [5, 5, 5]]))
    tensor([2, 3, 1])
    """
    return ids_TS.shape[1] - (ids_TS[:, 1:] == ids_TS[:, :1]).sum(dim=1)


def run_kept(
    output_TH: Tensor, hidden_TH: Tensor, weights_TS: Tensor, ids_TS: Tensor, run: RunExperts, expert_numbers: int
) -> None:
    """Write the weighted sum of each token's kept experts into `output_TH`: what `run` gives on the rectangle.

    Args:
        weights_TS: float32, 0 in banned slots.
        ids_TS: int32, kept slots first, a banned slot repeats the token's first id.
        run: the stock kernel. A pair's output is rounded to the output type before it is added in float32.
        expert_numbers: numbers in the weights of one expert, to judge whether skipping pays.
    """
    tokens, slots = ids_TS.shape
    if tokens == 0 or not pays(tokens * (slots - 1), tokens, expert_numbers):
        run(output_TH, hidden_TH, weights_TS, ids_TS)
        return
    if tokens <= COUNTED_IN_PYTHON:  # one call, not six: each costs some 20 us after experts have emptied the cache
        kept = [slots - row[1:].count(row[0]) for row in ids_TS.tolist()]
        widest, pairs = max(kept), sum(kept)
    else:
        kept_T = kept_slots(ids_TS)
        widest, pairs = int(kept_T.max()), int(kept_T.sum())
    if pays(tokens * widest - pairs, pairs, expert_numbers):
        if tokens <= COUNTED_IN_PYTHON:
            at_N = torch.tensor([token * slots + slot for token, count in enumerate(kept) for slot in range(count)])
        else:
            at_N = (torch.arange(slots, device=ids_TS.device) < kept_T[:, None]).flatten().nonzero().flatten()
        _run_pairs(output_TH, hidden_TH, weights_TS, ids_TS, at_N, run)
    elif widest < slots:
        run(output_TH, hidden_TH, weights_TS[:, :widest].contiguous(), ids_TS[:, :widest].contiguous())
    else:
        run(output_TH, hidden_TH, weights_TS, ids_TS)


def _run_pairs(
    output_TH: Tensor, hidden_TH: Tensor, weights_TS: Tensor, ids_TS: Tensor, at_N: Tensor, run: RunExperts
) -> None:
    """`at_N`: where the kept slots stand, token by token, int64 into [T * S]."""
    token_N = at_N // ids_TS.shape[1]
    hidden_NH = hidden_TH.index_select(0, token_N)
    pair_NH = torch.empty_like(hidden_NH)
    run(pair_NH, hidden_NH, weights_TS.reshape(-1, 1)[at_N], ids_TS.reshape(-1, 1)[at_N])
    sum_TH = torch.zeros(output_TH.shape, dtype=torch.float32)
    output_TH.copy_(sum_TH.index_add_(0, token_N, pair_NH.float()))
