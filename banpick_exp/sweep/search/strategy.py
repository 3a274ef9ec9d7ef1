"""What a run does next: the interface between a search and the engines that work for it, and the plain grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from banpick_exp.records import PointRecord
from banpick_exp.sweep.point import Point


def setup(point: Point) -> tuple[object, ...]:
    """What two points must share to be paired while they run: the engine, the task with its data, seed and repeat.

    So a checkpoint that was made from another has stock of its own here; with that one it is compared in the analysis.
    """
    asked = f"{point.data_identity} {point.task.model_dump_json()}"
    return point.engine_fingerprint, asked, point.seed, point.repeat, point.checkpoint.base


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """One call to an engine: a whole `point` (its record comes back), or one `block` of its problems."""

    point: Point
    kind: Literal["point", "block"] = "point"
    block: int = 0


class Strategy(Protocol):
    """Hands out work until nothing is left; called by the driver alone, never from two threads."""

    def begin(self) -> list[Work]:
        """What can be done at once; nothing where all is finished already."""

    def finished(self, work: Work, record: PointRecord | None) -> list[Work]:
        """What can be done now that `work` is over. `record`: of its point, where that has one now (also failed)."""

    def waiting(self) -> list[Point]:
        """Points without a record for which no work is handed out at the moment."""

    def to_come(self) -> int:
        """At most how many works may be handed out yet, when what was handed out is over: engines are kept for them."""

    def points_left(self) -> int:
        """Points that will get a record yet."""

    def progress(self) -> tuple[float, float]:
        """Done and expected, in points: for the ETA."""
