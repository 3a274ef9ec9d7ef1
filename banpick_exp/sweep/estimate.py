"""What a plan costs, roughly, before anything starts: time, tokens, GPU-hours or core-hours, and why.

By what the same engine did on this machine before (`past`); else CPU engines by what was measured elsewhere, GPU
engines by `roofline`. Prices are within a factor of 3 where they could be held
against measurements (docs/performance.md); nobody starts a week by mistake.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from banpick_exp.evaluation.budget.root_search import MAX_PROBES
from banpick_exp.evaluation.calibration.config import CalibrationConfig
from banpick_exp.evaluation.calibration.race import planned
from banpick_exp.evaluation.calibration.scores import BUDGETS, PARTS, Part
from banpick_exp.models.shape import MoeShape
from banpick_exp.models.sizes import sizes_of
from banpick_exp.policy.budget import EXPECTED_PROBES, SAMPLE_PROBLEMS
from banpick_exp.sweep.config import Hardware
from banpick_exp.sweep.past import Pace, Past, asked
from banpick_exp.sweep.point import Point
from banpick_exp.sweep.roofline import Roofline, roofline

ASSUMED_PROBLEMS = 1000
"""Per domain, where the data is not local and cannot be counted."""
ASSUMED_LENGTH = 0.35
"""Generated tokens as a share of max_tokens; most answers end long before the cap."""
ASSUMED_PROMPT = 200
"""Tokens of a prompt, and at most a quarter of engine.max_model_len; problems are counted, not tokenised."""
BLOCK_SECONDS = 120.0
"""What a block takes by the estimate where nobody says: little to lose, and long beside the drain of a batch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """What one engine is assumed to do: seconds to load it, generated tokens/s and prompt tokens/s."""

    start_seconds: float
    generate: float
    prefill: float
    prompts_apart: bool = False
    """Whether prompts come on top of `generate`; where it was measured on whole runs, they are in it."""


