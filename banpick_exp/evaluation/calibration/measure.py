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

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from banpick_exp.engine.engine import Engine, EngineError
from banpick_exp.engine.types import Generation
from banpick_exp.evaluation.calibration import passes, race
from banpick_exp.evaluation.calibration.arrays import DomainCalibration, Scores
from banpick_exp.evaluation.calibration.config import CalibrationConfig
from banpick_exp.evaluation.calibration.division import Division, candidates_of, division_of_artifact
from banpick_exp.evaluation.calibration.judge import Judge, OnProgress, Work
from banpick_exp.evaluation.calibration.probe import Candidate, Objective, Scored, Shortcuts
from banpick_exp.evaluation.calibration.scores import PARTS, Part
from banpick_exp.evaluation.calibration.sequences import corpus, own_answers, packed, right_answers, unpacked
from banpick_exp.evaluation.calibration.stored import ANSWERS, LAYERS, Block, BlocksInMemory, Found
from banpick_exp.policy import MoeShape
from banpick_exp.tasks.config import TaskConfig
from banpick_exp.tasks.files import CALIBRATION_SPLIT
from banpick_exp.tasks.load import load_problems
from banpick_exp.tasks.problem import Problem

HIDDEN_STATES = 256
"""Tokens a layer on which its experts are compared, evenly spaced over the calibration sequences of a domain."""
RANKS_AGREE = 1e-4
"""Largest difference between the similarities of two ranks: they sum the same partial outputs."""

Domains = Mapping[str, DomainCalibration]


def calibrate(
    engine: Engine,
    shape: MoeShape,
    task: TaskConfig,
    settings: CalibrationConfig,
    on_progress: OnProgress = lambda done, total, of: None,
    *,
    identity: str | None = None,
    division: Division | None = None,
) -> dict[str, DomainCalibration]:
    """The artifact without scores, on the loaded engine, opened with `worker=config.CALIBRATION_WORKER`.

    `identity` is that of the data when it was planned. `division`: blocks that are there already are not measured
    again. Policy none is on afterwards. Raises UserError for data that changed since.
    """
    if division is None:
        division = division_of_artifact(shape, settings, task.domains, "", BlocksInMemory())
    _measure_missing(engine, _ArtifactBlocks(engine, task, division, identity), division, on_progress)
    return {domain: _added_up(shape, settings, division.walk(domain)[0]) for domain in division.domains}


def score(
    engine: Engine,
    shape: MoeShape,
    domains: Domains,
    settings: CalibrationConfig,
    name: Part,
    on_progress: OnProgress = lambda done, total, of: None,
    *,
    shortcuts: Shortcuts = "all",
    division: Division | None = None,
) -> tuple[dict[str, Scores], dict[str, Any]]:
    """One score in every domain, and how it was measured: method, work, seconds, what is sure.

    Less of `shortcuts`: for a bench. `division` as in `calibrate`. Policy none is on afterwards.
    """
    if division is None:
        samples = {domain: _samples(found, name) for domain, found in domains.items()}
        division = Division(
            blocks=BlocksInMemory(), part=name, shape=shape, settings=settings, samples=samples, base=""
        )
    _measure_missing(engine, _ScoreBlocks(engine, division, domains, shortcuts), division, on_progress)
    found, sure, told = {}, {}, list[Mapping[str, float]]()
    for domain in domains:
        stages = division.walk(domain)[0]
        scored = _raced(division, domain, stages).scored()
        found[domain] = _by_layer(scored, shape, labelled=PARTS[name].labelled)
        sure[domain] = race.surely_above(scored, settings.wanted)
        told += [block.told for stage in stages for block in stage]
    counted = {key: int(sum(each[key] for each in told)) for key in ("changes", "out_of_reach", "layer_tokens")}
    seconds = sum(each["seconds"] for each in told)
    return found, {"method": settings.method, **counted, "sure": sure, "seconds": seconds}


def measure_block(
    engine: Engine,
    task: TaskConfig,
    division: Division,
    block: Block,
    domains: Domains | None,
    *,
    identity: str | None = None,
) -> bool:
    """Measure one block and keep it, unless it is there. `domains`: of the artifact, for a score of it.

    Returns False where nothing was done: it is there, or does not follow what is there any more. Policy none is on
    afterwards.
    """
    domain = block.stage.domain
    whole, missing = division.walk(domain)
    if len(whole) < block.stage.number:
        division.blocks.refresh()
        whole, missing = division.walk(domain)
    if not any(each.stage == block.stage and each.first < block.end and block.first < each.end for each in missing):
        return False
    asked = (
        _ArtifactBlocks(engine, task, division, identity)
        if domains is None
        else _ScoreBlocks(engine, division, domains, "all")
    )
    asked.measure(block, whole, Work(division.changes(block), lambda done, total, of: None))
    engine.set_policy("none", {})
    return True


