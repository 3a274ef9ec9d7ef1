"""The router in readable torch: the definition that every kernel must match, expert id for expert id.

Source of the rules: Ban&Pick, arXiv 2509.06346 v3. Where the paper is silent the rule is ours, and its docstring says
so. Nothing here branches on a value, only on shapes: the same code runs eagerly, compiled and in a captured graph.

Shape suffixes: T tokens, E experts, K experts the checkpoint selects, S slots returned (S >= K), P policy rows,
R ranks: the E experts of a token again, highest score first. In rank order every rule is a mask or a running count.
G groups of M experts each. A 1 is an axis that broadcasts.
"""

import torch
from torch import Tensor

from banpick_kernels.table import LayerTable

TINY, LARGEST = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max


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


def select_top_k(scores_TE: Tensor, top_k: int) -> Tensor:
    """The base selection, int64 [T,K]: what a plain top-k router would choose, in the order of `best_first`."""
    return best_first(scores_TE)[:, :top_k]


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


def ban_count(score_TR: Tensor, base_TR: Tensor, layer: LayerTable, row_T: Tensor | None = None) -> Tensor:
    """Ban: how many experts of the base selection each token keeps, float32 [T,1] (2509.06346, section 3).

    w_1 >= w_2 >= ... are the token's base scores (only their ratio enters, so normalising them changes nothing):
        R  = (w_1 + w_2 + w_3) / (w_1 + ... + w_K)
        Tn = clamp((R_max - R) / (R_max - R_min), 0, 1)                        # 0 where R_max = R_min (ours)
        k  = round(k_min + (K - k_min) * lambda * 0.5 * (sensitivity + Tn))    # half to even, clamped to [k_min, K]
    A token whose scores are all 0 has R = 0 (ours).

    K = 4, k_min = 2, lambda = 1, sensitivity = 0.5, R in [0.8, 1]: R = 0.9 gives Tn = 0.5 and 2 + 2 * 0.5 = 3 experts.

    >>> from banpick_kernels.table import RouterTable
    >>> table = RouterTable.neutral(1, 4, 4)
    >>> for values, value in [(table.ban_k_min_PL, 2), (table.sensitivity_PL, 0.5), (table.ratio_min_PL, 0.8),
    ...                       (table.ratio_max_PL, 1.0)]:
    ...     _ = values.fill_(value)
    >>> ban_count(torch.tensor([[0.4, 0.3, 0.2, 0.1]]), torch.ones(1, 4, dtype=torch.bool), table.layer(0))
    tensor([[3.]])
    """
    k_min_T1, top_k_T1 = _of_row(layer.ban_k_min_P, row_T).float(), _of_row(layer.keep_P, row_T).float()
    ratio_max_T1, span_T1 = _of_row(layer.ratio_max_P, row_T), _of_row(layer.ratio_max_P - layer.ratio_min_P, row_T)
    weight_TR = score_TR.where(base_TR, 0)
    top3_T1 = weight_TR.where(base_TR.cumsum(dim=-1) <= 3, 0).sum(dim=-1, keepdim=True)
    ratio_T1 = top3_T1 / weight_TR.sum(dim=-1, keepdim=True).clamp_min(TINY)
    flatness_T1 = ((ratio_max_T1 - ratio_T1) / span_T1.where(span_T1 > 0, torch.inf)).clamp(0, 1)
    keep_more_T1 = _of_row(layer.ban_lambda_P, row_T) * 0.5 * (_of_row(layer.sensitivity_P, row_T) + flatness_T1)
    return (k_min_T1 + (top_k_T1 - k_min_T1) * keep_more_T1).round().clamp(min=k_min_T1, max=top_k_T1)


