"""Which sequences a change of the routing can reach at all, told from how the unchanged model routed them.

An expert that no token of a sequence selects cannot be missed there, and one that no token ranks within the window
cannot be added. Exact: what is out of reach is 0 by definition and need not be run.

Shapes: T tokens of a step, E experts, K selected, S sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from banpick_exp.engine.plugin.layer import HookedLayer
from banpick_exp.evaluation.calibration.probe import Candidate, Judging
from banpick_kernels.insertion import rank_window


class Reach:
    """Watches layers during an unchanged pass; afterwards says which of its sequences a candidate can reach."""

    def __init__(self, layers: Sequence[HookedLayer], changed: Sequence[int], judging: Judging) -> None:
        """`changed`: the layers that candidates change."""
        self._layers, self._judging = layers, judging
        # A router that ranks by more than its logits: anything may be reached.
        plain = [n for n in changed if not (layers[n].spec.corrected or layers[n].spec.grouped)]
        self._reached: dict[int, dict[str, Tensor]] = {layer: {} for layer in plain}
        self._owner_T: Tensor | None = None
        self._sequences = 0

    def watch(self, owner_T: Tensor, sequences: int) -> None:
        """Of the pass that begins: the sequence of each token, -1 for none."""
        self._owner_T, self._sequences = owner_T.remainder(sequences + 1), sequences  # -1 is the row after the last
        for layer in self._reached:
            self._layers[layer].observer = self._watcher(layer)

    def stop(self) -> None:
        for layer in self._reached:
            self._layers[layer].observer = None

    def _watcher(self, layer: int) -> Callable[[Tensor, Tensor, Tensor, Tensor], None]:
        hooked = self._layers[layer]

        def see(weights_TS: Tensor, ids_TS: Tensor, hidden_TH: Tensor, logits_TE: Tensor) -> None:
            selected_TE = torch.zeros_like(logits_TE, dtype=torch.bool)
            selected_TE.scatter_(1, ids_TS[:, : hooked.top_k].long(), True)
            window = rank_window(self._judging.range_factor, hooked.top_k, hooked.num_experts)
            # With all that tie with the last: which of them is in is the router's to say.
            in_window_TE = logits_TE >= logits_TE.topk(window, -1).values[:, -1:]
            lowest_T1 = logits_TE.float().masked_fill(~selected_TE, torch.inf).amin(-1, keepdim=True)
            boosted_TE = selected_TE | (logits_TE.float() + self._judging.boost >= lowest_T1)
            kinds = {"remove": selected_TE, "add": in_window_TE & ~selected_TE, "boost": boosted_TE}
            self._reached[layer] = {name: self._by_sequence(reached_TE) for name, reached_TE in kinds.items()}

        return see

    def _by_sequence(self, reached_TE: Tensor) -> Tensor:
        """[S,E] bool: whether any token of a sequence is reached."""
        assert self._owner_T is not None
        counts_SE = torch.zeros(self._sequences + 1, reached_TE.shape[1], device=reached_TE.device)
        counts_SE.index_add_(0, self._owner_T, reached_TE.float())
        return counts_SE[:-1] > 0

    def of(self, candidate: Candidate) -> Tensor | None:
        """[S] bool: the sequences that the candidate can reach; None for all."""
        kind = "add" if candidate.change == "replace" else candidate.change
        reached_SE = self._reached.get(candidate.layer, {}).get(kind)
        return None if reached_SE is None else reached_SE[:, candidate.value]