def _measure_missing(
    engine: Engine, blocks: _ArtifactBlocks | _ScoreBlocks, division: Division, on_progress: OnProgress
) -> None:
    work = Work(division.planned(), on_progress)
    if (there := division.planned() - division.left()) > 0:
        work.add(there)
    for domain in division.domains:
        whole, missing = division.walk(domain)
        while missing:
            for block in missing:
                blocks.measure(block, whole, work)
            whole, missing = division.walk(domain)
    engine.set_policy("none", {})


# ------------------------------------------------------------ the artifact


class _ArtifactBlocks:
    """Measures blocks of the artifact itself."""

    def __init__(self, engine: Engine, task: TaskConfig, division: Division, identity: str | None) -> None:
        self._engine, self._task, self._division, self._identity = engine, task, division, identity
        self._problems: dict[str, list[Problem]] = {}

    def measure(self, block: Block, whole: Sequence[Sequence[Found]], work: Work) -> None:
        """`whole`: the stages before."""
        division, settings, domain = self._division, self._division.settings, block.stage.domain
        work.begin(domain, division.shape.num_layers)
        if block.stage.number == ANSWERS:
            if not self._problems:
                most = max(settings.samples, settings.gain_samples)
                self._problems = load_problems(self._task, CALIBRATION_SPLIT, most, identity=self._identity)
            begin = time.perf_counter()
            arrays = _answers(self._engine, division.shape, self._task, settings, self._problems[domain])
            division.blocks.add(block, arrays, {"seconds": time.perf_counter() - begin})
            return
        answers = whole[ANSWERS][0].arrays
        own = unpacked(answers["own_ids"], answers["own_marks"])
        judge = Judge(self._engine, own, settings, "kl", work)
        layers = range(block.first, block.end)
        limits = [Candidate("limit", layer, settings.floor(division.shape)) for layer in layers]
        skips = [Candidate("skip", layer, 0) for layer in layers]
        values, weights = judge([*limits, *skips], range(len(own)))
        arrays = {"limit": values[: len(layers)], "skip": values[len(layers) :], "weights": weights}
        division.blocks.add(block, arrays, judge.told())


def _answers(
    engine: Engine, shape: MoeShape, task: TaskConfig, settings: CalibrationConfig, problems: Sequence[Problem]
) -> dict[str, np.ndarray]:
    """What the unchanged model answers to the problems of one domain, and what one pass of it shows."""
    engine.set_policy("none", {})
    engine.counters(reset=True)
    if settings.text is not None:
        own, right = corpus(engine, Path(settings.text), settings.samples), []
        engine.prefill([each.ids for each in own], salt="corpus")
        counters = engine.counters(reset=True)
    else:
        first = problems[: settings.samples]
        answers = _written(engine, task, settings, first)
        counters = engine.counters(reset=True)
        own = own_answers(answers)
        right = _right(engine, task, settings, problems[: settings.gain_samples], answers)
    if not any(counters.tokens):
        raise EngineError("no token of the calibration was counted: every share of an expert would be of nothing")
    markers = passes.token_ids(engine, settings.markers_of(task))
    own_ids, own_marks = packed(own)
    right_ids, right_marks = packed(right)
    return {
        **_unchanged(engine, shape, own, markers, settings.floor(shape)),
        "usage": np.array(counters.usage, dtype=np.int64),
        "tokens": np.array(counters.tokens, dtype=np.int64),
        "own_ids": own_ids,
        "own_marks": own_marks,
        "right_ids": right_ids,
        "right_marks": right_marks,
    }


def _written(
    engine: Engine, task: TaskConfig, settings: CalibrationConfig, problems: Sequence[Problem]
) -> list[Generation]:
    stop = [problem.stop for problem in problems]
    return engine.generate([p.asked for p in problems], max_tokens=settings.answer_tokens, chat=task.chat, stop=stop)


def _added_up(shape: MoeShape, settings: CalibrationConfig, whole: Sequence[Sequence[Found]]) -> DomainCalibration:
    """One domain, all of whose stages are there."""
    measured: dict[str, Any] = dict(whole[ANSWERS][0].arrays)
    limit_shift_L, removal_shift_LE = measured.pop("limit_shift"), measured.pop("removal_shift")
    layers = whole[LAYERS]
    total = layers[0].arrays["weights"].sum()
    for name, kept in (("layer_kl", "limit"), ("skip_kl", "skip")):
        measured[name] = np.concatenate([found.arrays[kept] for found in layers]).sum(-1) / total
    layer_kl_L = measured["layer_kl"]
    curvature_L = fisher_information(layer_kl_L, limit_shift_L)
    return DomainCalibration(
        **measured,
        self_kl=np.array(max(found.told["itself"] for found in layers), dtype=np.float32),
        k_min=np.array(settings.floor(shape), dtype=np.int64),
        fisher=fisher_information(layer_kl_L, measured["tail_square"]),
        fisher_removal=(0.5 * curvature_L[:, None] * removal_shift_LE).astype(np.float32),
    )


