"""Whatever a sweep's own file sets: the command of a point alone plans that very point."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from banpick_exp.sweep.compose import choices
from banpick_exp.sweep.plan import plan_sweep
from banpick_exp.sweep.rerun import rerun_command


@pytest.mark.parametrize("sweep", choices("sweep"))
def test_a_point_of_a_shipped_sweep_can_be_typed_again(sweep: str, tmp_path: Path) -> None:
    dry = [f"output_dir={tmp_path}", "dry_run=true", "search.ladder=none"]
    first = [f"+sweep={sweep}", *(dry[:2] if sweep == "pick_auto" else dry)]
    planned = plan_sweep(first)
    of_rules = {(point.rule.name, point.calibration_fingerprint is None): point for point in planned.points}
    asked = [*of_rules.values()][-2:]
    for point in asked:
        again = plan_sweep([*shlex.split(rerun_command(planned.command, point))[3:], *dry])
        assert point.fingerprint in {other.fingerprint for other in again.points}, point.label


def test_what_is_typed_stands_over_what_the_file_sets(tmp_path: Path) -> None:
    dry = [f"output_dir={tmp_path}", "dry_run=true"]
    (point, *_) = [
        point
        for point in plan_sweep(["+sweep=pick_strength", "calibration.score=removal_kl", *dry]).points
        if point.score is not None
    ]
    assert point.score == "removal_kl"
    command = rerun_command("python -m banpick_exp", point)
    assert "calibration.score=removal_kl" in command and "insertion_kl" not in command
