"""`search=grid`: every point once, in plan order."""

from __future__ import annotations

from collections.abc import Sequence

from banpick_exp.records import PointRecord
from banpick_exp.sweep.point import Point
from banpick_exp.sweep.search.strategy import Work


class Grid:
    """Every point once, in plan order."""

    def __init__(self, points: Sequence[Point]) -> None:
        self._points = list(points)
        self._done = 0

    def begin(self) -> list[Work]:
        return [Work(point=point) for point in self._points]

    def finished(self, work: Work, record: PointRecord | None) -> list[Work]:
        self._done += 1
        return []

    def waiting(self) -> list[Point]:
        return []

    def to_come(self) -> int:
        return 0

    def points_left(self) -> int:
        return len(self._points) - self._done

    def progress(self) -> tuple[float, float]:
        return self._done, len(self._points)
