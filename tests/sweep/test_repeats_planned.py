"""repeats=3: what is planned, what it costs, and how one repeat is typed alone."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from banpick_exp.errors import UserError
from banpick_exp.sweep.plan import SweepPlan, plan_sweep
from banpick_exp.sweep.rerun import rerun_command

SWEEP = ("+sweep=ban_threshold", "policy.lambda=0.5", "policy.k_min=3")


@pytest.fixture
def plan(tmp_path: Path) -> Any:
    def planned(*arguments: str) -> SweepPlan:
        return plan_sweep([*arguments, f"output_dir={tmp_path}", "dry_run=true"])

    return planned


def test_every_point_is_planned_once_a_repeat(plan: Any) -> None:
    once, thrice = plan(*SWEEP).points, plan(*SWEEP, "repeats=3").points
    assert len(once) == 9 and len(thrice) == 27
    assert [point.fingerprint for point in thrice[:9]] == [point.fingerprint for point in once], "what was is kept"
    assert [point.label for point in thrice[:9]] == [point.label for point in once]
    assert [point.repeat for point in thrice] == [0] * 9 + [1] * 9 + [2] * 9
    assert [point.label for point in thrice[9:18]] == [f"{point.label} repeat=1" for point in once]
    assert len({point.fingerprint for point in thrice}) == 27
    assert len({point.engine_fingerprint for point in thrice}) == 1
    assert len({point.calibration_fingerprint for point in thrice} - {None}) == 1


def test_a_repeat_can_be_typed_alone_and_its_command_says_so(plan: Any) -> None:
    planned = plan(*SWEEP, "repeats=2")
    commands = {point.label: rerun_command(planned.command, point) for point in planned.points}
    for point in planned.points:
        command = commands[point.label]
        assert ("repeat=1" in command) == bool(point.repeat) and "repeats" not in command
        again = plan(*shlex.split(command)[3:])
        assert point.fingerprint in {other.fingerprint for other in again.points}


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["repeats=0"], "repeats=0 is below 1"),
        (["repeats=choice(1,2)"], "one value only"),
        (["repeat=-1"], "repeat=-1 is no repeat"),
        (["repeats=2", "repeat=1"], "both say which repeats to run"),
    ],
)
def test_repeats_that_mean_nothing_are_refused(plan: Any, typed: list[str], words: str) -> None:
    with pytest.raises(UserError) as caught:
        plan(*SWEEP, *typed)
    assert words in str(caught.value)


def test_a_repeat_costs_no_timed_runs(plan: Any) -> None:
    alone = "search.ladder=none"  # repeats ask for no rivals
    once, twice = plan(*SWEEP, alone).estimate(1), plan(*SWEEP, alone, "repeats=2").estimate(1)
    assert twice.max_generated_tokens == 2 * once.max_generated_tokens, "all is asked again"
    timed = len(plan(*SWEEP).points) * plan(*SWEEP).points[0].task.speed_seconds
    assert once.time_seconds == twice.time_seconds == pytest.approx(timed), "nothing is timed again"
    assert twice.answer_seconds == pytest.approx(2 * once.answer_seconds)
