"""One point of a sweep: a policy, the engine it runs on and what it is asked."""

from __future__ import annotations

from dataclasses import dataclass

from banpick_exp.engine.config import EngineConfig
from banpick_exp.evaluation.calibration.config import CalibrationConfig
from banpick_exp.models.checkpoint import Checkpoint
from banpick_exp.models.config import ModelConfig
from banpick_exp.policy.rule import Rule
from banpick_exp.sweep.overrides import Assignment
from banpick_exp.tasks.config import TaskConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One cell of the sweep: a checked rule, the engine it runs on and what it is asked."""

    rule: Rule
    """Its budget knob is open where `budget` is set: the value it has then means nothing."""
    budget: float | None = None
    """The mean_kept that the knob is solved for on the loaded engine."""
    knob_fingerprint: str | None = None
    """Equal for points that share a solved knob, the repeats of one; None where none is solved."""
    label: str
    model: ModelConfig
    engine: EngineConfig
    task: TaskConfig
    calibration: CalibrationConfig
    seed: int
    repeat: int
    """0, or the number of a repeat: the same problems in other batches and another order."""
    checkpoint: Checkpoint
    data_files: dict[str, str]
    """One file a domain: what the task's split reads."""
    data_identity: str
    data_missing: str | None
    problems: dict[str, int | None]
    """Per domain, at most task.max_problems; None where the data cannot be counted."""
    calibration_files: dict[str, str]
    """One file a domain, empty where no calibration is made."""
    fingerprint: str
    engine_fingerprint: str
    """Equal for points that can share a loaded engine."""
    calibration_fingerprint: str | None
    """Equal for points that share a calibration; None for a policy that needs none. The artifact's own when typed."""
    settings: Assignment
    """Every key but the policy's that the command or the sweep gave this point: what to type to have it again."""
