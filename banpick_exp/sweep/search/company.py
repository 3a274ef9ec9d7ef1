"""Which works may be one call to an engine, so that their policies answer in one batch (`evaluation.at_once`).

Those on few problems, whose policies leave a batch half empty: blocks of a race, candidates on dev. A point that is
timed is called alone, and so its call never lasts long, and no speed is read beside another policy.
"""

from __future__ import annotations

from banpick_exp.sweep.point import Point
from banpick_exp.sweep.search.strategy import Work, setup


def has_company(work: Work) -> bool:
    """Whether others may be asked in its batch: not in stock's, with whom all are paired, nor in a repeat's, whose
    other batches are its purpose, nor where choices are read, nor beside a policy that holds several rows itself."""
    point = work.point
    if point.engine.rows < 2 or len(point.rule.parts) > 1 or point.rule.is_stock or point.repeat or point.reading:
        return False
    return work.kind == "block" or _is_untimed(point)


def belong_together(one: Work, other: Work) -> bool:
    """Whether they ask the same problems of the same engine in the same way; each `has_company`."""
    first, second = one.point, other.point
    if (one.kind, one.block, first.data_identity) != (other.kind, other.block, second.data_identity):
        return False
    # Points of one setting share its objects, which spares comparing what is in them.
    same = first.task is second.task and first.engine_fingerprint == second.engine_fingerprint
    return (same and first.seed == second.seed) or setup(first) == setup(second)


def _is_untimed(point: Point) -> bool:
    return point.task.speed_seconds == 0
