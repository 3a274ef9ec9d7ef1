"""Judges changes on given sequences, in engine steps that are the same whichever layers are asked for together."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from banpick_exp.engine.engine import Engine
from banpick_exp.evaluation.calibration import passes
from banpick_exp.evaluation.calibration.config import CalibrationConfig
from banpick_exp.evaluation.calibration.division import LAYERS_AT_ONCE
from banpick_exp.evaluation.calibration.probe import Candidate, Judging, Objective, Scored, Shortcuts
from banpick_exp.evaluation.calibration.scores import GAIN_CAP
from banpick_exp.evaluation.calibration.sequences import in_steps

OnProgress = Callable[[int, int, str], None]
"""(changes times problems that are measured, of how many, and of what: `math, layer 3 of 4`)."""


class Work:
    """Counts what is measured, and tells."""

    def __init__(self, planned: float, on_progress: OnProgress) -> None:
        self._planned, self._done, self._on_progress = round(planned), 0, on_progress
        self._of, self._layers = "", 0

    def begin(self, of: str, layers: int) -> None:
        """What is measured from now on: a domain of a model with so many MoE layers."""
        self._of, self._layers = of, layers
        self._tell(of)

    def add(self, changes: float, first: int | None = None, last: int | None = None) -> None:
        """`first` to `last`: the layers that were changed, counted from 0."""
        self._done += round(changes)
        if first is None or last is None:
            return self._tell(self._of)
        which = f"layer {first + 1}" if first == last else f"layers {first + 1} to {last + 1}"
        return self._tell(f"{self._of}, {which} of {self._layers}")

    def _tell(self, of: str) -> None:
        self._on_progress(min(self._done, self._planned), self._planned, of)


class Judge:
    """Judges changes on some sequences: `candidates` and `samples` in, [C,S] values and [S] weights out."""

    def __init__(
        self,
        engine: Engine,
        sequences: Sequence[Scored],
        settings: CalibrationConfig,
        objective: Objective,
        work: Work,
        shortcuts: Shortcuts = "all",
    ) -> None:
        self._engine, self._sequences, self._work = engine, sequences, work
        self._judging = Judging(
            objective=objective,
            last_only=settings.positions == "last",
            top_vocab=settings.top_vocab,
            range_factor=settings.range_factor,
            boost=settings.boost,
            shortcuts=shortcuts,
        )
        self._begun = time.perf_counter()
        self._changes = self._layer_tokens = self._out_of_reach = 0
        self._itself = 0.0

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
                self._count(found, len(part) * len(step), [candidates[number].layer for number in part])
        return values if self._judging.objective == "kl" else values.clip(-GAIN_CAP, GAIN_CAP), weights

    def _count(self, found: passes.Changed, changes: int, layers: Sequence[int]) -> None:
        self._itself = max(self._itself, found.itself)
        self._changes += changes
        self._layer_tokens += found.layer_tokens
        self._out_of_reach += found.out_of_reach
        self._work.add(changes, min(layers), max(layers))

    def told(self) -> dict[str, float]:
        """How all of it was measured so far."""
        return {
            "changes": self._changes,
            "layer_tokens": self._layer_tokens,
            "out_of_reach": self._out_of_reach,
            "itself": self._itself,
            "seconds": time.perf_counter() - self._begun,
        }


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
