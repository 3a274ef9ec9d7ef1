"""The calibration artifact: what was measured per domain, and what a policy reads of it.

A folder `<fingerprint>/` with `calibration.safetensors` (arrays per domain) and `calibration.json` (settings, model,
data, versions). One made for another model, data or version is refused, never used.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from banpick_exp.artifact import METADATA, SCHEMA_VERSION, TENSORS, read_artifact
from banpick_exp.errors import UserError

SCORES = ("removal_kl", "removal_kl_per_use", "insertion_kl")

DomainCalibration = dict[str, np.ndarray]
"""usage [L,E] int64, tokens [L], each of SCORES [L,E] float32, layer_kl [L], ratio_range [2], self_kl []."""


def policy_view(domain: DomainCalibration, score: str) -> dict[str, Any]:
    """What `build_policy` takes: influence by `score`, descending (ties: lower layer, then lower expert)."""
    values_LE = domain[score]
    order = np.argsort(-values_LE.ravel(), kind="stable")
    num_experts = values_LE.shape[1]
    low, high = domain["layer_kl"].min(), domain["layer_kl"].max()
    span = float(high - low)
    sensitivity = (domain["layer_kl"] - low) / span if span > 0 else np.zeros_like(domain["layer_kl"])
    return {
        "influence": [[int(i // num_experts), int(i % num_experts), float(values_LE.ravel()[i])] for i in order],
        "layer_sensitivity": [float(x) for x in sensitivity],
        "r_min": float(domain["ratio_range"][0]),
        "r_max": float(domain["ratio_range"][1]),
        "usage": domain["usage"].tolist(),
    }


def save(folder: Path, fingerprint: str, domains: dict[str, DomainCalibration], metadata: dict[str, Any]) -> None:
    """Write the artifact atomically: a reader sees all of it or none."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".calibration-", dir=folder.parent))
    tensors = {f"{domain}.{name}": np.ascontiguousarray(v) for domain, d in domains.items() for name, v in d.items()}
    save_file(tensors, staging / TENSORS)
    header = {"schema_version": SCHEMA_VERSION, "fingerprint": fingerprint, "domains": list(domains), **metadata}
    (staging / METADATA).write_text(json.dumps(header, indent=1, sort_keys=True) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(staging, folder)


def load(folder: Path, fingerprint: str) -> dict[str, DomainCalibration] | None:
    """The artifact, or None where there is none. Raises UserError for another model's, data's or version's."""
    if not (folder / METADATA).is_file():
        return None
    header = read_artifact(folder)
    if header.fingerprint != fingerprint:
        raise UserError(
            f"{folder} is the calibration {header.fingerprint} of model {header.model_name}, not {fingerprint} of this "
            f"one: its key experts would be meaningless here. Remove the folder, or drop calibration.path, so that the "
            f"right one is made."
        )
    tensors = load_file(folder / TENSORS)
    return {
        domain: {name.split(".", 1)[1]: v for name, v in tensors.items() if name.split(".", 1)[0] == domain}
        for domain in header.domains
    }
