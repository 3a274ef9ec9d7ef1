"""`search.ladder=auto`: no point of a grid ends without a fixed_k rival of its measured budget."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from banpick_exp.cluster.backends.answering import AnsweringBackend
from banpick_exp.cluster.plan import RunPlan, plan_run
from banpick_exp.cluster.run import Run
from banpick_exp.errors import UserError
from banpick_exp.policy.rules.top_p import TopP
from banpick_exp.report.run import read_run
from banpick_exp.sweep.dry_run import print_plan
from banpick_exp.sweep.search.ladder import neighbours

OWN = ["policy=top_p", "policy.p=choice(0.4,0.6)", "policy.k_min=3", "task.max_problems=6", "task.speed_seconds=0",
       "cluster=inline", "cluster.engines=2", "tracking=none", "run=mine"]  # fmt: skip


def planned(tmp_path: Path, *typed: str) -> RunPlan:
    return plan_run([*(typed or OWN), f"output_dir={tmp_path}"])


def rungs(plan: RunPlan) -> list[str]:
    return [point.label for point in plan.sweep.rungs]


def ran(plan: RunPlan) -> tuple[int, str]:
    plan.folder.write_manifest(plan.sweep.manifest())
    output = io.StringIO()
    return Run(plan, Console(file=output, width=300), AnsweringBackend(0.0)).run(), output.getvalue()


def test_a_measured_budget_lies_between_two_rungs_or_on_one() -> None:
    assert [neighbours(kept) for kept in (4.4, 4.004, 3.996, 0.5, 8.0)] == [[4, 5], [4], [4], [0, 1], [8]]


def test_rungs_that_a_rule_may_need_are_planned_and_said(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    assert rungs(plan) == [f"fixed_k k={k}" for k in range(3, 8)], "top_p keeps 3 to 8 of 8, and stock is 8"
    assert not any(point.rule.name == "fixed_k" for point in plan.sweep.points)
    out = io.StringIO()
    print_plan(plan.sweep, plan.estimate, Console(file=out, width=300))
    assert "Ladder: up to 5 rungs of fixed_k more" in out.getvalue()
    assert (
        plan.estimate.max_generated_tokens
        == 8 / 3 * planned(tmp_path, *OWN, "search.ladder=none").estimate.max_generated_tokens
    )


def test_nothing_is_added_where_nothing_is_missing(tmp_path: Path) -> None:
    rest = ["task.max_problems=6", "tracking=none"]
    for typed in (
        ["+sweep=pick_strength"], ["+sweep=iso_budget"], ["policy=none"], ["policy=fixed_k", "policy.k=4"],
        [*OWN, "search.ladder=none"], ["policy=pick"],
    ):  # fmt: skip
        assert rungs(planned(tmp_path, *typed, *rest[: 2 if typed[0] != OWN[0] else 0])) == []
    assert rungs(planned(tmp_path, "policy=ban", "policy.budget=4.5", *rest)) == ["fixed_k k=4", "fixed_k k=5"]


def test_another_search_knows_no_ladder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"search\.ladder=none is idle under search=racing"):
        planned(tmp_path, *OWN, "search=racing", "search.ladder=none")
    assert rungs(planned(tmp_path, *OWN, "search=racing")) == []


def test_a_run_ends_with_a_rival_for_each_point_and_repeats_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Engines that answer by themselves measure the most that a rule may keep: here 4.4 of 8."""
    monkeypatch.setattr(TopP, "budget", lambda *_: (3.0, 4.4))
    alone = planned(tmp_path, *OWN, "search.ladder=none")
    code, said = ran(alone)
    assert code == 0 and "fixed_k k=" not in said and len(alone.folder.record_files()) == 3
    plan = planned(tmp_path)
    assert rungs(plan) == ["fixed_k k=3", "fixed_k k=4", "fixed_k k=5"]
    code, said = ran(plan)
    assert code == 0
    assert "fixed_k k=5, fixed_k k=4 (search.ladder=none leaves them out)" in said and "fixed_k k=3" not in said
    found = read_run(plan.folder)
    assert sorted(record.label for record in found.done if record.series == "fixed_k") == ["fixed_k k=4", "fixed_k k=5"]
    assert set(found.verdicts["reference_label"]) == {"fixed_k k=4"} and "No verdict" not in found.headline
    before = {path: path.stat().st_mtime_ns for path in plan.folder.record_files()}
    code, said = ran(planned(tmp_path))
    assert code == 0 and "Every point of this run is finished" in said
    assert {path: path.stat().st_mtime_ns for path in plan.folder.record_files()} == before
    next(iter(p for p in plan.folder.record_files() if '"fixed_k k=5"' in p.read_text())).unlink()
    code, said = ran(planned(tmp_path))
    assert code == 0 and {path for path in plan.folder.record_files()} == set(before), "the rung alone is asked again"


def test_a_set_up_has_rungs_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TopP, "budget", lambda *_: (4.0, 4.0))
    plan = planned(tmp_path, *OWN, "task.max_tokens=choice(12,24)")
    assert rungs(plan) == ["fixed_k k=4 task.max_tokens=12", "fixed_k k=4 task.max_tokens=24"]
    assert ran(plan)[0] == 0 and len(plan.folder.record_files()) == 2 * (3 + 1)