def _right(
    engine: Engine, task: TaskConfig, settings: CalibrationConfig, problems: Sequence[Problem], answers: Sequence[Any]
) -> list[Scored]:
    """Right answers to the problems; where the data has no responses, after the model's own reasoning."""
    given: list[Any] = [*answers[: len(problems)], *[None] * (len(problems) - len(answers))]
    missing = [n for n, p in enumerate(problems) if p.response is None and given[n] is None]
    if missing:
        asked = _written(engine, task, settings, [problems[n] for n in missing])
        for number, answer in zip(missing, asked, strict=True):
            given[number] = answer
        engine.counters(reset=True)
    return right_answers(engine, problems, given, task)


def _unchanged(
    engine: Engine, shape: MoeShape, own: Sequence[Scored], markers: Sequence[int], k_min: int
) -> dict[str, np.ndarray]:
    """What one pass through the unchanged model shows. Raises EngineError where ranks compare experts differently.

    Beside the artifact's own arrays removal_shift [L,E], the mean squared change of a layer's output when the expert
    cannot be selected, and limit_shift [L], the same when the layer keeps k_min experts.
    """
    watched = passes.observe(
        engine, [each.ids for each in own], markers=markers, k_min=k_min, hidden_states=HIDDEN_STATES
    )
    layers, experts = shape.num_layers, shape.num_experts
    removal_shift_LE, limit_shift_L = np.zeros((layers, experts)), np.zeros(layers)
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
        removal_shift_LE[layer], limit_shift_L[layer] = outputs.removal_shift, outputs.limit_shift
    return {
        "observed_usage": np.array(watched.usage, dtype=np.int64),
        "observed_tokens": np.full(layers, watched.tokens, dtype=np.int64),
        "marker_usage": np.array(watched.marker_usage, dtype=np.int64),
        "marker_tokens": np.full(layers, watched.marker_tokens, dtype=np.int64),
        "tail_square": np.array(watched.tail_square, dtype=np.float32),
        "ratio_median": np.array(watched.ratio_median, dtype=np.float32),
        "ratio_range": np.array(watched.ratio_range, dtype=np.float32),
        "similarity": similarity_LEE,
        **one_pass,
        "removal_shift": removal_shift_LE,
        "limit_shift": limit_shift_L,
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


class _ScoreBlocks:
    """Measures blocks of a score."""

    def __init__(self, engine: Engine, division: Division, domains: Domains, shortcuts: Shortcuts) -> None:
        self._engine, self._division, self._domains, self._shortcuts = engine, division, domains, shortcuts

    def measure(self, block: Block, whole: Sequence[Sequence[Found]], work: Work) -> None:
        """`whole`: the rounds before, which say who is in this one."""
        division, domain = self._division, self._domains[block.stage.domain]
        name, shape = division.part, division.shape
        assert name is not None
        work.begin(f"{name} of {block.stage.domain}", shape.num_layers)
        labelled = PARTS[name].labelled
        kept = (domain.right_ids, domain.right_marks) if labelled else (domain.own_ids, domain.own_marks)
        objective: Objective = "gain" if labelled else "kl"
        judge = Judge(self._engine, unpacked(*kept), division.settings, objective, work, self._shortcuts)
        candidates, raced = _candidates(shape, name), _raced(division, block.stage.domain, whole)
        numbers = [number for number in raced.live if block.first <= candidates[number].layer < block.end]
        values, weights = judge([candidates[number] for number in numbers], raced.samples)
        if name == "removal_kl_per_use":
            used = domain.share.ravel()[numbers][:, None]
            values = np.divide(values, used, out=np.zeros_like(values), where=used > 0)
        division.blocks.add(block, {"values": values, "weights": weights}, judge.told())


def _raced(division: Division, domain: str, whole: Sequence[Sequence[Found]]) -> race.Race:
    """The race of a domain after the rounds that are whole."""
    assert division.part is not None
    raced = race.Race(
        candidates_of(division.shape, division.part),
        division.samples[domain],
        first_share=division.settings.first_share(division.part),
        wanted=division.settings.wanted,
    )
    for found in whole:
        # Layers without a candidate in the round have seen no sequence.
        weights = next(each.arrays["weights"] for each in found if len(each.arrays["values"]))
        raced.add(np.concatenate([each.arrays["values"] for each in found]), weights)
    return raced


def _candidates(shape: MoeShape, name: Part) -> list[Candidate]:
    change = PARTS[name].change
    values = range(1, shape.top_k) if change == "limit" else range(shape.num_experts)
    return [Candidate(change, layer, value) for layer in range(shape.num_layers) for value in values]


def _samples(domain: DomainCalibration, name: Part) -> int:
    return len(domain.right_marks if PARTS[name].labelled else domain.own_marks)


def _by_layer(scored: race.Scored, shape: MoeShape, *, labelled: bool) -> Scores:
    lower = race.lower_bounds(scored, tried=len(scored.value)) if labelled else np.full(len(scored.value), np.nan)
    value, error, samples, lower = (
        part.reshape(shape.num_layers, -1) for part in (scored.value, scored.error, scored.samples, lower)
    )
    return Scores(value=value, error=error, samples=samples, lower=lower)
