"""`search.ladder=auto`: when every point of a grid has run, points that no fixed_k matches in budget get one that does.

A policy is held against fixed_k of about its budget, and what a rule keeps is known only once it ran. So the rivals are
made while the run works: for each measured budget the nearest whole k where that is near enough, else fixed_k of that
very budget (`fixed_k k=4.6`). Points that the sweep has already, stock among them, are rivals too, so nothing is added
where nothing is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from banpick_exp.analysis import EQUAL_BUDGET_TOLERANCE
from banpick_exp.policy.rules.fixed_k import FixedK
from banpick_exp.records import PointRecord
from banpick_exp.sweep.point import Point
from banpick_exp.sweep.search.strategy import Strategy, Work, setup

REACH = 0.1
"""Experts a token: a rung with a fraction serves policies that keep up to so many more than it does."""


@dataclass(frozen=True, slots=True)
class Ladder:
    """What the ladder of a sweep may add: none of it is a point before budgets are measured."""

    at: Callable[[Point, float], Point]
    """fixed_k of that k, under the set-up of the point."""
    asking: tuple[Point, ...]
    """The points that may end without a rival."""

    def at_most(self) -> tuple[Point, ...]:
        """One rung for each, at the most that it may keep: what the price counts. Points of a set-up share theirs."""
        rungs: dict[tuple[object, ...], Point] = {}
        found = []
        for point in self.asking:
            kept = _budget(point)[1]
            key = (*setup(point), kept)
            if key not in rungs:
                rungs[key] = self.at(point, kept)
            found.append(rungs[key])
        return tuple(found)


NO_LADDER = Ladder(at=lambda point, k: point, asking=())


def asking(points: Sequence[Point]) -> tuple[Point, ...]:
    """Those points that may end without a rival among them, by what their rules may keep.

    Repeats ask for none, as verdicts are of the first; nor does a checkpoint that was made from another, which is held
    against that one's ladder.
    """
    rivals: dict[tuple[object, ...], list[float]] = {}
    for point in points:
        if point.rule.is_reference:
            rivals.setdefault(setup(point), []).append(_budget(point)[1])
    found = []
    for point in points:
        if point.rule.is_reference or point.repeat or point.checkpoint.base is not None:
            continue
        if not covers(rivals.get(setup(point), ()), *_budget(point)):
            found.append(point)
    return tuple(found)


def covers(rivals: Iterable[float], low: float, high: float) -> bool:
    """Whether each budget from `low` to `high` has one of these within EQUAL_BUDGET_TOLERANCE.

    >>> covers([4, 8], 7.9, 8), covers([4, 5], 4, 5), covers([], 1, 1)
    (True, False, False)
    """
    reached = low
    for kept in sorted(rivals):
        if kept - EQUAL_BUDGET_TOLERANCE <= reached:
            reached = max(reached, kept + EQUAL_BUDGET_TOLERANCE)
    return reached > high


def missing_rungs(measured: Iterable[float], rivals: Iterable[float], top_k: float) -> list[float]:
    """k, ascending and to two decimals, of the fixed_k points that these measured budgets lack.

    None for a budget below one expert, nor for one above `top_k`: no rung is there.

    >>> missing_rungs([4.6, 4.65, 5.1, 7.9, 8.0], rivals=[8], top_k=8)
    [4.6, 5]
    """
    rungs: list[float] = []
    known = list(rivals)
    for kept in sorted(measured):
        if kept > top_k or any(abs(kept - rival) <= EQUAL_BUDGET_TOLERANCE for rival in known):
            continue
        if abs(kept - round(kept)) <= EQUAL_BUDGET_TOLERANCE and 1 <= round(kept) < top_k:
            rungs.append(round(kept))
            known.append(rungs[-1])
        elif round(kept, 2) >= 1 and not any(0 <= kept - rung <= REACH for rung in rungs):
            rungs.append(round(kept, 2))
    return rungs


def _budget(point: Point) -> tuple[float, float]:
    """Least and most that it may keep of what the checkpoint selects: no rung is above that."""
    shape = point.checkpoint.shape
    low, high = point.rule.budget(shape) if point.budget is None else (point.budget, point.budget)
    return low, min(high, shape.top_k)


class Laddered:
    """The points of `whole`, then the rungs that their measured budgets lack."""

    def __init__(
        self,
        whole: Strategy,
        points: Sequence[Point],
        ladder: Ladder,
        records: Mapping[str, PointRecord],
        added: Callable[[Sequence[Point]], None],
    ) -> None:
        """`points`: all of `whole`, finished ones too; `records`: what is finished already, by fingerprint; `added`: is
        told of the rungs."""
        self._whole, self._points, self._at = whole, points, ladder.at
        self._records, self._tell = dict(records), added
        names = {point.fingerprint for point in points}
        self._asking = [point for point in ladder.asking if point.fingerprint in names]
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
        return self._whole.to_come() + (len(self._asking) if self._added is None else 0)

    def points_left(self) -> int:
        return self._whole.points_left() + (0 if self._added is None else len(self._added))

    def progress(self) -> tuple[float, float]:
        done, total = self._whole.progress()
        return done + self._done, total + self._done + (0 if self._added is None else len(self._added))

    def _next(self) -> list[Work]:
        """The rungs that are missing, once every other point is over; nothing before, and nothing a second time."""
        if self._added is not None or self._whole.points_left():
            return []
        by_setup: dict[tuple[object, ...], list[Point]] = {}
        for point in self._asking:
            by_setup.setdefault(setup(point), []).append(point)
        rungs = [rung for points in by_setup.values() for rung in self._missing(points)]
        self._added = {point.fingerprint for point in rungs}
        if rungs:
            self._tell(rungs)
        return [Work(point=point) for point in rungs]

    def _missing(self, points: Sequence[Point]) -> list[Point]:
        """Of points of one set-up, the most experts first; without those that an earlier driver ran."""
        one = points[0]
        beside = [point for point in self._points if point.rule.is_reference and setup(point) == setup(one)]
        earlier = {record.knobs["k"] for record in self._records.values() if record.series == FixedK.name}
        beside += [rung for k in sorted(earlier) if (rung := self._at(one, k)).fingerprint in self._records]
        measured, rivals = self._kept(points), self._kept(beside)
        rungs = [self._at(one, k) for k in missing_rungs(measured, rivals, one.checkpoint.shape.top_k)]
        return [rung for rung in reversed(rungs) if rung.fingerprint not in self._records]

    def _kept(self, points: Iterable[Point]) -> list[float]:
        """Measured budgets of those that are done."""
        found = (self._records.get(point.fingerprint) for point in points)
        return [record.measured.overall.mean_kept for record in found if record is not None and record.status == "done"]
