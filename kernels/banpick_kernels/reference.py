"""The router in readable torch: the definition that every kernel must match, expert id for expert id.

Source of the rules: Ban&Pick, arXiv 2509.06346 v3; where another paper is meant the docstring names it, where all are
silent the rule is ours and its docstring says so. Nothing here branches on a value, only on shapes: the same code runs
eagerly, compiled and in a captured graph.

The order of experts, everywhere: by router logit, policy bias included, highest first; equal logits by lower id. Both
scorings only ever grow with the logit, so this is the order of the scores as well, except that it does not depend on
how an exponential rounds: two logits that differ stay in order even where their float32 scores are equal.

Shape suffixes: T tokens, E experts, K experts the checkpoint selects, S slots returned, P policy rows, R ranks: the E
experts of a token again, best first. In rank order every rule is a mask or a running count. G groups of M experts each.
A 1 is an axis that broadcasts.
"""

import torch
from torch import Tensor

from banpick_kernels.insertion import insert_keys
from banpick_kernels.layer_hooks import LayerEdit
from banpick_kernels.stochastic_rounding import rounded
from banpick_kernels.table import LayerTable

TINY, LARGEST = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max


def biased_logits(logits_TE: Tensor, layer: LayerTable, row_T: Tensor | None = None) -> Tensor:
    """Router logits plus the policy's bias (Pick's `boost`), float32 [T,E]: what is ordered and scored.

    NaN counts as -inf, +inf as the largest float.
    """
    biased_TE = logits_TE.float() + _of_row(layer.logit_bias_PE, row_T)
    return torch.nan_to_num(biased_TE, nan=-torch.inf, posinf=LARGEST, neginf=-torch.inf)


def router_scores(logits_TE: Tensor, scoring: str = "softmax") -> Tensor:
    """Scores float32 [T,E] of router logits of any float type; `scoring` is softmax or sigmoid.

    NaN counts as -inf, +inf as the largest float. An expert at -inf scores 0, even if the whole row is at -inf.

    >>> router_scores(torch.tensor([[0.0, float("nan"), 0.0], [float("nan")] * 3]))
    tensor([[0.5000, 0.0000, 0.5000],
            [0.0000, 0.0000, 0.0000]])
    """
    logits_TE = torch.nan_to_num(logits_TE.float(), nan=-torch.inf, posinf=LARGEST, neginf=-torch.inf)
    if scoring == "softmax":
        return torch.nan_to_num(logits_TE.softmax(dim=-1), nan=0.0)
    if scoring == "sigmoid":
        # torch.sigmoid rounds the last few elements of a tensor differently on CPU, which would break ties by position.
        return 1 / (1 + torch.exp(-logits_TE))
    raise ValueError(f"scoring={scoring!r} is unknown: logits cannot become weights. Use softmax or sigmoid.")


def best_first(values_TE: Tensor) -> Tensor:
    """Expert ids int64 [T,R], highest value first, equal values by lower id.

    >>> best_first(torch.tensor([[0.2, 0.5, 0.2, 0.5]]))
    tensor([[1, 3, 0, 2]])
    """
    return values_TE.argsort(dim=-1, descending=True, stable=True)


def reordered(logits_TE: Tensor, ids_TK: Tensor) -> Tensor:
    """The same ids int64 [T,K] of each token in the order of experts: highest logit first, equal ones by lower id."""
    ids_TK = ids_TK.sort(dim=-1).values
    return ids_TK.gather(1, best_first(logits_TE.gather(1, ids_TK)))


def select_top_k(ranking_TE: Tensor, top_k: int) -> Tensor:
    """The base selection, int64 [T,K]: what a plain top-k router would choose, in the order of `best_first`."""
    return best_first(ranking_TE)[:, :top_k]


def within_groups(ranking_TE: Tensor, num_groups: int, top_groups: int, corrected: bool) -> Tensor:
    """Grouped top-k (DeepSeek-V2, V3): the ranking [T,E] with the experts of unselected groups at -inf.

    The experts stand in `num_groups` equal groups, of which each token sees its `top_groups` best: by their largest
    value, or with a correction bias (`corrected`) by the sum of their two largest (vLLM grouped_topk, V3 report 2.1.2).

    >>> within_groups(torch.tensor([[0.5, 0.1, 0.4, 0.3]]), 2, 1, corrected=False)
    tensor([[0.5000, 0.1000,   -inf,   -inf]])
    >>> within_groups(torch.tensor([[0.5, 0.1, 0.4, 0.3]]), 2, 1, corrected=True)
    tensor([[  -inf,   -inf, 0.4000, 0.3000]])
    """
    value_TGM = ranking_TE.unflatten(-1, (num_groups, -1))
    group_TG = value_TGM.topk(2, dim=-1).values.sum(dim=-1) if corrected else value_TGM.amax(dim=-1)
    seen_TG = torch.zeros_like(group_TG, dtype=torch.bool).scatter_(1, group_TG.topk(top_groups, dim=-1).indices, True)
    return value_TGM.where(seen_TG[..., None], -torch.inf).flatten(-2)


