"""How a banned slot reaches an expert kernel on a GPU: `dup` everywhere, -1 where it was read, guarded and tested.

`dup` repeats the token's first expert with weight 0: exact in every standard kernel, no further expert is read, but its
row is computed. `skip` writes id -1 with weight 0, and the kernel must leave the slot out. A layer skips when all hold:
- its experts class is in `SKIPPING`, by its own name: a subclass is another kernel until it has been read;
- this is the vLLM that was read (`STUDIED`; tests/kernels/test_vllm_contract.py runs its kernels in the interpreter);
- nothing in its parallelism, quantisation or adapters voids the evidence (`unsafe_layer`, `unsafe_parallelism`);
- on the device itself, with poisoned workspaces, its kernel answers -1 as it answers dup (`self_test`).

Shapes: T tokens, E experts, S slots, H hidden size.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import vllm
from torch import Tensor
from vllm import _custom_ops as ops
from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner
from vllm.platforms import current_platform
from vllm.v1.worker.workspace import current_workspace_manager, is_workspace_manager_initialized

STUDIED = "0.32.0"
"""The vLLM whose sources the evidence quotes. Under any other version every layer falls back to dup."""

FUSED_MOE = "vllm.model_executor.layers.fused_moe"
EXPERTS = f"{FUSED_MOE}.experts"

Filler = Literal["skip", "dup"]
ExpertsCall = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Hidden states [T,H], weights [T,S] float32, ids [T,S] -> output [T,H]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """Why -1 is exact on one experts class: what was read, what happens there, and under which conditions."""

    read: tuple[str, ...]
    what_happens: str
    conditions: tuple[str, ...]


SKIPPING: dict[str, Evidence] = {
    f"{EXPERTS}.triton_moe.TritonExperts": Evidence(
        read=(
            "experts/triton_moe.py: TritonExperts.apply and .moe_sum",
            "fused_moe.py: _prepare_expert_assignment, fused_moe_kernel, write_zeros_to_output",
            "moe_align_block_size.py; csrc/libtorch_stable/moe/moe_align_sum_kernels.cu: get_local_expert_id, moe_sum",
        ),
        what_happens=(
            "Naive path (T*S*4 <= E): fused_moe_kernel meets expert -1 and writes zeros, in both products. Aligned: "
            "the alignment drops every negative id, with or without an expert map: no block is launched for it and its "
            "workspace rows stay unwritten. Only the activation, row by row, and the final sum read them. The stock "
            "sum adds them where there is no expert map (what a row of the first product left there: silently wrong); "
            "`skipping_class` hands it the ids, and it leaves out negative ones."
        ),
        conditions=(
            "unquantised: a per-tensor activation scale takes its maximum over the unwritten rows too",
            "no LoRA: it aligns the ids by itself",
            "the pad-aware subclass in place",
        ),
    ),
}

REFUSED: dict[str, str] = {
    f"{EXPERTS}.triton_moe.TritonWNA16Experts": (
        "sums without ids (self.moe_sum(cache3, output) in its own apply): rows the alignment dropped reach the output"
    ),
    f"{EXPERTS}.marlin_moe.MarlinExperts": (
        "the alignment drops -1, but the sum is given ids only under an expert map, and the Marlin kernel itself was "
        "not read to the end; the same override of moe_sum may be enough"
    ),
    f"{EXPERTS}.cutlass_moe.CutlassExpertsFp8": (
        "moe_permute maps invalid ids only under an expert map: without one, -1 is sorted as a key and shifts the "
        "expert offsets"
    ),
    f"{EXPERTS}.cutlass_moe.CutlassExpertsFp4": (
        "get_cutlass_moe_mm_data fills a_map and c_map (torch.empty) for matching ids alone: a row is gathered from a "
        "random place"
    ),
    f"{EXPERTS}.deep_gemm_moe.DeepGemmExperts": (
        "scatter and gather both test expert_id >= 0, so -1 reads as exact; fp8 alone, nothing here to run it on"
    ),
    f"{EXPERTS}.fused_batched_moe.BatchedTritonExperts": (
        "-1 matches no expert in BatchedPrepareAndFinalize, but the batches of a real engine come from a dispatch "
        "between ranks that was not read"
    ),
    f"{EXPERTS}.flashinfer_cutlass_moe.FlashInferExperts": (
        "ids go into FlashInfer's cutlass_fused_moe, another package: what it does with -1 is not vLLM's to promise"
    ),
    f"{EXPERTS}.trtllm_bf16_moe.TrtLlmBf16ExpertsModular": (
        "ids go into FlashInfer's TRT-LLM routed kernel, closed binaries: not readable"
    ),
    f"{EXPERTS}.rocm_aiter_moe.AiterExperts": (
        "ids go into AITER's moe_sorting, another package; vLLM masks experts for it by expert_mask, not by -1"
    ),
}
"""Read, or not readable, and left on dup: the reason."""


def qualified_name(experts_cls: type) -> str:
    return f"{experts_cls.__module__}.{experts_cls.__qualname__}"


@functools.cache
def skipping_class(experts_cls: type | None) -> type | None:
    """The class to build instead, so that -1 really is left out; None where the class is not in `SKIPPING`.

    The hook sets `quant_method.experts_cls` to it before vLLM builds the kernel. It answers as the stock class does
    while no id is negative, so a layer that ends on dup keeps it.
    """
    if experts_cls is None or qualified_name(experts_cls) not in SKIPPING or vllm.__version__ != STUDIED:
        return None

    def moe_sum(
        self: Any, input: Tensor, output: Tensor, topk_ids: Tensor | None = None, expert_map: Tensor | None = None
    ) -> None:
        # Without ids the op adds all S rows, among them those that no block has written (vLLM passes them under an
        # expert map alone).
        ops.moe_sum(input, output, topk_ids, expert_map)

    return type(f"PadAware{experts_cls.__name__}", (experts_cls,), {"moe_sum": moe_sum, "stock": experts_cls})


def unsafe_layer(runner: MoERunner) -> str | None:
    """Why this layer's kernel, as built, must not be handed -1; None where the evidence covers it."""
    if vllm.__version__ != STUDIED:
        return f"vLLM {vllm.__version__} is not the {STUDIED} whose kernels were read"
    method: Any = runner.routed_experts.quant_method
    if method.moe_kernel is None:
        return "its expert kernel is not a modular one"
    experts = method.moe_kernel.fused_experts
    stock = getattr(experts, "stock", None)
    if stock is None:
        name = qualified_name(type(experts))
        if name in SKIPPING:
            return f"{type(experts).__name__} was built before its pad-aware class could take its place"
        return f"{type(experts).__name__}: {REFUSED.get(name, 'nobody has read what it does with -1')}"
    if experts.quant_config.quant_dtype is not None or experts.quant_config.weight_quant_dtype is not None:
        return f"{stock.__name__} with quantised experts: an activation scale may be taken over rows never written"
    if experts.moe_config.is_lora_enabled:
        return f"{stock.__name__} with LoRA: adapters align the ids by themselves"
    return None


