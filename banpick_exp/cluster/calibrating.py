"""One calibration on the way: which of its blocks engines are given next, told from the files that are there.

The driver's side of `evaluation.calibration.division`. Domains go on beside each other, a stage of a domain when the
one before it is whole; when all of a part is there, one call adds it up. A short calibration is one call.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from banpick_exp.cluster.events import ADDING_UP
from banpick_exp.errors import UserError
from banpick_exp.evaluation.calibrated import artifact_of, division_of
from banpick_exp.evaluation.calibration.artifact import METADATA, parts_in
from banpick_exp.evaluation.calibration.division import Division
from banpick_exp.evaluation.calibration.scores import Part
from banpick_exp.evaluation.calibration.stored import ANSWERS, Block
from banpick_exp.sweep.estimate import speed_of, tokens_of_a_change
from banpick_exp.sweep.point import Point
from banpick_exp.sweep.search.cuts import block_layers

ASKED_AT_MOST = 3
"""Times that a block is asked for before the rest of its part is left to one engine."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """What one engine is asked for."""

    block: Block | None = None
    """None: measure what is left, or add up what is there."""
    parts: tuple[Part, ...] | None = None
    """Without a block, of the artifact and these scores; None: of all that the point reads."""
    changes: float = 0.0
    """The work of it: changes times problems."""
    seconds: float | None = None
    """By the estimate, the most that it should take; None of a call that shows its progress."""

    def call(self, point: Point) -> tuple[Any, ...]:
        """A method of `EngineActor`, and its arguments."""
        if self.block is not None:
            return "calibrate_block", point, self.block
        return ("calibrate", point) if self.parts is None else ("calibrate", point, None, self.parts)


class Calibrating:
    """The calibration that a point reads, until all that it reads of it is there."""

    def __init__(self, point: Point, calibrations: Path) -> None:
        self.point, self.over, self._calibrations = point, False, calibrations
        self.seconds = 0.0
        """Of engines, so far."""
        self.done = self.planned = 0.0
        """Of the part that is measured now, changes times problems; 0 where one call does all."""
        self._artifact, _ = artifact_of(point, calibrations)
        self._parts: list[Part | None] = []
        """That are left, the artifact itself (None) first."""
        self._division: Division | None = None
        self._at_work: dict[str, set[Block]] = {}
        """Blocks that are not over, by domain."""
        self._asked: Counter[Block] = Counter()

    def begin(self) -> list[Step]:
        """What can be done at once."""
        parts = _missing(self.point, self._artifact)
        if all(block_layers(self.point, part) is None for part in parts):
            return [Step()]
        self._parts = parts
        return self._begin_part()

    def finished(self, step: Step, seconds: float) -> list[Step]:
        """What can be done now that a step is over. `seconds`: what it took its engine."""
        self.seconds += seconds
        self.done += step.changes
        if step.block is None:
            self._parts = self._parts[1:]
            self.over = not self._parts
            return [] if self.over else self._begin_part()
        domain = step.block.stage.domain
        self._at_work[domain].discard(step.block)
        if self._at_work[domain]:
            return []
        return self._next(domain) or self._add_up()

    def to_come(self) -> int:
        """At most how many steps may be asked for side by side, once those that are out are over."""
        stages_left = any(self._at_work.values())  # else what is out adds up, or is all
        return _most_steps(self.point, self._parts if stages_left else self._parts[1:])

    def _begin_part(self) -> list[Step]:
        part = self._parts[0]
        self._division, self._at_work, self.done, self.planned = None, {}, 0.0, 0.0
        width = block_layers(self.point, part)
        if width is None:
            return self._add_up()
        try:
            self._division = division = division_of(self.point, self._calibrations, part, width)
        except (UserError, OSError):  # the artifact is damaged: an engine says so, and its points fail
            return self._add_up()
        self.planned = division.planned()
        self.done = self.planned - division.left()
        steps = [step for domain in division.domains for step in self._next(domain)]
        return steps or self._add_up()

    def _next(self, domain: str) -> list[Step]:
        """The blocks of a domain that can be measured now."""
        assert self._division is not None
        self._at_work[domain] = set()
        if self._parts[0] not in _missing(self.point, self._artifact):
            return []  # another run was faster
        missing = self._division.walk(domain)[1]
        if any(self._asked[block] for block in missing):
            self._division.blocks.refresh()
            missing = self._division.walk(domain)[1]
        if any(self._asked[block] >= ASKED_AT_MOST for block in missing):
            missing = []  # what was measured is not seen here: the engine that adds up looks for itself
        self._asked.update(missing)
        self._at_work[domain] = set(missing)
        return [self._step(block) for block in missing]

    def _step(self, block: Block) -> Step:
        division, point = self._division, self.point
        assert division is not None
        most = division.most_changes(block)
        seconds = most * tokens_of_a_change(point) / len(point.task.domains) / speed_of(point).prefill
        if block.stage.part is None and block.stage.number == ANSWERS:
            asked = max(point.calibration.samples, point.calibration.gain_samples)
            seconds = asked * point.calibration.answer_tokens / speed_of(point).generate
        return Step(block=block, changes=division.changes(block), seconds=seconds)

    def _add_up(self) -> list[Step]:
        """Nothing while a block is at work."""
        if any(self._at_work.values()):
            return []
        part = self._parts[0]
        return [Step(parts=() if part is None else (part,))]

    def fields(self, step: Step, *, over: bool) -> dict[str, Any]:
        """What the events of a step say beside which engine and which calibration. `over`: the step is done now."""
        if self._division is None:
            return {}
        words = ADDING_UP if step.block is None else step.block.words()
        return {"what": words, "done": self.done + over * step.changes, "expected": self.planned}


def engines_of_use(points: Iterable[Point], calibrations: Path) -> int:
    """How many engines can measure side by side what these points read and is not there yet; 0 where all is."""
    needs = {point.calibration_need: point for point in points if point.calibration_need is not None}.values()
    return max((_most_steps(point, _missing(point, artifact_of(point, calibrations)[0])) for point in needs), default=0)


def steps_at_most(point: Point) -> int:
    """Side by side, of a calibration that was not begun yet."""
    return _most_steps(point, (None, *point.calibration_parts))


def _most_steps(point: Point, parts: Iterable[Part | None]) -> int:
    """Side by side, of parts that come one after the other; 0 where there are none."""
    ranges = [block_layers(point, part) for part in parts]
    layers, domains = point.checkpoint.shape.num_layers, len(point.task.domains)
    return max((1 if width is None else domains * math.ceil(layers / width) for width in ranges), default=0)


def _missing(point: Point, artifact: Path) -> list[Part | None]:
    """What the point reads and is not there, the artifact itself (None) first."""
    parts: list[Part | None] = [] if (artifact / METADATA).is_file() else [None]
    there = parts_in(artifact)
    return parts + [part for part in point.calibration_parts if part not in there]
