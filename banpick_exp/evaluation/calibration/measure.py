"""Measure a calibration on a loaded engine: first what every policy may read, then the scores that points ask for.

**The artifact itself** (`calibrate`), per domain. The model answers the calibration problems greedily (usage is counted
over all prefill and decode tokens), or documents of a corpus stand for its answers. They pass once through the
unchanged model, which is watched (`engine/plugin/observation.py`), and once per limited layer:

    layer_kl    KL when one layer alone keeps k_min experts: Ban's layer sensitivity before scaling
    skip_kl     KL when a layer's routed experts are skipped altogether
    fisher      2 * layer_kl / tail_square (`fisher_information`)

Its own answers and the right ones are kept in the artifact, so that a score can be added at any time.

**A score of every expert, or of every budget of a layer** (`score`; `scores.py` lists them): the sequences pass once
per candidate change and problem, in a race (`race.py`) that leaves out what cannot be among the highest, or all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from banpick_exp.engine.engine import Engine, EngineError
from banpick_exp.evaluation.calibration import passes, race
from banpick_exp.evaluation.calibration.arrays import DomainCalibration, Scores
from banpick_exp.evaluation.calibration.config import CalibrationConfig
from banpick_exp.evaluation.calibration.probe import Candidate, Judging, Objective, Scored, Shortcuts
from banpick_exp.evaluation.calibration.scores import GAIN_CAP, PARTS, Part
from banpick_exp.evaluation.calibration.sequences import (
    corpus,
    in_steps,
    own_answers,
    packed,
    right_answers,
    unpacked,
)
from banpick_exp.policy import MoeShape
from banpick_exp.tasks.config import TaskConfig
from banpick_exp.tasks.files import CALIBRATION_SPLIT
from banpick_exp.tasks.load import load_problems
from banpick_exp.tasks.problem import Problem

HIDDEN_STATES = 256
"""Tokens a layer on which its experts are compared, evenly spaced over the calibration sequences of a domain."""
RANKS_AGREE = 1e-4
"""Largest difference between the similarities of two ranks: they sum the same partial outputs."""
LAYERS_AT_ONCE = 8
"""What is kept of the unchanged model during one pass: the hidden states of a step before so many layers."""

OnProgress = Callable[[int, int], None]
"""(changes times problems that are measured, of how many)."""


class Work:
    """Counts what is measured, and tells."""

    def __init__(self, planned: int, on_progress: OnProgress) -> None:
        self.planned, self.done, self.layer_tokens, self.out_of_reach = planned, 0, 0, 0
        self._on_progress = on_progress

    def add(self, judged: int, found: passes.Changed) -> None:
        self.done += judged
        self.layer_tokens += found.layer_tokens
        self.out_of_reach += found.out_of_reach
        self._on_progress(min(self.done, self.planned), self.planned)


def calibrate(
    engine: Engine,
    shape: MoeShape,
    task: TaskConfig,
    settings: CalibrationConfig,
    on_progress: OnProgress = lambda done, total: None,
    *,
    identity: str | None = None,
) -> dict[str, DomainCalibration]:
    """The artifact without scores, on the loaded engine, opened with `worker=config.CALIBRATION_WORKER`.

    `identity` is that of the data when it was planned. Policy none is on afterwards. Raises UserError for data that
    changed since.
    """
    most = max(settings.samples, settings.gain_samples)
    problems = load_problems(task, CALIBRATION_SPLIT, most, identity=identity)
    work = Work(len(problems) * 2 * shape.num_layers * settings.samples, on_progress)
    result: dict[str, DomainCalibration] = {}
    for domain, items in problems.items():
        result[domain] = _calibrate_domain(engine, shape, task, settings, items, work)
    engine.set_policy("none", {})
    return result


def score(
    engine: Engine,
    shape: MoeShape,
    domains: Mapping[str, DomainCalibration],
    settings: CalibrationConfig,
    name: Part,
    on_progress: OnProgress = lambda done, total: None,
    *,
    shortcuts: Shortcuts = "all",
) -> tuple[dict[str, Scores], dict[str, Any]]:
    """One score in every domain, and how it was measured: method, work, what is sure. Less of `shortcuts`: for a bench.

    Policy none is on afterwards.
    """
    planned = sum(planned_changes(shape, settings, name, _samples(domain, name)) for domain in domains.values())
    work = Work(planned, on_progress)
    found, sure = {}, {}
    for domain, calibration in domains.items():
        scored = _score_domain(engine, shape, calibration, settings, name, work, shortcuts)
        found[domain] = _by_layer(scored, shape, labelled=PARTS[name].labelled)
        sure[domain] = race.surely_above(scored, settings.wanted)
    engine.set_policy("none", {})
    header = {
        "method": settings.method,
        "changes": work.done,
        "out_of_reach": work.out_of_reach,
        "layer_tokens": work.layer_tokens,
        "sure": sure,
    }
    return found, header


def planned_changes(shape: MoeShape, settings: CalibrationConfig, name: Part, samples: int) -> int:
    """How many times one problem passes under one change to score everything in a domain."""
    return race.planned(
        len(_candidates(shape, name)), samples, first_share=settings.first_share(name), wanted=settings.wanted
    )


def _candidates(shape: MoeShape, name: Part) -> list[Candidate]:
    change = PARTS[name].change
    values = range(1, shape.top_k) if change == "limit" else range(shape.num_experts)
    return [Candidate(change, layer, value) for layer in range(shape.num_layers) for value in values]


def _samples(domain: DomainCalibration, name: Part) -> int:
    return len(domain.right_marks if PARTS[name].labelled else domain.own_marks)


# ------------------------------------------------------------ the artifact


def _calibrate_domain(
    engine: Engine,
    shape: MoeShape,
    task: TaskConfig,
    settings: CalibrationConfig,
    problems: Sequence[Problem],
    work: Work,
) -> DomainCalibration:
    engine.set_policy("none", {})
    engine.counters(reset=True)
    if settings.text is not None:
        own, right = corpus(engine, Path(settings.text), settings.samples), []
        engine.prefill([each.ids for each in own], salt="corpus")
        counters = engine.counters(reset=True)
    else:
        first = problems[: settings.samples]
        answers = engine.generate([p.prompt for p in first], max_tokens=settings.max_tokens, chat=task.chat_template)
        counters = engine.counters(reset=True)
        own = own_answers(answers)
        right = _right(engine, task, settings, problems[: settings.gain_samples], answers)
    if not any(counters.tokens):
        raise EngineError("no token of the calibration was counted: every share of an expert would be of nothing")
    k_min = settings.floor(shape)
    seen = _unchanged(engine, shape, own, passes.token_ids(engine, settings.markers_of(task)), k_min)
    limited = _limited(engine, shape, settings, own, work)
    layer_kl_L = limited["layer_kl"]
    own_ids, own_marks = packed(own)
    right_ids, right_marks = packed(right)
    curvature_L = fisher_information(layer_kl_L, seen.limit_shift)
    measured: dict[str, Any] = {**seen.arrays, **limited}
    return DomainCalibration(
        **measured,
        usage=np.array(counters.usage, dtype=np.int64),
        tokens=np.array(counters.tokens, dtype=np.int64),
        k_min=np.array(k_min, dtype=np.int64),
        fisher=fisher_information(layer_kl_L, seen.arrays["tail_square"]),
        fisher_removal=(0.5 * curvature_L[:, None] * seen.removal_shift).astype(np.float32),
        own_ids=own_ids,
        own_marks=own_marks,
        right_ids=right_ids,
        right_marks=right_marks,
    )


def _right(
    engine: Engine, task: TaskConfig, settings: CalibrationConfig, problems: Sequence[Problem], answers: Sequence[Any]
) -> list[Scored]:
    """Right answers to the problems; where the data has no responses, after the model's own reasoning."""
    given: list[Any] = [*answers[: len(problems)], *[None] * (len(problems) - len(answers))]
    missing = [n for n, p in enumerate(problems) if p.response is None and given[n] is None]
    if missing:
        prompts = [problems[n].prompt for n in missing]
        asked = engine.generate(prompts, max_tokens=settings.max_tokens, chat=task.chat_template)
        for number, answer in zip(missing, asked, strict=True):
            given[number] = answer
        engine.counters(reset=True)
    return right_answers(engine, problems, given, task)