def masked_last(ranking_TE: Tensor, logits_TE: Tensor) -> Tensor:
    """The ranking [T,E] with experts at logit -inf behind all others, those of unselected groups included (ours)."""
    return ranking_TE.clamp_min(-LARGEST).where(logits_TE > -torch.inf, -torch.inf)


def in_rank_order(weight_TK: Tensor) -> Tensor:
    """The sum [T,1], added from the first rank on: a count that hangs on it must not depend on who adds."""
    total_T1 = weight_TK[:, :1]
    for rank in range(1, weight_TK.shape[1]):
        total_T1 = total_T1 + weight_TK[:, rank : rank + 1]
    return total_T1


def ban_count(weight_TK: Tensor, layer: LayerTable, row_T: Tensor | None = None) -> Tensor:
    """Ban: how many experts of the base selection each token keeps, float32 [T,1] (2509.06346, section 3).

    w_1 >= ... >= w_K are the scores of the token's base selection (only their ratio enters):
        R  = (w_1 + w_2 + w_3) / (w_1 + ... + w_K)
        Tn = clamp((R_max - R) / (R_max - R_min), 0, 1)                        # 0 where R_max = R_min (ours)
        k  = round(k_min + (K - k_min) * lambda * 0.5 * (sensitivity + Tn))    # half to even, clamped to [k_min, K]
    A token whose scores are all 0 has R = 0 (ours).

    K = 4, k_min = 2, lambda = 1, sensitivity = 0.5, R in [0.8, 1]: R = 0.9 gives Tn = 0.5 and 2 + 2 * 0.5 = 3 experts.

    >>> from banpick_kernels.table import RouterTable
    >>> table = RouterTable.neutral(1, 4, 4)
    >>> for values, value in [(table.ban_k_min, 2), (table.sensitivity, 0.5), (table.ratio_min, 0.8),
    ...                       (table.ratio_max, 1.0)]:
    ...     _ = values.fill_(value)
    >>> ban_count(torch.tensor([[0.4, 0.3, 0.2, 0.1]]), table.layer(0))
    tensor([[3.]])
    """
    k_min_T1, keep_T1 = _of_row(layer.ban_k_min, row_T), _of_row(layer.keep, row_T)
    ratio_max_T1, span_T1 = _of_row(layer.ratio_max, row_T), _of_row(layer.ratio_max - layer.ratio_min, row_T)
    ratio_T1 = in_rank_order(weight_TK[:, :3]) / in_rank_order(weight_TK).clamp_min(TINY)
    flatness_T1 = ((ratio_max_T1 - ratio_T1) / span_T1.where(span_T1 > 0, torch.inf)).clamp(0, 1)
    keep_more_T1 = _of_row(layer.ban_lambda, row_T) * 0.5 * (_of_row(layer.sensitivity, row_T) + flatness_T1)
    return (k_min_T1 + (keep_T1 - k_min_T1) * keep_more_T1).round().clamp(min=k_min_T1, max=keep_T1)


def threshold_count(weight_TK: Tensor, layer: LayerTable, row_T: Tensor | None = None) -> Tensor:
    """The threshold rules: how many of the base selection are left by the strictest of them, float32 [T,1].

    w_1 >= ... >= w_K are the base scores divided by their sum (`min_weight` and `tail_square` need it: ours).
        naee     (2402.14800)  ranks with w_i >= min_ratio * w_1
        top_p    (2403.07652)  the shortest prefix with w_1 + ... + w_k >= mass; where `raw_mass` is set, of the scores
                               undivided: those of a softmax are shares of all experts
        modes    (2511.15690)  ranks with w_i >= min_weight
        adapmoe  (2408.10284)  ranks whose tail w_i^2 + ... + w_K^2 is at least tail_square
    Each leaves a prefix, because the weights descend; `floor` experts stay in any case. Neutral values leave all K.

    Weights 0.5, 0.25, 0.125, 0.125: naee with 0.5 leaves 2, top_p with 0.8 leaves 3.

    >>> from banpick_kernels.table import RouterTable
    >>> weights, table = torch.tensor([[0.5, 0.25, 0.125, 0.125]]), RouterTable.neutral(1, 4, 4)
    >>> _ = table.min_ratio.fill_(0.5)
    >>> threshold_count(weights, table.layer(0))
    tensor([[2.]])
    >>> _ = table.min_ratio.fill_(0), table.mass.fill_(0.8)
    >>> threshold_count(weights, table.layer(0))
    tensor([[3.]])
    """
    score_TK, weight_TK = weight_TK, weight_TK / in_rank_order(weight_TK).clamp_min(TINY)
    mass_TK = torch.where(_of_row(layer.raw_mass, row_T) > 0, score_TK, weight_TK)
    before_TK = mass_TK.cumsum(dim=-1) - mass_TK
    tail_TK = weight_TK.square().flip(-1).cumsum(dim=-1).flip(-1)
    left_TK = (
        (weight_TK >= _of_row(layer.min_ratio, row_T) * weight_TK[:, :1])
        & (before_TK < _of_row(layer.mass, row_T))
        & (weight_TK >= _of_row(layer.min_weight, row_T))
        & (tail_TK >= _of_row(layer.tail_square, row_T))
    )
    return left_TK.sum(dim=-1, keepdim=True).float().clamp_min(_of_row(layer.floor, row_T))


