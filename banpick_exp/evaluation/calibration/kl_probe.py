"""Influence of single routing changes, measured inside the worker next to the logits.

One engine step holds a block of calibration sequences. After its ordinary forward pass the probe runs the same step
again once per candidate change (an expert removed, an expert inserted, a layer limited) while the step's attention
metadata and KV blocks are still in place: every rerun overwrites the block's own KV before it is read, so nothing
of one candidate reaches the next. No request, scheduler step or Python logprob object per candidate.

A change in one layer leaves the layers before it as they were, so a rerun begins at that layer: those before hand back
what they answered the first time (`Suffix`). Half of the work on average, and equal to the bit.

The score is KL(original || modified) of the next-token distribution, both renormalised over the original's
`top_vocab` most likely tokens, averaged over the positions that predict generated tokens.

Shapes: T tokens of the step, N scored positions, V vocabulary, C candidates.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Candidate = tuple[str, int, int]
"""("remove", layer, expert) | ("insert", layer, expert) | ("limit", layer, experts kept)."""

SELF_KL_LIMIT = 1e-6


class Suffix:
    """A rerun of a model from one decoder layer on."""

    def __init__(self, model: Any, changed: str) -> None:
        """`changed`: the first layer that may differ, by a name such as `model.layers.3.mlp.experts`."""
        self._before: list[Any] = []
        self._answer: Any = None
        path, number = _decoder_layer(changed)
        try:
            self._before = [model.get_submodule(f"{path}.{index}") for index in range(number)]
        except AttributeError:
            self._before = []  # named otherwise than it is built, or on another pipeline rank: the whole is rerun

    def record(self, run: Callable[[], Tensor]) -> Tensor:
        """`run`, and what the last unchanged layer answers in it. A compiled model calls no layer: nothing is kept."""
        if not self._before:
            return run()
        handle = self._before[-1].register_forward_hook(self._keep)
        try:
            return run()
        finally:
            handle.remove()

    def _keep(self, module: Any, args: Any, output: Any) -> None:
        self._answer = _copied(output)

    def run(self, run: Callable[[], Tensor]) -> Tensor:
        """`run`, in which the layers before the changed one compute nothing."""
        if self._answer is None:
            return run()
        replaced = [(layer, layer.__dict__.get("forward")) for layer in self._before]
        for layer in self._before[:-1]:
            layer.forward = lambda *args, **kwargs: self._answer
        # Norms write into what they are given.
        self._before[-1].forward = lambda *args, **kwargs: _copied(self._answer)
        try:
            return run()
        finally:
            for layer, own in replaced:
                if own is None:
                    del layer.forward
                else:
                    layer.forward = own


def _decoder_layer(name: str) -> tuple[str, int]:
    """`("model.layers", 3)` of `model.layers.3.mlp.experts`; number 0 where the name has none."""
    found = re.match(r"(.*?)\.(\d+)(?:\.|$)", name)
    return (found[1], int(found[2])) if found else (name, 0)


def _copied(output: Any) -> Any:
    if isinstance(output, tuple):
        return tuple(_copied(part) for part in output)
    return output.clone() if isinstance(output, Tensor) else output


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
        suffix: Suffix,
    ) -> None:
        """`suffix`: of the first layer that a candidate changes."""
        self._compute_logits, self._apply = compute_logits, apply
        self.expected = len(sequences)
        self._prompt_length = {tuple(s): n for s, n in zip(sequences, prompt_lengths, strict=True)}
        self._candidates, self._top_vocab = list(candidates), top_vocab
        self.sums_C = [0.0] * len(self._candidates)
        self.self_sum, self.count = 0.0, 0
        self.seen = 0
        self._suffix = suffix

    def __call__(self, module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        rows = self._scored_rows(kwargs["input_ids"], kwargs["positions"])
        if not rows:
            return
        rows_N = torch.tensor(rows, device=output.device)
        original = self._compute_logits(output[rows_N])
        likely = None if original is None else most_likely(original, self._top_vocab)
        self._apply(None)
        whole = self._suffix.record(lambda: module.forward(*args, **kwargs))
        self.self_sum += self._kl(whole[rows_N], likely)
        for index, candidate in enumerate(self._candidates):
            self._apply(candidate)
            rerun = self._suffix.run(lambda: module.forward(*args, **kwargs))
            self.sums_C[index] += self._kl(rerun[rows_N], likely)
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

    def _kl(self, hidden_NH: Tensor, likely: tuple[Tensor, Tensor] | None) -> float:
        modified = self._compute_logits(hidden_NH)
        if likely is None or modified is None:
            return 0.0  # a tensor-parallel rank that does not gather the logits
        return float(restricted_kl(likely, modified).sum())


def most_likely(logits_NV: Tensor, top_vocab: int) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the `top_vocab` most likely tokens, renormalised over them, and their ids, both [N,top]."""
    top_NV, ids_NV = logits_NV.float().topk(min(top_vocab, logits_NV.shape[-1]), -1)
    return top_NV.log_softmax(-1), ids_NV


def restricted_kl(likely: tuple[Tensor, Tensor], modified_NV: Tensor) -> Tensor:
    """KL(original || modified) [N] in nats over the original's `most_likely` tokens, both renormalised."""
    p_NV, ids_NV = likely
    q_NV = modified_NV.float().gather(-1, ids_NV).log_softmax(-1)
    return (p_NV.exp() * (p_NV - q_NV)).sum(-1)
