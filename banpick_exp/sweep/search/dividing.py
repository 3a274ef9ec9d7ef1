"""Any search whose points are whole, divided: blocks first, wherever an engine is free, then what adds them up.

The search below asks for points and hears of points; engines are given blocks. So several engines share one long point,
and an engine that dies costs a block.
"""

from __future__ import annotations

from collections.abc import Callable

from banpick_exp.evaluation.blocks import read_block
from banpick_exp.evaluation.cut import Cut
from banpick_exp.records import PointRecord
from banpick_exp.run_folder import RunFolder
from banpick_exp.sweep.point import Point
from banpick_exp.sweep.search.strategy import Strategy, Work, setup


class Divided:
    """Hands out the points of `whole` in blocks."""

    def __init__(self, whole: Strategy, cut_of: Callable[[Point], Cut | None], folder: RunFolder) -> None:
        self._whole, self._cut_of, self._folder = whole, cut_of, folder
        self._missing: dict[str, set[int]] = {}
        """Blocks that are not over, by the fingerprint of their point, while that has no record."""
        self._count: dict[str, int] = {}
        """Blocks of a point."""
        self._later: dict[str, list[Work]] = {}
        """Blocks that wait for the first of their point, which solves its knob."""
        self._unpaired: dict[tuple[object, ...], list[Work]] = {}
        """Points in blocks that wait for stock's record, by set-up: whoever came first would answer for stock."""
        self._stock_at_work: set[tuple[object, ...]] = set()

    def begin(self) -> list[Work]:
        return self._divide(self._whole.begin())

    def finished(self, work: Work, record: PointRecord | None) -> list[Work]:
        name, freed = work.point.fingerprint, []
        if work.point.rule.is_stock and record is not None:
            self._stock_at_work.discard(setup(work.point))
            freed = self._unpaired.pop(setup(work.point), [])
        if record is not None:  # the point is over, whether or not each of its blocks is
            self._missing.pop(name, None)
            self._later.pop(name, None)
            return freed + self._divide(self._whole.finished(Work(point=work.point), record))
        missing = self._missing.get(name)
        if missing is None:  # it failed meanwhile
            return freed
        missing.discard(work.block)
        later = self._later.pop(name, [])
        if missing or later:
            return freed + later
        return freed + self._added_up(Work(point=work.point))

    def waiting(self) -> list[Point]:
        held = [work.point for works in self._unpaired.values() for work in works]
        return [*held, *self._whole.waiting()]

    def to_come(self) -> int:
        adding_up = sum(bool(missing) for missing in self._missing.values())
        held = sum(map(len, self._later.values())) + sum(map(len, self._unpaired.values()))
        # Points that are asked for later may be cut as those before were.
        return adding_up + held + self._whole.to_come() * max([1, *self._count.values()])

    def points_left(self) -> int:
        return self._whole.points_left()

    def progress(self) -> tuple[float, float]:
        done, total = self._whole.progress()
        return done + sum(1 - len(missing) / self._count[name] for name, missing in self._missing.items()), total

    def _divide(self, works: list[Work]) -> list[Work]:
        found: list[Work] = []
        for work in works:
            found += self._blocks_of(work)
        return found

    def _blocks_of(self, work: Work) -> list[Work]:
        point = work.point
        cut = self._cut_of(point)
        if cut is None:
            return [work]
        if point.rule.is_stock:
            self._stock_at_work.add(setup(point))
        name, numbers = point.fingerprint, range(len(cut))
        missing = [number for number in numbers if read_block(self._folder, name, cut, number) is None]
        self._missing[name], self._count[name] = set(missing), len(cut)
        if not missing:
            return self._added_up(work)
        works = [Work(point=point, kind="block", block=number) for number in missing]
        if point.budget is not None and len(works) > 1:
            self._later[name] = works[1:]
            works = works[:1]
        return works

    def _added_up(self, work: Work) -> list[Work]:
        """The call that adds up a point's blocks, or nothing yet."""
        key = setup(work.point)
        if not work.point.rule.is_stock and key in self._stock_at_work:
            self._unpaired.setdefault(key, []).append(work)
            return []
        return [work]