class _Seen:
    """What one pass through the unchanged model shows of L layers with E experts."""

    def __init__(self, shape: MoeShape) -> None:
        self.removal_shift = np.zeros((shape.num_layers, shape.num_experts))
        """[L,E]: mean squared change of a layer's output when the expert cannot be selected."""
        self.limit_shift = np.zeros(shape.num_layers)
        """[L]: the same when the layer keeps k_min experts."""
        self.arrays: dict[str, np.ndarray] = {}


def _unchanged(engine: Engine, shape: MoeShape, own: Sequence[Scored], markers: Sequence[int], k_min: int) -> _Seen:
    """Raises EngineError where ranks compare experts differently."""
    watched = passes.observe(
        engine, [each.ids for each in own], markers=markers, k_min=k_min, hidden_states=HIDDEN_STATES
    )
    layers, experts = shape.num_layers, shape.num_experts
    found = _Seen(shape)
    similarity_LEE = np.zeros((layers, experts, experts), dtype=np.float32)
    one_pass = {name: np.zeros((layers, experts), dtype=np.float32) for name in ("reap", "man", "easy_ep")}
    for layer in range(layers):
        outputs = passes.expert_outputs(engine, layer, k_min)
        similarity_LEE[layer], *others = np.array(outputs.similarity_by_rank, dtype=np.float32)
        for rank, other_EE in enumerate(others, start=1):
            if (worst := np.abs(other_EE - similarity_LEE[layer]).max()) > RANKS_AGREE:
                raise EngineError(f"rank {rank} finds experts of layer {layer} {worst:.1e} more alike than rank 0 does")
        for name, values_LE in one_pass.items():
            values_LE[layer] = getattr(outputs, name)
        found.removal_shift[layer], found.limit_shift[layer] = outputs.removal_shift, outputs.limit_shift
    found.arrays = {
        "observed_usage": np.array(watched.usage, dtype=np.int64),
        "observed_tokens": np.full(layers, watched.tokens, dtype=np.int64),
        "marker_usage": np.array(watched.marker_usage, dtype=np.int64),
        "marker_tokens": np.full(layers, watched.marker_tokens, dtype=np.int64),
        "tail_square": np.array(watched.tail_square, dtype=np.float32),
        "ratio_median": np.array(watched.ratio_median, dtype=np.float32),
        "ratio_range": np.array(watched.ratio_range, dtype=np.float32),
        "similarity": similarity_LEE,
        **one_pass,
    }
    return found


