"""One hooked MoE layer: its policy values, its counters, and how it routes.

Five ways, the cheapest that is exact:
- nothing to edit (`none`, a whole `fixed_k`, `boost`): vLLM's own router, asked with the changed logits or smaller k;
- on a GPU: the fused kernel, one launch (`banpick_kernels.triton_router`);
- elsewhere up to 64 tokens: the whole router in numpy (`banpick_kernels.numpy_router`), equal and faster;
- elsewhere, for grouped routers and for rules with hooks of their own (`banpick_kernels.layer_hooks`): vLLM's
  selection, then the edit in torch (`banpick_kernels.reference`);
- in a captured graph: always the kernel, which hands vLLM's own selection through where the policy is neutral.

Shapes: T tokens, E experts, K experts a token, S slots, P policy rows (one).
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from vllm.forward_context import get_forward_context, is_forward_context_available
from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter

from banpick_exp.engine.plugin.router import RouterSpec
from banpick_kernels.layer_hooks import LayerEdit
from banpick_kernels.numpy_router import FEW_TOKENS, NumpyRouter, count_few
from banpick_kernels.reference import (
    biased_logits,
    edit_selection,
    masked_last,
    router_scores,
    select_top_k,
    within_groups,
)
from banpick_kernels.table import COLUMNS, LayerTable, RouterTable

THRESHOLDS = ("min_ratio", "mass", "min_weight", "tail_square")
"""Columns that prune per token, as `ban` does; where all are neutral the keep rule is a constant k."""

_HANDLES = itertools.count()
_LAYERS: weakref.WeakValueDictionary[int, HookedLayer] = weakref.WeakValueDictionary()


class HookedLayer:
    """Policy values and counters of one MoE layer, mutated in place; no tensor here is ever reallocated.

    `stock_k`, `biased`, `inserts` and `slots` are host-side short cuts of an eager engine. A compiled engine has the
    fixed width `fixed_slots`; on a GPU its captured graph would freeze the short cuts too (`frozen`), so there the
    kernel always runs and the tensors alone decide.
    """

    def __init__(self, name: str, router: BaseRouter, device: torch.device, fixed_slots: int | None) -> None:
        self.name, self.router, self.stock = name, router, type(router)
        self.spec = RouterSpec.of(router)
        self.num_experts, self.top_k = self.spec.num_experts, self.spec.top_k
        self.handle = next(_HANDLES)
        _LAYERS[self.handle] = self
        self.fixed_slots = fixed_slots
        self.frozen = fixed_slots is not None and device.type != "cpu"
        self.table: LayerTable = RouterTable.neutral(1, self.num_experts, self.top_k, device=device).layer(0)
        self.tokens_P = torch.zeros(1, dtype=torch.int64, device=device)
        self.usage_PE = torch.zeros(1, self.num_experts, dtype=torch.int64, device=device)
        self.counting = True
        self.observer: Callable[[Tensor, Tensor, Tensor, Tensor], None] | None = None
        """Told weights [T,S], ids [T,S], hidden states [T,H] and router logits [T,E] of every forward pass, while a
        calibration watches."""
        self.edit: LayerEdit | None = None
        """What the policy does beyond its table; None for most."""
        self.filler: Literal["dup", "skip"] = "dup"
        """What stands in a banned slot: the token's first id, or -1 where the expert kernel is proved to skip it."""
        self.filler_reason = "every slot is computed; a banned one repeats the first id with weight 0"
        plain = device.type == "cpu" and not self.spec.grouped and not self.spec.corrected
        self.few = NumpyRouter(self.table) if plain else None
        self.set_shortcuts(slots=self.top_k)

    @property
    def correction_E(self) -> Tensor | None:
        """What the router adds to the scores to rank experts. Looked up each time: its values come with the weights."""
        router: Any = self.router
        return router.e_score_correction_bias if self.spec.corrected else None

    @property
    def fused(self) -> bool:
        """Whether edits are made by the Triton kernel."""
        plain = self.edit is None and (self.frozen or not self.masks)
        return self.tokens_P.device.type == "cuda" and not self.spec.grouped and plain

    @property
    def prunes(self) -> bool:
        """Whether a slot of this layer may be banned."""
        return self.stock_k is None

    def set_shortcuts(self, *, slots: int) -> None:
        """Derive the host-side short cuts from the table; `slots`: the most experts a token can keep."""
        table = self.table
        if self.few is not None:
            self.few.read()
        self.slots = self.fixed_slots or slots
        self.biased = bool((table.logit_bias_PE != 0).any())
        spec = self.spec
        # Scores of masked experts are 0, but where something is added to them or few groups are seen, that may suffice.
        self.masks = (spec.corrected or spec.grouped) and bool((table.logit_bias_PE == -torch.inf).any())
        self.inserts = self.frozen or bool((table.insert_window > 0).any() and table.key_PE.any())
        self.thresholds = self.frozen or any(
            bool((getattr(table, name) != COLUMNS[name].neutral).any()) for name in THRESHOLDS
        )
        self.draws = self.frozen or bool((table.keep != table.keep.floor()).any())
        prunes = self.thresholds or self.draws or bool((table.ban > 0).any())
        edits = self.inserts or prunes or self.masks or self.edit is not None
        # Adding a bias and keeping a constant k is what the stock router does anyway, given these logits and that k.
        self.stock_k = None if edits else min(self.slots, int(table.keep[0]))
        # A router with a correction bias keeps its first k by biased score, a policy by weight: not the same experts.
        if self.stock_k != self.slots or (spec.corrected and self.stock_k != self.top_k):
            self.stock_k = None

    def stock_routing(
        self,
        hidden_states: Tensor,
        logits_TE: Tensor,
        indices_type: torch.dtype | None,
        input_ids: Tensor | None,
        top_k: int,
    ) -> tuple[Tensor, Tensor]:
        """What vLLM's own router would answer, selecting `top_k` experts."""
        self.router.top_k = top_k
        try:
            return self.stock._compute_routing(self.router, hidden_states, logits_TE, indices_type, input_ids=input_ids)
        finally:
            self.router.top_k = self.top_k

    def edited_routing(
        self, hidden_states: Tensor, logits_TE: Tensor, indices_type: torch.dtype | None, input_ids: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Weights [T, S] float32, ids [T, S] int32, kept [T, S]: stock selection, then the policy's edit in torch."""
        if self.few is not None and self.edit is None and logits_TE.shape[0] <= FEW_TOKENS:
            return self.few_routing(logits_TE)
        logits_TE = biased_logits(logits_TE, self.table)
        if self.edit is not None:
            logits_TE = self.edit.logits(logits_TE)
        _, base_ids_TK = self.stock_routing(hidden_states, logits_TE, indices_type, input_ids, self.top_k)
        spec, correction_E = self.spec, self.correction_E
        scores_TE = router_scores(logits_TE, spec.scoring)
        ranking_TE = None if correction_E is None else scores_TE + correction_E
        if spec.grouped:
            ranking_TE = scores_TE if ranking_TE is None else ranking_TE
            ranking_TE = within_groups(ranking_TE, spec.groups, spec.groups_seen, corrected=spec.corrected)
        if self.masks and ranking_TE is not None:
            ranking_TE = masked_last(ranking_TE, logits_TE)
            base_ids_TK = select_top_k(ranking_TE, self.top_k)
        weights, ids, kept = edit_selection(
            logits_TE,
            scores_TE,
            base_ids_TK,
            self.table,
            self.slots,
            spec.renormalize,
            ranking_TE=ranking_TE,
            inserts=self.inserts,
            thresholds=self.thresholds,
            draws=self.draws,
            edit=self.edit,
        )
        return weights * spec.scaling, ids, kept

    def few_routing(self, logits_TE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same for a few tokens on CPU, its own selection included."""
        assert self.few is not None
        spec = self.spec
        known = {"biased": self.biased, "inserts": self.inserts, "thresholds": self.thresholds}
        routed = self.few.route(logits_TE, self.top_k, self.slots, spec.renormalize, spec.scoring, **known)
        weights, ids, kept = map(torch.from_numpy, routed)
        return weights if spec.scaling == 1.0 else weights * spec.scaling, ids, kept

    def fused_routing(
        self, hidden_states: Tensor, logits_TE: Tensor, indices_type: torch.dtype | None, input_ids: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The same by the kernel, counters included. Never asked on a CPU."""
        from banpick_kernels.triton_router import fused_route

        stock = None
        if self.frozen:
            stock = self.stock_routing(hidden_states, logits_TE, indices_type, input_ids, self.top_k)
        counts = self.counts
        padding_T = get_forward_context().is_padding if counts else None
        return fused_route(
            logits_TE,
            self.table,
            top_k=self.top_k,
            slots=self.slots,
            renormalize=self.spec.renormalize,
            scoring=self.spec.scoring,
            correction_E=self.correction_E,
            is_padding_T=None if padding_T is None else padding_T[: logits_TE.shape[0]],
            tokens_P=self.tokens_P if counts else None,
            usage_PE=self.usage_PE if counts else None,
            scale=self.spec.scaling,
            stock=stock,
        )

    def biased_logits(self, logits_TE: Tensor) -> Tensor:
        """In float32 where there is a bias: a boost of 0.1 is lost in the bfloat16 of a large logit."""
        return logits_TE.float() + self.table.logit_bias_PE[0] if self.biased else logits_TE

    def route(
        self, hidden_states: Tensor, logits_TE: Tensor, indices_type: torch.dtype | None, input_ids: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Weights float32 [T, S] and ids [T, S] as vLLM's router would return them, counted."""
        if self.stock_k is not None and not self.frozen:
            logits_TE = self.biased_logits(logits_TE)
            weights, ids = self.stock_routing(hidden_states, logits_TE, indices_type, input_ids, self.stock_k)
            self.count(ids, None)
        elif self.fused:
            weights, ids = self.fused_routing(hidden_states, logits_TE, indices_type, input_ids)
        else:
            weights, ids, kept = self.edited_routing(hidden_states, logits_TE, indices_type, input_ids)
            self.count(ids, kept)
            if self.filler == "skip":
                ids = ids.where(kept, -1)
        if self.observer is not None:
            self.observer(weights, ids, hidden_states, logits_TE)
        return weights.contiguous(), ids.contiguous()

    @property
    def counts(self) -> bool:
        """Whether this forward pass is work to be counted: dummy runs have no attention metadata and are left out."""
        if not self.counting or not is_forward_context_available():
            return False
        return self.frozen or get_forward_context().attn_metadata is not None  # a graph is captured in a dummy run

    def count(self, ids_TS: Tensor, kept_TS: Tensor | None) -> None:
        """Add unpadded tokens and the use of experts; `kept_TS` None: every slot is kept."""
        if not self.counts:
            return
        padding_T = get_forward_context().is_padding
        if padding_T is None and ids_TS.device.type == "cpu" and ids_TS.shape[0] <= FEW_TOKENS:
            count_few(self.tokens_P, self.usage_PE, ids_TS, kept_TS)
            return
        used_TS = torch.ones_like(ids_TS, dtype=torch.int64) if kept_TS is None else kept_TS.long()
        tokens: Tensor | int = ids_TS.shape[0]
        if padding_T is not None:
            unpadded_T = ~padding_T[: ids_TS.shape[0]]
            used_TS = used_TS * unpadded_T[:, None]
            tokens = unpadded_T.sum()
        self.tokens_P[0] += tokens
        # vLLM itself writes id -1 into whole padding rows.
        self.usage_PE[0].scatter_add_(0, ids_TS.clamp(min=0).flatten().long(), used_TS.flatten())

    def set_filler(self, filler: Literal["dup", "skip"], reason: str) -> None:
        """What banned slots hold from now on. In place too, for graphs that are captured already."""
        self.filler, self.filler_reason = filler, reason
        self.table.skips.fill_(filler == "skip")

    def check(self, *, slots: int, edit: LayerEdit | None) -> None:
        """Raise RuntimeError when a policy keeps more experts than a compiled engine has slots, or has hooks, which a
        captured graph could not take up.
        """
        if edit is not None and self.frozen:
            raise RuntimeError(
                f"{self.name}: the policy routes in torch ({type(edit).__name__}), which the captured graphs of a "
                f"compiled engine on a GPU would leave out: it would be stock routing. Use engine.compile=false."
            )
        if self.fixed_slots is not None and slots > self.fixed_slots:
            raise RuntimeError(
                f"{self.name}: the policy keeps up to {slots} experts a token, the compiled engine has "
                f"{self.fixed_slots} slots. Use engine.compile=false or engine.extra_slots={slots - self.top_k}."
            )

    def write(self, values: LayerTable, *, slots: int, edit: LayerEdit | None = None) -> None:
        """Take over one layer's policy values, in place, and its hooks where it has any.

        Raises RuntimeError as `check` does, with nothing changed.
        """
        self.check(slots=slots, edit=edit)
        self.table.copy_(values)
        self.table.skips.fill_(self.filler == "skip")
        self.edit = None if edit is None else edit.to(self.tokens_P.device)
        self.set_shortcuts(slots=slots)


def layer_of(handle: int) -> HookedLayer:
    """The layer behind a number that can stand in a compiled graph."""
    return _LAYERS[handle]
