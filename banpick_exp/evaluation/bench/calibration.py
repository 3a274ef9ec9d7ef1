"""What a calibration costs by method, and whether each finds the same experts: one run, the same samples, in turn.

Each method scores every expert of the embedded model and its controls by `insertion_kl`; the last two rows count what
the same costs on a model of Qwen3-30B's shape, by the formula that the first rows are held against.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from banpick_exp.engine.engine import Engine
from banpick_exp.evaluation.bench.timing import Row, emit, print_table
from banpick_exp.evaluation.calibration.arrays import DomainCalibration, Scores
from banpick_exp.evaluation.calibration.config import CalibrationConfig
from banpick_exp.evaluation.calibration.measure import calibrate, score
from banpick_exp.evaluation.calibration.probe import Shortcuts
from banpick_exp.evaluation.calibration.race import planned
from banpick_exp.evaluation.calibration.scores import Name
from banpick_exp.evaluation.calibration.views import order
from banpick_exp.evaluation.controls import open_engine, tiny_shape, tiny_task
from banpick_exp.models.shape import MoeShape
from banpick_exp.models.tiny import ASSETS, DOMAINS
from banpick_exp.models.tiny.control import control_folder
from banpick_exp.models.tiny.kinds import PLANTED

SCORE: Name = "insertion_kl"
TOPS = (1, 4, 16)
Timed = tuple[dict[str, Scores], int, float]
"""By domain, layer-tokens, seconds."""
LARGE = MoeShape(num_layers=48, num_experts=128, top_k=8)
"""Qwen3-30B-A3B."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """One way to score all experts."""

    name: str
    shortcuts: Shortcuts
    race: bool


METHODS = (
    Method(name="whole reruns", shortcuts="none", race=False),
    Method(name="suffix", shortcuts="suffix", race=False),
    Method(name="suffix, only what changes", shortcuts="all", race=False),
    Method(name="race", shortcuts="all", race=True),
)


def bench_calibration(rounds: int, output: Path | None, report: Callable[[str], None]) -> list[Row]:
    """A row a model and method: layer-tokens and seconds (the least of `rounds`), and the highest experts shared with
    whole reruns, mean over domains."""
    rows: list[Row] = []
    models: list[tuple[str, Path, tuple[str, ...]]] = [("healthy", ASSETS / "checkpoint", DOMAINS)]
    models += [(kind, control_folder(kind), (control.domain,)) for kind, control in PLANTED.items()]
    for model, folder, domains in models:
        engine = open_engine(folder)
        settings = CalibrationConfig()
        measured = calibrate(engine, tiny_shape(), tiny_task(*domains), settings)
        first: Mapping[str, Scores] | None = None
        timed: dict[str, list[Timed]] = {method.name: [] for method in METHODS}
        for _ in range(rounds):
            for method in METHODS:
                timed[method.name].append(_timed(engine, measured, settings, method))
        engine.close()
        for method in METHODS:
            found, work, _ = timed[method.name][0]
            first = found if first is None else first
            row: Row = {"bench": "calibration", "model": model, "method": method.name, "layer_tokens": work}
            row["seconds"] = min(seconds for _, _, seconds in timed[method.name])
            row["work"] = work / timed[METHODS[0].name][0][1]
            row["time"] = row["seconds"] / min(seconds for _, _, seconds in timed[METHODS[0].name])
            for top in TOPS:
                row[f"top {top}"] = float(np.mean([_shared(first[name], found[name], top) for name in found]))
            rows.append(row)
            emit(row, output)
            report(f"{model}: {method.name} {row['seconds']:.1f} s")
    columns = [("model", ""), ("method", ""), ("layer_tokens", ",.0f"), ("work", ".3f"), ("seconds", ".1f")]
    columns += [("time", ".2f"), *((f"top {top}", ".2f") for top in TOPS)]
    print_table(f"Calibration by {SCORE}, {CalibrationConfig().samples} answers a domain", rows, columns)
    for shape, name in ((tiny_shape(), "the embedded model"), (LARGE, "48 layers of 128 experts")):
        print(f"{name}: a race's layer-tokens over those of whole reruns {work_of_a_race(shape):.3f}")
    return rows


def _timed(
    engine: Engine, measured: Mapping[str, DomainCalibration], settings: CalibrationConfig, method: Method
) -> Timed:
    chosen = settings.model_copy(update={"method": "race" if method.race else "full"})
    begin = time.perf_counter()
    found, how = score(engine, tiny_shape(), measured, chosen, SCORE, shortcuts=method.shortcuts)
    return found, int(how["layer_tokens"]), time.perf_counter() - begin


def _shared(one: Scores, other: Scores, top: int) -> float:
    """Share of the highest `top` experts that are the same."""
    first, second = (set(order(each.value, each.samples)[:top].tolist()) for each in (one, other))
    return len(first & second) / top


def work_of_a_race(shape: MoeShape) -> float:
    """Layer-tokens of a race that begins at the changed layer, over those of reruns of the whole model; by counting.

    >>> round(work_of_a_race(MoeShape(num_layers=48, num_experts=128, top_k=8)), 3)
    0.164
    """
    settings, experts = CalibrationConfig(), shape.num_layers * shape.num_experts
    samples = settings.samples
    changes = planned(experts, samples, first_share=settings.first_share(SCORE), wanted=settings.wanted)
    suffix = (shape.num_layers + 1) / (2 * shape.num_layers)
    return changes * suffix / (experts * samples)
