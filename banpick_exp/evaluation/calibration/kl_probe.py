"""Influence of single routing changes, measured inside the worker next to the logits.

One engine step holds a block of calibration sequences. After its ordinary forward pass the probe runs the same step
again once per candidate change (an expert removed, an expert inserted, a layer limited) while the step's attention
metadata and KV blocks are still in place: every rerun overwrites the block's own KV before it is read, so nothing
of one candidate reaches the next. No request, scheduler step or Python logprob object per candidate.

The score is KL(original || modified) of the next-token distribution, both renormalised over the original's
`top_vocab` most likely tokens, averaged over the positions that predict generated tokens.

Shapes: T tokens of the step, N scored positions, V vocabulary, C candidates.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Candidate = tuple[str, int, int]
"""("remove", layer, expert) | ("insert", layer, expert) | ("limit", layer, experts kept)."""

SELF_KL_LIMIT = 1e-6


class Probe:
    """A forward hook (with kwargs) on the model. `sums_C` and `count` accumulate over the steps of a run."""

    def __init__(
        self,
        *,
        compute_logits: Callable[[Tensor], Tensor | None],
        apply: Callable[[Candidate | None], None],
        sequences: Sequence[Sequence[int]],
        prompt_lengths: Sequence[int],
        candidates: Sequence[Candidate],
        top_vocab: int,
    ) -> None:
        self._compute_logits, self._apply = compute_logits, apply
        self.expected = len(sequences)
        self._prompt_length = {tuple(s): n for s, n in zip(sequences, prompt_lengths, strict=True)}
        self._candidates, self._top_vocab = list(candidates), top_vocab
        self.sums_C = [0.0] * len(self._candidates)
        self.self_sum, self.count = 0.0, 0
        self.seen = 0

    def __call__(self, module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        rows = self._scored_rows(kwargs["input_ids"], kwargs["positions"])
        if not rows:
            return
        rows_N = torch.tensor(rows, device=output.device)
        original = self._compute_logits(output[rows_N])
        self._apply(None)
        self.self_sum += self._kl_of_rerun(module, args, kwargs, rows_N, original)
        for index, candidate in enumerate(self._candidates):
            self._apply(candidate)
            self.sums_C[index] += self._kl_of_rerun(module, args, kwargs, rows_N, original)
        self._apply(None)
        self.count += len(rows)

    def _scored_rows(self, ids_T: Tensor, positions_T: Tensor) -> list[int]:
        """Rows of this step that predict generated tokens. Each sequence must arrive whole."""
        ids, positions = ids_T.tolist(), positions_T.tolist()
        starts = [t for t, position in enumerate(positions) if position == 0] + [len(ids)]
        rows: list[int] = []
        for start, stop in itertools.pairwise(starts):
            prompt_length = self._prompt_length.get(tuple(ids[start:stop]))
            if prompt_length is None:
                continue
            self.seen += 1
            rows.extend(range(start + prompt_length - 1, stop))
        return rows

    def _kl_of_rerun(self, module: Any, args: Any, kwargs: Any, rows_N: Tensor, original: Tensor | None) -> float:
        modified = self._compute_logits(module.forward(*args, **kwargs)[rows_N])
        if original is None or modified is None:
            return 0.0  # a tensor-parallel rank that does not gather the logits
        return float(restricted_kl(original, modified, self._top_vocab).sum())


def restricted_kl(original_NV: Tensor, modified_NV: Tensor, top_vocab: int) -> Tensor:
    """KL(original || modified) [N] in nats over the original's `top_vocab` most likely tokens, both renormalised."""
    top_NV, ids_NV = original_NV.float().topk(min(top_vocab, original_NV.shape[-1]), -1)
    p_NV = top_NV.log_softmax(-1)
    q_NV = modified_NV.float().gather(-1, ids_NV).log_softmax(-1)
    return (p_NV.exp() * (p_NV - q_NV)).sum(-1)
