"""The router of `reference.route` as one Triton launch on a GPU; the kernel is in `triton_kernel`.

Shape suffixes: T tokens, E experts, K experts the checkpoint selects, S slots returned, P policy rows.
"""

import torch
import triton
from torch import Tensor

from banpick_kernels.insertion import MAX_SLOTS
from banpick_kernels.table import WIDTH, LayerTable
from banpick_kernels.triton_kernel import OPTIONS, max_registers, route_kernel

MAX_EXPERTS, MAX_TOP_K = 512, 16
LOGIT_TYPES = (torch.bfloat16, torch.float16, torch.float32)
STRIDED = ("tokens_P", "stock weights", "stock ids")
"""Tensors that may have any stride along their last axis; logits may too."""


def fused_route(
    logits_TE: Tensor,
    layer: LayerTable,
    *,
    top_k: int,
    slots: int,
    renormalize: bool,
    scoring: str = "softmax",
    correction_E: Tensor | None = None,
    row_T: Tensor | None = None,
    is_padding_T: Tensor | None = None,
    tokens_P: Tensor | None = None,
    usage_PE: Tensor | None = None,
    scale: float = 1.0,
    stock: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """`reference.route` in one launch: weights float32 [T,S] and ids int32 [T,S], kept slots first, best first.

    An unkept slot has weight 0 and repeats the token's first id, or holds -1 where the row's `skips` is set.

    Args:
        logits_TE: bfloat16, float16 or float32. NaN counts as -inf, +inf as the largest float.
        top_k, slots: K <= 16 experts in the base selection, S <= 32 slots returned; E <= 512.
        correction_E: finite; the base selection ranks by score + correction.
        row_T: int32 or int64, the policy row of each token, not checked; None is row 0.
        is_padding_T: bool, tokens that are not counted. They are routed like the others.
        tokens_P, usage_PE: int64, both or neither. Each unpadded token adds 1 to its row of `tokens_P` and, for each
            slot kept, 1 to that expert's `usage_PE`.
        scale: a factor on the weights.
        stock: weights and ids [T,K] of the router without a policy. Tokens whose policy row is neutral get exactly
            these (ids of -1 too, which are never counted).

    Raises:
        ValueError: for shapes and types that the kernel does not take.
    """
    _check(logits_TE, layer, top_k, slots, scoring, correction_E, row_T, is_padding_T, tokens_P, usage_PE, stock)
    shape = (logits_TE.shape[0], slots)
    weights_TS = torch.empty(shape, dtype=torch.float32, device=logits_TE.device)
    ids_TS = torch.empty(shape, dtype=torch.int32, device=logits_TE.device)
    launch(
        weights_TS, ids_TS, logits_TE, layer, top_k, renormalize, scoring, correction_E, row_T, is_padding_T, tokens_P,
        usage_PE, scale, stock,
    )  # fmt: skip
    return weights_TS, ids_TS


def launch(
    weights_TS: Tensor, ids_TS: Tensor, logits_TE: Tensor, layer: LayerTable, top_k: int, renormalize: bool,
    scoring: str, correction_E: Tensor | None, row_T: Tensor | None, is_padding_T: Tensor | None,
    tokens_P: Tensor | None, usage_PE: Tensor | None, scale: float,
    stock: tuple[Tensor, Tensor] | None, block_tokens: int | None = None,
) -> None:  # fmt: skip
    """`fused_route` into given outputs, unchecked. `block_tokens`: tokens a program; None is what suits T."""
    (num_tokens, num_experts), slots = logits_TE.shape, weights_TS.shape[1]
    if num_tokens == 0:
        return
    logits_TE = logits_TE if logits_TE.stride(1) == 1 else logits_TE.contiguous()
    stock_weights_TK, stock_ids_TK = (None, None) if stock is None else (part.contiguous() for part in stock)
    block_tokens = block_tokens or (2 if num_tokens >= 1024 and num_experts <= 128 else 1)
    options = dict(OPTIONS)
    if torch.version.cuda is not None and logits_TE.is_cuda:
        options["maxnreg"] = max_registers(num_experts, block_tokens, correction_E is not None)
    route_kernel[(triton.cdiv(num_tokens, block_tokens),)](
        weights_TS, ids_TS, logits_TE, logits_TE.stride(0), layer.values, layer.values.stride(0),
        layer.logit_bias_PE, layer.logit_bias_PE.stride(0), layer.key_PE, layer.key_PE.stride(0),
        correction_E, row_T, is_padding_T, tokens_P, 0 if tokens_P is None else tokens_P.stride(0),
        usage_PE, 0 if usage_PE is None else usage_PE.stride(0), stock_weights_TK, stock_ids_TK, scale, num_tokens,
        E=num_experts, E_PAD=triton.next_power_of_2(num_experts), K=top_k, S=slots,
        S_PAD=triton.next_power_of_2(max(top_k, slots)), SIGMOID=scoring == "sigmoid", RENORMALIZE=renormalize,
        HAS_CORRECTION=correction_E is not None, HAS_ROWS=row_T is not None, HAS_PADDING=is_padding_T is not None,
        HAS_COUNTERS=tokens_P is not None, HAS_STOCK=stock is not None, BLOCK_T=block_tokens,
        **options,
    )  # fmt: skip


def _check(
    logits_TE: Tensor, layer: LayerTable, top_k: int, slots: int, scoring: str,
    correction_E: Tensor | None, row_T: Tensor | None, is_padding_T: Tensor | None, tokens_P: Tensor | None,
    usage_PE: Tensor | None, stock: tuple[Tensor, Tensor] | None,
) -> None:  # fmt: skip
    """Raise ValueError for what the kernel would misread."""
    if logits_TE.ndim != 2 or logits_TE.dtype not in LOGIT_TYPES:
        raise ValueError(
            f"logits are {logits_TE.dtype} {tuple(logits_TE.shape)}: the kernel reads [T,E] of bfloat16, float16 or "
            "float32. Cast them, or use reference.route."
        )
    num_tokens, num_experts = logits_TE.shape
    bounds = {"experts": (num_experts, MAX_EXPERTS), "top_k": (top_k, min(MAX_TOP_K, num_experts))}
    bounds["slots"] = (slots, min(MAX_SLOTS, num_experts))
    for name, (value, most) in bounds.items():
        if not 1 <= value <= most:
            raise ValueError(f"{name}={value}: the kernel takes 1 to {most} here. Use reference.route.")
    if scoring not in ("softmax", "sigmoid"):
        raise ValueError(f"scoring={scoring!r} is unknown: logits cannot become weights. Use softmax or sigmoid.")
    if num_tokens * max(logits_TE.stride(0), num_experts, slots) >= 2**31:
        raise ValueError(f"{num_tokens} tokens overflow the kernel's 32-bit offsets. Route them in parts.")
    if (tokens_P is None) != (usage_PE is None):
        raise ValueError("tokens_P and usage_PE count together: pass both or neither.")
    if stock is not None and slots < top_k:
        raise ValueError(f"slots={slots} cannot hold the stock router's top_k={top_k}. Use at least {top_k} slots.")
    rows, integers, floats = layer.values.shape[0], (torch.int32, torch.int64), LOGIT_TYPES
    stock_weights_TK, stock_ids_TK = (None, None) if stock is None else stock
    takes = {
        "values": (layer.values, (rows, WIDTH), (torch.float32,)),
        "logit_bias_PE": (layer.logit_bias_PE, (rows, num_experts), (torch.float32,)),
        "key_PE": (layer.key_PE, (rows, num_experts), (torch.bool,)),
        "correction_E": (correction_E, (num_experts,), floats),
        "row_T": (row_T, (num_tokens,), integers),
        "is_padding_T": (is_padding_T, (num_tokens,), (torch.bool,)),
        "tokens_P": (tokens_P, (rows,), (torch.int64,)),
        "usage_PE": (usage_PE, (rows, num_experts), (torch.int64,)),
        "stock weights": (stock_weights_TK, (num_tokens, top_k), floats),
        "stock ids": (stock_ids_TK, (num_tokens, top_k), integers),
    }
    for name, (tensor, shape, types) in takes.items():
        if tensor is None:
            continue
        if tensor.shape != shape or tensor.dtype not in types:
            raise ValueError(
                f"{name} is {tensor.dtype} {tuple(tensor.shape)}: the kernel would misread it. "
                f"Pass {' or '.join(str(kind) for kind in types)} {shape}."
            )
        if tensor.shape[-1] > 1 and tensor.stride(-1) != 1 and name not in STRIDED:
            raise ValueError(f"{name} has stride {tensor.stride(-1)}: the kernel reads neighbours. Pass it contiguous.")
