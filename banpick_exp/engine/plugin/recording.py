"""Which experts each token keeps in each layer, under the policy that is on: kept in the order of the tokens.

A slot that is not kept holds -1 or repeats the first id of its token, so the set of a token's ids is the set of the
experts that it keeps, whatever way its layer went.

Shapes: T tokens, S slots, E experts, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.config import CUDAGraphMode
from vllm.distributed import get_tensor_model_parallel_rank
from vllm.forward_context import get_forward_context

from banpick_exp.engine.plugin.layer import HookedLayer


class Recorder:
    """Records every layer's routing until `stop`. Ranks of one tensor-parallel group route alike: the first records.

    Two bytes a slot, token and layer, on the CPU: 100 MB for 130,000 tokens, 48 layers and 8 slots.
    """

    def __init__(self, model: torch.nn.Module, layers: Sequence[HookedLayer]) -> None:
        self.records = get_tensor_model_parallel_rank() == 0
        self._layers = layers
        self._ids_L: list[list[Tensor]] = [[] for _ in layers]
        # On every rank: a captured graph would run past the recorder, and ranks must go the same way together.
        self._handle = model.register_forward_pre_hook(_without_graphs, with_kwargs=True)
        for index, layer in enumerate(layers if self.records else ()):
            assert layer.observer is None, "something watches this layer already"
            layer.observer = self._watch(index)

    def stop(self) -> None:
        """Leave model and layers as they were; what was recorded stays."""
        self._handle.remove()
        if self.records:
            for layer in self._layers:
                layer.observer = None

    def tokens(self) -> list[int]:
        """[L]: how many tokens passed each layer."""
        return [sum(map(len, parts)) for parts in self._ids_L]

    def kept(self, index: int) -> np.ndarray:
        """[T, E] bool: which experts the tokens kept in one layer."""
        layer, parts = self._layers[index], self._ids_L[index]
        ids_TS = torch.cat(parts).long() if parts else torch.empty(0, 1, dtype=torch.int64)
        # A column more than there are experts takes what was not kept.
        kept_TE = torch.zeros(len(ids_TS), layer.num_experts + 1, dtype=torch.bool)
        kept_TE.scatter_(1, ids_TS.where(ids_TS >= 0, layer.num_experts), True)
        return np.asarray(kept_TE[:, :-1].numpy())

    def _watch(self, index: int) -> Any:
        def see(weights_TS: Tensor, ids_TS: Tensor, hidden_TH: Tensor, logits_TE: Tensor) -> None:
            context = get_forward_context()
            if context.attn_metadata is None:  # a dummy run
                return
            if (padding_T := context.is_padding) is not None:
                ids_TS = ids_TS[~padding_T[: ids_TS.shape[0]]]
            self._ids_L[index].append(ids_TS.to(torch.int16).cpu().clone())

        return see


def _without_graphs(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
    get_forward_context().cudagraph_runtime_mode = CUDAGraphMode.NONE
