"""How a calibration is measured: the `calibration` section of conf/config.yaml."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from banpick_exp.config import Section
from banpick_exp.evaluation.calibration.scores import BUDGETS, PARTS, Asked, Part
from banpick_exp.models.shape import MoeShape
from banpick_exp.tasks.config import TaskConfig

CALIBRATION_WORKER = "banpick_exp.evaluation.calibration.worker.CalibrationExtension"
"""The worker extension of an engine that calibrates: a name, because the class imports vLLM."""
CHOOSING = {"path", "score", "sensitivity"}
"""Settings that change nothing of what is measured."""
DIVIDING = {"block_layers"}
"""Those that change how it is measured, and no result."""


EMBEDDED = "tiny"
"""The task with the embedded problems."""
EMBEDDED_TOKENS = 24
"""Of an answer to the embedded problems, which are as short as that."""
MOST_TOKENS = 512
"""Of an answer to others, where nobody types a number: the first part of a long thought is of its domain too, and each
token is read again for every change that is tried."""


class CalibrationConfig(Section):
    """How key experts and layer sensitivity are measured, before the first point that needs them."""

    path: str | None = None
    """A folder with an artifact made before, to use instead of making one; null makes or finds its own."""
    score: Asked = "auto"
    """What ranks key experts (`scores.py`): a choice of the point, measured when a point first asks for it."""
    sensitivity: Literal["kl", "gold"] = "kl"
    """What makes a layer sensitive: how far predictions move with k_min experts, or how much right answers lose."""
    samples: int = Field(default=64, ge=1)
    """Per domain: own answers, or documents of `text`."""
    gain_samples: int = Field(default=300, ge=2)
    """Per domain: right answers, as many as there are."""
    method: Literal["race", "full"] = "race"
    """race: only the highest `wanted` are scored on all samples; full: every expert is."""
    wanted: int = Field(default=16, ge=1)
    """Of a race: how many key experts are looked for in a domain."""
    text: str | None = None
    """A text file, one document a line, in place of the model's own answers: prefill alone, no labels, no gain."""
    positions: Literal["all", "last"] = "all"
    """Where KL is judged: at all generated tokens (of `text` all), or at the last position alone."""
    top_vocab: int = Field(default=1000, ge=2)
    """KL is taken over the unchanged model's most likely tokens, this many."""
    k_min: int | None = Field(default=None, ge=1)
    """Layer sensitivity compares this budget with top_k; null is the usual floor of the checkpoint's top_k."""
    range_factor: float = Field(default=2.0, ge=1)
    boost: float = Field(default=0.5, gt=0, le=20)
    """Logits, by which gain_boost and boost_kl reinforce."""
    max_tokens: int | None = Field(default=EMBEDDED_TOKENS, ge=1)
    """Of an own answer; null is the task's own, at most `MOST_TOKENS` (`settled_tokens`)."""
    markers: tuple[str, ...] | None = None
    """Texts of one token each whose experts `npmi` finds; null is the task's answer separator, else <think>, </think>.
    Others are left out; with none left, the policies that follow npmi cannot start."""
    block_layers: int | None = Field(default=None, ge=1)
    """Layers of a block, which one engine measures at a time and a death costs; null is what takes minutes by the
    estimate. A calibration that takes less is one call."""

    @property
    def labelled(self) -> bool:
        """Whether right answers are known: of problems always, of a corpus never."""
        return self.text is None

    @property
    def answer_tokens(self) -> int:
        """`max_tokens`, once it was settled for a task."""
        return EMBEDDED_TOKENS if self.max_tokens is None else self.max_tokens

    def settled_tokens(self, task: TaskConfig) -> int:
        """`max_tokens` for a task: as typed, or as long as its answers may be and at most `MOST_TOKENS`.

        Where a corpus is read or an artifact is there, nothing is answered: the number is as it ever was.
        """
        if self.max_tokens is not None:
            return self.max_tokens
        if self.path is not None or self.text is not None or task.name == EMBEDDED:
            return EMBEDDED_TOKENS
        return min(task.max_tokens, MOST_TOKENS)

    def first_share(self, name: Part) -> float:
        """Of the samples, how many the first round takes: all of them where nothing is raced."""
        return PARTS[name].first_share if self.method == "race" and name not in BUDGETS else 1.0

    def measured(self) -> dict[str, Any]:
        """The settings that an artifact is made with; the others choose among what it holds."""
        return self.model_dump(exclude=CHOOSING | DIVIDING)

    def floor(self, shape: MoeShape) -> int:
        """`k_min` for a checkpoint: as typed or as usual, at most its top_k."""
        return min(shape.usual_k_min if self.k_min is None else self.k_min, shape.top_k)

    def markers_of(self, task: TaskConfig) -> tuple[str, ...]:
        """The marker texts for a task."""
        if self.markers is not None:
            return self.markers
        return ("<think>", "</think>") if task.answer_separator is None else (task.answer_separator,)
