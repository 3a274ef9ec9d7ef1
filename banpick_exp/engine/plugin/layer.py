"""One hooked MoE layer: its policy values, its counters, and how it routes.

Five ways (`ways`), the cheapest that is exact:
- nothing to edit (`none`, a whole `fixed_k`, `boost`): vLLM's own router, asked with the changed logits or smaller k;
- on a GPU: the fused kernel, one launch (`banpick_kernels.triton_router`);
- elsewhere up to 64 tokens: the whole router in numpy (`banpick_kernels.numpy_router`), equal and faster;
- elsewhere, for grouped routers and for rules with hooks of their own (`banpick_kernels.layer_hooks`): vLLM's
  selection, then the edit in torch (`banpick_kernels.reference`);
- in a captured graph: always the kernel, which hands vLLM's own selection through where the policy is neutral.

An engine that holds several policies has a table row for each. A step whose tokens are all of one row goes one of these
ways; in any other each token goes the way of its own row (`mixture`), or on a GPU all of them through the kernel.

Shapes: T tokens, E experts, K experts a token, S slots, P policy rows.
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

from banpick_exp.engine.plugin.mixture import Mixture, mixed_routing
from banpick_exp.engine.plugin.policy_row import AllRows, PolicyRow
from banpick_exp.engine.plugin.router import RouterSpec
from banpick_exp.engine.plugin.token_rows import TokenRows
from banpick_exp.engine.plugin.ways import Asked, biased_stock_routing, edited_routing, fused_routing, is_fused
from banpick_kernels.layer_hooks import LayerEdit
from banpick_kernels.numpy_router import FEW_TOKENS, count_few
from banpick_kernels.table import LayerTable, RouterTable

_HANDLES = itertools.count()
_LAYERS: weakref.WeakValueDictionary[int, HookedLayer] = weakref.WeakValueDictionary()


class HookedLayer:
    """Policy values and counters of one MoE layer, mutated in place; no tensor here is ever reallocated.

    What is known of a policy before a token is seen (`ShortCuts`) is for an eager engine. A compiled engine has the
    fixed width `fixed_slots`; on a GPU its captured graph would freeze the short cuts too (`frozen`), so there the
    kernel always runs and the tensors alone decide.
    """

    def __init__(
        self,
        name: str,
        router: BaseRouter,
        device: torch.device,
        fixed_slots: int | None,
        token_rows: TokenRows | None = None,
    ) -> None:
        """`token_rows`: of an engine that holds several policies."""
        self.name, self.router, self.stock = name, router, type(router)
        self.spec = RouterSpec.of(router)
        self.num_experts, self.top_k = self.spec.num_experts, self.spec.top_k
        self.handle = next(_HANDLES)
        _LAYERS[self.handle] = self
        self.fixed_slots = fixed_slots
        self.frozen = fixed_slots is not None and device.type != "cpu"
        self.token_rows = token_rows
        count = 1 if token_rows is None else token_rows.rows
        table = RouterTable.neutral(1, self.num_experts, self.top_k, rows=count, device=device).layer(0)
        self.tokens_P = torch.zeros(count, dtype=torch.int64, device=device)
        self.usage_PE = torch.zeros(count, self.num_experts, dtype=torch.int64, device=device)
        self.counting = True
        self.observer: Callable[[Tensor, Tensor, Tensor, Tensor], None] | None = None
        """Told weights [T,S], ids [T,S], hidden states [T,H] and router logits [T,E] of every forward pass, while a
        calibration watches."""
        self.filler: Literal["dup", "skip"] = "dup"
        """What stands in a banned slot: the token's first id, or -1 where the expert kernel is proved to skip it."""
        self.filler_reason = "every slot is computed; a banned one repeats the first id with weight 0"
        plain = device.type == "cpu" and not self.spec.grouped and not self.spec.corrected
        self.everyone = AllRows(table, self.tokens_P, self.usage_PE, in_numpy=plain)
        self.rows = [PolicyRow(self.everyone, row, in_numpy=plain) for row in range(count)]
        self.table = self.rows[0].table
        """Of row 0, the only one of an engine that holds one policy."""
        self.slots = self.top_k
        """Columns of what row 0 routes to."""
        self._mixtures: dict[tuple[int, ...], Mixture] = {}
        for row in range(count):
            self.set_shortcuts(slots=self.top_k, row=row)

    @property
    def correction_E(self) -> Tensor | None:
        """What the router adds to the scores to rank experts. Looked up each time: its values come with the weights."""
        router: Any = self.router
        return router.e_score_correction_bias if self.spec.corrected else None

    @property
    def edit(self) -> LayerEdit | None:
        """What the policy of row 0 does beyond its table; None for most."""
        return self.rows[0].edit

    @property
    def prunes(self) -> bool:
        """Whether a slot of this layer may be banned in the running step."""
        chosen = self._chosen()
        return chosen.prunes if isinstance(chosen, Mixture) else chosen.cuts.stock_k is None

    def set_shortcuts(self, *, slots: int, row: int = 0) -> None:
        """Derive the host-side short cuts from the table of a row; `slots`: the most experts a token can keep."""
        of_row = self.rows[row]
        of_row.refresh(self.spec, slots=slots, fixed_slots=self.fixed_slots, frozen=self.frozen)
        if row == 0:
            self.slots = of_row.cuts.slots
        self._mixtures.clear()

    def _chosen(self) -> PolicyRow | Mixture:
        """Whose the tokens of the running step are; row 0's outside a forward pass."""
        rows = self.token_rows
        if rows is None or not is_forward_context_available():
            return self.rows[0]
        present = tuple(range(rows.rows)) if self.frozen else rows.present  # a graph is replayed with others
        if len(present) == 1:
            return self.rows[present[0]]
        if present not in self._mixtures:
            self.everyone.refresh()
            self._mixtures[present] = Mixture.of(self.everyone, self.rows, present)
        return self._mixtures[present]

    def route(
        self,
        hidden_states: Tensor | None,
        logits_TE: Tensor,
        indices_type: torch.dtype | None,
        input_ids: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Weights float32 [T, S] and ids [T, S] as vLLM's router would return them, counted."""
        asked, chosen = Asked(hidden_states, logits_TE, indices_type, input_ids), self._chosen()
        if isinstance(chosen, Mixture):
            weights, ids = self._routed_apart(chosen, asked)
        else:
            weights, ids = self._routed_alike(chosen, asked)
        if self.observer is not None:
            assert hidden_states is not None
            self.observer(weights, ids, hidden_states, logits_TE)
        return weights.contiguous(), ids.contiguous()

    def _routed_alike(self, row: PolicyRow, asked: Asked) -> tuple[Tensor, Tensor]:
        """Every token is of this row."""
        if row.cuts.stock_k is not None and not self.frozen:
            weights, ids = biased_stock_routing(self, row, row.cuts, asked)
            self.count(ids, None, row)
            return weights, ids
        if is_fused(self, row, row.cuts):
            return fused_routing(self, row, row.cuts, asked)
        weights, ids, kept = self.edited_routing(row, asked)
        self.count(ids, kept, row)
        return weights, ids.where(kept, -1) if self.filler == "skip" else ids

    def edited_routing(self, row: PolicyRow, asked: Asked) -> tuple[Tensor, Tensor, Tensor]:
        """Weights [T,S], ids [T,S] and kept [T,S] where the policy's edit is made in torch or numpy."""
        return edited_routing(self, row, row.cuts, asked)

    def _routed_apart(self, mixture: Mixture, asked: Asked) -> tuple[Tensor, Tensor]:
        """Tokens differ in their row. Raises RuntimeError for fewer tokens than the step has."""
        assert self.token_rows is not None
        self.token_rows.check_tokens(self.name, asked.logits_TE.shape[0])
        row_T = self.token_rows.row_T[: asked.logits_TE.shape[0]]
        if not mixture.hooks and is_fused(self, mixture.everyone, mixture.cuts):
            return fused_routing(self, mixture.everyone, mixture.cuts, asked, row_T)
        if self.frozen:
            weights, ids, kept = edited_routing(self, mixture.everyone, mixture.cuts, asked, row_T)
        else:
            weights, ids, kept = mixed_routing(self, mixture, asked, self.token_rows)
        self.count(ids, kept, row_T=row_T)
        return weights, ids.where(kept, -1) if self.filler == "skip" else ids

    @property
    def counts(self) -> bool:
        """Whether this forward pass is work to be counted: dummy runs have no attention metadata and are left out."""
        if not self.counting or not is_forward_context_available():
            return False
        return self.frozen or get_forward_context().attn_metadata is not None  # a graph is captured in a dummy run

    def count(
        self, ids_TS: Tensor, kept_TS: Tensor | None, row: PolicyRow | None = None, row_T: Tensor | None = None
    ) -> None:
        """Add unpadded tokens and the use of experts; `kept_TS` None: every slot is kept. Either `row` or `row_T`."""
        if not self.counts:
            return
        rows = self.everyone if row is None else row
        padding_T = get_forward_context().is_padding
        if padding_T is None and ids_TS.device.type == "cpu" and ids_TS.shape[0] <= FEW_TOKENS:
            count_few(rows.tokens_P, rows.usage_PE, ids_TS, kept_TS, None if row_T is None else row_T.numpy())
            return
        used_TS = torch.ones_like(ids_TS, dtype=torch.int64) if kept_TS is None else kept_TS.long()
        unpadded_T = None if padding_T is None else ~padding_T[: ids_TS.shape[0]]
        if unpadded_T is not None:
            used_TS = used_TS * unpadded_T[:, None]
        at_TS = ids_TS.clamp(min=0).long()  # vLLM itself writes id -1 into whole padding rows
        if row_T is None:
            rows.tokens_P[0] += ids_TS.shape[0] if unpadded_T is None else unpadded_T.sum()
        else:
            ones_T = torch.ones_like(row_T) if unpadded_T is None else unpadded_T.long()
            rows.tokens_P.index_add_(0, row_T, ones_T)
            at_TS = at_TS + row_T[:, None] * self.num_experts
        rows.usage_PE.view(-1).scatter_add_(0, at_TS.flatten(), used_TS.flatten())

    def set_filler(self, filler: Literal["dup", "skip"], reason: str) -> None:
        """What banned slots hold from now on. In place too, for graphs that are captured already."""
        self.filler, self.filler_reason = filler, reason
        self.everyone.table.skips.fill_(filler == "skip")

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

    def write(self, values: LayerTable, *, slots: int, edit: LayerEdit | None = None, row: int = 0) -> None:
        """Take over the values of one policy, in place, into a row, and its hooks where it has any.

        Raises RuntimeError as `check` does, with nothing changed.
        """
        self.check(slots=slots, edit=edit)
        of_row = self.rows[row]
        of_row.table.copy_(values)
        of_row.table.skips.fill_(self.filler == "skip")
        of_row.edit = None if edit is None else edit.to(self.tokens_P.device)
        self.set_shortcuts(slots=slots, row=row)


def layer_of(handle: int) -> HookedLayer:
    """The layer behind a number that can stand in a compiled graph."""
    return _LAYERS[handle]