def keep_count(
    weight_TK: Tensor,
    layer: LayerTable,
    row_T: Tensor | None = None,
    thresholds: bool = True,
    logit_TK: Tensor | None = None,
) -> Tensor:
    """The keep rule: how many experts of the base selection each token keeps before insertion, float32 [T,1].

    `keep` of them (fixed_k; stock where it is K), Ban's count where `ban` is set, and never more than the thresholds
    leave. `thresholds` False: they are known to be neutral, and twenty small operations are saved. `logit_TK`: the
    logits behind the weights, by which a `keep` with a fraction is rounded; None: it is known to be whole.
    """
    keep_T1 = _of_row(layer.keep, row_T)
    if logit_TK is not None:
        keep_T1 = rounded(keep_T1, logit_TK)
    banned_T1 = torch.where(_of_row(layer.ban, row_T) > 0, ban_count(weight_TK, layer, row_T), keep_T1)
    return banned_T1.minimum(threshold_count(weight_TK, layer, row_T)) if thresholds else banned_T1


def edit_selection(
    logits_TE: Tensor,
    scores_TE: Tensor,
    base_ids_TK: Tensor,
    layer: LayerTable,
    slots: int,
    renormalize: bool,
    *,
    ranking_TE: Tensor | None = None,
    row_T: Tensor | None = None,
    inserts: bool = True,
    thresholds: bool = True,
    draws: bool = True,
    edit: LayerEdit | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Apply the policy to a selection that a router has made: keep rule first, then insertion, then the weights.

    Args:
        logits_TE: of `biased_logits`: what "first k", "lowest weight" and "highest score" mean.
        scores_TE: float32, finite, >= 0: what the router weights by, `router_scores(logits_TE)`.
        base_ids_TK: the router's own top-k, any order, int32 or int64. -1 (vLLM's padding rows) is read as expert 0.
        layer: the policy of this layer.
        slots: S, at least the most experts the policy can keep (further ones would be cut off) and at most E.
        renormalize: weights of the kept sum to 1 (where all are 0 they stay 0); otherwise they are the raw scores.
        ranking_TE: what the router ranks by where that is not the logit: scores + correction bias, -inf for a masked
            group. Only the insertion window reads it.
        row_T: int32 or int64, the policy row of each token; None is row 0 for all.
        inserts: False where the policy is known to insert nothing: the same result without sorting all experts.
        thresholds: False where no threshold rule is set: the same result in fewer operations.
        draws: False where `keep` is known to be a whole number: the same result in fewer operations.
        edit: what the rule does beyond the table; the logits and what follows from them are after `edit.logits`.

    Returns:
        weights float32, ids int32, kept bool, each [T,S]: kept slots first, best first. An unkept slot repeats the
        token's first id with weight 0, which every expert kernel computes exactly.

    A token ranks its experts 3, 1, 0, 2 and its base is {3, 1}. One is kept, then key expert 0 comes in:

    >>> from banpick_kernels.table import RouterTable
    >>> table = RouterTable.neutral(1, 4, top_k=2)
    >>> _ = table.keep.fill_(1), table.insert_window.fill_(4)
    >>> table.key_PLE[0, 0, 0] = True
    >>> scores = torch.tensor([[0.125, 0.25, 0.0, 0.625]])
    >>> edit_selection(scores.log(), scores, torch.tensor([[1, 3]]), table.layer(0), slots=3, renormalize=False)
    (tensor([[0.6250, 0.1250, 0.0000]]), tensor([[3, 0, 3]], dtype=torch.int32), tensor([[ True,  True, False]]))
    """
    ids_TK = reordered(logits_TE, base_ids_TK.long().clamp_min(0))
    if edit is not None:
        ids_TK = edit.select(logits_TE, logits_TE if ranking_TE is None else ranking_TE, ids_TK)
    weight_TK = scores_TE.gather(1, ids_TK)
    logit_TK = logits_TE.gather(1, ids_TK) if draws else None
    rank_K = torch.arange(ids_TK.shape[1], device=ids_TK.device)
    kept_TK = rank_K < keep_count(weight_TK, layer, row_T, thresholds, logit_TK)
    if edit is not None:
        stays_TK = edit.keep(weight_TK / in_rank_order(weight_TK).clamp_min(TINY), ids_TK)
        if stays_TK is not None:
            kept_TK &= stays_TK | (rank_K < _of_row(layer.floor, row_T))
            # A rank that falls may stand between two that stay: those move up.
            slot_TK = kept_TK.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)
            ids_TK, kept_TK = ids_TK.gather(1, slot_TK), kept_TK.gather(1, slot_TK)
    if inserts:
        ids_TS, kept_TS = _inserted(logits_TE, ids_TK, kept_TK, layer, slots, ranking_TE, row_T)
    else:
        spare = max(0, slots - ids_TK.shape[1])
        ids_TS = torch.nn.functional.pad(ids_TK, (0, spare))[:, :slots]
        kept_TS = torch.nn.functional.pad(kept_TK, (0, spare))[:, :slots]
    weights_TS = scores_TE.gather(1, ids_TS).where(kept_TS, 0)
    if edit is not None and not edit.weights_last:
        weights_TS = edit.weights(weights_TS, ids_TS)
    if renormalize:
        weights_TS = weights_TS / weights_TS.sum(dim=-1, keepdim=True).clamp_min(TINY)
    if edit is not None and edit.weights_last:
        weights_TS = edit.weights(weights_TS, ids_TS)
    return weights_TS, ids_TS.where(kept_TS, ids_TS[:, :1]).int(), kept_TS


def _inserted(
    logits_TE: Tensor,
    ids_TK: Tensor,
    kept_TK: Tensor,
    layer: LayerTable,
    slots: int,
    ranking_TE: Tensor | None,
    row_T: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The selection after `insert_keys`: ids int64 [T,S], kept first and best first, and kept bool [T,S]."""
    order_TR = best_first(logits_TE)
    kept_TE = torch.zeros_like(logits_TE, dtype=torch.bool).scatter_(1, ids_TK, kept_TK)
    if ranking_TE is None:
        rank_TR = torch.arange(logits_TE.shape[1], device=logits_TE.device)
    else:
        rank_TR = best_first(ranking_TE).argsort(dim=-1).gather(1, order_TR)
    key_TR = _of_row(layer.key_PE, row_T).expand_as(kept_TE).gather(1, order_TR)
    in_window_TR = rank_TR < _of_row(layer.insert_window, row_T)
    kept_TR = kept_TE.gather(1, order_TR)
    kept_TR = insert_keys(kept_TR, key_TR, in_window_TR, _of_row(layer.insert_replaces, row_T) > 0)
    slot_TS = kept_TR.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)[:, :slots]
    return order_TR.gather(1, slot_TS), kept_TR.gather(1, slot_TS)


