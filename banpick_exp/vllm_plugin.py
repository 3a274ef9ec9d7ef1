"""The router hook inside vLLM, and the worker methods that drive it. The only importer of vLLM internals.

How it attaches: vLLM builds the runner of every MoE layer made by `FusedMoEFactory` through a registry of
pluggable layers keyed by class name (`model_executor/custom_op.py`, PluggableLayer.__new__, vLLM 0.32). `install`
registers a subclass there, so no vLLM file is edited and no function replaced. After the runner has built itself,
its router object becomes an instance of a one-base subclass whose `_compute_routing` edits the selection: at that
point ids are logical (before EPLB mapping, capture and dtype conversion) and weights are unscaled by the runner.

What fails without a check, and where it is refused:
- a monolithic expert kernel routes by itself and never asks the router: refused in `check_layer`;
- a router whose scores we cannot reproduce (custom functions, zero experts, fused shared experts): refused there too;
- a model that bypasses the factory: `verify` compares hooked layers with the checkpoint's MoE layers;
- a router that reproduces nothing like its reference (a new vLLM): the self-test in `verify`.

Shapes: T tokens, E experts, K experts a token, S slots, P policy rows (one), L MoE layers.
"""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import weakref
from typing import Any

import torch
from torch import Tensor
from vllm.config import get_current_vllm_config
from vllm.forward_context import get_forward_context, is_forward_context_available
from vllm.model_executor.custom_op import PluggableLayer, op_registry_oot
from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter
from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner
from vllm.model_executor.layers.fused_moe.runner.moe_runner_interface import MoERunnerInterface

from banpick_kernels.reference import edit_selection, router_scores, within_groups
from banpick_kernels.table import LayerTable, RouterTable

SUPPORTED_ROUTERS = frozenset({"CPURouter", "FusedTopKRouter", "FusedTopKBiasRouter", "GroupedTopKRouter"})
SUPPORTED_SCORING = frozenset({"softmax", "sigmoid"})
OTHER_RUNNERS = (("vllm.model_executor.models.transformers.moe", "TransformersMoERunner"),)
"""Runner classes beside MoERunner. Kimi-K3's latent runners import GPU-only kernels and are not registered: a model
that uses one is refused by `verify`."""

_HANDLES = itertools.count()
_LAYERS: weakref.WeakValueDictionary[int, HookedLayer] = weakref.WeakValueDictionary()


