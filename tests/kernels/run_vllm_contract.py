"""vLLM's own Triton expert kernels on CPU tensors, in the interpreter. A process of its own: `TRITON_INTERPRET=1`.

`TritonExperts.apply` runs as installed: its choice of path, its launcher, `fused_moe_kernel`. Three things it calls
exist on a GPU alone and are written here in torch after the sources named at each: alignment, sum, activation.
The intermediate buffers are NaN before every call. Prints one JSON object; the assertions are in test_vllm_contract.py.
"""

from __future__ import annotations

import json
import math
import sys
import warnings
from types import SimpleNamespace
from typing import Any

import torch
import triton
import triton.language
import vllm.triton_utils as triton_utils
from torch import Tensor

# vLLM's CPU wheel puts placeholders where Triton has no driver; the interpreter needs none.
triton_utils.triton, triton_utils.tl, triton_utils.HAS_TRITON = triton, triton.language, True

from vllm.model_executor.layers.fused_moe import modular_kernel, override_config  # noqa: E402
from vllm.model_executor.layers.fused_moe.activation import MoEActivation  # noqa: E402
from vllm.model_executor.layers.fused_moe.config import (  # noqa: E402
    FusedMoEConfig,
    FusedMoEParallelConfig,
    FusedMoEQuantConfig,
    RoutingMethodType,
)
from vllm.model_executor.layers.fused_moe.experts import triton_moe  # noqa: E402
from vllm.model_executor.layers.fused_moe.prepare_finalize.no_dp_ep import (  # noqa: E402
    make_moe_prepare_and_finalize_no_dp_ep,
)
from vllm.v1.worker.workspace import init_workspace_manager  # noqa: E402

from banpick_exp.engine.plugin import skipping  # noqa: E402

EXPERTS, SLOTS, HIDDEN, INTERMEDIATE, BLOCK = 32, 4, 32, 32, 32
BLOCKS = {"BLOCK_SIZE_M": BLOCK, "BLOCK_SIZE_N": 64, "BLOCK_SIZE_K": 32, "GROUP_SIZE_M": 1}
NAIVE_TOKENS, ALIGNED_TOKENS = 2, 24  # T * S * 4 <= E takes the naive path

calls = {"naive": 0, "aligned": 0}


