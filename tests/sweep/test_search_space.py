"""`search=`: what a command plans, and what is refused before anything starts."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from banpick_exp.errors import UserError
from banpick_exp.manifest import MANIFEST
from banpick_exp.sweep.dry_run import search_line
from banpick_exp.sweep.overrides import interval_of
from banpick_exp.sweep.plan import SweepPlan, plan_sweep
from banpick_exp.sweep.space import Dimension, cornered, space_of

BAN = ["policy=ban", "policy.lambda=interval(0.2,1.5)", "policy.k_min=choice(2,3)", "search=optuna"]


@pytest.fixture
def plan(tmp_path: Path) -> Any:
    def planned(*arguments: str) -> SweepPlan:
        return plan_sweep([*arguments, f"output_dir={tmp_path}", "dry_run=true"], now=datetime(2026, 1, 31, 9, 30))

    return planned


def test_optuna_plans_the_references_and_keeps_the_space(plan: Any) -> None:
    found = plan(*BAN, 'sweep.reference=[["policy=fixed_k","policy.k=choice(3,5)"]]')
    assert [point.label for point in found.points] == ["none", "fixed_k k=3", "fixed_k k=5"]
    (space,) = found.spaces
    assert space.fixed == {"policy": "ban"}
    assert space.dimensions == (
        Dimension(key="policy.lambda", low=0.2, high=1.5),
        Dimension(key="policy.k_min", values=(2, 3)),
    )
    assert len(found.calibrations()) == 1, "Ban needs one, although no Ban point is planned yet"
    tokens = {point.label: point for point in found.corners}
    assert {"ban lambda=0.2 k_min=2", "ban lambda=1.5 k_min=3"} <= set(tokens)
    assert "optuna draws 24 points, 8 at random, from policy=ban policy.lambda=interval(0.2,1.5)" in search_line(found)
    grid = plan("policy=ban", "policy.lambda=choice(0.2,1.5)", "policy.k_min=2", "search.ladder=none")
    assert found.estimate(1).max_generated_tokens == grid.estimate(1).max_generated_tokens // 3 * (3 + 24)


def test_an_interval_takes_the_place_of_a_shipped_axis(plan: Any) -> None:
    found = plan("+sweep=ban_threshold", "policy.lambda=interval(0.2,1.5)", "search=optuna")
    assert [space.text() for space in found.spaces] == [
        "policy=ban policy.lambda=interval(0.2,1.5) policy.k_min=choice(2,3,4)"
    ]
    assert [point.rule.name for point in found.points] == ["none"] + ["fixed_k"] * 7


def test_racing_plans_the_grid_and_says_what_it_may_save(plan: Any) -> None:
    grid, race = plan("+sweep=pick_scan"), plan("+sweep=pick_scan", "search=racing")
    assert race.points == grid.points and len(race.points) == 40
    words = search_line(race)
    assert "32 points can be stopped" in words and f"{grid.estimate(1).max_generated_tokens:,}" in words


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["policy=ban", "policy.lambda=interval(0.2,1.5)"], "Type search=optuna beside it"),
        (["+sweep=ban_threshold", "policy.lambda=interval(0.2,1.5)", "search=racing"], "only search=optuna can draw"),
        (["policy=ban", "search=optuna"], "has no axis to sample"),
        (["policy=ban", "policy.k_min=interval(2,4)", "search=optuna"], "Type 'policy.k_min=range(2,5)'"),
        (["policy=pick", "policy.mode=interval(0,1)", "search=optuna"], "Use one of boost"),
        (["policy=ban", "policy.lambda=interval(0,3)", "search=optuna"], "outside (0, 2]"),
        (["policy=ban", "policy.lambda=interval(1,1)", "search=optuna"], "holds no number"),
        ([*BAN, "engine.max_num_seqs=choice(64,128)"], "axis over a setting"),
        ([*BAN, "repeats=2"], "axis over a setting"),
        (["policy=none", "search=optunna"], "Did you mean search=optuna?"),
        (["policy=none", "search=racing", "search.blocks=[0.5]"], "does not rise from above 0 to 1"),
        (["policy=none", "search=racing", "search.blocks=[0.5,0.5,1]"], "does not rise from above 0 to 1"),
        (["policy=none", "search=racing", "search.error_rate=0"], "search.error_rate=0 is not above 0"),
        (["policy=none", "search.error_rate=0.1"], "search.error_rate=0.1 is idle under search=grid"),
        (["policy=none", "search.trials=3"], "Type search=optuna beside it"),
        (["policy=none", "search=choice(grid,racing)"], "one value only"),
        (["policy=none", "search=optuna", "search.trails=3"], "Did you mean search.trials?"),
    ],
)
def test_a_search_that_means_nothing_is_refused(plan: Any, typed: list[str], words: str) -> None:
    with pytest.raises(UserError) as caught:
        plan(*typed)
    assert words in str(caught.value)


def test_a_run_goes_on_under_the_search_it_began_with(plan: Any, tmp_path: Path) -> None:
    begun = plan("+sweep=pick_strength", "search=racing")
    begun.folder.write_manifest(begun.manifest())
    assert plan("+sweep=pick_strength", "search=racing", f"resume={begun.folder.path}").resume
    with pytest.raises(UserError, match="with search = racing, but this command is with search = grid"):
        plan("+sweep=pick_strength", f"resume={begun.folder.path}")
    path = begun.folder.path / MANIFEST
    older = {
        key: value for key, value in json.loads(path.read_text()).items() if key not in ("search", "manifest_sha256")
    }
    path.write_text(json.dumps(older))
    assert plan("+sweep=pick_strength", f"resume={begun.folder.path}").resume, "runs made before searches are grids"


def test_sampled_numbers_are_short_and_stay_inside(plan: Any) -> None:
    shape = plan("policy=none").points[0].checkpoint.shape
    (dimension,) = space_of(("policy=ban", "policy.lambda=interval(0.2,1.5)"), shape).dimensions
    assert dimension.rounded(0.987654321) == 0.99
    assert dimension.rounded(0.1999) == 0.2 and dimension.rounded(1.50001) == 1.5
    assert cornered(("policy=ban", "policy.lambda=interval(0.2,1.5)")) == (
        "policy=ban",
        "policy.lambda=choice(0.2,1.5)",
    )
    assert interval_of("policy.lambda=choice(0.2,1.5)") is None