def unsafe_parallelism(runner: MoERunner) -> str | None:
    """Why -1 must not leave this layer's router; None where ids go to the local kernel as they are.

    The hook writes logical ids, before any mapping. Expert parallelism without a dispatch is safe: alignment and sum
    test an id for being negative before they look it up in the expert map.
    """
    parallel: Any = runner.moe_config.moe_parallel_config
    if parallel.use_batched_activation_format:
        return f"{parallel.all2all_backend} dispatches into batches per expert, whose kernels are not in the list"
    if parallel.use_all2all_kernels or parallel.dp_size > 1 or parallel.pcp_size > 1 or parallel.is_sequence_parallel:
        return f"ids are dispatched to other ranks by {parallel.all2all_backend}, which was not read for -1"
    eplb = parallel.enable_eplb or getattr(runner.router, "eplb_state", None) is not None
    if eplb or runner.moe_config.num_experts != runner.moe_config.num_logical_experts:
        # eplb_map_to_physical_and_record (router/base_router.py) stores -1 for -1 and records no load for it; dup, in
        # turn, records the first expert once per banned slot. Read, not run, and the map changes while serving.
        return "EPLB or redundant experts: ids are mapped to physical ones after the router, a map that changes later"
    return None


def check_parallelism(name: str, runner: MoERunner) -> None:
    """Raise RuntimeError where even dup is unsafe: a batch per expert holds each token once.

    DeepEP's low-latency dispatch (csrc/kernels/internode_ll.cu) takes a place in the receiving expert's buffer for each
    (token, id) and has room for the tokens of a rank: tokens that name one expert S times run over it.

    On a CPU nothing is safe under expert parallelism, stock routing neither: cpu_fused_moe takes no expert map
    (experts/cpu_moe.py), so the ids of other ranks' experts read past the weights, and the process dies.
    """
    parallel: Any = runner.moe_config.moe_parallel_config
    if parallel.use_ep and current_platform.is_cpu():
        raise RuntimeError(
            f"{name}: vLLM's CPU kernels take no expert map and would read past the experts of a rank. Use"
            f" engine.expert_parallel=false"
        )
    if parallel.use_batched_activation_format:
        raise RuntimeError(
            f"{name}: {parallel.all2all_backend} sends tokens into fixed buffers per expert, and a banned slot repeats "
            f"an expert: the buffer could overflow. Use another dispatch: all2all_backend=allgather_reducescatter"
        )