SMALL_ON_CPU = Speed(start_seconds=30, generate=3000, prefill=15_000)
"""The embedded model on 2 cores: between a fast machine (119 s for the points of pick_strength) and a slow (384)."""
LARGE_ON_CPU = Speed(start_seconds=300, generate=30, prefill=300)  # a 30B-A3B class model on a server
LARGE_BYTES = 60e9
"""Of its weights; also taken where they are not on this machine."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KindCost:
    """All work on engines of one kind. Seconds of the phases are those of engines, added up over all of them."""

    point: Point
    """One of them: its engine and its checkpoint."""
    points: int
    engines: int
    """Side by side."""
    devices: int
    """Of one engine: GPUs, or cores of a CPU engine."""
    speed: Speed
    roofline: Roofline | None
    """Of a GPU engine: where its speed comes from, where it was not measured."""
    pace: Pace | None
    """What it did on this machine before."""
    generated: float
    """Tokens, as answers usually end."""
    max_generated: int
    prompted: float
    """Tokens of prompts; samples of a problem share them."""
    read: float
    """Tokens of choices, whose likelihood is asked: each text is read whole and nothing is written."""
    load_seconds: float
    calibration_seconds: float
    answer_seconds: float
    time_seconds: float
    """Of the clock that compares a policy with stock."""
    waiting_seconds: float
    """Of answers and clock, what has to wait for a calibration."""

    @property
    def wall_seconds(self) -> float:
        """From the first load to the last answer; a calibration is one call of one engine."""
        answering = self.answer_seconds + self.time_seconds
        shared = (answering + self.calibration_seconds) / self.engines
        chain = self.calibration_seconds + self.waiting_seconds / self.engines
        return self.load_seconds / self.engines + max(shared, chain)

    @property
    def hours(self) -> float:
        """GPU-hours, or core-hours of a CPU engine: an engine holds them from its start to the end of its kind."""
        return self.engines * self.devices * self.wall_seconds / 3600


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """The price of a plan. Seconds of phases are those of engines, added up; the wall clock is `seconds`."""

    kinds: tuple[KindCost, ...]
    """In the order to load them: one kind after the other."""

    @property
    def engine_loads(self) -> int:
        return sum(kind.engines for kind in self.kinds)

    @property
    def load_seconds(self) -> float:
        return sum(kind.load_seconds for kind in self.kinds)

    @property
    def calibration_seconds(self) -> float:
        return sum(kind.calibration_seconds for kind in self.kinds)

    @property
    def answer_seconds(self) -> float:
        return sum(kind.answer_seconds for kind in self.kinds)

    @property
    def time_seconds(self) -> float:
        return sum(kind.time_seconds for kind in self.kinds)

    @property
    def max_generated_tokens(self) -> int:
        return sum(kind.max_generated for kind in self.kinds)

    @property
    def generated_tokens(self) -> float:
        return sum(kind.generated for kind in self.kinds)

    @property
    def prompt_tokens(self) -> float:
        return sum(kind.prompted for kind in self.kinds)

    @property
    def read_tokens(self) -> float:
        """Of choices."""
        return sum(kind.read for kind in self.kinds)

    @property
    def gpu_hours(self) -> float:
        return sum(kind.hours for kind in self.kinds if kind.point.engine.gpus)

    @property
    def cpu_hours(self) -> float:
        """Core-hours of CPU engines."""
        return sum(kind.hours for kind in self.kinds if not kind.point.engine.gpus)

    @property
    def seconds(self) -> float:
        """On the wall clock."""
        return sum(kind.wall_seconds for kind in self.kinds)

    @property
    def by_past(self) -> bool:
        """Whether it stands on what the same engines did on this machine, their load and their answers."""
        paces = [kind.pace for kind in self.kinds]
        return bool(paces) and all(pace is not None and pace.load_seconds and pace.generate for pace in paces)


H100 = Hardware()
NO_PAST = Past()
Made = frozenset[tuple[str, Part | None]]
"""Calibrations that are there: fingerprint, and the part; None is the artifact itself."""


def estimate(
    points: Sequence[Point],
    engines: int,
    sampled: Sequence[Point] = (),
    hardware: Hardware = H100,
    *,
    past: Past = NO_PAST,
    there: Made = frozenset(),
) -> Estimate:
    """The price of the points; `engines` is how many copies of one engine work side by side.

    `sampled`: points like those that a search will draw. `hardware`: what a GPU is taken for. `there`: what need not be
    measured again.
    """
    by_engine: dict[str, list[Point]] = {}
    for point in (*points, *sampled):
        by_engine.setdefault(point.engine_fingerprint, []).append(point)
    return Estimate(kinds=tuple(_kind(shared, engines, hardware, past, there) for shared in by_engine.values()))


def _kind(points: Sequence[Point], engines: int, hardware: Hardware, past: Past, there: Made) -> KindCost:
    first, by_roof, devices = points[0], gpu_roofline(points[0], hardware), devices_of(points[0], engines)
    pace = past.of(first, devices)
    speed = _as_measured(speed_of(first, hardware), pace)
    blocks = sum(map(_blocks, points))
    slots = max(1, min(engines, blocks))
    read = calibrating_tokens(points, there)
    costs = [point_cost(point, speed, pace) for point in points]
    return KindCost(
        point=first,
        points=len(points),
        engines=slots,
        devices=devices,
        speed=speed,
        roofline=by_roof,
        pace=pace,
        generated=sum(cost.generated for cost in costs),
        max_generated=sum(_most(point).written for point in points),
        prompted=sum(cost.prompted for cost in costs),
        read=sum(cost.read for cost in costs),
        load_seconds=slots * speed.start_seconds,
        calibration_seconds=read / speed.prefill,
        answer_seconds=sum(cost.answer_seconds for cost in costs),
        time_seconds=sum(cost.time_seconds for cost in costs),
        waiting_seconds=sum(
            cost.seconds for point, cost in zip(points, costs, strict=True) if point.calibration_need is not None
        ),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class PointCost:
    """What one point takes of one engine."""

    generated: float
    """Tokens, as answers usually end."""
    prompted: float
    read: float
    """Tokens of choices."""
    answer_seconds: float
    time_seconds: float

    @property
    def seconds(self) -> float:
        return self.answer_seconds + self.time_seconds


def _as_measured(speed: Speed, pace: Pace | None) -> Speed:
    """The speed with what was measured in place of what is assumed."""
    if pace is None:
        return speed
    return replace(
        speed,
        start_seconds=pace.load_seconds or speed.start_seconds,
        generate=pace.generate or speed.generate,
        prefill=pace.prefill or speed.prefill,
        prompts_apart=speed.prompts_apart and pace.generate is None,
    )


def calibrating_tokens(points: Iterable[Point], there: Made = frozenset()) -> float:
    """Tokens that pass through the model while what these points read of calibrations is made."""
    needed = {point.calibration_need: point for point in points if point.calibration_files}
    made = {point.calibration_fingerprint: point for point in needed.values()}
    whole = sum(calibration_tokens(point) for name, point in made.items() if (name, None) not in there)
    return whole + sum(
        part_tokens(point, part)
        for point in needed.values()
        for part in point.calibration_parts
        if (point.calibration_fingerprint, part) not in there
    )


def point_cost(point: Point, speed: Speed, pace: Pace | None = None) -> PointCost:
    """What a point takes of an engine of that speed."""
    usual, _ = solving(point)
    tokens = answers_of(point) + usual
    known = None if pace is None else pace.lengths.get(asked(point))
    length = ASSUMED_LENGTH if known is None else known / point.task.max_tokens
    prompted = _written_problems(point) * prompt_tokens(point)
    rows = 1 if point.rule.contrast is None else len(point.rule.parts)
    return PointCost(
        generated=length * tokens.written,
        prompted=prompted,
        read=tokens.read,
        answer_seconds=rows
        * (tokens.seconds(speed, length) + (prompted / speed.prefill if speed.prompts_apart else 0)),
        time_seconds=0.0
        if point.repeat or len(point.rule.parts) > 1
        else point.task.speed_seconds * ((pace and pace.clock) or 1.0),
    )


def devices_of(point: Point, engines: int) -> int:
    """What one of so many engines holds: its GPUs, or the cores of a CPU engine."""
    if point.engine.gpus:
        return point.engine.gpus
    return point.engine.cpus or max(1, len(os.sched_getaffinity(0)) // engines)


def speed_of(point: Point, hardware: Hardware = H100) -> Speed:
    """What the engine of a point is assumed to do; on a CPU by the size of its weights.

    Blocks are cut by it, so whoever cuts leaves `hardware` alone: answered blocks must be found again whatever is
    typed.
    """
    if (found := gpu_roofline(point, hardware)) is not None:
        return Speed(
            start_seconds=found.start_seconds, generate=found.generate, prefill=found.prefill, prompts_apart=True
        )
    share = weight_bytes(point.checkpoint.location) / LARGE_BYTES
    return Speed(
        start_seconds=SMALL_ON_CPU.start_seconds + share * LARGE_ON_CPU.start_seconds,
        generate=1 / (1 / SMALL_ON_CPU.generate + share / LARGE_ON_CPU.generate),
        prefill=1 / (1 / SMALL_ON_CPU.prefill + share / LARGE_ON_CPU.prefill),
    )


def gpu_roofline(point: Point, hardware: Hardware = H100) -> Roofline | None:
    """Where the speed of a point's engine comes from; None on a CPU."""
    if not point.engine.gpus:
        return None
    return roofline(
        sizes_of(point.checkpoint.location, point.checkpoint.shape),
        point.engine,
        hardware,
        # A sequence in flight is at half of its answer, on the whole.
        context=prompt_tokens(point) + ASSUMED_LENGTH * point.task.max_tokens / 2,
        waiting=_problems(point) * point.task.samples,
    )


