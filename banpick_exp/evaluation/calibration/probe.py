"""What single routing changes do to given sequences, measured inside the worker next to the logits.

One engine step holds a block of calibration sequences. After its ordinary forward pass the probe runs the same step
again once per candidate change (an expert removed, added, boosted, a layer limited) while the step's attention
metadata and KV blocks are still in place: every rerun overwrites the block's own KV before it is read, so nothing
of one candidate reaches the next. No request, scheduler step or Python logprob object per candidate, and no layer
before the changed one (`suffix.py`).

Two objectives, each a sum over the scored positions of one sequence:

    kl      KL(original || modified) of the next token, both renormalised over the original's `top_vocab` most likely
    gain    log-likelihood of the tokens that should follow, under the change less without it: above 0 it helps

Shapes: T tokens of the step, N scored positions, V vocabulary, C candidates, S sequences.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from banpick_exp.evaluation.calibration.suffix import Suffix

Objective = Literal["kl", "gain"]
Shortcuts = Literal["none", "suffix", "all"]
"""Reruns of the whole model; from the changed layer on; and what a change cannot reach left out. All are exact."""
SELF_LIMIT = 1e-6
"""Nats a position: further from itself a model is not deterministic."""


class Candidate(NamedTuple):
    """One change of the routing of one layer."""

    change: str
    """remove, add, replace, boost: of the expert `value`; limit: the layer keeps `value` experts; skip: it keeps none.
    """
    layer: int
    value: int


class Scored(NamedTuple):
    """A sequence that is put through the model, and where it is judged."""

    ids: list[int]
    start: int
    """The first token that is judged, from 1 on: it is predicted at the position before."""
    end: int | None
    """The token that ought to follow the last one; None: what follows is not judged by `gain`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Judging:
    """How candidates are applied and judged."""

    objective: Objective
    last_only: bool
    """Of each sequence the last position alone (`kl`)."""
    top_vocab: int
    range_factor: float
    boost: float
    shortcuts: Shortcuts = "all"


class Reaching(Protocol):
    """Which sequences a candidate can change (`reach.py`)."""

    def watch(self, owner_T: Tensor, sequences: int) -> None:
        """An unchanged pass begins; the sequence of each token, -1 for none."""

    def stop(self) -> None:
        """It has ended."""

    def of(self, candidate: Candidate) -> Tensor | None:
        """[S] bool; None for all."""


