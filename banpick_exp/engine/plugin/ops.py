"""The two places where a compiled model leaves its graph for ours: routing, and experts on CPU.

Opaque to Dynamo on purpose: vLLM drops all guards, so Python state read inside a traced graph would be frozen.

Shapes: T tokens, E experts, S slots, H hidden size, P policy rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from banpick_exp.engine.plugin.layer import layer_of
from banpick_kernels.cpu_dispatch import run_kept


@torch.library.custom_op("banpick::route", mutates_args=("tokens_P", "usage_PE"))
def route_op(
    hidden_states: Tensor, logits_TE: Tensor, handle: int, slots: int, tokens_P: Tensor, usage_PE: Tensor
) -> tuple[Tensor, Tensor]:
    """Weights float32 and ids int32, each [T, slots], of the layer `handle`; the counters are named as mutated."""
    weights, ids = layer_of(handle).route(hidden_states, logits_TE, torch.int32, None)
    return weights.clone(), ids.to(torch.int32).clone()


@route_op.register_fake
def _(
    hidden_states: Tensor, logits_TE: Tensor, handle: int, slots: int, tokens_P: Tensor, usage_PE: Tensor
) -> tuple[Tensor, Tensor]:
    shape = (logits_TE.shape[0], slots)
    return logits_TE.new_empty(shape, dtype=torch.float32), logits_TE.new_empty(shape, dtype=torch.int32)


def run_experts(
    output_TH: Tensor,
    hidden_TH: Tensor,
    w13: Tensor,
    w2: Tensor,
    w13_bias: Tensor | None,
    w2_bias: Tensor | None,
    weights_TS: Tensor,
    ids_TS: Tensor,
    activation: str,
    isa: str,
    handle: int,
) -> None:
    """vLLM's CPU experts on the kept slots of the layer `handle`, into `output_TH`."""
    from vllm._custom_ops import cpu_fused_moe

    def run(output: Tensor, hidden: Tensor, weights: Tensor, ids: Tensor) -> None:
        cpu_fused_moe(output, hidden, w13, w2, w13_bias, w2_bias, weights, ids, activation, isa, False)

    if layer_of(handle).prunes:
        run_kept(output_TH, hidden_TH, weights_TS, ids_TS, run, w13[0].numel() + w2[0].numel())
    else:
        run(output_TH, hidden_TH, weights_TS, ids_TS)


experts_op = torch.library.custom_op("banpick::experts", run_experts, mutates_args=("output_TH",))
"""`run_experts` for compiled code."""
experts_op.register_fake(lambda *_: None)
