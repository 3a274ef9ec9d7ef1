"""What only a benchmark needs of a worker: a load format of random weights, and the hook taken off and on."""

from __future__ import annotations

from banpick_exp.engine import random_weights
from banpick_exp.engine.plugin.hook import attach_again, detach
from banpick_exp.engine.worker import RoutingExtension

# vLLM imports this module in every worker process before it loads the weights.
random_weights.register()


class BenchExtension(RoutingExtension):
    """Mixed into vLLM's worker in place of `RoutingExtension`."""

    def banpick_hook(self, on: bool) -> None:
        """Put vLLM's own router and expert classes back (`on` false), or ours."""
        (attach_again if on else detach)(self.model_runner.model)
