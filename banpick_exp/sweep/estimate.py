"""How long a plan takes, roughly, from assumed speeds: so that nobody starts a week by mistake."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from banpick_exp.evaluation.budget.root_search import MAX_PROBES
from banpick_exp.evaluation.calibration.race import planned
from banpick_exp.evaluation.calibration.scores import BUDGETS, PARTS, Part
from banpick_exp.models.shape import MoeShape
from banpick_exp.policy.budget import EXPECTED_PROBES, SAMPLE_PROBLEMS
from banpick_exp.sweep.point import Point

ASSUMED_PROBLEMS = 1000
"""Per domain, where the data is not local and cannot be counted."""
ASSUMED_LENGTH = 0.35
"""Generated tokens as a share of max_tokens; most answers end long before the cap."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """What one engine is assumed to do: seconds to load it, generated tokens/s and prompt tokens/s."""

    start_seconds: float
    generate: float
    prefill: float


SMALL_ON_CPU = Speed(start_seconds=30, generate=3000, prefill=15_000)
"""The embedded model on 2 cores: between a fast machine (119 s for the points of pick_strength) and a slow (384)."""
LARGE_ON_CPU = Speed(start_seconds=300, generate=30, prefill=300)  # a 30B-A3B class model on a server
LARGE_BYTES = 60e9
"""Of its weights; also taken where they are not on this machine."""
GPU = Speed(start_seconds=300, generate=3000, prefill=30_000)  # the same class on one GPU, many sequences


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """Wall-clock seconds of the parts, engines side by side where the cluster has slots for them."""

    engine_loads: int
    load_seconds: float
    calibration_seconds: float
    points_seconds: float
    max_generated_tokens: int
    gpu_hours: float
    """Of all engines: from the start of each to its end; of them, `calibration_gpu_hours`."""
    calibration_gpu_hours: float

    @property
    def seconds(self) -> float:
        return self.load_seconds + self.calibration_seconds + self.points_seconds


def estimate(points: Sequence[Point], engines: int, sampled: Sequence[Point] = ()) -> Estimate:
    """Sums the parts over engines; `engines` is how many copies of one engine work side by side.

    `sampled`: points like those that a search will draw.
    """
    loads, load_seconds, calibration_seconds, points_seconds, tokens = 0, 0.0, 0.0, 0.0, 0
    gpu_seconds, gpu_calibration = 0.0, 0.0
    by_engine: dict[str, list[Point]] = {}
    for point in (*points, *sampled):
        by_engine.setdefault(point.engine_fingerprint, []).append(point)
    for shared in by_engine.values():
        speed = speed_of(shared[0])
        slots = min(engines, len(shared))
        loads += slots
        load_seconds += speed.start_seconds
        generated = sum(point_tokens(point) for point in shared)
        rare = sum(most - usual for usual, most in map(solve_tokens, shared))
        answering = ASSUMED_LENGTH * (generated - rare) / speed.generate / slots
        answering += sum(0 if point.repeat else point.task.speed_seconds for point in shared) / slots
        tokens += generated
        needed = {point.calibration_need: point for point in shared if point.calibration_files}
        made = {point.calibration_fingerprint: point for point in needed.values()}
        read = sum(map(scoring_tokens, needed.values())) + sum(map(calibration_tokens, made.values()))
        points_seconds += answering
        calibration_seconds += read / speed.prefill
        gpus = shared[0].engine.gpus
        gpu_seconds += gpus * (slots * (speed.start_seconds + answering) + read / speed.prefill)
        gpu_calibration += gpus * read / speed.prefill
    return Estimate(
        engine_loads=loads,
        load_seconds=load_seconds,
        calibration_seconds=calibration_seconds,
        points_seconds=points_seconds,
        max_generated_tokens=tokens,
        gpu_hours=gpu_seconds / 3600,
        calibration_gpu_hours=gpu_calibration / 3600,
    )


def speed_of(point: Point) -> Speed:
    """What the engine of a point is assumed to do; on a CPU by the size of its weights."""
    if point.engine.gpus:
        return GPU
    share = weight_bytes(point.checkpoint.location) / LARGE_BYTES
    return Speed(
        start_seconds=SMALL_ON_CPU.start_seconds + share * LARGE_ON_CPU.start_seconds,
        generate=1 / (1 / SMALL_ON_CPU.generate + share / LARGE_ON_CPU.generate),
        prefill=1 / (1 / SMALL_ON_CPU.prefill + share / LARGE_ON_CPU.prefill),
    )


@functools.cache
def weight_bytes(location: str) -> float:
    """Of a checkpoint's folder."""
    try:
        return float(sum(path.stat().st_size for path in Path(location).iterdir() if path.suffix == ".safetensors"))
    except OSError:
        return LARGE_BYTES


def point_tokens(point: Point) -> int:
    """The most tokens a point can generate: all its answers, and what solving its knob takes. Timing is seconds."""
    return answer_tokens(point) + solve_tokens(point)[1]


def solve_tokens(point: Point) -> tuple[int, int]:
    """What solving its knob takes: (as a rule, at most); the latter with all probes and a second run of everything."""
    if point.budget is None:
        return 0, 0
    counted = (point.problems.get(domain) or ASSUMED_PROBLEMS for domain in point.task.domains)
    probe = sum(min(SAMPLE_PROBLEMS, count) for count in counted) * point.task.max_tokens
    return EXPECTED_PROBES * probe, 2 * MAX_PROBES * probe + answer_tokens(point)


def answer_tokens(point: Point) -> int:
    """The most tokens its answers can have."""
    problems = sum(point.problems.get(domain) or ASSUMED_PROBLEMS for domain in point.task.domains)
    return problems * point.task.samples * point.task.max_tokens


def calibration_tokens(point: Point) -> float:
    """Tokens that pass through the model while an artifact is made, whole passes counted: each layer limited and
    skipped once, on own answers."""
    return 2 * point.checkpoint.shape.num_layers * point.calibration.samples * tokens_of_a_change(point)


def scoring_tokens(point: Point) -> float:
    """The same while the parts of the artifact are measured that a point follows."""
    return sum(part_tokens(point, name) for name in point.calibration_parts)


def part_tokens(point: Point, name: Part) -> float:
    """The same for one part, whoever follows it."""
    shape, settings = point.checkpoint.shape, point.calibration
    samples = settings.gain_samples if PARTS[name].labelled else settings.samples
    candidates = shape.num_layers * (shape.top_k - 1 if name in BUDGETS else shape.num_experts)
    changes = planned(candidates, samples, first_share=settings.first_share(name), wanted=settings.wanted)
    return changes * tokens_of_a_change(point)


def tokens_of_a_change(point: Point) -> float:
    """Of one answer in every domain, under one change."""
    return _suffix_share(point.checkpoint.shape) * len(point.task.domains) * point.calibration.max_tokens


def _suffix_share(shape: MoeShape) -> float:
    """Of a pass, what is left where it begins at the changed layer; the mean over layers."""
    return (shape.num_layers + 1) / (2 * shape.num_layers)
