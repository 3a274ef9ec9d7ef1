"""The reference router once more, in numpy: the same numbers for a few tokens on CPU, in a third of the time.

A decode step routes a handful of tokens, and then an operation of torch costs 5 to 20 us whatever its size, most of it
after the experts have emptied the caches; the edit has some sixty of them a layer. A call of numpy costs about 1 us.
Every float here comes from the same float32 operation in the same order as in `reference`, so experts and counts are
equal to the bit, not merely close; only the renormalised weights may differ in their last digit. Softmax stays in
torch: exponentials of two libraries do not round alike.

No router that ranks by anything but its logits (groups, correction bias).

Shape suffixes as in `reference`: T tokens, E experts, K selected, S slots, R ranks, P policy rows.
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


class Values(NamedTuple):
    """The scalars of a table as the rules read them: numbers of one row, or [T,1] where tokens differ in their row."""

    keep: Any
    whole: Any
    """`keep` without its fraction."""
    k_min: Any
    half_lambda: Any
    sensitivity: Any
    ratio_max: Any
    span: Any
    floor: Any
    min_ratio: Any
    mass: Any
    min_weight: Any
    tail_square: Any
    window: Any
    bans: Any
    raw_mass: Any
    replaces: Any
    draws: Any
    """Whether a `keep` with a fraction is rounded."""


FLAGS = Values._fields.index("bans")
"""From this field on they are bool."""


class NumpyRouter:
    """One layer's table as numpy sees it. Call `read` after every change of the table."""

    def __init__(self, table: LayerTable) -> None:
        """`table` must be on the CPU and keep its memory."""
        self._table = table
        self.read()

    def read(self) -> None:
        """Take the scalars over; the vectors are views."""
        value = dict(zip(COLUMNS, self._table.values.numpy().T, strict=False))
        keep, span_P, bans = value["keep"], value["ratio_max"] - value["ratio_min"], value["ban"] > 0
        columns = Values(
            keep=keep,
            whole=np.floor(keep),
            k_min=value["ban_k_min"],
            half_lambda=value["ban_lambda"] * np.float32(0.5),
            sensitivity=value["sensitivity"],
            ratio_max=value["ratio_max"],
            span=np.where(span_P > 0, span_P, np.float32(np.inf)),
            floor=value["floor"],
            min_ratio=value["min_ratio"],
            mass=value["mass"],
            min_weight=value["min_weight"],
            tail_square=value["tail_square"],
            window=value["insert_window"],
            bans=bans,
            raw_mass=value["raw_mass"] > 0,
            replaces=value["insert_replaces"] > 0,
            draws=(keep > np.floor(keep)) & ~bans,
        )
        self._numbers_PN, self._flags_PN = np.stack(columns[:FLAGS], axis=1), np.stack(columns[FLAGS:], axis=1)
        self._first = Values(*self._numbers_PN[0], *self._flags_PN[0].tolist())
        self._bias_PE, self._key_PE = self._table.logit_bias_PE, self._table.key_PE.numpy()

    def _values(self, row_T: Ints) -> Values:
        """Of as many rows as there are tokens."""
        numbers_NT, flags_NT = self._numbers_PN[row_T].T[..., None], self._flags_PN[row_T].T[..., None]
        return Values(*numbers_NT, *(flag_T1 if flag_T1.any() else False for flag_T1 in flags_NT))

    def route(
        self,
        logits_TE: Tensor,
        top_k: int,
        slots: int,
        renormalize: bool,
        scoring: str = "softmax",
        *,
        row_T: Ints | None = None,
        biased: bool = True,
        inserts: bool = True,
        thresholds: bool = True,
    ) -> Routed:
        """`reference.route`; `biased`, `inserts`, `thresholds` False: known to be neutral in all rows, and left out.

        `row_T`: the policy row of each token; None is row 0 for all.
        """
        values = self._first if row_T is None else self._values(row_T)
        cleaned = logits_TE.float()
        if biased:
            cleaned = cleaned + (self._bias_PE[0] if row_T is None else self._bias_PE[torch.from_numpy(row_T)])
        cleaned = torch.nan_to_num(cleaned, nan=-torch.inf, posinf=LARGEST, neginf=-torch.inf)
        scores = cleaned.softmax(dim=-1) if scoring == "softmax" else 1 / (1 + torch.exp(-cleaned))
        order_TE, scores_TE = cleaned.numpy(), scores.numpy()
        ids_TS = best_k(cleaned, order_TE, top_k)
        at_T1 = np.arange(len(ids_TS))[:, None]
        weight_TS = _without_nan(scores_TE[at_T1, ids_TS])
        kept_TS = np.arange(top_k) < _keep_count(values, weight_TS, order_TE[at_T1, ids_TS], thresholds)
        if inserts:
            key_TE = self._key_PE[:1] if row_T is None else self._key_PE[row_T]
            ids_TS, kept_TS = _inserted(values, key_TE, order_TE, ids_TS, kept_TS, slots)
            weight_TS = _without_nan(scores_TE[at_T1, ids_TS])
        elif slots != top_k:
            ids_TS, kept_TS, weight_TS = (_widened(each, slots) for each in (ids_TS, kept_TS, weight_TS))
        weight_TS = weight_TS * kept_TS
        if renormalize:
            weight_TS /= np.maximum(weight_TS.sum(axis=1, keepdims=True), TINY)
        return Routed(weight_TS, np.where(kept_TS, ids_TS, ids_TS[:, :1]).astype(np.int32), kept_TS)


