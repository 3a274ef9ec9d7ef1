"""The kinds of engines that a run needs, and what each is called where there are several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from banpick_exp.setups import varying
from banpick_exp.sweep.point import Point
from banpick_exp.sweep.search.strategy import Strategy, Work


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of engine that has something to do."""

    point: Point
    """One of its points: which engine to load."""
    strategy: Strategy
    works: Sequence[Work]
    """What `strategy.begin()` gave, at least one."""
    name: str = ""
    """What tells it from the other kinds of the run; empty where it is the only one."""

    @property
    def of(self) -> str:
        """` of tiny engine.max_num_seqs=8`, for sentences; empty where it is the only kind."""
        return f" of {self.name}" if self.name else ""


def names_of(points: Sequence[Point]) -> list[str]:
    """What tells the kinds apart, one point of each: the model, and where several have it their settings that differ.
    Empty for a single kind.

    Example: `["tiny engine.max_num_seqs=8", "tiny engine.max_num_seqs=256", "tiny_control"]`.
    """
    if len(points) < 2:
        return [""] * len(points)
    models: dict[str, list[dict[str, Any]]] = {}
    for point in points:
        models.setdefault(point.model.name, []).append(_settings(point))
    differing = {name: list(varying(settings)) for name, settings in models.items()}
    return [
        " ".join([point.model.name, *(f"{key}={_settings(point)[key]}" for key in differing[point.model.name])])
        for point in points
    ]


def _settings(point: Point) -> dict[str, Any]:
    groups = {"model": point.model.model_dump(), "engine": point.engine.model_dump()}
    return {f"{group}.{key}": value for group, settings in groups.items() for key, value in settings.items()}
