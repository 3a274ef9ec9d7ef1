"""One policy on one layer: its values, its hooks, and the host-side short cuts that follow from them.

Shapes: T tokens, E experts, K experts a token, S slots, P policy rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from banpick_exp.engine.plugin.router import RouterSpec
from banpick_kernels.layer_hooks import LayerEdit
from banpick_kernels.numpy_router import NumpyRouter
from banpick_kernels.table import COLUMNS, LayerTable

THRESHOLDS = ("min_ratio", "mass", "min_weight", "tail_square")
"""Columns that prune per token, as `ban` does; where all are neutral the keep rule is a constant k."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShortCuts:
    """What is known of a policy before a token is seen. An operation that a flag rules out is left out."""

    slots: int
    """Columns of what the router returns."""
    stock_k: int | None
    """vLLM's own router answers, selecting so many of the logits with the policy's bias; None: it does not."""
    biased: bool
    masks: bool
    """Experts are masked for a router that does not rank by the logit alone."""
    inserts: bool
    thresholds: bool
    draws: bool

    @staticmethod
    def of(
        table: LayerTable, spec: RouterSpec, *, slots: int, fixed_slots: int | None, edit: LayerEdit | None,
        frozen: bool,
    ) -> ShortCuts:  # fmt: skip
        """Of a table of one row; `slots`: the most experts a token can keep; `frozen`: nothing may be known."""
        width = fixed_slots or slots
        # Scores of masked experts are 0, but where something is added to them or few groups are seen, that may suffice.
        masks = (spec.corrected or spec.grouped) and bool((table.logit_bias_PE == -torch.inf).any())
        inserts = frozen or bool((table.insert_window > 0).any() and table.key_PE.any())
        thresholds = frozen or any(bool((getattr(table, name) != COLUMNS[name].neutral).any()) for name in THRESHOLDS)
        draws = frozen or bool((table.keep != table.keep.floor()).any())
        prunes = thresholds or draws or bool((table.ban > 0).any())
        edits = inserts or prunes or masks or edit is not None
        # Adding a bias and keeping a constant k is what the stock router does anyway, given these logits and that k.
        stock_k = None if edits else min(width, int(table.keep[0]))
        # A router with a correction bias keeps its first k by biased score, a policy by weight: not the same experts.
        if stock_k != width or (spec.corrected and stock_k != spec.top_k):
            stock_k = None
        return ShortCuts(
            slots=width,
            stock_k=stock_k,
            biased=bool((table.logit_bias_PE != 0).any()),
            masks=masks,
            inserts=inserts,
            thresholds=thresholds,
            draws=draws,
        )

    @staticmethod
    def together(several: Sequence[ShortCuts]) -> ShortCuts:
        """What is known of a batch in which each token has one of these; none is left to vLLM's router."""
        return ShortCuts(
            slots=max(each.slots for each in several),
            stock_k=None,
            biased=any(each.biased for each in several),
            masks=any(each.masks for each in several),
            inserts=any(each.inserts for each in several),
            thresholds=any(each.thresholds for each in several),
            draws=any(each.draws for each in several),
        )


class AllRows:
    """The tensors of all rows of a layer, for tokens of which each has its own."""

    edit: LayerEdit | None = None
    """Rows with hooks are routed one by one."""

    def __init__(self, table: LayerTable, tokens_P: Tensor, usage_PE: Tensor, *, in_numpy: bool) -> None:
        """`in_numpy`: few tokens may be routed by numpy."""
        self.table, self.tokens_P, self.usage_PE = table, tokens_P, usage_PE
        self.few = NumpyRouter(table) if in_numpy else None

    def refresh(self) -> None:
        """Derive anew what follows from the table."""
        if self.few is not None:
            self.few.read()


class PolicyRow:
    """Views of one row of these tensors, which follow every change in place, and what was derived from them."""

    cuts: ShortCuts

    def __init__(self, everyone: AllRows, row: int, *, in_numpy: bool) -> None:
        one, table = slice(row, row + 1), everyone.table
        self.table = LayerTable(
            values=table.values[one], logit_bias_PE=table.logit_bias_PE[one], key_PE=table.key_PE[one]
        )
        self.tokens_P, self.usage_PE = everyone.tokens_P[one], everyone.usage_PE[one]
        self.few = NumpyRouter(self.table) if in_numpy else None
        self.edit: LayerEdit | None = None

    def refresh(self, spec: RouterSpec, *, slots: int, fixed_slots: int | None, frozen: bool) -> None:
        """Derive anew what follows from the table; `slots`: the most experts a token can keep."""
        if self.few is not None:
            self.few.read()
        self.cuts = ShortCuts.of(self.table, spec, slots=slots, fixed_slots=fixed_slots, edit=self.edit, frozen=frozen)