def _keep_count(values: Values, weight_TK: Floats, logit_TK: Floats, thresholds: bool) -> Floats:
    if values.bans is True:
        keep_T1 = _ban_count(values, weight_TK)
    else:
        keep_T1 = values.keep if np.ndim(values.keep) else np.full((len(weight_TK), 1), values.keep)
        if values.draws is not False:
            drawn_T1 = values.whole + (uniform(logit_TK) < values.keep - values.whole)
            keep_T1 = drawn_T1 if values.draws is True else np.where(values.draws, drawn_T1, keep_T1)
        if values.bans is not False:
            keep_T1 = np.where(values.bans, _ban_count(values, weight_TK), keep_T1)
    return np.minimum(keep_T1, _threshold_count(values, weight_TK)) if thresholds else keep_T1


def _ban_count(values: Values, weight_TK: Floats) -> Floats:
    sum_TK = np.add.accumulate(weight_TK, axis=1)  # in rank order, as `reference.in_rank_order` adds
    ratio_T1 = sum_TK[:, :3][:, -1:] / np.maximum(sum_TK[:, -1:], TINY)
    flatness_T1 = np.minimum(np.maximum((values.ratio_max - ratio_T1) / values.span, 0), 1)
    keep_more_T1 = values.half_lambda * (values.sensitivity + flatness_T1)
    count_T1 = np.rint(values.k_min + (values.keep - values.k_min) * keep_more_T1)
    return np.minimum(np.maximum(count_T1, values.k_min), values.keep)


def _threshold_count(values: Values, weight_TK: Floats) -> Floats:
    score_TK, weight_TK = weight_TK, weight_TK / np.maximum(np.add.accumulate(weight_TK, axis=1)[:, -1:], TINY)
    mass_TK = weight_TK
    if values.raw_mass is not False:
        mass_TK = score_TK if values.raw_mass is True else np.where(values.raw_mass, score_TK, weight_TK)
    before_TK = _running_sum(mass_TK) - mass_TK
    tail_TK = _running_sum(np.square(weight_TK)[:, ::-1])[:, ::-1]
    left_TK = (weight_TK >= values.min_ratio * weight_TK[:, :1]) & (before_TK < values.mass)
    left_TK &= (weight_TK >= values.min_weight) & (tail_TK >= values.tail_square)
    return np.maximum(left_TK.sum(axis=1, keepdims=True).astype(np.float32), values.floor)


def _inserted(
    values: Values, key_TE: Bools, order_TE: Floats, ids_TK: Ints, kept_TK: Bools, slots: int
) -> tuple[Ints, Bools]:
    order_TR = best_first(order_TE)
    at_T1 = np.arange(len(ids_TK))[:, None]
    kept_TE = np.zeros(order_TE.shape, dtype=bool)
    kept_TE[at_T1, ids_TK] = kept_TK
    key_TR = key_TE[0][order_TR] if len(key_TE) == 1 else key_TE[at_T1, order_TR]
    kept_TR = kept_TE[at_T1, order_TR]
    wanted_TR = key_TR & ~kept_TR & (np.arange(order_TE.shape[1]) < values.window)
    if values.replaces is not False:
        adds = False if values.replaces is True else ~values.replaces
        evictable_TR = kept_TR & ~key_TR
        evictable_T1 = evictable_TR.sum(axis=1, keepdims=True)
        wanted_TR &= adds | (wanted_TR.cumsum(axis=1) <= evictable_T1)
        stay_T1 = evictable_T1 - wanted_TR.sum(axis=1, keepdims=True)
        kept_TR &= adds | ~(evictable_TR & (evictable_TR.cumsum(axis=1) > stay_T1))
    kept_TR |= wanted_TR
    slot_TS = np.argsort(~kept_TR, axis=1, kind="stable")[:, :slots]
    return order_TR[at_T1, slot_TS], kept_TR[at_T1, slot_TS]


def count_few(
    tokens_P: Tensor, usage_PE: Tensor, ids_TS: Tensor, kept_TS: Tensor | None, row_T: Ints | None = None
) -> None:
    """Add the tokens and the use of experts to the counters of their rows; `kept_TS` None: every slot is kept.

    `row_T`: the policy row of each token; None is row 0 for all.
    """
    ids, usage = np.maximum(ids_TS.numpy(), 0), usage_PE.numpy()
    if row_T is None:
        tokens_P.numpy()[0] += len(ids)
        usage = usage[0]
    else:
        tokens = tokens_P.numpy()
        tokens += np.bincount(row_T, minlength=len(tokens))
        ids, usage = ids + row_T[:, None] * usage.shape[1], usage.reshape(-1)
    ids = ids.ravel() if kept_TS is None else ids[kept_TS.numpy()]
    usage += np.bincount(ids, minlength=len(usage))


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
