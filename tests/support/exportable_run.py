"""A run that never ran whose policies can be built: with a checkpoint, a calibration and the digests of its tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from measured_arrays import measured, scored
from synthetic_run import DOMAINS, SyntheticRun, ladder, pick_strength

from banpick_exp.evaluation.calibration import arrays
from banpick_exp.evaluation.calibration.views import policy_views
from banpick_exp.models.config import ModelConfig
from banpick_exp.models.inspect import inspect_checkpoint
from banpick_exp.policy import build_policy
from banpick_exp.records import PointRecord

SIZES = {"num_layers": 4, "num_experts": 32, "top_k": 8}
CALIBRATION = "0123456789abcdef"


def exportable(synthetic: SyntheticRun, outputs: Path, *, sensitivity: str = "kl") -> SyntheticRun:
    """Every done record says what its checkpoint, calibration and tables were; the artifact lies below `outputs`."""
    rng = np.random.default_rng(0)
    domains = {
        name: measured(
            4, 32,
            tokens=np.full(4, 8), layer_kl=rng.random(4).astype(np.float32),
            ratio_range=np.array([0.4, 0.9], dtype=np.float32),
        )
        for name in DOMAINS
    }  # fmt: skip
    folder = outputs / "calibrations" / CALIBRATION
    arrays.save_artifact(folder, CALIBRATION, domains, {"model": {"name": "tiny", "identity": "1d"}, "settings": {}})
    found = {name: scored(rng.random((4, 32))) for name in DOMAINS}
    arrays.save_scores(folder, "insertion_kl", found, {})
    limits = {name: scored(rng.random((4, 7)) - 1, "gain_add") for name in DOMAINS}
    arrays.save_scores(folder, "limit_gain", limits, {})
    whole = arrays.load(folder, CALIBRATION)
    assert whole is not None
    views = policy_views(whole, "insertion_kl", sensitivity=sensitivity)
    for record in synthetic.records:
        if record.status == "failed":
            synthetic.change(record, model={**SIZES, "identity": "1d"})
            continue
        reads = record.policy_name in ("pick", "ban", "ban_pick")
        tables = {
            name: build_policy(
                record.policy_name, record.knobs, **SIZES, calibration=views[name] if reads else None
            ).digest()[:16]
            for name in DOMAINS
        }
        told: dict[str, Any] = {"engagement": {"routing_table": tables}, "model": {**SIZES, "identity": "1d"}}
        told["task"] = {"max_tokens": 24}
        if reads:
            told |= {"calibration": CALIBRATION, "score": "insertion_kl" if "pick" in record.policy_name else None}
        synthetic.change(record, **told)
    return synthetic


def of_label(synthetic: SyntheticRun, label: str) -> PointRecord:
    return next(record for record in synthetic.records if record.label == label)


def of_the_embedded_model(folder: Path, *, problems: int = 200, gain: float = 0.1) -> tuple[SyntheticRun, Path]:
    """Such a run of pick_strength in FOLDER/outputs/pick_strength/first, exported for the checkpoint that ships."""
    synthetic = pick_strength(ladder(SyntheticRun(problems=problems)), gain=gain)
    exportable(synthetic, folder / "outputs")
    identity = inspect_checkpoint(ModelConfig(name="tiny")).identity
    for record in synthetic.records:
        synthetic.change(record, model={"identity": identity})
    return synthetic, synthetic.write(folder / "outputs" / "pick_strength" / "first")
