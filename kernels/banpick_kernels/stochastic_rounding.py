"""A number of experts with a fraction: which tokens keep one more, told from their logits alone. Ours.

`keep` = 4.6 means that a token keeps 5 of its experts with probability 0.6 and 4 otherwise: stochastic rounding, whose
mean is 4.6. The number that decides comes from no generator: it is a hash of the K selected logits in rank order. So
the same token state rounds alike in any row of any batch, on every rank, in every rerun and in every implementation of
the router (this one in torch, `numpy_router`, `triton_kernel`), and nothing is stored. Only integers are mixed, so all
agree to the bit; tests hold that.

Shape suffixes: T tokens, K experts of the base selection in rank order. A 1 is an axis that broadcasts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

GOLDEN, FIRST, SECOND = 0x9E3779B9, 0x7FEB352D, 0x846CA68B
"""2**32 over the golden ratio, which sets ranks apart; the factors of a 32-bit finaliser (Wellons, 2018, lowbias32)."""
BITS = 24
"""Of the hash that decide: as many as a float32 holds exactly."""


def _signed(bits: int) -> int:
    """The int32 with these 32 bits."""
    return bits - 2**32 if bits >= 2**31 else bits


def _mixed(bits: Tensor) -> Tensor:
    """Of int32: every bit of the result hangs on every bit given. Overflow wraps."""
    for shift, factor in ((16, FIRST), (15, SECOND)):
        bits = (bits ^ _shifted(bits, shift)) * _signed(factor)
    return bits ^ _shifted(bits, 16)


def _shifted(bits: Tensor, by: int) -> Tensor:
    """To the right, zeros coming in: `>>` alone would bring in the sign."""
    return (bits >> by) & ((1 << (32 - by)) - 1)


def uniform(logit_TK: Tensor) -> Tensor:
    """A number in [0, 1), float32 [T,1], multiples of 2**-24: a hash of the logits' bits and their order.

    Which experts they belong to is left out: routers break ties differently, and a tie at the end of the selection must
    not change how many of its beginning stay.

    Args:
        logit_TK: float32, highest first, none NaN; -0.0 counts as 0.0.

    Equal rows are equal, and the last bit of one logit is enough to draw anew:

    >>> import torch
    >>> [round(u, 4) for u in uniform(torch.tensor([[2.0, 1.0], [2.0, 1.0], [2.0, 1.0000001]]))[:, 0].tolist()]
    [0.8534, 0.8534, 0.8346]
    """
    import torch

    rank_K = torch.arange(1, logit_TK.shape[1] + 1, dtype=torch.int32, device=logit_TK.device) * _signed(GOLDEN)
    bits_TK = (logit_TK + 0.0).contiguous().view(torch.int32)
    token_T1 = _mixed(bits_TK ^ rank_K).sum(dim=-1, keepdim=True, dtype=torch.int64).int()
    return _shifted(_mixed(token_T1), 32 - BITS).float() / 2**BITS


def rounded(count_T1: Tensor, logit_TK: Tensor) -> Tensor:
    """`count_T1` float32 [T,1] or [1,1], at least 0, as whole numbers [T,1]: up with the probability of its fraction.

    >>> import torch
    >>> rounded(torch.tensor([[1.85]]), torch.tensor([[2.0, 1.0], [2.0, 1.0000001]])).tolist()
    [[1.0], [2.0]]
    """
    whole_T1 = count_T1.floor()
    return whole_T1 + (uniform(logit_TK) < count_T1 - whole_T1).float()
