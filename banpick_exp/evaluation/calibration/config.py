"""How a calibration is measured: the `calibration` section of conf/config.yaml."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from banpick_exp.config import Section
from banpick_exp.models.shape import MoeShape
from banpick_exp.tasks.config import TaskConfig

CALIBRATION_WORKER = "banpick_exp.evaluation.calibration.worker.CalibrationExtension"
"""The worker extension of an engine that calibrates: a name, because the class imports vLLM."""

Score = Literal["insertion_kl", "removal_kl", "removal_kl_per_use"]


class CalibrationConfig(Section):
    """How key experts and layer sensitivity are measured, before the first point that needs them."""

    path: str | None = None
    """A folder with an artifact made before, to use instead of making one; null makes or finds its own."""
    score: Score = "insertion_kl"
    samples: int = Field(default=64, ge=1)
    """Per domain."""
    top_vocab: int = Field(default=1000, ge=2)
    """KL is taken over the unchanged model's most likely tokens, this many."""
    k_min: int | None = Field(default=None, ge=1)
    """Layer sensitivity compares this budget with top_k; null is the usual floor of the checkpoint's top_k."""
    range_factor: float = Field(default=2.0, ge=1)
    max_tokens: int = Field(default=24, ge=1)
    markers: tuple[str, ...] | None = None
    """Texts of one token each whose experts `npmi` finds; null is the task's answer separator, else <think>, </think>.
    Others are left out; with none left, the policies that follow npmi cannot start."""

    def floor(self, shape: MoeShape) -> int:
        """`k_min` for a checkpoint: as typed or as usual, at most its top_k."""
        return min(shape.usual_k_min if self.k_min is None else self.k_min, shape.top_k)

    def markers_of(self, task: TaskConfig) -> tuple[str, ...]:
        """The marker texts for a task."""
        if self.markers is not None:
            return self.markers
        return ("<think>", "</think>") if task.answer_separator is None else (task.answer_separator,)
