"""The reference router once more, in numpy: the same numbers for a few tokens on CPU, in a third of the time.

A decode step routes a handful of tokens, and then an operation of torch costs 5 to 20 us whatever its size, most of it
after the experts have emptied the caches; the edit has some sixty of them a layer. A call of numpy costs about 1 us.
Every float here comes from the same float32 operation in the same order as in `reference`, so experts and counts are
equal to the bit, not merely close; only the renormalised weights may differ in their last digit. Softmax stays in
torch: exponentials of two libraries do not round alike.

Policy row 0 only, and no router that ranks by anything but its logits (groups, correction bias).

Shape suffixes as in `reference`: T tokens, E experts, K selected, S slots, R ranks.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from banpick_kernels.reference import LARGEST, TINY
from banpick_kernels.stochastic_rounding import BITS, FIRST, GOLDEN, SECOND
from banpick_kernels.table import COLUMNS, LayerTable

FEW_TOKENS = 64
"""Up to here numpy is faster than torch."""

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


class Routed(NamedTuple):
    """What `reference.edit_selection` returns, as arrays."""

    weights_TS: Floats
    ids_TS: NDArray[np.int32]
    kept_TS: Bools


class NumpyRouter:
    """One layer's table as numpy sees it, row 0. Call `read` after every change of the table."""

    def __init__(self, table: LayerTable) -> None:
        """`table` must be on the CPU and keep its memory."""
        self._table = table
        self.read()

    def read(self) -> None:
        """Take the scalars over; the vectors are views."""
        value = dict(zip(COLUMNS, self._table.values[0].numpy(), strict=False))
        self._keep, self._k_min, self._floor = value["keep"], value["ban_k_min"], value["floor"]
        self._whole = np.floor(self._keep)
        self._bans, self._replaces = bool(value["ban"] > 0), bool(value["insert_replaces"] > 0)
        self._ratio_max, span = value["ratio_max"], value["ratio_max"] - value["ratio_min"]
        self._span = span if span > 0 else np.float32(np.inf)
        self._half_lambda = value["ban_lambda"] * np.float32(0.5)
        self._sensitivity, self._window = value["sensitivity"], value["insert_window"]
        self._min_ratio, self._mass, self._raw_mass = value["min_ratio"], value["mass"], bool(value["raw_mass"] > 0)
        self._min_weight, self._tail_square = value["min_weight"], value["tail_square"]
        self._bias_E, self._key_E = self._table.logit_bias_PE[0], self._table.key_PE[0].numpy()

    def route(
        self,
        logits_TE: Tensor,
        top_k: int,
        slots: int,
        renormalize: bool,
        scoring: str = "softmax",
        *,
        biased: bool = True,
        inserts: bool = True,
        thresholds: bool = True,
    ) -> Routed:
        """`reference.route` for row 0; `biased`, `inserts`, `thresholds` False: known to be neutral, and left out."""
        cleaned = logits_TE.float() + self._bias_E if biased else logits_TE.float()
        cleaned = torch.nan_to_num(cleaned, nan=-torch.inf, posinf=LARGEST, neginf=-torch.inf)
        scores = cleaned.softmax(dim=-1) if scoring == "softmax" else 1 / (1 + torch.exp(-cleaned))
        order_TE, scores_TE = cleaned.numpy(), scores.numpy()
        ids_TS = best_k(cleaned, order_TE, top_k)
        row_T1 = np.arange(len(ids_TS))[:, None]
        weight_TS = _without_nan(scores_TE[row_T1, ids_TS])
        kept_TS = np.arange(top_k) < self._keep_count(weight_TS, order_TE[row_T1, ids_TS], thresholds)
        if inserts:
            ids_TS, kept_TS = self._inserted(order_TE, ids_TS, kept_TS, slots)
            weight_TS = _without_nan(scores_TE[row_T1, ids_TS])
        elif slots != top_k:
            ids_TS, kept_TS, weight_TS = (_widened(each, slots) for each in (ids_TS, kept_TS, weight_TS))
        weight_TS = weight_TS * kept_TS
        if renormalize:
            weight_TS /= np.maximum(weight_TS.sum(axis=1, keepdims=True), TINY)
        return Routed(weight_TS, np.where(kept_TS, ids_TS, ids_TS[:, :1]).astype(np.int32), kept_TS)

    def _keep_count(self, weight_TK: Floats, logit_TK: Floats, thresholds: bool) -> Floats:
        if self._bans:
            keep_T1 = self._ban_count(weight_TK)
        elif self._keep > self._whole:
            keep_T1 = self._whole + (uniform(logit_TK) < self._keep - self._whole)
        else:
            keep_T1 = np.full((len(weight_TK), 1), self._keep)
        return np.minimum(keep_T1, self._threshold_count(weight_TK)) if thresholds else keep_T1

    def _ban_count(self, weight_TK: Floats) -> Floats:
        sum_TK = np.add.accumulate(weight_TK, axis=1)  # in rank order, as `reference.in_rank_order` adds
        ratio_T1 = sum_TK[:, :3][:, -1:] / np.maximum(sum_TK[:, -1:], TINY)
        flatness_T1 = np.minimum(np.maximum((self._ratio_max - ratio_T1) / self._span, 0), 1)
        keep_more_T1 = self._half_lambda * (self._sensitivity + flatness_T1)
        count_T1 = np.rint(self._k_min + (self._keep - self._k_min) * keep_more_T1)
        return np.minimum(np.maximum(count_T1, self._k_min), self._keep)

    def _threshold_count(self, weight_TK: Floats) -> Floats:
        score_TK, weight_TK = weight_TK, weight_TK / np.maximum(np.add.accumulate(weight_TK, axis=1)[:, -1:], TINY)
        mass_TK = score_TK if self._raw_mass else weight_TK
        before_TK = _running_sum(mass_TK) - mass_TK
        tail_TK = _running_sum(np.square(weight_TK)[:, ::-1])[:, ::-1]
        left_TK = (weight_TK >= self._min_ratio * weight_TK[:, :1]) & (before_TK < self._mass)
        left_TK &= (weight_TK >= self._min_weight) & (tail_TK >= self._tail_square)
        return np.maximum(left_TK.sum(axis=1, keepdims=True).astype(np.float32), self._floor)

    def _inserted(self, order_TE: Floats, ids_TK: Ints, kept_TK: Bools, slots: int) -> tuple[Ints, Bools]:
        order_TR = best_first(order_TE)
        row_T1 = np.arange(len(ids_TK))[:, None]
        kept_TE = np.zeros(order_TE.shape, dtype=bool)
        kept_TE[row_T1, ids_TK] = kept_TK
        kept_TR, key_TR = kept_TE[row_T1, order_TR], self._key_E[order_TR]
        wanted_TR = key_TR & ~kept_TR & (np.arange(order_TE.shape[1]) < self._window)
        if self._replaces:
            evictable_TR = kept_TR & ~key_TR
            evictable_T1 = evictable_TR.sum(axis=1, keepdims=True)
            wanted_TR &= wanted_TR.cumsum(axis=1) <= evictable_T1
            stay_T1 = evictable_T1 - wanted_TR.sum(axis=1, keepdims=True)
            kept_TR &= ~(evictable_TR & (evictable_TR.cumsum(axis=1) > stay_T1))
        kept_TR |= wanted_TR
        slot_TS = np.argsort(~kept_TR, axis=1, kind="stable")[:, :slots]
        return order_TR[row_T1, slot_TS], kept_TR[row_T1, slot_TS]


