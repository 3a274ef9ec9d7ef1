"""`search.ladder=auto`: when every point of a grid has run, the fixed_k points beside each measured budget run too.

A policy is held against fixed_k of about its budget, and what a rule keeps is known only once it ran. So no sweep ends
without a rival for each of its points, whatever was typed; points that the sweep has already are not added.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from banpick_exp.policy.rules.fixed_k import FixedK
from banpick_exp.records import PointRecord
from banpick_exp.sweep.point import Point
from banpick_exp.sweep.search.strategy import Strategy, Work, setup

EXACT = 0.005
"""Experts a token; a measured budget this near to an integer has that one rung alone."""

Rung = tuple[tuple[object, ...], int]
"""Set-up and k."""


def rung_of(point: Point) -> Rung:
    """Of a fixed_k point."""
    assert isinstance(point.rule, FixedK)
    return setup(point), int(point.rule.k)


def possible_rungs(fixed_k: Iterable[Point], points: Sequence[Point]) -> tuple[Point, ...]:
    """Those of the `fixed_k` points that the points of a grid may need and that are none of them.

    Repeats ask for none, as verdicts are of the first; nor does a checkpoint that was made from another, which is held
    against that one's ladder.
    """
    asked: set[Rung] = set()
    for point in points:
        if not _asks(point):
            continue
        low, high = point.rule.budget(point.checkpoint.shape)
        if point.budget is not None:
            low = high = point.budget
        asked |= {(setup(point), k) for k in range(math.floor(low), math.ceil(high) + 1)}
    known = {point.fingerprint for point in points}
    rungs = {p.fingerprint: p for p in fixed_k if rung_of(p) in asked and p.fingerprint not in known}
    return tuple(rungs.values())


def neighbours(kept: float) -> list[int]:
    """The integers beside a measured budget.

    >>> neighbours(4.4), neighbours(5.001)
    ([4, 5], [5])
    """
    near = round(kept)
    return [near] if abs(kept - near) <= EXACT else [math.floor(kept), math.ceil(kept)]


def _asks(point: Point) -> bool:
    return not point.rule.is_reference and not point.repeat and point.checkpoint.base is None


class Laddered:
    """The points of `whole`, then the rungs beside what they were measured to keep."""

    def __init__(
        self,
        whole: Strategy,
        points: Sequence[Point],
        rungs: Sequence[Point],
        records: Mapping[str, PointRecord],
        note: Callable[[str], None],
    ) -> None:
        """`points`: all of `whole`, finished ones too; `rungs`: what may be added; `records`: what is finished already,
        by fingerprint; `note`: is told what is added."""
        self._whole, self._records, self._note = whole, dict(records), note
        self._points = [point for point in points if _asks(point)]
        self._rungs = {rung_of(point): point for point in rungs}
        self._added: set[str] | None = None
        """Rungs that have no record yet; None until all budgets are measured."""
        self._done = 0

    def begin(self) -> list[Work]:
        return self._whole.begin() + self._next()

    def finished(self, work: Work, record: PointRecord | None) -> list[Work]:
        if record is not None:
            self._records[record.fingerprint] = record
        if self._added is None:
            return self._whole.finished(work, record) + self._next()
        self._added.discard(work.point.fingerprint)
        self._done += 1
        return []

    def waiting(self) -> list[Point]:
        return self._whole.waiting()

    def to_come(self) -> int:
        return self._whole.to_come() + (len(self._open()) if self._added is None else 0)

    def points_left(self) -> int:
        return self._whole.points_left() + len(self._open() if self._added is None else self._added)

    def progress(self) -> tuple[float, float]:
        done, total = self._whole.progress()
        later = len(self._open() if self._added is None else self._added)
        return done + self._done, total + self._done + later

    def _open(self) -> list[Point]:
        """Rungs without a record, whether or not they will be asked for."""
        return [point for point in self._rungs.values() if point.fingerprint not in self._records]

    def _next(self) -> list[Work]:
        """The rungs that are needed, once every other point is over; nothing before, and nothing a second time."""
        if self._added is not None or self._whole.points_left():
            return []
        found: dict[str, Point] = {}
        for point in self._points:
            record = self._records.get(point.fingerprint)
            if record is None or record.status != "done":
                continue
            for k in neighbours(record.measured.overall.mean_kept):
                rung = self._rungs.get((setup(point), k))
                if rung is not None and rung.fingerprint not in self._records:
                    found[rung.fingerprint] = rung
        self._added = set(found)
        rungs = sorted(found.values(), key=lambda point: -rung_of(point)[1])
        if rungs:
            names = ", ".join(point.label for point in rungs)
            self._note(f"the rivals of what was measured follow: {names} (search.ladder=none leaves them out)")
        return [Work(point=point) for point in rungs]
