"""When an engine that does not answer is taken for one that hangs."""

from __future__ import annotations

import pytest

from banpick_exp.cluster.deadline import FACTOR, Deadlines
from banpick_exp.sweep.plan import plan_sweep
from banpick_exp.sweep.point import Point
from banpick_exp.sweep.search.cuts import cut_of

LEAST_SECONDS = 600.0
LONG = ["policy=fixed_k", "policy.k=2", "task.max_tokens=100", "task.samples=1000", "task.temperature=1"]


def point_of(*typed: str) -> Point:
    return plan_sweep([*typed, "tracking=none"]).points[-1]


def test_a_call_of_seconds_has_the_least_that_is_typed() -> None:
    point = point_of("policy=fixed_k", "policy.k=2")
    for least in (0.01, 5.0, 900.0):
        deadlines = Deadlines(least)
        expected = deadlines.expected_seconds("point", point, None)
        assert expected is not None and FACTOR * expected < 900
        assert deadlines.limit_seconds("point", point, None) == max(least, FACTOR * expected)
    assert (
        Deadlines(LEAST_SECONDS).limit_seconds("point", point_of("policy=fixed_k", "policy.k=2"), None) == LEAST_SECONDS
    )


def test_a_long_call_has_many_times_its_estimate_and_a_block_its_part() -> None:
    plan = plan_sweep([*LONG, "task.block_problems=600"])
    point = plan.points[-1]
    cut = cut_of(point, plan.search)
    assert cut is not None and len(cut) == 4
    deadlines = Deadlines(LEAST_SECONDS)
    whole, block = (deadlines.limit_seconds(kind, point, cut) for kind in ("point", "block"))
    assert whole is not None and block is not None and LEAST_SECONDS < block < whole
    # 2,400 problems x 1,000 samples x 35 of 100 tokens at 3,000 tokens a second
    assert whole == pytest.approx(FACTOR * 2 * 28_000, rel=0.3)


def test_what_was_measured_stretches_the_limit() -> None:
    point, deadlines = point_of(*LONG), Deadlines(LEAST_SECONDS)
    before, expected = deadlines.limit_seconds("point", point, None), deadlines.expected_seconds("point", point, None)
    assert before is not None and expected is not None
    deadlines.returned("point", point, None, expected / 2)
    assert deadlines.limit_seconds("point", point, None) == before, "a fast call shortens nothing"
    deadlines.returned("point", point, None, expected * 3)
    assert deadlines.limit_seconds("point", point, None) == pytest.approx(3 * before)


@pytest.mark.parametrize("kind", ["calibrate", "start"])
def test_what_shows_progress_or_has_its_own_limit_has_none_here(kind: str) -> None:
    point, deadlines = point_of(*LONG), Deadlines(LEAST_SECONDS)
    deadlines.returned(kind, point, None, 1e9)
    assert deadlines.limit_seconds(kind, point, None) is None