def token_counts(num_experts: int, slots: int) -> list[int]:
    """Batch sizes that reach every path: naive and aligned assignment, the small and the large alignment kernel."""
    naive = max(1, num_experts // (4 * slots))
    return sorted({1, naive, naive + 1, 257, 1024 // slots + 1})


def banned_batch(tokens: int, num_experts: int, slots: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weights [T,S] float32 and ids [T,S] int32 in both forms, dup and skip, on the CPU.

    Every token keeps its first k slots, k drawn from 1..S; the first token keeps one alone.
    """
    draw = torch.Generator().manual_seed(seed)
    ids_TS = torch.rand(tokens, num_experts, generator=draw).argsort(dim=-1)[:, :slots].int()
    keep_T1 = torch.randint(1, slots + 1, (tokens, 1), generator=draw)
    keep_T1[0] = 1
    kept_TS = torch.arange(slots) < keep_T1
    weights_TS = torch.rand(tokens, slots, generator=draw).add(0.1).where(kept_TS, 0)
    weights_TS = weights_TS / weights_TS.sum(dim=-1, keepdim=True)
    return weights_TS, ids_TS.where(kept_TS, ids_TS[:, :1]), ids_TS.where(kept_TS, -1)


def largest_difference(
    apply: ExpertsCall,
    *,
    num_experts: int,
    slots: int,
    hidden: int,
    dtype: torch.dtype,
    device: torch.device,
    poison: Callable[[int], None],
    indices_dtype: torch.dtype = torch.int32,
) -> float:
    """Largest |skip - dup| over the largest |dup|, for `token_counts`; infinite if an output is not finite or all 0.

    `poison(tokens)` fills the workspaces of the next call with NaN.
    """
    worst, seen = 0.0, False
    for seed, tokens in enumerate(token_counts(num_experts, slots)):
        weights_TS, dup_TS, skip_TS = (part.to(device) for part in banned_batch(tokens, num_experts, slots, seed))
        hidden_TH = torch.randn(tokens, hidden, generator=torch.Generator().manual_seed(seed)).to(device, dtype)
        outputs = []
        for ids_TS in (dup_TS, skip_TS):
            poison(tokens)
            # Copies: a kernel may write into its arguments, and the second call must see the same ones.
            outputs.append(apply(hidden_TH.clone(), weights_TS.clone(), ids_TS.to(indices_dtype)).float())
        if not torch.isfinite(torch.stack(outputs)).all():
            return float("inf")
        scale, error = outputs[0].abs().max(), (outputs[1] - outputs[0]).abs().max()
        seen |= bool(scale > 0)  # under expert parallelism a small batch may meet no expert of this rank
        worst = max(worst, float(error / scale.clamp_min(torch.finfo(torch.float32).tiny)))
    return worst if seen else float("inf")


def _poisoner(runner: MoERunner, slots: int) -> Callable[[int], None]:
    layer: Any = runner.routed_experts
    experts = layer.quant_method.moe_kernel.fused_experts
    local, width, hidden = layer.w13_weight.shape
    itemsize = layer.w13_weight.dtype.itemsize

    def poison(tokens: int) -> None:
        sizes = (tokens, width, hidden, slots, layer.global_num_experts, local)
        first, second, output = map(math.prod, experts.workspace_shapes(*sizes, None, layer.activation))
        # The layout of FusedMoEKernelModularImpl._allocate_buffers: both in one allocation, 256-byte aligned.
        numbers = [-(-numel * itemsize // 256) * 256 for numel in (max(first, output), second)]
        (scratch,) = current_workspace_manager().get_simultaneous(((sum(numbers),), torch.uint8))
        scratch.fill_(0xFF)  # all bits set is a NaN in bfloat16, float16 and float32

    return poison


def id_type(runner: Any) -> torch.dtype:
    """Of the ids that the expert kernels of this layer take."""
    return getattr(runner.routed_experts.quant_method, "topk_indices_dtype", None) or torch.int32


def experts_difference(runner: MoERunner, *, slots: int) -> float:
    """`largest_difference` through the layer's own kernel, weights and workspaces; of one rank, nothing is reduced."""
    layer: Any = runner.routed_experts
    weights_ENH = layer.w13_weight
    return largest_difference(
        layer.forward_modular,
        num_experts=layer.global_num_experts,
        slots=slots,
        hidden=weights_ENH.shape[2],
        dtype=weights_ENH.dtype,
        device=weights_ENH.device,
        poison=_poisoner(runner, slots),
        indices_dtype=id_type(runner),
    )


def self_test(runner: MoERunner, *, slots: int) -> str | None:
    """None where -1 gives what dup gives, to two units in the last place of the weights' type; else what was seen."""
    if not is_workspace_manager_initialized():
        return "vLLM's workspaces are not there yet to be poisoned: the test belongs after the model runner is built"
    weights_ENH: Tensor = runner.routed_experts.w13_weight
    found, allowed = experts_difference(runner, slots=slots), 2 * torch.finfo(weights_ENH.dtype).eps
    if found <= allowed:
        return None
    return (
        f"on {weights_ENH.device} id -1 differs from dup by {found:.3g} of the largest output; allowed: {allowed:.3g} "
        f"(inf: an output was NaN, infinite or all zero)"
    )


def choose_filler(name: str, runner: MoERunner, *, slots: int) -> tuple[Filler, str]:
    """What the router of this layer writes into banned slots, and the sentence that says why.

    Call it in the worker, after the weights are in their runtime format and with no grad. Raises RuntimeError where not
    even dup is safe.
    """
    check_parallelism(name, runner)
    reason = unsafe_parallelism(runner) or unsafe_layer(runner) or self_test(runner, slots=slots)
    if reason is None:
        return "skip", f"{name}: -1 agrees with dup on this device, banned experts are not computed"
    return "dup", (
        f"{name}: banned slots fall back to dup (exact, but banned experts are still computed): {reason}. "
        f"To save their time: engine.moe_backend=triton, unquantised, without dispatch between ranks"
    )
