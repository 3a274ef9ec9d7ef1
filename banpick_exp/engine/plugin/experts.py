"""Which expert kernels compute only what is kept, by which class.

A layer's `quant_method.experts_cls` is replaced by a one-base subclass before vLLM builds its kernel, so every variant
that inherits the CPU path (AVX2, AVX-512, AMX, NEON) is covered and no function of vLLM's is replaced. Where the class
is another (quantised experts, say), nothing is replaced: banned slots are computed with weight 0, exact, not faster.
On a GPU the class only gets the sum that an id of -1 needs; `skipping` decides, on the device, whether -1 is used.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts
from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner

from banpick_exp.engine.plugin.layer import HookedLayer
from banpick_exp.engine.plugin.ops import experts_op, run_experts
from banpick_exp.engine.plugin.skipping import skipping_class


def keep_pairs_only(runner: MoERunner, layer: HookedLayer) -> None:
    """Let the experts of this layer skip banned slots, where its kernel is one that can."""
    method: Any = runner.routed_experts.quant_method
    stock: Any = getattr(method, "experts_cls", None)
    if not isinstance(stock, type):
        return
    # A variant that brings its own `apply` is another kernel than the one studied.
    stock_apply = getattr(stock, "apply", None)
    if issubclass(stock, CPUUnquantizedExperts) and stock_apply is CPUUnquantizedExperts.apply:
        method.experts_cls = _cpu_class(stock, layer)
    elif (aware := skipping_class(stock)) is not None:
        method.experts_cls = aware


def _cpu_class(stock: type[CPUUnquantizedExperts], layer: HookedLayer) -> type[CPUUnquantizedExperts]:
    handle = layer.handle

    def apply(
        self: Any,
        output: Tensor,
        hidden_states: Tensor,
        w1: Tensor,
        w2: Tensor,
        topk_weights: Tensor,
        topk_ids: Tensor,
        activation: Any,
        global_num_experts: int,
        expert_map: Tensor | None,
        a1q_scale: Tensor | None,
        a2_scale: Tensor | None,
        workspace13: Tensor,
        workspace2: Tensor,
        expert_tokens_meta: Any,
        apply_router_weight_on_input: bool,
    ) -> None:
        if self._use_zentorch or apply_router_weight_on_input or topk_ids.shape[1] == 1:
            rest = (a1q_scale, a2_scale, workspace13, workspace2, expert_tokens_meta, apply_router_weight_on_input)
            where = (activation, global_num_experts, expert_map)
            stock.apply(self, output, hidden_states, w1, w2, topk_weights, topk_ids, *where, *rest)
            return
        run = experts_op if torch.compiler.is_compiling() else run_experts
        biases = (self.w1_bias, self.w2_bias)
        run(output, hidden_states, w1, w2, *biases, topk_weights, topk_ids, activation.value, self.isa, handle)

    return type(f"Kept{stock.__name__}", (stock,), {"apply": apply})
