"""What the unchanged model does on the calibration sequences: how it weighs, which experts meet markers, how alike
experts are.

One forward pass counts; the hidden states that reach the experts are kept from evenly spaced tokens, and each expert
is then run on all of them by the layer's own kernel.

Shapes: T tokens, N sampled tokens, L layers, E experts, K experts a token, H hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.config import CUDAGraphMode
from vllm.distributed import tensor_model_parallel_all_reduce
from vllm.forward_context import get_forward_context

from banpick_exp.engine.plugin.layer import HookedLayer
from banpick_exp.engine.plugin.skipping import id_type


class Observer:
    """A forward pre-hook (with kwargs) on the model that watches every layer route; sums over the steps of a run."""

    def __init__(
        self, layers: Sequence[HookedLayer], *, expected: int, markers: Sequence[int], k_min: int, hidden_states: int
    ) -> None:
        """`expected`: tokens of the whole run; `hidden_states`: at most this many are kept a layer."""
        self.expected, self.tokens, self.marker_tokens = expected, 0, 0
        self.ratio_range = (math.inf, -math.inf)
        self.tail_square_L = [0.0] * len(layers)
        device, num_experts = layers[0].tokens_P.device, layers[0].num_experts
        self.usage_LE = torch.zeros(len(layers), num_experts, dtype=torch.int64, device=device)
        self.marker_usage_LE = torch.zeros_like(self.usage_LE)
        self.hidden_L: list[list[Tensor]] = [[] for _ in layers]
        self._layers, self._k_min, self.top_k = layers, k_min, layers[0].top_k
        self._markers = torch.tensor(list(markers), dtype=torch.int64, device=device)
        self._stride = max(1, math.ceil(expected / hidden_states))
        for index, layer in enumerate(layers):
            layer.observer = self._watch(index)

    def stop(self) -> None:
        for layer in self._layers:
            layer.observer = None

    def __call__(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """The tokens of the step that begins: padding left out, which are markers, which are sampled."""
        ids_T, context = kwargs["input_ids"], get_forward_context()
        context.cudagraph_runtime_mode = CUDAGraphMode.NONE  # a captured graph would run past the observer
        padding_T = context.is_padding
        rows_T = torch.ones_like(ids_T, dtype=torch.bool) if padding_T is None else ~padding_T[: ids_T.shape[0]]
        self._rows_T = rows_T.nonzero().flatten()
        self._marker_T = torch.isin(ids_T[self._rows_T], self._markers)
        number_T = torch.arange(self.tokens, self.tokens + len(self._rows_T), device=ids_T.device)
        self._sampled_N = self._rows_T[number_T % self._stride == 0]
        self.tokens += len(self._rows_T)
        self.marker_tokens += int(self._marker_T.sum())

    def _watch(self, index: int) -> Any:
        def see(weights_TK: Tensor, ids_TK: Tensor, hidden_TH: Tensor) -> None:
            # A compiled engine has more slots than K; the kept ones come first.
            weights_TK = weights_TK[self._rows_T, : self.top_k].float()
            ids_TK = ids_TK[self._rows_T, : self.top_k].long()
            share_TK = weights_TK.sort(-1, descending=True).values
            share_TK = share_TK / share_TK.sum(-1, keepdim=True)
            self.tail_square_L[index] += float(share_TK[:, self._k_min :].double().square().sum())
            ratio_T = share_TK[:, :3].sum(-1)
            if ratio_T.numel():
                low, high = self.ratio_range
                self.ratio_range = min(low, float(ratio_T.min())), max(high, float(ratio_T.max()))
            for counts_E, chosen in (
                (self.usage_LE[index], ids_TK),
                (self.marker_usage_LE[index], ids_TK[self._marker_T]),
            ):
                counts_E += torch.bincount(chosen.flatten(), minlength=len(counts_E))
            self.hidden_L[index].append(hidden_TH[self._sampled_N])

        return see


def expert_similarity(runner: Any, layer: HookedLayer, hidden_NH: Tensor) -> Tensor:
    """Linear CKA between the outputs of each two experts on the same hidden states, float32 [E,E] on the CPU.

        CKA(i, j) = <G_i, G_j> / (|G_i| |G_j|),     G = C Y Y^T C,  Y [N,H] an expert's outputs, C = 1 - 1/N

    Source: Kornblith et al., arXiv 1905.00414, equation 3 with the linear kernel. 0 to 1, 1 with itself; an expert
    whose outputs do not vary is like no other. Every rank gets the same answer: partial outputs are summed first, and
    where the kernel has summed them already the ranks' number is a common factor, which CKA does not see.

    Memory: E * N^2 floats, beside the outputs of one expert. Raises RuntimeError where ranks hold different tokens.
    """
    if runner.moe_config.is_sequence_parallel:
        raise RuntimeError(
            f"{layer.name}: with sequence parallelism each rank holds other tokens, so experts cannot be compared. "
            f"Calibrate on an engine without it: the artifact fits both."
        )
    tokens = len(hidden_NH)
    gram_EN = torch.zeros(layer.num_experts, tokens * tokens, device=hidden_NH.device)
    weights_N1 = torch.ones(tokens, 1, device=hidden_NH.device)
    for expert in range(layer.num_experts):
        ids_N1 = torch.full((tokens, 1), expert, dtype=id_type(runner), device=hidden_NH.device)
        output_NH = runner.routed_experts.forward_modular(hidden_NH.clone(), weights_N1, ids_N1).float()
        output_NH = tensor_model_parallel_all_reduce(output_NH)
        output_NH = output_NH - output_NH.mean(0)
        gram_EN[expert] = (output_NH @ output_NH.T).flatten()
    return cosines(gram_EN)


def cosines(vectors_EN: Tensor) -> Tensor:
    """Cosine of each two rows, cut to [0, 1], float32 [E,E] on the CPU; a row of zeros is at 0 to all but itself."""
    norm_E1 = vectors_EN.norm(dim=-1, keepdim=True)
    usable_E1 = torch.isfinite(norm_E1) & (norm_E1 > 0)
    unit_EN = torch.where(usable_E1, vectors_EN / norm_E1.where(usable_E1, 1), 0)
    cosine_EE = unit_EN @ unit_EN.T
    return ((cosine_EE + cosine_EE.T) / 2).clamp(0, 1).fill_diagonal_(1).cpu()