class HookedLayer:
    """Policy values and counters of one MoE layer, mutated in place; no tensor here is ever reallocated.

    `stock_k`, `biased` and `slots` are host-side short cuts of an eager engine. A compiled engine has the fixed
    width `fixed_slots`; on a GPU its captured graph would freeze the short cuts too (`frozen`), so there the whole
    edit always runs and the tensors alone decide.
    """

    def __init__(self, name: str, router: BaseRouter, device: torch.device, fixed_slots: int | None) -> None:
        self.name, self.router, self.stock = name, router, type(router)
        self.num_experts, self.top_k = router.global_num_experts, router.top_k
        self.handle = next(_HANDLES)
        _LAYERS[self.handle] = self
        self.fixed_slots = fixed_slots
        self.frozen = fixed_slots is not None and device.type != "cpu"
        self.table: LayerTable = RouterTable.neutral(1, self.num_experts, self.top_k, device=device).layer(0)
        self.tokens_P = torch.zeros(1, dtype=torch.int64, device=device)
        self.kept_P = torch.zeros(1, dtype=torch.int64, device=device)
        self.usage_PE = torch.zeros(1, self.num_experts, dtype=torch.int64, device=device)
        self.counting = True
        self.observed_weights: list[Tensor] | None = None
        self.set_shortcuts(slots=self.top_k)

    def set_shortcuts(self, *, slots: int) -> None:
        """Derive the host-side short cuts from the table; `slots`: the most experts a token can keep."""
        table = self.table
        self.slots = self.fixed_slots or slots
        self.biased = self.frozen or bool((table.logit_bias_PE != 0).any())
        edits = self.frozen or bool(table.ban_P.any() or (table.insert_window_P > 0).any())
        # Adding a bias and keeping a constant k is what the stock router does anyway, given these logits and that k.
        self.stock_k = None if edits else min(self.slots, int(table.keep_P[0]))
        # A router with a correction bias keeps its first k by biased score, a policy by weight: not the same experts.
        fewer_by_bias = getattr(self.router, "e_score_correction_bias", None) is not None and self.stock_k != self.top_k
        if self.stock_k != self.slots or fewer_by_bias:
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
        """Weights [T, S] float32, ids [T, S] int32, kept [T, S]: stock selection, then the policy's edit."""
        router: Any = self.router
        logits_TE = self.biased_logits(logits_TE.float())
        _, base_ids_TK = self.stock_routing(hidden_states, logits_TE, indices_type, input_ids, self.top_k)
        scores_TE = router_scores(logits_TE, getattr(router, "scoring_func", "softmax"))
        correction_E = getattr(router, "e_score_correction_bias", None)
        ranking_TE = scores_TE if correction_E is None else scores_TE + correction_E
        groups = getattr(router, "num_expert_group", None) or 1
        if getattr(router, "use_grouped_topk", True) and 1 < groups < self.num_experts:
            ranking_TE = within_groups(ranking_TE, groups, router.topk_group, corrected=correction_E is not None)
        edit = (base_ids_TK, self.table, self.slots, router.renormalize)
        weights, ids, kept = edit_selection(scores_TE, ranking_TE, *edit)
        return weights * getattr(router, "routed_scaling_factor", 1.0), ids, kept

    def biased_logits(self, logits_TE: Tensor) -> Tensor:
        """In float32 where there is a bias: a boost of 0.1 is lost in the bfloat16 of a large logit."""
        return logits_TE.float() + self.table.logit_bias_PE[0] if self.biased else logits_TE

    def route(
        self, hidden_states: Tensor, logits_TE: Tensor, indices_type: torch.dtype | None, input_ids: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        kept = None
        if self.stock_k is not None:
            logits_TE = self.biased_logits(logits_TE)
            weights, ids = self.stock_routing(hidden_states, logits_TE, indices_type, input_ids, self.stock_k)
        else:
            weights, ids, kept = self.edited_routing(hidden_states, logits_TE, indices_type, input_ids)
        self.count(ids, kept)
        if self.observed_weights is not None:
            self.observed_weights.append(weights.float())
        return weights.contiguous(), ids.contiguous()

    def count(self, ids_TS: Tensor, kept_TS: Tensor | None) -> None:
        """Add unpadded tokens, kept experts and usage. Dummy runs have no attention metadata and are left out."""
        if not self.counting or not is_forward_context_available():
            return
        context = get_forward_context()
        if context.attn_metadata is None and not self.frozen:  # a graph is captured in a dummy run, and must count
            return
        valid_TS = torch.ones_like(ids_TS, dtype=torch.bool) if kept_TS is None else kept_TS
        padding_T = context.is_padding
        tokens: Tensor | int = ids_TS.shape[0]
        if padding_T is not None:
            unpadded_T = ~padding_T[: ids_TS.shape[0]]
            valid_TS = valid_TS & unpadded_T[:, None]
            tokens = unpadded_T.sum()
        # vLLM itself writes id -1 into whole padding rows.
        flat_ids = ids_TS.clamp(min=0).flatten().long()
        self.tokens_P[0] += tokens
        self.kept_P[0] += valid_TS.sum()
        self.usage_PE[0].scatter_add_(0, flat_ids, valid_TS.flatten().long())

    def write(self, values: LayerTable, *, slots: int) -> None:
        """Take over one layer's policy values, in place.

        Raises RuntimeError, with nothing changed, when the policy keeps more experts than a compiled engine has slots.
        """
        if self.fixed_slots is not None and slots > self.fixed_slots:
            raise RuntimeError(
                f"{self.name}: the policy keeps up to {slots} experts a token, the compiled engine has "
                f"{self.fixed_slots} slots. Use engine.eager=true or engine.extra_slots={slots - self.top_k}."
            )
        for field in dataclasses.fields(values):
            getattr(self.table, field.name).copy_(getattr(values, field.name))
        self.set_shortcuts(slots=slots)


@torch.library.custom_op("banpick::route", mutates_args=("tokens_P", "kept_P", "usage_PE"))
def _route_op(
    hidden_states: Tensor,
    logits_TE: Tensor,
    handle: int,
    slots: int,
    tokens_P: Tensor,
    kept_P: Tensor,
    usage_PE: Tensor,
) -> tuple[Tensor, Tensor]:
    """Opaque to Dynamo: vLLM drops all guards, so Python state read inside a traced graph would be frozen."""
    weights, ids = _LAYERS[handle].route(hidden_states, logits_TE, torch.int32, None)
    return weights.clone(), ids.to(torch.int32).clone()


@_route_op.register_fake
def _(
    hidden_states: Tensor,
    logits_TE: Tensor,
    handle: int,
    slots: int,
    tokens_P: Tensor,
    kept_P: Tensor,
    usage_PE: Tensor,
) -> tuple[Tensor, Tensor]:
    shape = (logits_TE.shape[0], slots)
    return logits_TE.new_empty(shape, dtype=torch.float32), logits_TE.new_empty(shape, dtype=torch.int32)


def _hook_router(router: BaseRouter, name: str, device: torch.device, fixed_slots: int | None) -> HookedLayer:
    layer = HookedLayer(name, router, device, fixed_slots)
    stock = type(router)

    def _compute_routing(
        self: BaseRouter,
        hidden_states: Tensor,
        router_logits: Tensor,
        indices_type: torch.dtype | None,
        *,
        input_ids: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        if torch.compiler.is_compiling():
            counters = (layer.tokens_P, layer.kept_P, layer.usage_PE)
            return _route_op(hidden_states, router_logits, layer.handle, layer.slots, *counters)
        return layer.route(hidden_states, router_logits, indices_type, input_ids)

    router.__class__ = type(f"Hooked{stock.__name__}", (stock,), {"_compute_routing": _compute_routing})
    return layer


def check_layer(name: str, runner: MoERunnerInterface) -> None:
    """Raise RuntimeError where the hook would be bypassed or could not reproduce the router's scores."""
    router: Any = getattr(runner, "router", None)
    kind = getattr(getattr(router, "_banpick_layer", None), "stock", type(router)).__name__
    if not isinstance(router, BaseRouter) or kind not in SUPPORTED_ROUTERS:
        raise RuntimeError(
            f"{name}: router {kind} cannot be hooked: its selection would ignore the policy. "
            f"Supported: {', '.join(sorted(SUPPORTED_ROUTERS))}."
        )
    scoring = getattr(router, "scoring_func", "softmax")
    if getattr(router, "custom_routing_function", None) is not None or scoring not in SUPPORTED_SCORING:
        raise RuntimeError(
            f"{name}: routing by {scoring!r} or a custom function cannot be reproduced, so no policy could be "
            f"applied to it. Supported scoring: {', '.join(sorted(SUPPORTED_SCORING))}."
        )
    if runner.routed_experts.quant_method.is_monolithic:
        raise RuntimeError(
            f"{name}: its expert kernel is monolithic and routes by itself, so every policy would silently be "
            f"ignored. Name a modular one, for example: engine.moe_backend=triton"
        )


def _attach(runner: MoERunner) -> None:
    check_layer(runner.layer_name, runner)
    config = get_current_vllm_config()
    fixed_slots = None
    if not config.model_config.enforce_eager:
        extra_slots = (config.additional_config or {}).get("banpick_extra_slots", 0)
        fixed_slots = runner.router.top_k + int(extra_slots)
    device = torch.get_default_device()
    runner.router._banpick_layer = _hook_router(runner.router, runner.layer_name, device, fixed_slots)


class HookedMoERunner(MoERunner):
    """vLLM's runner with its router hooked; refuses at construction what cannot be hooked."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _attach(self)


def install() -> None:
    """Register the hooked runners with vLLM. Safe to call again in the same process."""
    if "MoERunner" in op_registry_oot:
        return
    PluggableLayer.register_oot(name="MoERunner")(HookedMoERunner)
    for module, name in OTHER_RUNNERS:
        base = getattr(importlib.import_module(module), name)

        def __init__(self: Any, *args: Any, _base: Any = base, **kwargs: Any) -> None:
            _base.__init__(self, *args, **kwargs)
            _attach(self)

        PluggableLayer.register_oot(name=name)(type(f"Hooked{name}", (base,), {"__init__": __init__}))


def find_layers(model: torch.nn.Module) -> list[HookedLayer]:
    """The hooked MoE layers of a loaded model, in layer order.

    Raises RuntimeError when any MoE runner in the model is not hooked, or has become unhookable since it was built
    (quantisation methods are replaced after the weights load).
    """
    layers = []
    for module in model.modules():
        if isinstance(module, MoERunnerInterface):
            check_layer(module.layer_name, module)
            layer = getattr(module.router, "_banpick_layer", None)
            if layer is None:
                remedy = (
                    "This runner class needs its own entry in vllm_plugin.OTHER_RUNNERS."
                    if "MoERunner" in op_registry_oot
                    else "vLLM did not load the plugin: start this process with VLLM_PLUGINS=banpick."
                )
                raise RuntimeError(
                    f"{module.layer_name}: a {type(module).__name__} that the plugin did not hook: its experts would "
                    f"ignore every policy. {remedy}"
                )
            layers.append(layer)
    return layers