def _limited(
    engine: Engine, shape: MoeShape, settings: CalibrationConfig, own: Sequence[Scored], work: Work
) -> dict[str, np.ndarray]:
    """layer_kl and skip_kl [L], and self_kl."""
    layers, judge = range(shape.num_layers), _judge(engine, own, settings, "kl", work)
    limits = [Candidate("limit", layer, settings.floor(shape)) for layer in layers]
    skips = [Candidate("skip", layer, 0) for layer in layers]
    values, weights = judge([*limits, *skips], range(len(own)))
    kl = values.sum(-1) / weights.sum()
    return {
        "layer_kl": kl[: shape.num_layers],
        "skip_kl": kl[shape.num_layers :],
        "self_kl": np.array(judge.itself, dtype=np.float32),
    }


def fisher_information(layer_kl_L: np.ndarray, tail_square_L: np.ndarray) -> np.ndarray:
    """H_l = 2 * layer_kl / tail_square, float32 [L], nats; 0 where nothing was dropped.

    AdapMoE (arXiv 2408.10284) weighs a layer by the Fisher information of the loss in the layer's output. Ours, without
    labels and gradients: for a small change d of that output the KL to the unchanged model is 1/2 d^T H d with that
    same H, and this KL is measured when layer l alone drops its tail. The size of d is taken as the dropped weights'
    squares, as in AdapMoE's own threshold: experts' outputs of about one length and at right angles.

    >>> fisher_information(np.array([0.03, 0.0]), np.array([0.02, 0.0])).tolist()
    [3.0, 0.0]
    """
    twice_L = 2 * np.maximum(layer_kl_L, 0)
    return np.divide(twice_L, tail_square_L, out=np.zeros_like(twice_L), where=tail_square_L > 0).astype(np.float32)


