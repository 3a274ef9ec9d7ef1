"""Into which blocks the problems of a point, and the layers of a calibration, are cut.

The block is the unit of work: an engine is given one at a time.

Points that are paired are cut alike, so a cut follows from what they share (task, engine, checkpoint) and from the
search: a race decides between its rounds, and a round is one block or several.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from banpick_exp.evaluation.calibration.division import LAYERS_AT_ONCE
from banpick_exp.evaluation.calibration.race import rounds
from banpick_exp.evaluation.calibration.scores import PARTS, Part
from banpick_exp.evaluation.cut import Cut, divided
from banpick_exp.sweep.config import RacingSearch, SearchConfig
from banpick_exp.sweep.estimate import (
    ASSUMED_PROBLEMS,
    BLOCK_SECONDS,
    block_problems,
    calibration_tokens,
    part_tokens,
    speed_of,
)
from banpick_exp.sweep.point import Point


@dataclass(frozen=True, slots=True)
class Rounds:
    """A cut, and after which of its blocks a race compares."""

    cut: Cut
    ends: tuple[int, ...]
    """Blocks answered after each round."""

    def blocks(self, number: int) -> range:
        """Those of a round."""
        return range(self.ends[number - 1] if number else 0, self.ends[number])


def rounds_of(point: Point, search: SearchConfig) -> Rounds:
    """How the problems of a point and of those it is paired with are cut."""
    shares, seed = (search.blocks, search.seed) if isinstance(search, RacingSearch) else ((1.0,), 0)
    problems = sum(point.problems.get(domain) or ASSUMED_PROBLEMS for domain in point.task.domains)
    found = divided(shares, problems, block_problems(point))
    return Rounds(
        cut=Cut(shares=tuple(itertools.chain.from_iterable(found)), seed=seed),
        ends=tuple(itertools.accumulate(map(len, found))),
    )


def cut_of(point: Point, search: SearchConfig) -> Cut | None:
    """The same; None where the point is answered whole, in one call."""
    cut = rounds_of(point, search).cut
    return cut if len(cut) > 1 or isinstance(search, RacingSearch) else None


def block_layers(point: Point, part: Part | None) -> int | None:
    """Layers of a block of a calibration's part, None being the artifact itself; None where it is one call.

    `calibration.block_layers`; where it is null, what the estimate says takes `BLOCK_SECONDS`: whole passes where that
    is more than one, and never less than a layer.
    """
    layers, settings = point.checkpoint.shape.num_layers, point.calibration
    if settings.block_layers is not None:
        return min(settings.block_layers, layers)
    seconds = (calibration_tokens(point) if part is None else part_tokens(point, part)) / speed_of(point).prefill
    if seconds <= BLOCK_SECONDS:
        return None
    stages = 1
    if part is not None:
        samples = settings.gain_samples if PARTS[part].labelled else settings.samples
        stages = len(rounds(samples, settings.first_share(part)))
    of_a_layer = seconds / (layers * stages * len(point.task.domains))
    found = max(1, int(BLOCK_SECONDS / of_a_layer))
    return min(layers, found if found < LAYERS_AT_ONCE else found - found % LAYERS_AT_ONCE)
