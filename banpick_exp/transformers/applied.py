"""`apply`: an exported policy in the routers of a loaded model, checked, counted, and taken out again.

A forward hook at each router answers other weights and ids; the experts of the model take any number of ids a token.
No code and no weight of the model is changed. A slot that is not kept repeats the token's first id with weight 0:
exact, and no faster than stock. What the policy does is `banpick_kernels.reference`, the definition that every kernel
matches.
"""

from __future__ import annotations

import re
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from banpick_exp.errors import UserError
from banpick_exp.models.checkpoint import Checkpoint, folder_identity
from banpick_exp.models.shape import MoeShape
from banpick_exp.policy.build import Policy
from banpick_exp.policy.exported import Exported, load
from banpick_exp.transformers.counted import Unpadded
from banpick_exp.transformers.routers import Router, gates_of, proved, routed

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from banpick_kernels.layer_hooks import LayerEdit
    from banpick_kernels.table import LayerTable

COMMIT = re.compile(r"^[0-9a-f]{40}$")


def apply(model: Any, folder: str | Path, domain: str | None = None) -> Applied:
    """Route `model` by the policy in `folder` until `remove()`.

    Args:
        model: what `AutoModelForCausalLM.from_pretrained` returned.
        folder: what `python -m banpick_exp export` wrote.
        domain: whose key experts and thresholds; needed only where domains differ.

    Raises UserError, with nothing changed: a folder that is not as it was written, another checkpoint than the one that
    was measured, a router that is not known here, a compiled model, a policy that is on already.
    """
    exported = load(folder)
    gates = gates_of(model)
    if hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None:
        raise UserError(
            "the model is compiled: what was traced before would go on without the policy. Call apply on the model as"
            " from_pretrained returned it."
        )
    if any(isinstance(hook, RoutedLayer) for gate in gates for hook in gate._forward_hooks.values()):
        raise UserError(
            "a policy is on this model already: two would be one after the other, which nobody has measured. Call"
            " remove() of what the first apply returned."
        )
    exported.check(checkpoint_of(model, gates, exported))
    policy = exported.build(domain)
    routers = [proved(gate, f"MoE layer {index} of {type(model).__name__}") for index, gate in enumerate(gates)]
    return Applied(model, gates, routers, policy)


def checkpoint_of(model: Any, gates: list[Any], exported: Exported) -> Checkpoint:
    """What was loaded, as `Exported.check` takes it: the sizes of its routers, and its identity by where it came from.

    A policy that was measured on a branch of the Hub is taken to be for any revision of that id; where it was measured
    on a commit, the commit must be that one. Raises UserError where layers differ.
    """
    sizes = {(gate.weight.shape[0], gate.top_k) for gate in gates}
    if len(sizes) != 1:
        raise UserError(
            f"the MoE layers of {type(model).__name__} differ: (experts, top_k) are {sorted(sizes)}. A policy here has"
            " one number for all layers."
        )
    ((num_experts, top_k),) = sizes
    shape = MoeShape(num_layers=len(gates), num_experts=int(num_experts), top_k=int(top_k))
    name = str(getattr(model.config, "_name_or_path", "") or "")
    if not name:
        return Checkpoint(location=f"this {type(model).__name__}", identity="made in memory", shape=shape)
    if Path(name).is_dir():
        return Checkpoint(location=name, identity=folder_identity(Path(name)), shape=shape)
    revision, commit = exported.header.model.revision or "main", getattr(model.config, "_commit_hash", None)
    if COMMIT.match(revision) and commit is not None:
        revision = commit
    return Checkpoint(location=name, identity=f"hub:{name}@{revision}", shape=shape)


