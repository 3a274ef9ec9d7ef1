"""What the unchanged model does on the calibration sequences: how it weighs, and which experts meet markers.

One forward pass counts; what reaches the experts is kept from evenly spaced tokens, and `outputs.py` then runs each
expert on all of them.

Shapes: T tokens, N sampled tokens, L layers, E experts, K experts a token, H hidden size.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.config import CUDAGraphMode
from vllm.forward_context import get_forward_context

from banpick_exp.engine.plugin.layer import HookedLayer

TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """What reached the experts of one layer from the sampled tokens."""

    hidden_NH: Tensor
    """What the experts are given: the residual stream after the layer's norm."""
    logits_NE: Tensor
    """The router's logits, in the type that the gate answers in."""
    stream_NH: Tensor | None
    """The residual stream to which the experts' answer is added; None where the decoder layer does not hand it on."""


class Observer:
    """Watches every layer of a model route until `stop`; sums over the steps of a run."""

    def __init__(
        self,
        model: torch.nn.Module,
        layers: Sequence[HookedLayer],
        *,
        expected: int,
        markers: Sequence[int],
        k_min: int,
        hidden_states: int,
    ) -> None:
        """`expected`: tokens of the whole run; `hidden_states`: at most this many are kept a layer."""
        self.expected, self.tokens, self.marker_tokens = expected, 0, 0
        self.ratio_range = (math.inf, -math.inf)
        self.tail_square_L = [0.0] * len(layers)
        device, num_experts = layers[0].tokens_P.device, layers[0].num_experts
        self.usage_LE = torch.zeros(len(layers), num_experts, dtype=torch.int64, device=device)
        self.marker_usage_LE = torch.zeros_like(self.usage_LE)
        self._ratios_L: list[list[Tensor]] = [[] for _ in layers]
        self._hidden_L: list[list[Tensor]] = [[] for _ in layers]
        self._logits_L: list[list[Tensor]] = [[] for _ in layers]
        self._stream_L: list[list[Tensor]] = [[] for _ in layers]
        self._layers, self._k_min, self.top_k = layers, k_min, layers[0].top_k
        self._markers = torch.tensor(list(markers), dtype=torch.int64, device=device)
        self._stride = max(1, math.ceil(expected / hidden_states))
        self._handles = [model.register_forward_pre_hook(self._begin, with_kwargs=True)]
        for index, layer in enumerate(layers):
            layer.observer = self._watch(index)
            if (block := _decoder_layer(model, layer.name)) is not None:
                self._handles.append(block.register_forward_hook(self._trace(index)))

    def stop(self) -> None:
        """Leave model and layers as they were."""
        for layer in self._layers:
            layer.observer = None
        for handle in self._handles:
            handle.remove()

    def ratio_median(self) -> list[float]:
        """[L]: median over tokens of w_2 / w_1, the two largest weights of the selection; 0 where K is 1.

        Thresholds of a layer follow it (arXiv 2402.14800, 2509.16105). Exact: every token's ratio is kept,
        on the CPU, 4 bytes a token and layer (100 MB for 500,000 tokens and 48 layers).
        """
        return [float(np.median(torch.cat(parts).numpy())) if parts else 0.0 for parts in self._ratios_L]

    def kept(self) -> list[Kept]:
        """[L]: what was kept of the sampled tokens."""
        kept = []
        for hidden, logits, stream in zip(self._hidden_L, self._logits_L, self._stream_L, strict=True):
            streams = torch.cat(stream) if stream else None
            kept.append(Kept(hidden_NH=torch.cat(hidden), logits_NE=torch.cat(logits), stream_NH=streams))
        return kept

    def _begin(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
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
        def see(weights_TK: Tensor, ids_TK: Tensor, hidden_TH: Tensor, logits_TE: Tensor) -> None:
            # A compiled engine has more slots than K; the kept ones come first.
            weights_TK = weights_TK[self._rows_T, : self.top_k].float()
            ids_TK = ids_TK[self._rows_T, : self.top_k].long()
            share_TK = weights_TK.sort(-1, descending=True).values
            if self.top_k > 1:
                self._ratios_L[index].append((share_TK[:, 1] / share_TK[:, 0].clamp_min(TINY)).cpu())
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
            self._hidden_L[index].append(hidden_TH[self._sampled_N])
            self._logits_L[index].append(logits_TE[self._sampled_N])

        return see

    def _trace(self, index: int) -> Any:
        """vLLM's decoder layers answer (what is still to be added, the residual stream); the next norm adds them."""

        def see(module: Any, args: Any, output: Any) -> None:
            if isinstance(output, tuple) and len(output) == 2 and all(isinstance(part, Tensor) for part in output):
                self._stream_L[index].append(output[1][self._sampled_N])

        return see


def _decoder_layer(model: torch.nn.Module, name: str) -> torch.nn.Module | None:
    """`model.layers.3` of an MoE layer named `model.layers.3.mlp.experts`; None where modules are named otherwise."""
    found = re.match(r".*?\.\d+(?=\.)", name)
    try:
        return model.get_submodule(found[0]) if found else None
    except AttributeError:
        return None