def prompt_tokens(point: Point) -> float:
    """Of one prompt, assumed."""
    return min(ASSUMED_PROMPT, point.engine.max_model_len / 4)


def block_problems(point: Point) -> int:
    """`task.block_problems`; where it is null, what the estimate says takes `BLOCK_SECONDS`, and at least a batch."""
    if point.task.block_problems is not None:
        return point.task.block_problems
    speed, batch = speed_of(point), math.ceil(point.engine.max_num_seqs / point.task.samples)
    if point.reading:
        of_a_problem = answers_of(point).seconds(speed, ASSUMED_LENGTH) / _problems(point)
        return max(batch, math.ceil(BLOCK_SECONDS / of_a_problem))
    tokens = ASSUMED_LENGTH * point.task.max_tokens * point.task.samples
    return max(batch, math.ceil(BLOCK_SECONDS * speed.generate / tokens))


def _blocks(point: Point) -> int:
    return math.ceil(_problems(point) / block_problems(point))


def _problems(point: Point) -> int:
    return sum(_counted(point).values())


def _counted(point: Point) -> dict[str, int]:
    """Problems of each domain."""
    return {domain: point.problems.get(domain) or ASSUMED_PROBLEMS for domain in point.task.domains}


def _written_problems(point: Point) -> int:
    """Problems whose answers are written."""
    return _problems(point) - sum(found.problems for found in point.reading.values())


