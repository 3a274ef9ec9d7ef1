"""The kinds of engines that a run needs, and what each is called where there are several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    """What tells the kinds apart, one point of each: model and the engine's settings that differ. Empty for one kind.

    Example: `["tiny engine.max_num_seqs=8", "tiny engine.max_num_seqs=256"]`.
    """
    if len(points) < 2:
        return [""] * len(points)
    engines = [{f"engine.{key}": value for key, value in point.engine.model_dump().items()} for point in points]
    differing = list(varying(engines))
    return [
        " ".join([point.model.name, *(f"{key}={engine[key]}" for key in differing)])
        for point, engine in zip(points, engines, strict=True)
    ]
