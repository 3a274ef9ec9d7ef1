"""The price of a plan in print: engines and where they stand, work, time and hours, each with the model behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from banpick_exp.errors import UserError
from banpick_exp.sweep.config import RunBudget
from banpick_exp.sweep.estimate import LARGE_BYTES, Estimate, KindCost, point_cost, weight_bytes
from banpick_exp.sweep.point import Point
from banpick_exp.sweep.search.cuts import cut_of

if TYPE_CHECKING:
    from banpick_exp.sweep.plan import SweepPlan

FACTOR = 3
"""Within which prices were where they could be held against measurements."""
PUBLISHED = {
    (48, 128, 8): "2,659 tokens/s at 89 sequences on one H100, 7,154 at 256 on two",
    (94, 128, 8): "908 tokens/s at 32 sequences on eight H100, 3,696 at 228",
}
"""Layers, experts and top_k of Qwen3-30B-A3B and Qwen3-235B-A22B -> what the ML.ENERGY benchmark measured."""
SOURCE = "ML.ENERGY benchmark, vLLM, bfloat16, expert parallel, answers of 900 tokens"


def price_lines(plan: SweepPlan, cost: Estimate) -> list[str]:
    """What the plan costs, a kind of engine after the other, then all; for a console, without markup."""
    lines = []
    for number, kind in enumerate(cost.kinds, start=1):
        lines += [f"Price of engine {number}: {_placed(kind)}", *(f"  {line}" for line in _priced(plan, kind))]
    return [*lines, total_line(cost)]


def total_line(cost: Estimate) -> str:
    """`Estimate: about 3.1 h (rough), 24.8 GPU-hours: ...`."""
    loads = f"{cost.engine_loads} engine load" + "s" * (cost.engine_loads != 1)
    rough = f"rough (a factor of {FACTOR} either way)"
    sure = "by what the same engines did on this machine before" if cost.by_past else rough
    return (
        f"Estimate: about {duration(cost.seconds)} on the clock{_hours(cost)}, {sure}."
        f" Engine time: {loads} {duration(cost.load_seconds)}, calibration {duration(cost.calibration_seconds)},"
        f" answers {duration(cost.answer_seconds)} for {cost.generated_tokens:,.0f} tokens (at most"
        f" {cost.max_generated_tokens:,} tokens){_read(cost)}, clock {duration(cost.time_seconds)}."
    )


def _read(cost: Estimate) -> str:
    return f" and {cost.read_tokens:,.0f} read of choices" if cost.read_tokens else ""


def _hours(cost: Estimate) -> str:
    kinds = ((cost.gpu_hours, "GPU-hours"), (cost.cpu_hours, "core-hours"))
    return "".join(f", {hours_text(hours)} {unit}" for hours, unit in kinds if hours)


def hours_text(hours: float) -> str:
    """`0.031`, `2.4`, `1,240`."""
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.1f}" if hours >= 1 else f"{hours:.2g}"


def _placed(kind: KindCost) -> str:
    """How many, over how many GPUs or cores, and what a node must have."""
    engine, count = kind.point.engine, kind.engines
    side = "one engine" if count == 1 else f"{count} engines side by side"
    if not engine.gpus:
        cores = f"{kind.devices} core" + "s" * (kind.devices != 1)
        return f"{side}, {cores} each; one bundle each, on one node"
    split = f"tensor parallel {engine.tensor_parallel_size} x pipeline {engine.pipeline_parallel_size}"
    gpus = f"{engine.gpus} GPU" + "s" * (engine.gpus != 1)
    where = f"one bundle of {gpus} each, on one node"
    if engine.distributed_executor_backend == "ray" and engine.gpus > 1:
        where = f"{engine.gpus} bundles of 1 GPU each, over nodes where one has too few (slower links are not priced)"
    return f"{side}, {split}, {gpus} each; {where}"


def _priced(plan: SweepPlan, kind: KindCost) -> list[str]:
    blocks = sum(len(cut_of(point, plan.search) or (0,)) for point in plan.points if _same_engine(point, kind))
    work = (
        f"{kind.points} points in {blocks} blocks: {kind.generated:,.0f} tokens to generate,"
        f" {kind.prompted:,.0f} of prompts (assumed lengths)"
    )
    if kind.read:
        work += f", {kind.read:,.0f} of choices to read"
    unit = "GPU-hours" if kind.point.engine.gpus else "core-hours"
    taken = (
        f"{duration(kind.wall_seconds)} on the clock, {hours_text(kind.hours)} {unit}"
        f" ({kind.engines} x {kind.devices} held)"
    )
    return [work, *_model(kind), taken]


def _same_engine(point: Point, kind: KindCost) -> bool:
    return point.engine_fingerprint == kind.point.engine_fingerprint


def _model(kind: KindCost) -> list[str]:
    """What speeds follow from."""
    roof, speed, pace = kind.roofline, kind.speed, kind.pace
    if pace is not None and pace.generate is not None:
        calibrating = f", calibration {pace.prefill:,.0f} tokens/s" if pace.prefill else ""
        return [
            f"measured on this machine before: load {speed.start_seconds:.0f} s, decode {speed.generate:,.0f} tokens/s"
            f" with prompts and grading{calibrating}"
        ]
    if roof is None:
        size = weight_bytes(kind.point.checkpoint.location)
        weights = f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
        return [
            f"measured on two cores for the embedded model and assumed for {LARGE_BYTES / 1e9:.0f} GB, here {weights}:"
            f" load {speed.start_seconds:.0f} s, decode {speed.generate:,.0f} tokens/s, prefill"
            f" {speed.prefill:,.0f} tokens/s"
        ]
    shape = kind.point.checkpoint.shape
    published = PUBLISHED.get((shape.num_layers, shape.num_experts, shape.top_k))
    return [*roof.words(), *([f"published: {published} ({SOURCE})"] if published and roof.sizes.known else [])]


def price_notes(plan: SweepPlan, cost: Estimate) -> list[str]:
    """What of the price must be read before anything starts: GPUs that cannot hold the model, a budget that is short.

    Raises UserError for a budget that no engine of the run would touch.
    """
    _refuse_idle(plan.budget, cost)
    problems = (kind.roofline.problem() for kind in cost.kinds if kind.roofline is not None)
    return [problem for problem in problems if problem is not None] + _short(plan, cost)


def _refuse_idle(budget: RunBudget, cost: Estimate) -> None:
    on_gpus = {bool(kind.point.engine.gpus) for kind in cost.kinds}
    wanted = ((budget.gpu_hours, True, "gpu_hours", "cpu_hours"), (budget.cpu_hours, False, "cpu_hours", "gpu_hours"))
    for hours, gpus, name, other in wanted:
        if hours is not None and on_gpus and gpus not in on_gpus:
            kind = "GPU" if gpus else "CPU"
            raise UserError(
                f"budget.{name}={hours:g} is idle: this run has no {kind} engine, so nothing would ever stop it. Type"
                f" budget.{other}={hours:g}, or leave it out."
            )


def _short(plan: SweepPlan, cost: Estimate) -> list[str]:
    notes = []
    for hours, gpus, name in ((plan.budget.gpu_hours, True, "gpu_hours"), (plan.budget.cpu_hours, False, "cpu_hours")):
        needed = cost.gpu_hours if gpus else cost.cpu_hours
        if hours is None or needed <= hours:
            continue
        fit = points_that_fit(plan.points, cost, hours, gpus=gpus)
        total = sum(kind.points for kind in cost.kinds if bool(kind.point.engine.gpus) == gpus)
        notes.append(
            f"budget.{name}={hours:g} is less than the {hours_text(needed)} hours of the estimate: about {fit} of"
            f" {total} points fit, in their order (stock and references first). The run then stops and says how to go"
            f" on; all fit into budget.{name}={hours_text(needed).replace(',', '')}, were the estimate right"
        )
    return notes


def points_that_fit(points: Sequence[Point], cost: Estimate, hours: float, *, gpus: bool) -> int:
    """How many points, in their order, are over before engines of that sort have been held for so long.

    A calibration is paid for with the first point that reads it.
    """
    spent, fit = 0.0, 0
    for kind in cost.kinds:
        if bool(kind.point.engine.gpus) != gpus:
            continue
        answering = kind.answer_seconds + kind.time_seconds
        spent += kind.devices * kind.load_seconds / 3600
        calibrating = kind.hours - kind.devices * (kind.load_seconds + answering) / 3600
        for point in (point for point in points if _same_engine(point, kind)):
            spent += kind.devices * point_cost(point, kind.speed, kind.pace).seconds / 3600
            if point.calibration_need is not None:
                spent, calibrating = spent + calibrating, 0.0
            if spent > hours:
                return fit
            fit += 1
    return fit


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3.1 h`, `2.4 days`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
