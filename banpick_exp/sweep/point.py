"""One point of a sweep: a trial, and what the sweep knows of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from banpick_exp.evaluation.trial import Trial
from banpick_exp.sweep.overrides import Assignment
from banpick_exp.tasks.lengths import Reading


@dataclass(frozen=True, kw_only=True, slots=True)
class Point(Trial):
    """One cell of the sweep. Equal fingerprints are the same experiment, and one record."""

    data_files: dict[str, str]
    """One file a domain: what the task's split reads."""
    data_missing: str | None
    problems: dict[str, int | None]
    """Per domain, at most task.max_problems; None where the data cannot be counted."""
    reading: dict[str, Reading] = field(default_factory=dict)
    """Per domain, what is read of choices; empty where every answer is written."""
    engine_fingerprint: str
    """Equal for points that can share a loaded engine."""
    settings: Assignment
    """Every key but the policy's that the command or the sweep gave this point: what to type to have it again."""
