"""A calibration with made-up numbers, of any size."""

from __future__ import annotations

from typing import Any

import numpy as np

from banpick_exp.evaluation.calibration.arrays import DomainCalibration


def measured(layers: int, experts: int, **known: Any) -> DomainCalibration:
    """All arrays of one domain: those that are `known`, the others of ones."""
    both = (layers, experts)
    counts = {"usage", "tokens", "observed_usage", "observed_tokens", "marker_usage", "marker_tokens"}
    shapes: dict[str, tuple[int, ...]] = {name: both for name in ("usage", "observed_usage", "marker_usage")}
    shapes |= {name: (layers,) for name in ("tokens", "observed_tokens", "marker_tokens")}
    shapes |= {name: both for name in ("removal_kl", "removal_kl_per_use", "insertion_kl")}
    shapes |= {name: (layers,) for name in ("layer_kl", "tail_square", "fisher")}
    shapes |= {"similarity": (layers, experts, experts), "ratio_range": (2,), "self_kl": ()}
    made = {name: np.ones(shape, dtype=np.int64 if name in counts else np.float32) for name, shape in shapes.items()}
    return DomainCalibration(**{**made, **known})
