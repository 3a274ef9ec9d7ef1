"""What is measured of one policy: all that an engine needs to know of a point, and nothing of the sweep around it."""

from __future__ import annotations

from dataclasses import dataclass

from banpick_exp.engine.config import EngineConfig
from banpick_exp.evaluation.calibration.config import CalibrationConfig
from banpick_exp.evaluation.calibration.scores import Name, Part
from banpick_exp.models.checkpoint import Checkpoint
from banpick_exp.models.config import ModelConfig
from banpick_exp.policy.rule import Rule
from banpick_exp.tasks.config import TaskConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """A checked rule on a checkpoint and engine, and the problems it is asked."""

    label: str
    fingerprint: str
    """Identity of everything that decides the result."""
    rule: Rule
    """Its budget knob is open where `budget` is set: the value it has then means nothing."""
    budget: float | None = None
    """The mean_kept that the knob is solved for on the loaded engine."""
    knob_fingerprint: str | None = None
    """Equal for trials that share a solved knob, the repeats of one; None where none is solved."""
    model: ModelConfig
    dtype_reason: str
    """Why the engine computes in `model.dtype`."""
    checkpoint: Checkpoint
    engine: EngineConfig
    task: TaskConfig
    data_identity: str
    reward_model: str | None = None
    """Identity of the checkpoint that chooses among several answers (`task.choose=reward`), where one does."""
    seed: int
    repeat: int
    """0, or the number of a repeat: the same problems in other batches and another order."""
    calibration: CalibrationConfig
    score: Name | None = None
    """What ranks the key experts that the policy reads of the calibration; None for one that reads none."""
    calibration_files: dict[str, str]
    """One file a domain, empty where no calibration is made."""
    calibration_identity: str | None = None
    """Of the calibration's data; None where no calibration is made."""
    calibration_overlap: int = 0
    """Problems that are asked here and in the calibration too."""
    calibration_fingerprint: str | None
    """Equal for trials that share a calibration; None for a policy that needs none. The artifact's own when typed."""

    @property
    def calibration_parts(self) -> tuple[Part, ...]:
        """What must lie in the calibration's artifact beside what every one holds."""
        gold: tuple[Part, ...] = ("limit_gain",) if self.calibration.sensitivity == "gold" else ()
        return gold if self.score is None else (self.score, *gold)

    @property
    def calibration_need(self) -> tuple[str, tuple[Part, ...]] | None:
        """What must have been measured before the trial can run: an artifact, and parts of it. None: nothing."""
        return None if self.calibration_fingerprint is None else (self.calibration_fingerprint, self.calibration_parts)
