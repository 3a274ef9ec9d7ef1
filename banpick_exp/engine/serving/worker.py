"""Worker methods of a server, beside those of every engine of ours."""

from __future__ import annotations

from banpick_exp.engine.worker import RoutingExtension


class ServingWorker(RoutingExtension):
    """Mixed into vLLM's worker, as `RoutingExtension` is."""

    def banpick_row_totals(self) -> list[list[list[int]]]:
        """Of each row, by layer of this rank: tokens, token-expert pairs, experts with at least one token."""
        layers = self._banpick_layers()
        if not layers:
            return [[[], [], []] for _ in self._banpick_rows()]
        return [
            [
                [int(layer.tokens_P[row]) for layer in layers],
                [int(layer.usage_PE[row].sum()) for layer in layers],
                [int((layer.usage_PE[row] > 0).sum()) for layer in layers],
            ]
            for row in self._banpick_rows()
        ]

    def banpick_forget_row(self, row: int) -> None:
        """Count the tokens of a row anew: it holds another policy now."""
        for layer in self._banpick_layers():
            layer.tokens_P[row] = 0
            layer.usage_PE[row] = 0

    def _banpick_rows(self) -> range:
        from banpick_exp.engine.plugin import token_rows

        return range(token_rows.held_by(self.model_runner.vllm_config))
