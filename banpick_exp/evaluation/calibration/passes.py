"""The passes over given sequences that a calibration asks an engine for; `measure.py` says which, and why.

Every pass is armed on all ranks (`calibration/worker.py`, which the engine must have been opened with), fed the
sequences, and disarmed; stock routing is on meanwhile, and the policy set before is on again afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from banpick_exp.engine.engine import Engine
from banpick_exp.evaluation.calibration.kl_probe import Candidate

Sequences = Sequence[Sequence[int]]
"""Token ids."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Observation:
    """What the unchanged model does on some sequences. L MoE layers, E experts."""

    tokens: int
    """Of all sequences together; every layer routed each once."""
    ratio_range: list[float]
    """Lowest and highest share, 0 to 1, of a token's selected weight that its three best experts hold, over layers."""
    tail_square: list[float]
    """[L]: mean over tokens of the squared shares below the k_min best experts."""
    usage: list[list[int]]
    """[L][E]: tokens that select the expert."""
    marker_tokens: int
    """Of `tokens`, those that are markers."""
    marker_usage: list[list[int]]
    """[L][E]: markers that select the expert."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChangeScores:
    """How much single changes to the routing move the model's predictions."""

    kl: list[float]
    """A candidate each, in order: mean KL to the unchanged model over the scored positions, nats."""
    self_kl: float
    """The same of the unchanged model, run again: 0 but for what the probe tolerates."""
    positions: int
    """Scored: those that predict generated tokens."""


def token_ids(engine: Engine, texts: Sequence[str]) -> list[int]:
    """The ids of those texts that are one token of this model, ascending."""
    return sorted({ids[0] for ids in engine.tokenize(texts, special_tokens=False) if len(ids) == 1})


def observe(
    engine: Engine, sequences: Sequences, *, markers: Sequence[int], k_min: int, hidden_states: int
) -> Observation:
    """Put the sequences through the unchanged model and watch it (`engine/plugin/observation.py`).

    `markers`: token ids. Of `hidden_states` tokens, at most, what reaches the experts stays there for `similarity`.
    """
    engine.call("banpick_observe_start", sum(map(len, sequences)), list(markers), k_min, hidden_states)
    return Observation(**_fed(engine, sequences, "banpick_observe_finish"))


def similarity(engine: Engine, layer: int) -> list[list[list[float]]]:
    """Of each rank: CKA of each two experts of a layer, [E][E], on the hidden states kept by the last `observe`."""
    return engine.call("banpick_similarity", layer)


def probe(
    engine: Engine,
    sequences: Sequences,
    prompt_lengths: Sequence[int],
    candidates: Sequence[Candidate],
    *,
    top_vocab: int,
    range_factor: float,
) -> ChangeScores:
    """Score each candidate change on these sequences, within the workers (`kl_probe.py`).

    `prompt_lengths`: how many tokens of each sequence were given, not generated. Together they must fit an engine step.
    """
    plain = [list(sequence) for sequence in sequences]
    arguments = (plain, list(prompt_lengths), [list(each) for each in candidates], top_vocab, range_factor)
    engine.call("banpick_probe_start", *arguments)
    return ChangeScores(**_fed(engine, plain, "banpick_probe_finish"))


def _fed(engine: Engine, sequences: Sequences, finish: str) -> dict[str, Any]:
    """What rank 0 has seen. The pass is disarmed in any case: nobody could start another."""
    try:
        engine.prefill(sequences, salt="probe")
    finally:
        answers = engine.call(finish)
    found: dict[str, Any] = answers[0]
    return found
