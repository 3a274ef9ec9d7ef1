"""The composed configuration of a sweep, in one tree: what a tracker keeps of it, and whoever asks what was run."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel

from banpick_exp.sweep.plan import SweepPlan
from banpick_exp.sweep.point import Point

PER_POINT = ("model", "engine", "task", "calibration", "seed", "repeat")


def composed(plan: SweepPlan) -> dict[str, Any]:
    """The run's settings as conf/ and the command made them, with those of the points beside them, as plain values.

    What differs between points is a list of its values; what each point's policy is, `sweep` says as the space. Also
    the command, and the identities of the checkpoints and the data.
    """
    run = plan.run.model_dump(mode="json")
    others = {name: section.model_dump(mode="json") for name, section in plan.sections.items()}
    points = {name: _of_points(name, plan.corners) for name in PER_POINT}
    manifest = plan.manifest()
    identities = {"models": manifest.models, "tasks": manifest.tasks}
    return run | others | points | {"command": plan.command, "identities": identities}


def _of_points(name: str, points: Iterable[Point]) -> Any:
    """The value that all points have; a list of them where they differ."""
    objects = {id(value): value for point in points for value in (getattr(point, name),)}  # points share them
    plain = [value.model_dump(mode="json") if isinstance(value, BaseModel) else value for value in objects.values()]
    found = list({json.dumps(value, sort_keys=True, default=str): value for value in plain}.values())
    return found[0] if len(found) == 1 else found