class RoutedLayer:
    """The forward hook of one router, and what it counted."""

    def __init__(
        self,
        router: Router,
        table: LayerTable,
        edit: LayerEdit | None,
        *,
        top_k: int,
        slots: int,
        unpadded: Unpadded,
    ) -> None:
        self.router, self.table, self.edit, self.unpadded = router, table, edit, unpadded
        self.top_k, self.slots = top_k, slots
        self.device: torch.device | None = None
        self.neutral = edit is None and _is_neutral(table, top_k)
        self.reset()

    def reset(self) -> None:
        self.tokens: Tensor | int = 0
        self.kept: Tensor | int = 0

    def __call__(self, gate: Any, args: Any, output: tuple[Tensor, Tensor, Tensor]) -> Any:
        logits_TE, weights_TK, ids_TK = output
        if self.neutral:
            self.count(ids_TK >= 0)
            return None  # what the model answered stays
        if logits_TE.device != self.device:
            self.device, self.table = logits_TE.device, self.table.to(logits_TE.device)
            self.edit = None if self.edit is None else self.edit.to(logits_TE.device)
        weights_TS, ids_TS, kept_TS = routed(
            logits_TE, self.router, self.table, self.top_k, self.slots, edit=self.edit, own_ids_TK=ids_TK
        )
        self.count(kept_TS)
        return logits_TE, weights_TS.to(weights_TK.dtype), ids_TS.to(ids_TK.dtype)

    def count(self, kept_TS: Tensor) -> None:
        """Sums stay on the device until they are asked for."""
        mask_T = self.unpadded.mask_T
        if mask_T is None or mask_T.shape[0] != kept_TS.shape[0]:
            self.tokens, self.kept = self.tokens + kept_TS.shape[0], self.kept + kept_TS.sum()
            return
        mask_T = mask_T.to(kept_TS.device)
        self.tokens, self.kept = self.tokens + mask_T.sum(), self.kept + (kept_TS & mask_T[:, None]).sum()


class Applied:
    """A policy that is on a model. `remove()`, or the end of a `with`, takes it off."""

    def __init__(self, model: Any, gates: list[Any], routers: list[Router], policy: Policy) -> None:
        self.policy = policy
        self._unpadded = Unpadded(model)
        self._layers = [
            RoutedLayer(
                router,
                policy.table.layer(index),
                None if policy.edits is None else policy.edits[index],
                top_k=policy.shape.top_k,
                slots=policy.slots,
                unpadded=self._unpadded,
            )
            for index, router in enumerate(routers)
        ]
        self._hooks = [gate.register_forward_hook(layer) for gate, layer in zip(gates, self._layers, strict=True)]

    def __repr__(self) -> str:
        """`<Applied pick boost=1 key_experts=4: 4 layers, on>`."""
        return f"<Applied {self.policy.rule.label()}: {len(self._layers)} layers, {'on' if self._hooks else 'removed'}>"

    def mean_kept(self) -> tuple[float, ...]:
        """The measured budget: by layer, experts kept a token, over all tokens since `apply` or `reset`.

        Tokens of prompt and answer count, padding by a 2-D `attention_mask` and rows that have ended do not; under a
        mask of another form, all tokens of the pass. Raises UserError where nothing was computed.
        """
        tokens = [int(layer.tokens) for layer in self._layers]
        if not all(tokens):
            raise UserError(
                "no token was routed since apply or reset, so there is no measured budget. Call model.generate(...)"
                " first."
            )
        return tuple(float(layer.kept) / number for layer, number in zip(self._layers, tokens, strict=True))

    def tokens(self) -> int:
        """How many tokens `mean_kept` is over."""
        return int(self._layers[0].tokens)

    def reset(self) -> None:
        """Count from here."""
        for layer in self._layers:
            layer.reset()

    def remove(self) -> None:
        """Take the policy off: the model is what it was. What was counted can still be read."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._unpadded.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


def _is_neutral(table: LayerTable, top_k: int) -> bool:
    """Whether a layer routes as stock: it is then left to the model's own router, to the bit."""
    import torch

    from banpick_kernels.table import RouterTable

    stock = RouterTable.neutral(1, table.logit_bias_PE.shape[-1], top_k).layer(0)
    no_keys = bool((table.insert_window == 0).all()) or not bool(table.key_PE.any())
    alike = torch.equal(_without_insertion(table), _without_insertion(stock))
    return alike and no_keys and not bool((table.logit_bias_PE != 0).any())


def _without_insertion(table: LayerTable) -> Tensor:
    from banpick_kernels.table import COLUMNS

    columns = [each.index for name, each in COLUMNS.items() if not name.startswith("insert_")]
    return table.values[..., columns]