@functools.cache
def weight_bytes(location: str) -> float:
    """Of a checkpoint's folder."""
    try:
        return float(sum(path.stat().st_size for path in Path(location).iterdir() if path.suffix == ".safetensors"))
    except OSError:
        return LARGE_BYTES


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokens:
    """What passes through a model for answers: at most so many written, and what is read where choices are asked."""

    written: int
    read: int

    @property
    def total(self) -> int:
        return self.written + self.read

    def seconds(self, speed: Speed, length: float = 1.0) -> float:
        """`length`: what is written, as a share of the most."""
        return length * self.written / speed.generate + self.read / speed.prefill

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(written=self.written + other.written, read=self.read + other.read)

    def __mul__(self, times: int) -> Tokens:
        return Tokens(written=self.written * times, read=self.read * times)


def point_tokens(point: Point) -> int:
    """The most tokens that pass for a point: all its answers, and what solving its knob takes. Timing is seconds."""
    return _most(point).total


def answer_tokens(point: Point) -> int:
    """The most tokens that its answers can have, or that are read for them."""
    return answers_of(point).total


def _most(point: Point) -> Tokens:
    return answers_of(point) + solving(point)[1]


def answers_of(point: Point) -> Tokens:
    """Of all its answers. A text whose likelihood is asked is read once, whatever the task's samples and max_tokens."""
    return Tokens(
        written=_written_problems(point) * point.task.samples * point.task.max_tokens,
        read=sum(found.tokens for found in point.reading.values()),
    )


NOTHING = Tokens(written=0, read=0)


def solving(point: Point) -> tuple[Tokens, Tokens]:
    """What solving its knob takes: (as a rule, at most); the latter with all probes and a second run of everything."""
    if point.budget is None:
        return NOTHING, NOTHING
    probe = NOTHING
    for domain, count in _counted(point).items():
        sample, found = min(SAMPLE_PROBLEMS, count), point.reading.get(domain)
        read, tokens = (0, 0) if found is None else (round(found.problems * sample / count), found.tokens)
        written = (sample - read) * point.task.max_tokens
        probe += Tokens(written=written, read=round(tokens * sample / count))
    return probe * EXPECTED_PROBES, probe * (2 * MAX_PROBES) + answers_of(point)


def calibration_tokens(point: Point) -> float:
    """Tokens that pass through the model while an artifact is made, whole passes counted: each layer limited and
    skipped once, on own answers."""
    return artifact_tokens(point.checkpoint.shape, point.calibration, len(point.task.domains))


def artifact_tokens(shape: MoeShape, settings: CalibrationConfig, domains: int) -> float:
    """The same for any checkpoint."""
    return 2 * shape.num_layers * settings.samples * tokens_of_change(shape, settings, domains)


def part_tokens(point: Point, name: Part) -> float:
    """The same for one part, whoever follows it."""
    return score_tokens(point.checkpoint.shape, point.calibration, len(point.task.domains), name)


def score_tokens(shape: MoeShape, settings: CalibrationConfig, domains: int, name: Part) -> float:
    """The same for any checkpoint."""
    samples = settings.gain_samples if PARTS[name].labelled else settings.samples
    candidates = shape.num_layers * (shape.top_k - 1 if name in BUDGETS else shape.num_experts)
    changes = planned(candidates, samples, first_share=settings.first_share(name), wanted=settings.wanted)
    return changes * tokens_of_change(shape, settings, domains)


def tokens_of_a_change(point: Point) -> float:
    """Of one answer in every domain, under one change."""
    return tokens_of_change(point.checkpoint.shape, point.calibration, len(point.task.domains))


def tokens_of_change(shape: MoeShape, settings: CalibrationConfig, domains: int) -> float:
    """The same for any checkpoint."""
    return _suffix_share(shape) * domains * settings.answer_tokens


def _suffix_share(shape: MoeShape) -> float:
    """Of a pass, what is left where it begins at the changed layer; the mean over layers."""
    return (shape.num_layers + 1) / (2 * shape.num_layers)