# ------------------------------------------------------------ scores


class _Judge:
    """Judges changes on some sequences: `candidates` and `samples` in, [C,S] values and [S] weights out."""

    def __init__(self, engine: Engine, sequences: Sequence[Scored], judging: Judging, work: Work) -> None:
        self._engine, self._sequences, self._judging, self._work = engine, sequences, judging, work
        self.itself = 0.0

    def __call__(self, candidates: Sequence[Candidate], samples: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        place = {sample: column for column, sample in enumerate(samples)}
        values, weights = np.zeros((len(candidates), len(samples))), np.ones(len(samples))
        numbers = sorted(range(len(candidates)), key=lambda number: candidates[number].layer)
        for step in in_steps(self._sequences, samples, self._engine.settings):
            columns = [place[sample] for sample in step]
            for part in _by_layers(numbers, candidates):
                found = passes.probe(
                    self._engine,
                    [self._sequences[sample] for sample in step],
                    [candidates[number] for number in part],
                    self._judging,
                )
                values[np.ix_(part, columns)] = found.values
                if self._judging.objective == "kl":  # a mean over positions; a gain is one of a whole answer
                    weights[columns] = found.positions
                self.itself = max(self.itself, found.itself)
                self._work.add(len(part) * len(step), found)
        return values if self._judging.objective == "kl" else values.clip(-GAIN_CAP, GAIN_CAP), weights


def _by_layers(numbers: Sequence[int], candidates: Sequence[Candidate]) -> list[list[int]]:
    """In groups of candidates that change at most LAYERS_AT_ONCE layers; `numbers` in the order of their layers."""
    groups: list[list[int]] = []
    layers: set[int] = set()
    for number in numbers:
        layer = candidates[number].layer
        if not groups or (layer not in layers and len(layers) == LAYERS_AT_ONCE):
            groups.append([])
            layers = set()
        groups[-1].append(number)
        layers.add(layer)
    return groups


def _judge(
    engine: Engine,
    sequences: Sequence[Scored],
    settings: CalibrationConfig,
    objective: Objective,
    work: Work,
    shortcuts: Shortcuts = "all",
) -> _Judge:
    judging = Judging(
        objective=objective,
        last_only=settings.positions == "last",
        top_vocab=settings.top_vocab,
        range_factor=settings.range_factor,
        boost=settings.boost,
        shortcuts=shortcuts,
    )
    return _Judge(engine, sequences, judging, work)


def _score_domain(
    engine: Engine,
    shape: MoeShape,
    domain: DomainCalibration,
    settings: CalibrationConfig,
    name: Part,
    work: Work,
    shortcuts: Shortcuts,
) -> race.Scored:
    labelled = PARTS[name].labelled
    kept = (domain.right_ids, domain.right_marks) if labelled else (domain.own_ids, domain.own_marks)
    sequences = unpacked(*kept)
    judge = _judge(engine, sequences, settings, "gain" if labelled else "kl", work, shortcuts)
    candidates = _candidates(shape, name)
    used_LE = domain.share.ravel()

    def measure(numbers: Sequence[int], samples: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        values, weights = judge([candidates[number] for number in numbers], samples)
        if name == "removal_kl_per_use":
            used = used_LE[list(numbers)][:, None]
            values = np.divide(values, used, out=np.zeros_like(values), where=used > 0)
        return values, weights

    share = settings.first_share(name)
    return race.score(len(candidates), len(sequences), measure, first_share=share, wanted=settings.wanted)


def _by_layer(scored: race.Scored, shape: MoeShape, *, labelled: bool) -> Scores:
    lower = race.lower_bounds(scored, tried=len(scored.value)) if labelled else np.full(len(scored.value), np.nan)
    value, error, samples, lower = (
        part.reshape(shape.num_layers, -1) for part in (scored.value, scored.error, scored.samples, lower)
    )
    return Scores(value=value, error=error, samples=samples, lower=lower)
