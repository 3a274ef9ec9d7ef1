"""What a report draws of the calibrations that a run's policies followed, kept in the run's own folder.

Calibrations are shared by all runs of an output folder and lie beside them. A run that is copied or moved elsewhere, or
whose calibrations were deleted, keeps its figures: each value of each score is a few kilobytes, kept when the run is
reported.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from banpick_exp.disk import create_folder, write_atomically
from banpick_exp.evaluation.calibration import arrays
from banpick_exp.evaluation.calibration.scores import PARTS
from banpick_exp.records import PointRecord
from banpick_exp.run_folder import RunFolder

Followed = Mapping[str, Mapping[str, np.ndarray]]
"""Score -> domain -> its value of every expert, [L,E]; of a budget of a layer [L,K-1]. In the score's own unit."""
_FINGERPRINT = re.compile(r"[0-9A-Za-z_-]{1,128}")


def followed_calibrations(folder: RunFolder, records: Iterable[PointRecord]) -> dict[str, Followed]:
    """Fingerprint -> what the report draws of that calibration; those that are neither beside the run nor in it are
    left out.

    What lies in the run is read unless it lacks a score that a record names: scores are added to a calibration later.
    Raises UserError for a damaged calibration beside the run where it is needed.
    """
    found: dict[str, Followed] = {}
    for fingerprint, asked in _asked(records).items():
        kept = _kept(folder.followed_path(fingerprint))
        if kept is None or not asked <= kept.keys():
            kept = _beside(folder.calibrations / fingerprint, fingerprint) or kept
        if kept is not None:
            found[fingerprint] = kept
    return found


def keep_followed(folder: RunFolder, records: Iterable[PointRecord], typed: Mapping[str, Path] | None = None) -> None:
    """Keep in the run's folder what its report draws of calibrations that lie elsewhere; what is there whole stays.

    Args: typed: fingerprint -> folder of a calibration that does not lie beside the run (calibration.path).
    Raises: OSError where a file cannot be written, UserError for a damaged calibration.
    """
    for fingerprint, asked in _asked(records).items():
        path = folder.followed_path(fingerprint)
        kept = _kept(path)
        if kept is not None and asked <= kept.keys():
            continue
        whole = _beside((typed or {}).get(fingerprint, folder.calibrations / fingerprint), fingerprint)
        if whole is None:
            continue
        # Numbered: the file orders by name, and a page has domains in the order of the task.
        tensors = {
            f"{score}/{number:06d}/{domain}": np.ascontiguousarray(value)
            for score, domains in whole.items()
            for number, (domain, value) in enumerate(domains.items())
        }
        create_folder(path.parent)
        write_atomically(path, save(tensors))


def _asked(records: Iterable[PointRecord]) -> dict[str, set[str]]:
    """Fingerprint -> the scores that points followed. What is no name of a file names no calibration of ours."""
    found: dict[str, set[str]] = {}
    for record in records:
        if record.calibration and _FINGERPRINT.fullmatch(record.calibration):
            found.setdefault(record.calibration, set()).update([record.score] if record.score else [])
    return dict(sorted(found.items()))


def _kept(path: Path) -> dict[str, dict[str, np.ndarray]] | None:
    """What lies in the run; a damaged file is none: it is made again from the calibration."""
    try:
        tensors = load(path.read_bytes())
    except (OSError, SafetensorError):
        return None
    if any(name.count("/") < 2 for name in tensors):
        return None
    found: dict[str, dict[str, np.ndarray]] = {}
    for name in sorted(tensors):
        value, (score, _, domain) = tensors[name], name.split("/", 2)
        if score in PARTS and value.ndim == 2 and value.size:
            found.setdefault(score, {})[domain] = value
    return found


def _beside(folder: Path, fingerprint: str) -> dict[str, dict[str, np.ndarray]] | None:
    domains = arrays.load(folder, fingerprint)
    if domains is None:
        return None
    found: dict[str, dict[str, np.ndarray]] = {}
    for domain, measured in domains.items():
        for score, scores in measured.scores.items():
            found.setdefault(score, {})[domain] = scores.value
    return found
