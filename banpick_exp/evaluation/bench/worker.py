"""Worker methods that only a benchmark needs: random weights in a loaded engine, and the hook taken off and on."""

from __future__ import annotations

import math

import torch

from banpick_exp.engine.plugin.hook import attach_again, detach
from banpick_exp.engine.worker import RoutingExtension

ROUTER_SPREAD = 1.5
"""Standard deviation of the router logits: about as peaked as a trained router of 128 experts."""
BLOCK = (1 << 22) - 3
"""Numbers drawn."""


class BenchExtension(RoutingExtension):
    """Mixed into vLLM's worker in place of `RoutingExtension`."""

    def banpick_randomise(self, seed: int) -> None:
        """Fill every parameter in place: norms 1, routers so that logits spread by ROUTER_SPREAD, all others 0.02."""
        # Drawing billions of numbers takes minutes: one block repeats, out of step with every matrix.
        block = torch.randn(BLOCK, generator=torch.Generator().manual_seed(seed))
        for name, parameter in self.model_runner.model.named_parameters():
            if "norm" in name:
                parameter.data.fill_(1)
                continue
            spread = ROUTER_SPREAD / math.sqrt(parameter.shape[-1]) if ".gate." in name else 0.02
            values = (block * spread).to(parameter.dtype)
            for part in parameter.data.view(-1).split(BLOCK):
                part.copy_(values[: part.numel()])

    def banpick_hook(self, on: bool) -> None:
        """Put vLLM's own router and expert classes back (`on` false), or ours."""
        (attach_again if on else detach)(self.model_runner.model)
