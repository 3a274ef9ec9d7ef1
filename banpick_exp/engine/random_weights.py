"""A load format of vLLM that reads no file: random weights whose routers choose, for benchmarks of speed.

vLLM's own `dummy` draws every number within 0.001 of 0, norms included: router logits are equal then and so are all
weights of a token's experts. Filling an engine that is already loaded is no way round that: vLLM repacks weights once
they are loaded, into whatever its kernels read for this number format, and keeps no matrix to write to.
"""

from __future__ import annotations

import math
from typing import Any

import torch

LOAD_FORMAT = "banpick_random"
"""`load_format` of an engine whose worker process has called `register`."""
ROUTER_SPREAD = 1.5
"""Standard deviation of the router logits: about as peaked as a trained router of 128 experts."""
WEIGHT_SPREAD = 0.02
BLOCK = (1 << 22) - 3
"""Numbers drawn."""
SHIFT = 611_953
"""Numbers by which a matrix starts further on in the block than the one before."""


def register() -> None:
    """Make the format known to vLLM in this process."""
    from vllm.model_executor.model_loader import register_model_loader
    from vllm.model_executor.model_loader.base_loader import BaseModelLoader

    @register_model_loader(LOAD_FORMAT)
    class RandomWeights(BaseModelLoader):
        """vLLM calls `load_weights` before it repacks what was loaded."""

        def download_model(self, model_config: Any) -> None:
            """There is nothing to download."""

        def load_weights(self, model: torch.nn.Module, model_config: Any) -> None:
            fill(model)


def fill(model: torch.nn.Module, seed: int = 0) -> None:
    """Every parameter in place: norms 1, routers so that logits spread by ROUTER_SPREAD, all others WEIGHT_SPREAD."""
    # Drawing billions of numbers takes minutes: one block repeats. Each matrix starts elsewhere in it, or the rows of
    # the router would be those of the embedding, and a token's logit for its namesake would drown all others.
    block = torch.randn(BLOCK, generator=torch.Generator().manual_seed(seed))
    for index, (name, parameter) in enumerate(model.named_parameters()):
        if "norm" in name:
            parameter.data.fill_(1)
            continue
        spread = ROUTER_SPREAD / math.sqrt(parameter.shape[-1]) if ".gate." in name else WEIGHT_SPREAD
        values = (block.roll(-index * SHIFT) * spread).to(parameter.device, parameter.dtype)
        for part in parameter.data.view(-1).split(BLOCK):
            part.copy_(values[: part.numel()])