def route(
    logits_TE: Tensor,
    layer: LayerTable,
    top_k: int,
    slots: int,
    renormalize: bool,
    scoring: str = "softmax",
    *,
    correction_E: Tensor | None = None,
    row_T: Tensor | None = None,
    edit: LayerEdit | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """A whole router without groups: logits in, (weights, ids, kept) of `edit_selection` out.

    With a correction bias (DeepSeek-V3) the base selection ranks by score + bias, equal ones by lower id; the weights
    are the scores without it.
    """
    logits_TE = biased_logits(logits_TE, layer, row_T)
    if edit is not None:
        logits_TE = edit.logits(logits_TE)
    scores_TE = router_scores(logits_TE, scoring)
    ranking_TE = None if correction_E is None else scores_TE + correction_E
    base_ids_TK = select_top_k(logits_TE if ranking_TE is None else ranking_TE, top_k)
    return edit_selection(
        logits_TE, scores_TE, base_ids_TK, layer, slots, renormalize, ranking_TE=ranking_TE, row_T=row_T, edit=edit
    )


def _of_row(values: Tensor, row_T: Tensor | None) -> Tensor:
    """The policy value of each token: [P] becomes [T,1] and [P,E] becomes [T,E], with T = 1 where all use row 0."""
    chosen = values[:1] if row_T is None else values.index_select(0, row_T)
    return chosen if chosen.ndim == 2 else chosen[:, None]