def count_few(tokens_P: Tensor, usage_PE: Tensor, ids_TS: Tensor, kept_TS: Tensor | None) -> None:
    """Add the tokens and the use of experts to row 0 of the counters; `kept_TS` None: every slot is kept."""
    ids = ids_TS.numpy() if kept_TS is None else ids_TS.numpy()[kept_TS.numpy()]
    tokens_P.numpy()[0] += len(ids_TS)
    usage_E = usage_PE.numpy()[0]
    usage_E += np.bincount(np.maximum(ids, 0).ravel(), minlength=len(usage_E))


def best_first(values_TE: Floats) -> Ints:
    """`reference.best_first`: highest value first, equal values by lower id."""
    return np.argsort(-values_TE, axis=1, kind="stable")


def best_k(values: Tensor, values_TE: Floats, top_k: int) -> Ints:
    """The first `top_k` of `best_first`. `values` is the tensor behind `values_TE`: torch selects, ties are mended."""
    top = values.topk(top_k, dim=-1)
    top_TK, ids_TK = top.values.numpy(), top.indices.numpy()
    tied_T = (top_TK[:, 1:] == top_TK[:, :-1]).any(axis=1) | ((values_TE >= top_TK[:, -1:]).sum(axis=1) > top_k)
    if tied_T.any():
        ids_TK[tied_T] = best_first(values_TE[tied_T])[:, :top_k]
    return ids_TK


def uniform(logit_TK: Floats) -> Floats:
    """`stochastic_rounding.uniform`: a number in [0, 1), float32 [T,1], from the selected logits in rank order."""
    rank_K = np.arange(1, logit_TK.shape[1] + 1, dtype=np.uint32) * np.uint32(GOLDEN)
    bits_TK = np.ascontiguousarray(logit_TK + np.float32(0)).view(np.uint32)
    token_T1 = _mixed(bits_TK ^ rank_K).sum(axis=1, keepdims=True, dtype=np.uint32)
    return (_mixed(token_T1) >> np.uint32(32 - BITS)).astype(np.float32) / np.float32(2**BITS)


def _mixed(bits: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Every bit of the result hangs on every bit given. Overflow wraps."""
    for shift, factor in ((16, FIRST), (15, SECOND)):
        bits = (bits ^ (bits >> np.uint32(shift))) * np.uint32(factor)
    return bits ^ (bits >> np.uint32(16))


def _running_sum(values_TK: Floats) -> Floats:
    """As torch.cumsum on CPU: carried in double, rounded at every rank."""
    return values_TK.cumsum(axis=1, dtype=np.float64).astype(np.float32)


def _without_nan(weight_TS: Floats) -> Floats:
    """A row of only -inf has scores of NaN: it weighs nothing."""
    whole_TS = weight_TS == weight_TS
    return weight_TS if whole_TS.all() else np.where(whole_TS, weight_TS, np.float32(0))


def _widened(values_TK: Any, slots: int) -> Any:
    """With `slots` columns: zeros behind, or cut."""
    widened_TS = np.zeros((len(values_TK), slots), dtype=values_TK.dtype)
    columns = min(slots, values_TK.shape[1])
    widened_TS[:, :columns] = values_TK[:, :columns]
    return widened_TS
