"""The calibration artifact: what was measured per domain, kept in a folder and read again.

A folder `<fingerprint>/` with `calibration.safetensors` (arrays per domain; `measure.py` says what they are),
`calibration.json` (settings, model, data, versions) and one `score_<name>.safetensors` for every score that a point has
asked for so far (`scores.py`). Each file is whole or absent. One of another model, data or version is refused, never
used.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save, save_file

from banpick_exp.disk import write_atomically
from banpick_exp.errors import UserError
from banpick_exp.evaluation.calibration.artifact import METADATA, SCHEMA_VERSION, TENSORS, read_artifact, score_file
from banpick_exp.evaluation.calibration.scores import PARTS, Part


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Scores:
    """One score of every expert, [L,E]; or of every budget of a layer, [L,K-1], 1 expert first."""

    value: np.ndarray
    """float64, in the score's own unit."""
    error: np.ndarray
    """Its standard error over problems."""
    samples: np.ndarray
    """int64: on how many problems; a race leaves some early."""
    lower: np.ndarray
    """Lower bounds, of a score with a sign; else NaN. That those above 0 are right holds for all together."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class DomainCalibration:
    """What was measured on the problems of one domain; `measure.py` says how. L MoE layers, E experts."""

    usage: np.ndarray
    """[L,E] int64: tokens that selected an expert while the model answered, prompts included."""
    tokens: np.ndarray
    """[L] int64: of how many."""
    observed_usage: np.ndarray
    """[L,E] int64: the same over one pass of prompts and own answers."""
    observed_tokens: np.ndarray
    """[L] int64."""
    marker_usage: np.ndarray
    """[L,E] int64: of the observed tokens, those that are a marker such as <think>."""
    marker_tokens: np.ndarray
    """[L] int64."""
    k_min: np.ndarray
    """[] int64: the budget that layer sensitivity compares with K."""
    layer_kl: np.ndarray
    """[L] float64, nats a position: KL when one layer alone keeps k_min experts."""
    skip_kl: np.ndarray
    """[L] float64, nats a position: KL when a layer's routed experts are skipped altogether."""
    tail_square: np.ndarray
    """[L] float32: mean over tokens of the squared shares below the k_min best experts."""
    ratio_median: np.ndarray
    """[L] float32, 0 to 1: median over tokens of w2 / w1."""
    fisher: np.ndarray
    """[L] float32, nats: 2 * layer_kl / tail_square."""
    similarity: np.ndarray
    """[L,E,E] float32, 0 to 1: CKA of what two experts answer to the same hidden states."""
    reap: np.ndarray
    """[L,E] float32: mean over the expert's tokens of gate weight times output length (arXiv 2510.13999)."""
    man: np.ndarray
    """[L,E] float32: mean output length over the expert's tokens (arXiv 2606.15716)."""
    easy_ep: np.ndarray
    """[L,E] float32: sum of gate weight times output length times what the token's layer changes (2504.06792)."""
    fisher_removal: np.ndarray
    """[L,E] float32, nats: what removal is to cost to second order (the form of arXiv 2509.22299)."""
    ratio_range: np.ndarray
    """[2] float32: lowest and highest R = (w1+w2+w3) / sum w over tokens and layers."""
    self_kl: np.ndarray
    """[] float32, nats: the largest KL of the unchanged model against itself, which must be 0."""
    own_ids: np.ndarray
    """int32: all tokens of the own answers with their prompts; `own_marks` divides them (`sequences.packed`)."""
    own_marks: np.ndarray
    right_ids: np.ndarray
    """int32: the same of the right answers; empty without labels."""
    right_marks: np.ndarray
    scores: dict[Part, Scores] = field(default_factory=dict)
    """What experts, and budgets of a layer, have been scored by so far."""

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray], source: Path) -> DomainCalibration:
        """From the arrays of an artifact. Raises UserError, about `source`, where one is missing."""
        names = [each.name for each in fields(cls) if each.name != "scores"]
        if missing := [name for name in names if name not in arrays]:
            raise UserError(
                f"{source} lacks {', '.join(missing)}: the calibration is damaged. Copy the folder again, or leave"
                " calibration.path out to make one."
            )
        values: dict[str, Any] = {name: arrays[name] for name in names}
        return cls(**values)

    def arrays(self) -> dict[str, np.ndarray]:
        """By name, as they lie in the artifact; without the scores."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name != "scores"}

    @property
    def share(self) -> np.ndarray:
        """[L,E]: share of tokens that select an expert."""
        return self.usage / np.maximum(self.tokens, 1)[:, None]


def save_artifact(
    folder: Path, fingerprint: str, domains: Mapping[str, DomainCalibration], metadata: Mapping[str, Any]
) -> None:
    """Write the artifact, without scores, atomically: a reader sees all of it or none. One that is there stays."""
    if (folder / METADATA).is_file():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".calibration-", dir=folder.parent))
    tensors = {
        f"{domain}.{name}": np.ascontiguousarray(v) for domain, d in domains.items() for name, v in d.arrays().items()
    }
    save_file(tensors, staging / TENSORS)
    header = {"schema_version": SCHEMA_VERSION, "fingerprint": fingerprint, "domains": list(domains), **metadata}
    (staging / METADATA).write_text(json.dumps(header, indent=1, sort_keys=True) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(staging, folder)


def save_scores(folder: Path, name: Part, domains: Mapping[str, Scores], metadata: Mapping[str, Any]) -> None:
    """Add one score to an artifact, atomically. `metadata`: how it was measured, as plain JSON."""
    tensors = {
        f"{domain}.{each.name}": np.ascontiguousarray(getattr(scores, each.name))
        for domain, scores in domains.items()
        for each in fields(scores)
    }
    write_atomically(folder / score_file(name), save(tensors, {"header": json.dumps(metadata, sort_keys=True)}))


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
    found = {domain: DomainCalibration.of(_of(domain, tensors), folder / TENSORS) for domain in header.domains}
    for name in PARTS:
        if (path := folder / score_file(name)).is_file():
            values = load_file(path)
            for domain, calibration in found.items():
                calibration.scores[name] = Scores(**_of(domain, values))
    return found


def score_header(folder: Path, name: Part) -> dict[str, Any]:
    """How a score of the artifact was measured: samples, work, seconds."""
    with safe_open(folder / score_file(name), "np") as file:
        found: dict[str, Any] = json.loads(file.metadata()["header"])
    return found


def _of(domain: str, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    prefix = f"{domain}."
    return {name.removeprefix(prefix): array for name, array in tensors.items() if name.startswith(prefix)}
