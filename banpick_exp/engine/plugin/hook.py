"""How the router hook attaches to vLLM, and what it refuses.

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

Shapes: T tokens, E experts, K experts a token, S slots, P policy rows, L MoE layers.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from vllm.config import get_current_vllm_config
from vllm.model_executor.custom_op import PluggableLayer, op_registry_oot
from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter
from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner
from vllm.model_executor.layers.fused_moe.runner.moe_runner_interface import MoERunnerInterface

from banpick_exp.engine.plugin import token_rows
from banpick_exp.engine.plugin.amx import allow_tiles
from banpick_exp.engine.plugin.experts import keep_pairs_only
from banpick_exp.engine.plugin.layer import HookedLayer
from banpick_exp.engine.plugin.ops import route_op
from banpick_exp.engine.plugin.router import RouterSpec
from banpick_exp.engine.plugin.skipping import check_parallelism, choose_filler
from banpick_exp.engine.plugin.token_rows import TokenRows

SUPPORTED_ROUTERS = frozenset({"CPURouter", "FusedTopKRouter", "FusedTopKBiasRouter", "GroupedTopKRouter"})
SUPPORTED_SCORING = frozenset({"softmax", "sigmoid"})
OTHER_RUNNERS = (("vllm.model_executor.models.transformers.moe", "TransformersMoERunner"),)
"""Runner classes beside MoERunner. Kimi-K3's latent runners import GPU-only kernels and are not registered: a model
that uses one is refused by `verify`."""


def _hook_router(
    router: BaseRouter, name: str, device: torch.device, fixed_slots: int | None, rows: TokenRows | None
) -> HookedLayer:
    layer = HookedLayer(name, router, device, fixed_slots, rows)
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
            counters = (layer.tokens_P, layer.usage_PE)
            return route_op(hidden_states, router_logits, layer.handle, layer.slots, *counters)
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
    spec = RouterSpec.of(router)
    if spec.custom or spec.scoring not in SUPPORTED_SCORING:
        raise RuntimeError(
            f"{name}: routing by {spec.scoring!r} or a custom function cannot be reproduced, so no policy could be "
            f"applied to it. Supported scoring: {', '.join(sorted(SUPPORTED_SCORING))}."
        )
    if runner.routed_experts.quant_method.is_monolithic:
        raise RuntimeError(
            f"{name}: its expert kernel is monolithic and routes by itself, so every policy would silently be "
            f"ignored. Name a modular one, for example: engine.moe_backend=triton"
        )


def _attach(runner: MoERunner) -> None:
    check_layer(runner.layer_name, runner)
    check_parallelism(runner.layer_name, runner)
    config = get_current_vllm_config()
    fixed_slots = None
    if not config.model_config.enforce_eager:
        extra_slots = (config.additional_config or {}).get("banpick_extra_slots", 0)
        fixed_slots = runner.router.top_k + int(extra_slots)
    device = torch.get_default_device()
    rows = token_rows.of_model(config, device)
    if rows is not None:
        token_rows.refuse(runner.layer_name, config, runner.moe_config)
    layer = _hook_router(runner.router, runner.layer_name, device, fixed_slots, rows)
    runner.router._banpick_layer = layer
    keep_pairs_only(runner, layer)


class HookedMoERunner(MoERunner):
    """vLLM's runner with its router hooked; refuses at construction what cannot be hooked."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _attach(self)


def install() -> None:
    """Register the hooked runners with vLLM. Safe to call again in the same process."""
    allow_tiles()
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
    """The hooked MoE layers of a loaded model, in layer order; on a GPU each tries whether its kernel may skip.

    Raises RuntimeError when any MoE runner in the model is not hooked, or has become unhookable or another router since
    it was built (quantisation methods are replaced after the weights load).
    """
    layers = []
    for module in model.modules():
        if isinstance(module, MoERunnerInterface):
            check_layer(module.layer_name, module)
            layer = getattr(module.router, "_banpick_layer", None)
            if layer is None:
                remedy = (
                    f"This runner class needs its own entry in {__name__}.OTHER_RUNNERS."
                    if "MoERunner" in op_registry_oot
                    else "vLLM did not load the plugin: start this process with VLLM_PLUGINS=banpick."
                )
                raise RuntimeError(
                    f"{module.layer_name}: a {type(module).__name__} that the plugin did not hook: its experts would "
                    f"ignore every policy. {remedy}"
                )
            _check_unchanged(layer)
            layers.append(layer)
            if layer.tokens_P.device.type != "cpu":
                runner: Any = module
                with torch.inference_mode():
                    layer.set_filler(*choose_filler(layer.name, runner, slots=layer.slots))
    return layers


def _check_unchanged(layer: HookedLayer) -> None:
    if (now := RouterSpec.of(layer.router)) != layer.spec:
        raise RuntimeError(
            f"{layer.name}: its router was {layer.spec} when it was hooked and is {now} now: policies would be applied "
            f"as to the old one. This vLLM changes its routers late; use the one that `python -m banpick_exp verify` "
            f"names."
        )


def detach(model: torch.nn.Module) -> None:
    """Give every router and expert kernel of a loaded eager model its stock class back: vLLM as if never hooked."""
    for part in _hooked_parts(model):
        stock = type(part).__bases__[0]
        if type(part).__name__.startswith(("Hooked", "Kept")):
            part._banpick_class, part.__class__ = type(part), stock


def attach_again(model: torch.nn.Module) -> None:
    """Undo `detach`."""
    for part in _hooked_parts(model):
        if hasattr(part, "_banpick_class"):
            part.__class__ = part._banpick_class


def _hooked_parts(model: torch.nn.Module) -> Iterator[Any]:
    for module in model.modules():
        if isinstance(module, MoERunnerInterface):
            runner: Any = module
            yield runner.router
            yield runner.routed_experts.quant_method.moe_kernel.fused_experts