def insert_keys(kept_TR: Tensor, key_TR: Tensor, in_window_TR: Tensor, replaces_T1: Tensor) -> Tensor:
    """Pick: the selection bool [T,R] after its key experts have come in (2509.06346, section 3; several keys: ours).

    A key expert that is not selected and ranks within the window comes in, highest score first. Where it replaces, it
    evicts the lowest-weight selected expert that is no key expert; when none is left, the remaining key experts stay
    out.

    Ranks 0 and 1 are selected, 1, 2 and 3 are key experts within the window: 2 evicts 0, 3 finds nobody left to evict.

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


def edit_selection(
    scores_TE: Tensor,
    ranking_TE: Tensor,
    base_ids_TK: Tensor,
    layer: LayerTable,
    slots: int,
    renormalize: bool,
    row_T: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Apply the policy to a selection that a router has made: keep rule first, then insertion, then the weights.

    Args:
        scores_TE: float32, finite, >= 0: what the router weights by.
        ranking_TE: what the router ranks by: the scores themselves (pass the same tensor, it saves a sort), or scores
            + correction bias; -inf for a masked group. Only the insertion window reads it: "first k", "lowest weight"
            and "highest score" always mean the scores.
        base_ids_TK: the router's own top-k, any order, int32 or int64. -1 (vLLM's padding rows) is read as expert 0.
        layer: the policy of this layer.
        slots: S, at least the most experts the policy can keep (further ones would be cut off) and at most E.
        renormalize: weights of the kept sum to 1 (where all are 0 they stay 0); otherwise they are the raw scores.
        row_T: int32 or int64, the policy row of each token; None is row 0 for all.

    Returns:
        weights float32, ids int32, kept bool, each [T,S]: kept slots first, descending score, equal scores by lower id.
        An unkept slot repeats the token's first id with weight 0, which every expert kernel computes exactly.

    A token ranks its experts 3, 1, 0, 2 and its base is {3, 1}. One is kept, then key expert 0 comes in:

    >>> from banpick_kernels.table import RouterTable
    >>> table = RouterTable.neutral(1, 4, top_k=2)
    >>> _ = table.keep_PL.fill_(1), table.insert_window_PL.fill_(4)
    >>> table.key_PLE[0, 0, 0] = True
    >>> scores = torch.tensor([[0.125, 0.25, 0.0, 0.625]])
    >>> edit_selection(scores, scores, torch.tensor([[1, 3]]), table.layer(0), slots=3, renormalize=False)
    (tensor([[0.6250, 0.1250, 0.0000]]), tensor([[3, 0, 3]], dtype=torch.int32), tensor([[ True,  True, False]]))
    """
    order_TR = best_first(scores_TE)
    score_TR = scores_TE.gather(1, order_TR)
    base_TE = torch.zeros_like(scores_TE, dtype=torch.bool).scatter_(1, base_ids_TK.long().clamp_min(0), True)
    base_TR = base_TE.gather(1, order_TR)

    keep_T1 = _of_row(layer.keep_P, row_T)
    keep_T1 = torch.where(_of_row(layer.ban_P, row_T), ban_count(score_TR, base_TR, layer, row_T), keep_T1)
    kept_TR = base_TR & (base_TR.cumsum(dim=-1) <= keep_T1)

    if ranking_TE is scores_TE:
        rank_TR = torch.arange(scores_TE.shape[1], device=scores_TE.device)
    else:
        rank_TR = best_first(ranking_TE).argsort(dim=-1).gather(1, order_TR)
    key_TR = _of_row(layer.key_PE, row_T).expand_as(base_TE).gather(1, order_TR)
    in_window_TR = rank_TR < _of_row(layer.insert_window_P, row_T)
    kept_TR = insert_keys(kept_TR, key_TR, in_window_TR, _of_row(layer.insert_replaces_P, row_T))

    slot_TS = kept_TR.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)[:, :slots]
    kept_TS, ids_TS = kept_TR.gather(1, slot_TS), order_TR.gather(1, slot_TS)
    weights_TS = score_TR.gather(1, slot_TS).where(kept_TS, 0)
    if renormalize:
        weights_TS = weights_TS / weights_TS.sum(dim=-1, keepdim=True).clamp_min(TINY)
    return weights_TS, ids_TS.where(kept_TS, ids_TS[:, :1]).int(), kept_TS


def biased_logits(logits_TE: Tensor, layer: LayerTable, row_T: Tensor | None = None) -> Tensor:
    """Router logits float32 [T,E] plus the policy's bias (Pick's `boost`): what is scored, ranked and weighted."""
    return logits_TE.float() + _of_row(layer.logit_bias_PE, row_T)


def route(
    logits_TE: Tensor,
    layer: LayerTable,
    top_k: int,
    slots: int,
    renormalize: bool,
    scoring: str = "softmax",
    row_T: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """A whole router without groups or correction bias: logits in, (weights, ids, kept) of `edit_selection` out."""
    scores_TE = router_scores(biased_logits(logits_TE, layer, row_T), scoring)
    base_ids_TK = select_top_k(scores_TE, top_k)
    return edit_selection(scores_TE, scores_TE, base_ids_TK, layer, slots, renormalize, row_T)


def _of_row(values: Tensor, row_T: Tensor | None) -> Tensor:
    """The policy value of each token: [P] becomes [T,1] and [P,E] becomes [T,E], with T = 1 where all use row 0."""
    chosen = values[:1] if row_T is None else values.index_select(0, row_T)
    return chosen if chosen.ndim == 2 else chosen[:, None]
