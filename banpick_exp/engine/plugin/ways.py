"""The ways in which a hooked layer may route tokens, from the cheapest on; `layer` chooses between them.

Each takes the rows that the tokens are of: one `PolicyRow`, or `AllRows` and which of them each token has (`row_T`).

Shapes: T tokens, E experts, K experts a token, S slots, P policy rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from vllm.forward_context import get_forward_context

from banpick_exp.engine.plugin.policy_row import AllRows, PolicyRow, ShortCuts
from banpick_exp.engine.plugin.router import RouterSpec
from banpick_kernels.numpy_router import FEW_TOKENS
from banpick_kernels.reference import (
    biased_logits,
    edit_selection,
    masked_last,
    router_scores,
    select_top_k,
    within_groups,
)


class Layer(Protocol):
    """What the ways read of a `layer.HookedLayer`."""

    name: str
    router: Any
    stock: type[Any]
    spec: RouterSpec
    top_k: int
    frozen: bool
    tokens_P: Tensor

    @property
    def correction_E(self) -> Tensor | None: ...

    @property
    def counts(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Asked:
    """What vLLM hands to a router."""

    hidden_TH: Tensor | None
    logits_TE: Tensor
    indices_type: torch.dtype | None
    input_ids: Tensor | None

    def of(self, at_N: Tensor) -> Asked:
        """The tokens that stand there."""
        hidden_NH = None if self.hidden_TH is None else self.hidden_TH.index_select(0, at_N)
        input_ids = None if self.input_ids is None else self.input_ids.index_select(0, at_N)
        return Asked(hidden_NH, self.logits_TE.index_select(0, at_N), self.indices_type, input_ids)

    def with_logits(self, logits_TE: Tensor) -> Asked:
        return Asked(self.hidden_TH, logits_TE, self.indices_type, self.input_ids)


def stock_routing(layer: Layer, asked: Asked, top_k: int) -> tuple[Tensor, Tensor]:
    """What vLLM's own router would answer, selecting `top_k` experts."""
    layer.router.top_k = top_k
    try:
        return layer.stock._compute_routing(
            layer.router, asked.hidden_TH, asked.logits_TE, asked.indices_type, input_ids=asked.input_ids
        )
    finally:
        layer.router.top_k = layer.top_k


def biased_stock_routing(
    layer: Layer, rows: PolicyRow | AllRows, cuts: ShortCuts, asked: Asked, row_T: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same with the policy's bias and its `stock_k`: all that some policies do."""
    if cuts.biased:
        bias_PE = rows.table.logit_bias_PE
        # In float32: a boost of 0.1 is lost in the bfloat16 of a large logit.
        bias_TE = bias_PE[0] if row_T is None else bias_PE.index_select(0, row_T)
        asked = asked.with_logits(asked.logits_TE.float() + bias_TE)
    assert cuts.stock_k is not None
    return stock_routing(layer, asked, cuts.stock_k)


def edited_routing(
    layer: Layer, rows: PolicyRow | AllRows, cuts: ShortCuts, asked: Asked, row_T: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights [T,S] float32, ids [T,S] int32, kept [T,S]: stock selection, then the policy's edit in torch."""
    if rows.few is not None and rows.edit is None and asked.logits_TE.shape[0] <= FEW_TOKENS:
        return few_routing(layer, rows, cuts, asked.logits_TE, row_T)
    logits_TE = biased_logits(asked.logits_TE, rows.table, row_T)
    if rows.edit is not None:
        logits_TE = rows.edit.logits(logits_TE)
    _, base_ids_TK = stock_routing(layer, asked.with_logits(logits_TE), layer.top_k)
    spec, correction_E = layer.spec, layer.correction_E
    scores_TE = router_scores(logits_TE, spec.scoring)
    ranking_TE = None if correction_E is None else scores_TE + correction_E
    if spec.grouped:
        ranking_TE = scores_TE if ranking_TE is None else ranking_TE
        ranking_TE = within_groups(ranking_TE, spec.groups, spec.groups_seen, corrected=spec.corrected)
    if cuts.masks and ranking_TE is not None:
        masked_TE = masked_last(ranking_TE, logits_TE)
        masked_ids_TK = select_top_k(masked_TE, layer.top_k)
        if row_T is not None:  # rows that mask nothing keep the router's own selection, ties included
            masks_P = (rows.table.logit_bias_PE == -torch.inf).any(dim=-1)
            masks_T1 = masks_P.index_select(0, row_T)[:, None]
            masked_TE = masked_TE.where(masks_T1, ranking_TE)
            masked_ids_TK = masked_ids_TK.where(masks_T1, base_ids_TK.long())
        ranking_TE, base_ids_TK = masked_TE, masked_ids_TK
    weights, ids, kept = edit_selection(
        logits_TE,
        scores_TE,
        base_ids_TK,
        rows.table,
        cuts.slots,
        spec.renormalize,
        ranking_TE=ranking_TE,
        row_T=row_T,
        inserts=cuts.inserts,
        thresholds=cuts.thresholds,
        draws=cuts.draws,
        edit=rows.edit,
    )
    return weights * spec.scaling, ids, kept


def few_routing(
    layer: Layer, rows: PolicyRow | AllRows, cuts: ShortCuts, logits_TE: Tensor, row_T: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The same for a few tokens on CPU, its own selection included."""
    assert rows.few is not None
    spec = layer.spec
    routed = rows.few.route(
        logits_TE,
        layer.top_k,
        cuts.slots,
        spec.renormalize,
        spec.scoring,
        row_T=None if row_T is None else row_T.numpy(),
        biased=cuts.biased,
        inserts=cuts.inserts,
        thresholds=cuts.thresholds,
    )
    weights, ids, kept = map(torch.from_numpy, routed)
    return weights if spec.scaling == 1.0 else weights * spec.scaling, ids, kept


def is_fused(layer: Layer, rows: PolicyRow | AllRows, cuts: ShortCuts) -> bool:
    """Whether edits are made by the Triton kernel."""
    plain = rows.edit is None and (layer.frozen or not cuts.masks)
    return layer.tokens_P.device.type == "cuda" and not layer.spec.grouped and plain


def fused_routing(
    layer: Layer, rows: PolicyRow | AllRows, cuts: ShortCuts, asked: Asked, row_T: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same by the kernel, counters included. Never asked on a CPU.

    In a graph, or where rows differ, tokens of a neutral row get vLLM's own answer.
    """
    from banpick_kernels.triton_router import fused_route

    stock, slots = None, cuts.slots
    if layer.frozen or row_T is not None:
        stock = stock_routing(layer, asked, layer.top_k)
        slots = max(slots, layer.top_k)
    counts = layer.counts
    padding_T = get_forward_context().is_padding if counts else None
    return fused_route(
        asked.logits_TE,
        rows.table,
        top_k=layer.top_k,
        slots=slots,
        renormalize=layer.spec.renormalize,
        scoring=layer.spec.scoring,
        correction_E=layer.correction_E,
        row_T=row_T,
        is_padding_T=None if padding_T is None else padding_T[: asked.logits_TE.shape[0]],
        tokens_P=rows.tokens_P if counts else None,
        usage_PE=rows.usage_PE if counts else None,
        scale=layer.spec.scaling,
        stock=stock,
    )
