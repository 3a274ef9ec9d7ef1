"""What only a benchmark needs of a worker: a load format of random weights, and the hook taken off and on."""

from __future__ import annotations

from banpick_exp.engine import random_weights
from banpick_exp.engine.plugin.hook import attach_again, detach
from banpick_exp.engine.plugin.model_runners import follow, leave, read_all_as_first
from banpick_exp.engine.worker import RoutingExtension

# vLLM imports this module in every worker process before it loads the weights.
random_weights.register()


class BenchExtension(RoutingExtension):
    """Mixed into vLLM's worker in place of `RoutingExtension`."""

    def banpick_hook(self, on: bool) -> None:
        """Put vLLM's own router and expert classes back (`on` false), or ours."""
        (attach_again if on else detach)(self.model_runner.model)

    def banpick_rows(self, follows: str) -> None:
        """Of an engine that holds several policies: take the rows out of its layers and its runner (`off`), read every
        running request as of row 0 (`first`), or as of the row that it names (`own`)."""
        runner, layers = self.model_runner, self._banpick_layers()
        if not hasattr(self, "_banpick_token_rows"):
            self._banpick_token_rows = layers[0].token_rows
        rows = self._banpick_token_rows
        assert rows is not None, "the engine was started for one policy"
        for layer in layers:
            layer.token_rows = None if follows == "off" else rows
        if follows == "off":
            leave(runner, rows)
            return
        follow(runner, rows)
        read_all_as_first(runner, follows == "first")
