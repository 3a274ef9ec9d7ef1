"""The header of a calibration artifact, read without torch or numpy: whether a policy may follow it is known at once.

A folder with `calibration.json` (model, data, settings, versions) and `calibration.safetensors` (arrays per domain,
named `<domain>.<quantity>`). The arrays themselves are read and written by `calibration.py`.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from banpick_exp.errors import UserError
from banpick_exp.evaluation.calibration.config import CHOOSING, DIVIDING, CalibrationConfig
from banpick_exp.evaluation.calibration.scores import PARTS, Part
from banpick_exp.models.shape import MoeShape

SCHEMA_VERSION = 3
"""Also part of a calibration's fingerprint. 3: scores lie in files of their own, with errors and bounds; budgets of a
layer by likelihood too; what a pass over the experts shows."""
TENSORS, METADATA = "calibration.safetensors", "calibration.json"
SCORE = "score_{name}.safetensors"
USAGE = "usage"
"""The array every domain has, [layers, experts]: its shape is that of the model it was counted on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Artifact:
    """What `calibration.json` says. `fingerprint` is the identity of everything the artifact was made from."""

    fingerprint: str
    model_name: str
    model_identity: str
    domains: tuple[str, ...]
    settings: dict[str, Any]


def score_file(name: Part) -> str:
    """The file of an artifact that holds one score of every expert; absent until a point asks for it."""
    return SCORE.format(name=name)


def parts_in(folder: Path) -> list[Part]:
    """What an artifact holds so far beside what every one does."""
    return [name for name in PARTS if (folder / score_file(name)).is_file()]


def artifact_folder(settings: CalibrationConfig, calibrations: Path, fingerprint: str) -> Path:
    """The folder of a calibration: the one that was typed, else the one in `calibrations` that sweeps share."""
    return calibrations / fingerprint if settings.path is None else Path(settings.path)


def read_artifact(folder: Path) -> Artifact:
    """The header in `folder`. Raises UserError where it is missing, damaged, or of another schema version."""
    path = folder / METADATA
    for needed in (path, folder / TENSORS):
        if not needed.is_file():
            raise UserError(
                f"calibration.path: there is no file {needed}, so there is nothing to calibrate Pick and Ban with."
                f" Type the folder that holds {METADATA} and {TENSORS}, or leave calibration.path out to make one."
            )
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
        version = header["schema_version"]
        if version == SCHEMA_VERSION:
            return Artifact(
                fingerprint=str(header["fingerprint"]),
                model_name=str(header["model"]["name"]),
                model_identity=str(header["model"]["identity"]),
                domains=tuple(map(str, header["domains"])),
                settings=dict(header["settings"]),
            )
    except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read as the header of a calibration ({type(error).__name__}: {error}): nobody can say"
            " which model it is of. Copy the folder again, or leave calibration.path out to make one."
        ) from None
    raise UserError(
        f"{path} has schema_version {version!r}, this version reads {SCHEMA_VERSION}: its numbers could mean something"
        " else. Leave calibration.path out to make a calibration, or use the version that wrote it."
    )


def check_artifact(
    settings: CalibrationConfig, *, model: str, identity: str, shape: MoeShape, domains: Sequence[str]
) -> Artifact:
    """The artifact at `settings.path`, held against a checkpoint (`identity`, `shape`) and a task's domains.

    Raises UserError for an artifact of another model, of other domains, of other sizes, or made with other settings
    than those typed.
    """
    assert settings.path is not None
    folder = Path(settings.path)
    found = read_artifact(folder)
    if found.model_identity != identity:
        raise UserError(
            f"calibration.path={folder} is of the model {found.model_name} ({found.model_identity}), but this sweep is"
            f" of {model} ({identity}): its key experts would be meaningless here. Leave calibration.path out to make"
            f" the right one, or type the model it is of, e.g. model={found.model_name}."
        )
    if missing := [domain for domain in domains if domain not in found.domains]:
        raise UserError(
            f"calibration.path={folder} covers {', '.join(found.domains)}, not {', '.join(missing)}: the policies would"
            f" have no key experts there. Type task.domains=[{','.join(d for d in domains if d in found.domains)}], or"
            " leave calibration.path out to make one of all domains."
        )
    sizes = array_shapes(folder / TENSORS)
    for domain in domains:
        expected = [shape.num_layers, shape.num_experts]
        if sizes.get(f"{domain}.{USAGE}") != expected:
            raise UserError(
                f"calibration.path={folder} has {sizes.get(f'{domain}.{USAGE}', 'nothing')} for {domain} where"
                f" {model} has {expected} (layers, experts): the folder is mixed up. Copy it again, or leave"
                " calibration.path out to make one."
            )
    _check_settings(settings, found, folder, shape)
    return found


def _check_settings(settings: CalibrationConfig, found: Artifact, folder: Path, shape: MoeShape) -> None:
    """UserError for a typed setting that the artifact was not made with. A score is a choice among what it holds."""
    for key, value in settings.model_dump(mode="json", exclude=CHOOSING | DIVIDING).items():
        made_with = found.settings.get(key)
        default = shape.usual_k_min if key == "k_min" else CalibrationConfig.model_fields[key].default
        if value not in (made_with, default):
            raise UserError(
                f"calibration.{key}={value} would change nothing: calibration.path={folder} was made with {made_with}."
                f" Leave calibration.{key} out, or leave calibration.path out to make one with it."
            )


def check_scored(settings: CalibrationConfig, name: Part) -> None:
    """UserError where a typed artifact lacks the score that a point follows: nothing is added to what was given."""
    assert settings.path is not None
    there = parts_in(Path(settings.path))
    if name in there:
        return
    held = f" (it holds {', '.join(there)})" if there else ""
    raise UserError(
        f"calibration.path={settings.path} holds no {name}{held}, which calibration.score={settings.score} with"
        f" calibration.sensitivity={settings.sensitivity} asks for: nothing could be chosen by it. Type a score that it"
        " holds, or leave calibration.path out to measure it."
    )


def array_shapes(path: Path) -> dict[str, list[int]]:
    """The shape of each array of a safetensors file, from its header: 8 bytes of length, then JSON."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, path.stat().st_size)))
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        end = max(entry["data_offsets"][1] for entry in entries.values())
        if path.stat().st_size != 8 + length + end:
            raise ValueError("it is cut short")
        return {name: list(entry["shape"]) for name, entry in entries.items()}
    except (OSError, ValueError, TypeError, LookupError, AttributeError, struct.error) as error:
        raise UserError(
            f"{path} cannot be read ({error}): the calibration is damaged. Copy the folder again, or leave"
            " calibration.path out to make one."
        ) from None