class Probe:
    """A forward hook (with kwargs) on the model; `sums_CS` and `positions_S` fill up over the steps of a run."""

    def __init__(
        self,
        *,
        compute_logits: Callable[[Tensor], Tensor | None],
        apply: Callable[[Candidate | None], None],
        sequences: Sequence[Scored],
        candidates: Sequence[Candidate],
        judging: Judging,
        layers: int,
        suffix: Suffix,
        reach: Reaching,
    ) -> None:
        """`layers`: MoE layers of the model; `suffix`, `reach`: of all that a candidate changes. `sequences` differ."""
        self._compute_logits, self._apply, self._suffix, self._reach = compute_logits, apply, suffix, reach
        self._number = {tuple(each.ids): number for number, each in enumerate(sequences)}
        self._sequences, self._candidates, self._judging = list(sequences), list(candidates), judging
        self.expected, self.seen = len(sequences), 0
        self.sums_CS = [[0.0] * len(sequences) for _ in candidates]
        self.positions_S = [0] * len(sequences)
        self.self_sum, self.layer_tokens = 0.0, 0
        self.out_of_reach = 0
        """Pairs of a candidate and a sequence that it cannot change."""
        self._layers = layers

    def __call__(self, module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        step = self._step(kwargs["input_ids"], kwargs["positions"])
        if not step.rows:
            return
        rows_N = torch.tensor(step.rows, device=output.device)
        judge = self._judge(output[rows_N], step)
        tokens = len(kwargs["input_ids"])
        self._apply(None)
        self._reach.watch(torch.tensor(step.tokens, device=output.device), len(self._sequences))
        whole = self._suffix.record(lambda: module.forward(*args, **kwargs))
        self._reach.stop()
        self.layer_tokens += 2 * self._layers * tokens
        self.self_sum += float(judge(whole[rows_N]).abs().sum())
        present = sorted(set(step.owners))
        for number, candidate in enumerate(self._candidates):
            reached_S = self._reach.of(candidate)
            if reached_S is not None:
                there = int(reached_S[present].sum())
                self.out_of_reach += len(present) - there
                if not there:
                    continue
            self._apply(candidate)
            rerun = self._suffix.run(candidate.layer, lambda: module.forward(*args, **kwargs))
            begin = candidate.layer if self._suffix.begins_at(candidate.layer) else 0
            self.layer_tokens += (self._layers - begin) * tokens
            values = torch.zeros(len(self._sequences), dtype=torch.float64, device=output.device)
            values.index_add_(0, step.owner(output.device), judge(rerun[rows_N]).double())
            if reached_S is not None:
                values *= reached_S  # what is left is how sums round in another company of tokens
            self.sums_CS[number] = [a + b for a, b in zip(self.sums_CS[number], values.tolist(), strict=True)]
        self._apply(None)
        self._suffix.forget()
        for owner in step.owners:
            self.positions_S[owner] += 1

    def _step(self, ids_T: Tensor, positions_T: Tensor) -> _Step:
        """The judged rows of this step. Each sequence must arrive whole."""
        ids, positions = ids_T.tolist(), positions_T.tolist()
        starts = [t for t, position in enumerate(positions) if position == 0] + [len(ids)]
        step = _Step()
        for start, stop in itertools.pairwise(starts):
            number = self._number.get(tuple(ids[start:stop]))
            step.tokens += [-1 if number is None else number] * (stop - start)
            if number is None:
                continue
            self.seen += 1
            step.add(number, self._sequences[number], start, self._judging)
        return step

    def _judge(self, original_NH: Tensor, step: _Step) -> Callable[[Tensor], Tensor]:
        """What each position says of hidden states [N,H]: KL or gain, nats, [N]; 0 on a rank that has no logits."""
        original_NV = self._compute_logits(original_NH)
        if original_NV is None:
            return lambda hidden_NH: self._without_logits(hidden_NH)
        if self._judging.objective == "kl":
            likely = most_likely(original_NV, self._judging.top_vocab)
            return lambda hidden_NH: restricted_kl(likely, self._logits(hidden_NH))
        targets_N = torch.tensor(step.targets, device=original_NV.device)
        before_N = log_likelihood(original_NV, targets_N)
        return lambda hidden_NH: log_likelihood(self._logits(hidden_NH), targets_N) - before_N

    def _logits(self, hidden_NH: Tensor) -> Tensor:
        logits_NV = self._compute_logits(hidden_NH)
        assert logits_NV is not None
        return logits_NV

    def _without_logits(self, hidden_NH: Tensor) -> Tensor:
        self._compute_logits(hidden_NH)  # every rank takes part in gathering them
        return torch.zeros(len(hidden_NH), device=hidden_NH.device)


class _Step:
    """The judged positions of one engine step."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        """The sequence of each token, -1 for none."""
        self.rows: list[int] = []
        self.owners: list[int] = []
        self.targets: list[int] = []
        self._owner: Tensor | None = None

    def add(self, number: int, sequence: Scored, offset: int, judging: Judging) -> None:
        follow = [*sequence.ids[sequence.start :], sequence.end]
        for position, target in enumerate(follow, start=sequence.start - 1):
            if judging.objective == "gain" and target is None:
                continue
            if judging.objective == "kl" and judging.last_only and position != len(sequence.ids) - 1:
                continue
            self.rows.append(offset + position)
            self.owners.append(number)
            self.targets.append(-1 if target is None else target)

    def owner(self, device: torch.device) -> Tensor:
        if self._owner is None:
            self._owner = torch.tensor(self.owners, device=device)
        return self._owner


def most_likely(logits_NV: Tensor, top_vocab: int) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the `top_vocab` most likely tokens, renormalised over them, and their ids, both [N,top]."""
    top_NV, ids_NV = logits_NV.float().topk(min(top_vocab, logits_NV.shape[-1]), -1)
    return top_NV.log_softmax(-1), ids_NV


def restricted_kl(likely: tuple[Tensor, Tensor], modified_NV: Tensor) -> Tensor:
    """KL(original || modified) [N] in nats over the original's `most_likely` tokens, both renormalised."""
    p_NV, ids_NV = likely
    q_NV = modified_NV.float().gather(-1, ids_NV).log_softmax(-1)
    return (p_NV.exp() * (p_NV - q_NV)).sum(-1)


def log_likelihood(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Log-probability [N] of one token a row, nats, over the whole vocabulary."""
    return logits_NV.float().log_softmax(-1).gather(-1, targets_N[:, None])[:, 0]
