"""A calibration with made-up numbers, of any size."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from banpick_exp.evaluation.calibration.arrays import DomainCalibration, Scores
from banpick_exp.evaluation.calibration.scores import SCORES, Name

COUNTS = {"usage", "tokens", "observed_usage", "observed_tokens", "marker_usage", "marker_tokens", "k_min"}


def measured(layers: int, experts: int, *, scores: Iterable[Name] = (), **known: Any) -> DomainCalibration:
    """All arrays of one domain: those that are `known`, the others of ones. Of `scores` every expert has 1 too."""
    both, each = (layers, experts), (layers,)
    shapes: dict[str, tuple[int, ...]] = {name: both for name in ("usage", "observed_usage", "marker_usage")}
    shapes |= {name: each for name in ("tokens", "observed_tokens", "marker_tokens")}
    shapes |= {name: each for name in ("layer_kl", "skip_kl", "tail_square", "ratio_median", "fisher")}
    shapes |= {name: both for name in ("reap", "man", "easy_ep", "fisher_removal")}
    shapes |= {"similarity": (layers, experts, experts), "ratio_range": (2,), "self_kl": (), "k_min": ()}
    made: dict[str, Any] = {
        name: np.ones(shape, dtype=np.int64 if name in COUNTS else np.float32) for name, shape in shapes.items()
    }
    for kind in ("own", "right"):
        made[f"{kind}_ids"], made[f"{kind}_marks"] = np.zeros(0, np.int32), np.zeros((0, 3), np.int32)
    return DomainCalibration(**{**made, **known}, scores={name: scored(np.ones(both), name) for name in scores})


def scored(value_LE: Any, name: Name = "insertion_kl", samples: int = 64) -> Scores:
    """A score of these values, all on as many problems and sure to 0.1; with bounds only where it has a sign."""
    value_LE = np.asarray(value_LE, dtype=np.float64)
    error_LE, samples_LE = np.full(value_LE.shape, 0.05), np.full(value_LE.shape, samples)
    lower_LE = value_LE - 0.1 if SCORES[name].labelled else np.full(value_LE.shape, np.nan)
    return Scores(value=value_LE, error=error_LE, samples=samples_LE, lower=lower_LE)
