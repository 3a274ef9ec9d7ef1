"""Which key experts come into a selection, and whom they evict: Pick's part of the reference router. Imports no torch.

With every expert a key expert, one kept of the base selection and a window of k, a token keeps its first k experts,
where k is more than the base selection holds too (`fixed_k`).

Shape suffixes: T tokens, R ranks: the experts of a token, best first. A 1 is an axis that broadcasts.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

MAX_SLOTS = 32
"""The most experts a token that the kernel routes to (`triton_router`)."""


def rank_window(factor: float, k: int, num_experts: int) -> int:
    """How many ranks lie within `factor` times k, E at most: where a key expert must stand to come in.

    >>> rank_window(2.0, 8, 128), rank_window(2.0, 8, 12), rank_window(61 / 7, 7, 128)
    (16, 12, 61)
    """
    # 61 / 7 * 7 is 60.999...: the small addend keeps a whole window whole.
    return min(num_experts, math.floor(factor * k + 1e-9))


def insert_keys(kept_TR: Tensor, key_TR: Tensor, in_window_TR: Tensor, replaces_T1: Tensor) -> Tensor:
    """Pick: the selection bool [T,R] after its key experts have come in (2509.06346, section 3; several keys: ours).

    A key expert that is not selected and ranks within the window comes in, highest score first. Where it replaces, it
    evicts the lowest-weight selected expert that is no key expert; when none is left, the remaining key experts stay
    out.

    Ranks 0 and 1 are selected, 1, 2 and 3 are key experts within the window: 2 evicts 0, 3 finds nobody left to evict.

    >>> import torch
    >>> mask = lambda *values: torch.tensor([values], dtype=torch.bool)
    >>> insert_keys(mask(1, 1, 0, 0), mask(0, 1, 1, 1), mask(1, 1, 1, 1), torch.tensor([[True]])).int()
    tensor([[0, 1, 1, 0]], dtype=torch.int32)
    >>> insert_keys(mask(1, 1, 0, 0), mask(0, 1, 1, 1), mask(1, 1, 1, 1), torch.tensor([[False]])).int()
    tensor([[1, 1, 1, 1]], dtype=torch.int32)
    """
    wanted_TR = key_TR & in_window_TR & ~kept_TR
    evictable_TR = kept_TR & ~key_TR
    num_evictable_T1 = evictable_TR.sum(dim=-1, keepdim=True)
    inserted_TR = wanted_TR & (~replaces_T1 | (wanted_TR.cumsum(dim=-1) <= num_evictable_T1))
    num_evicted_T1 = inserted_TR.sum(dim=-1, keepdim=True).where(replaces_T1, 0)
    evicted_TR = evictable_TR & (evictable_TR.cumsum(dim=-1) > num_evictable_T1 - num_evicted_T1)
    return (kept_TR & ~evicted_TR) | inserted_TR
