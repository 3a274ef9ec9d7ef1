"""The calibration that a trial reads: where it lies, and how its parts divide. Light: a run's driver reads this."""

from __future__ import annotations

from pathlib import Path

from banpick_exp.evaluation.calibration.artifact import artifact_folder
from banpick_exp.evaluation.calibration.division import Division, division_of_artifact, division_of_score
from banpick_exp.evaluation.calibration.scores import Part
from banpick_exp.evaluation.calibration.stored import BlocksInFiles, BlocksInMemory, blocks_folder
from banpick_exp.evaluation.trial import Trial


def artifact_of(trial: Trial, calibrations: Path) -> tuple[Path, str]:
    """The folder of the artifact, there or not, and its fingerprint. `calibrations`: the folder that sweeps share."""
    fingerprint = trial.calibration_fingerprint
    assert fingerprint is not None, f"{trial.label} reads no calibration"
    return artifact_folder(trial.calibration, calibrations, fingerprint), fingerprint


def division_of(trial: Trial, calibrations: Path, part: Part | None, width: int | None) -> Division:
    """How a part of it divides, kept in files beside the artifact.

    `width`: layers of a block; None where it is one call, whose blocks nobody else asks for. Raises UserError for a
    score of an artifact that cannot be read.
    """
    artifact, fingerprint = artifact_of(trial, calibrations)
    whole = width is None and not blocks_folder(artifact).is_dir()
    blocks = BlocksInMemory() if whole else BlocksInFiles(artifact, fingerprint)
    shape, settings = trial.checkpoint.shape, trial.calibration
    if part is None:
        return division_of_artifact(shape, settings, trial.task.domains, fingerprint, blocks, width)
    return division_of_score(shape, settings, part, artifact, blocks, width)