def align(
    topk_ids: Tensor,
    num_experts: int,
    block_size: int,
    sorted_token_ids: Tensor,
    experts_ids: Tensor,
    num_tokens_post_pad: Tensor,
    expert_map: Tensor | None = None,
    scatter_idx: Tensor | None = None,
) -> None:
    """csrc moe_align_sum_kernels.cu, get_local_expert_id: an id below 0 or from E up is dropped, map or no map."""
    assert scatter_idx is None
    flat = topk_ids.flatten().tolist()
    local = [i if not 0 <= i < num_experts else int(expert_map[i]) if expert_map is not None else i for i in flat]
    sorted_token_ids.fill_(len(flat))
    experts_ids.fill_(-1)
    start = 0
    for expert in range(num_experts):
        rows = [row for row, found in enumerate(local) if found == expert]
        sorted_token_ids[start : start + len(rows)] = torch.tensor(rows, dtype=torch.int32)
        blocks = math.ceil(len(rows) / block_size)
        experts_ids[start // block_size : start // block_size + blocks] = expert
        start += blocks * block_size
    num_tokens_post_pad.fill_(start)
    calls["aligned"] += 1


def moe_sum(input: Tensor, output: Tensor, topk_ids: Tensor | None = None, expert_map: Tensor | None = None) -> None:
    """csrc moe_align_sum_kernels.cu, moe_sum and moe_sum_pad_aware_skip: with ids, negative ones are left out."""
    rows = input.float()
    if topk_ids is not None:
        skipped = topk_ids < 0
        if expert_map is not None:
            skipped |= expert_map[topk_ids.clamp_min(0).long()] < 0
        rows = rows.masked_fill(skipped[..., None], 0.0)
    output.copy_(rows.sum(dim=1))


def activate(self: Any, activation: MoEActivation, output: Tensor, input: Tensor, **_: Any) -> None:
    """SiLU and multiply, row by row, over all rows: those never written are read here, as silu_and_mul reads them."""
    gate, up = input.float().chunk(2, dim=-1)
    output.copy_(torch.nn.functional.silu(gate) * up)


def build(cls: type) -> Any:
    config = FusedMoEConfig(
        num_experts=EXPERTS,
        experts_per_token=SLOTS,
        hidden_dim=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_local_experts=EXPERTS,
        num_logical_experts=EXPERTS,
        activation=MoEActivation.SILU,
        device="cpu",
        routing_method=RoutingMethodType.Default,
        moe_parallel_config=FusedMoEParallelConfig.make_no_parallel(),
        in_dtype=torch.float32,
    )
    return cls(config, FusedMoEQuantConfig.make())


class Layer:
    """One experts object with weights and NaN-filled workspaces of its own."""

    def __init__(self, cls: type, expert_map: Tensor | None = None) -> None:
        self.experts, self.expert_map = build(cls), expert_map
        draw = torch.Generator().manual_seed(7)
        local = EXPERTS if expert_map is None else int((expert_map >= 0).sum())
        self.w1 = torch.randn(EXPERTS, 2 * INTERMEDIATE, HIDDEN, generator=draw)[:local] / math.sqrt(HIDDEN)
        self.w2 = torch.randn(EXPERTS, HIDDEN, INTERMEDIATE, generator=draw)[:local] / math.sqrt(INTERMEDIATE)

    def __call__(self, hidden_TH: Tensor, weights_TS: Tensor, ids_TS: Tensor) -> Tensor:
        tokens, slots = ids_TS.shape
        sizes = (tokens, 2 * INTERMEDIATE, HIDDEN, slots, EXPERTS, len(self.w1), None, MoEActivation.SILU)
        first, second, out = (torch.full(shape, torch.nan) for shape in self.experts.workspace_shapes(*sizes))
        arguments = (out, hidden_TH, self.w1, self.w2, weights_TS, ids_TS, MoEActivation.SILU, EXPERTS, self.expert_map)
        self.experts.apply(*arguments, None, None, first, second, None, False)
        return out


def engine_layer(cls: type, report: dict[str, Any]) -> Any:
    """What `choose_filler` reads of a runner, around vLLM's own modular kernel and its workspace manager.

    Notes in `report` whether the kernel was handed workspaces that were NaN from end to end.
    """
    bare = Layer(cls)
    kernel = modular_kernel.FusedMoEKernel(make_moe_prepare_and_finalize_no_dp_ep(False), bare.experts)
    apply = bare.experts.apply

    def watched(**arguments: Any) -> None:
        spaces = (arguments["workspace13"], arguments["workspace2"])
        report["poisoned"] = report.get("poisoned", True) and all(bool(space.isnan().all()) for space in spaces)
        apply(**arguments)

    def forward_modular(hidden_TH: Tensor, weights_TS: Tensor, ids_TS: Tensor) -> Tensor:
        return kernel.apply(hidden_TH, bare.w1, bare.w2, topk_weights=weights_TS, topk_ids=ids_TS, **settings)

    bare.experts.apply = watched
    settings: dict[str, Any] = {"activation": MoEActivation.SILU, "global_num_experts": EXPERTS, "expert_map": None}
    settings |= {"apply_router_weight_on_input": False}
    method = SimpleNamespace(moe_kernel=kernel, topk_indices_dtype=kernel.prepare_finalize.topk_indices_dtype())
    layer = SimpleNamespace(w13_weight=bare.w1, activation=MoEActivation.SILU, global_num_experts=EXPERTS)
    layer.forward_modular, layer.quant_method = forward_modular, method
    router = SimpleNamespace(eplb_state=None)
    return SimpleNamespace(routed_experts=layer, moe_config=bare.experts.moe_config, router=router)


def by_hand(layer: Layer, hidden_TH: Tensor, weights_TS: Tensor, ids_TS: Tensor) -> Tensor:
    """The definition: the kept experts alone, one (token, slot) at a time, in float64."""
    out_TH = torch.zeros_like(hidden_TH, dtype=torch.float64)
    for token, row in enumerate(ids_TS.tolist()):
        for slot, expert in enumerate(row):
            expert = expert if expert < 0 or layer.expert_map is None else int(layer.expert_map[expert])
            if expert >= 0:
                gate, up = (layer.w1[expert].double() @ hidden_TH[token].double()).chunk(2)
                down = layer.w2[expert].double() @ (torch.nn.functional.silu(gate) * up)
                out_TH[token] += weights_TS[token, slot].double() * down
    return out_TH


def compare(layer: Layer, tokens: int) -> dict[str, Any]:
    """One batch in both forms: against each other, against the definition, and what a whole row of -1 gives."""
    weights_TS, dup_TS, skip_TS = skipping.banned_batch(tokens, EXPERTS, SLOTS, seed=tokens)
    hidden_TH = torch.randn(tokens, HIDDEN, generator=torch.Generator().manual_seed(tokens))
    before = dict(calls)
    dup = layer(hidden_TH, weights_TS, dup_TS)
    skip = layer(hidden_TH, weights_TS, skip_TS)
    # A banned slot must not count even where its weight was left non-zero, which dup could not survive.
    heavy = layer(hidden_TH, torch.where(skip_TS < 0, 1.0, weights_TS), skip_TS)
    padding = skip_TS.clone()
    padding[-1] = -1
    return {
        "banned": int((skip_TS < 0).sum()),
        "finite": bool(torch.isfinite(skip).all()),
        "skip_against_dup": float((skip - dup).abs().max()),
        "skip_against_definition": float((skip - by_hand(layer, hidden_TH, weights_TS, skip_TS)).abs().max()),
        "ignores_weight": bool(torch.equal(heavy, skip)),
        "padding_row": float(layer(hidden_TH, weights_TS, padding)[-1].abs().max()),
        "paths": {path: calls[path] - before[path] for path in calls},
    }


def main() -> None:
    warnings.simplefilter("ignore")  # the NaN rows go through numpy, as they should
    ops: Any = triton_moe.ops
    ops.moe_sum, ops.moe_align_block_size = moe_sum, align
    # Take the GPU's way to the workspaces, on the CPU.
    modular_kernel.current_platform = SimpleNamespace(is_cpu=lambda: False, is_rocm=lambda: False)
    torch.accelerator.empty_cache = lambda: None
    init_workspace_manager(torch.device("cpu"))
    assign = triton_moe._prepare_expert_assignment

    def counted(*arguments: Any, **options: Any) -> Any:
        found = assign(*arguments, **options)
        calls["naive"] += found[0] is None
        return found

    triton_moe._prepare_expert_assignment = counted
    stock = triton_moe.TritonExperts
    aware = skipping.skipping_class(stock)
    assert aware is not None and aware.__bases__ == (stock,), "TritonExperts is no longer in the list"
    experts_classes: tuple[Any, ...] = (stock, aware)
    for cls in experts_classes:
        cls.activation = activate
    half = torch.full((EXPERTS,), -1, dtype=torch.int32)
    half[: EXPERTS // 2] = torch.arange(EXPERTS // 2)
    report: dict[str, Any] = {}
    with override_config(BLOCKS):
        report["naive"] = compare(Layer(aware), NAIVE_TOKENS)
        report["aligned"] = compare(Layer(aware), ALIGNED_TOKENS)
        report["expert_parallel"] = compare(Layer(aware, half), ALIGNED_TOKENS)
        report["stock_naive"] = compare(Layer(stock), NAIVE_TOKENS)
        report["stock_aligned"] = compare(Layer(stock), ALIGNED_TOKENS)
        before = dict(calls)
        report["filler"] = skipping.choose_filler("layer", engine_layer(aware, report), slots=SLOTS)
        report["filler_paths"] = {path: calls[path] - before[path] for path in calls}
        report["stock_filler"] = skipping.choose_filler("layer", engine_layer(stock, report), slots=SLOTS)
        report["stock_self_test"] = skipping.self_test(engine_layer(stock, report), slots=SLOTS)
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main()
