"""The passes over given sequences that a calibration asks an engine for; `measure.py` says which, and why.

Every pass is armed on all ranks (`calibration/worker.py`, which the engine must have been opened with), fed the
sequences, and disarmed; stock routing is on meanwhile, and the policy set before is on again afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from banpick_exp.engine.engine import Engine, EngineError
from banpick_exp.evaluation.calibration.probe import Candidate, Judging, Scored

Sequences = Sequence[Sequence[int]]
"""Token ids."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Observation:
    """What the unchanged model does on some sequences. L MoE layers, E experts."""

    tokens: int
    """Of all sequences together; every layer routed each once."""
    ratio_range: list[float]
    """Lowest and highest share, 0 to 1, of a token's selected weight that its three best experts hold, over layers."""
    ratio_median: list[float]
    """[L]: median over tokens of w_2 / w_1, the two largest weights of the selection, 0 to 1; 0 where K is 1."""
    tail_square: list[float]
    """[L]: mean over tokens of the squared shares below the k_min best experts."""
    usage: list[list[int]]
    """[L][E]: tokens that select the expert."""
    marker_tokens: int
    """Of `tokens`, those that are markers."""
    marker_usage: list[list[int]]
    """[L][E]: markers that select the expert."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertOutputs:
    """What the experts of one layer answer on the kept hidden states (`engine/plugin/outputs.py` says how). E experts.

    An expert that no kept token selects is 0 in every list by expert.
    """

    similarity: list[list[float]]
    """[E][E]: linear CKA of the outputs of each two, 0 to 1."""
    reap: list[float]
    """[E]: mean over the tokens that select it of gate weight * output norm."""
    man: list[float]
    """[E]: mean over the tokens that select it of its output's norm."""
    easy_ep: list[float]
    """[E]: sum over tokens of token contribution * gate weight * output norm."""
    residual: bool
    """Whether `easy_ep` saw the residual stream; else the experts' input stood in for it."""
    removal_shift: list[float]
    """[E]: mean over all tokens of the squared change of the routed sum when it is removed."""
    limit_shift: float
    """The same when only k_min experts are kept."""
    similarity_by_rank: list[list[list[float]]]
    """`similarity` as each rank found it, rank 0 first: they sum the same partial outputs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Changed:
    """What single changes to the routing do to some sequences. C candidates, S sequences, both in the order given."""

    values: list[list[float]]
    """[C][S]: KL to the unchanged model or gain over it, nats, summed over the judged positions of a sequence."""
    positions: list[int]
    """[S]: how many were judged."""
    itself: float
    """Mean of the same of the unchanged model, run again: 0 but for what the probe tolerates."""
    layer_tokens: int
    """The work of it: layers times tokens, over all reruns, the two of the unchanged model included."""
    out_of_reach: int
    """Pairs of a candidate and a sequence that it cannot change (`reach.py`)."""


def token_ids(engine: Engine, texts: Sequence[str]) -> list[int]:
    """The ids of those texts that are one token of this model, ascending."""
    return sorted({ids[0] for ids in engine.tokenize(texts, special_tokens=False) if len(ids) == 1})


def observe(
    engine: Engine, sequences: Sequences, *, markers: Sequence[int], k_min: int, hidden_states: int
) -> Observation:
    """Put the sequences through the unchanged model and watch it (`engine/plugin/observation.py`).

    `markers`: token ids. Of `hidden_states` tokens, at most, what reaches the experts stays there for `expert_outputs`.
    """
    _check_whole(engine)
    engine.call("banpick_observe_start", sum(map(len, sequences)), list(markers), k_min, hidden_states)
    return Observation(**_fed(engine, sequences, "banpick_observe_finish"))


def expert_outputs(engine: Engine, layer: int, k_min: int) -> ExpertOutputs:
    """Run every expert of a layer on the hidden states kept by the last `observe`."""
    answers: list[dict[str, Any]] = engine.call("banpick_expert_outputs", layer, k_min)
    return ExpertOutputs(**answers[0], similarity_by_rank=[answer["similarity"] for answer in answers])


def probe(engine: Engine, sequences: Sequence[Scored], candidates: Sequence[Candidate], judging: Judging) -> Changed:
    """Judge each candidate change on these sequences, within the workers (`probe.py`).

    Together the sequences must fit an engine step, and no two of them be equal.
    """
    _check_whole(engine)
    wire = [list(each) for each in sequences], [list(each) for each in candidates], asdict(judging)
    engine.call("banpick_probe_start", *wire)
    return Changed(**_fed(engine, [each.ids for each in sequences], "banpick_probe_finish"))


def _check_whole(engine: Engine) -> None:
    if (stages := engine.settings.pipeline_parallel_size) > 1:
        raise EngineError(f"a calibration needs every layer in one rank; this engine has {stages} pipeline stages")


def _fed(engine: Engine, sequences: Sequences, finish: str) -> dict[str, Any]:
    """What rank 0 has seen. The pass is disarmed in any case: nobody could start another."""
    try:
        engine.prefill(sequences, salt="probe")
    finally:
        answers = engine.call(finish)
    found: dict[str, Any] = answers[0]
    return found
