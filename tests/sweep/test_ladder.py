"""`search.ladder=auto`: no point of a grid ends without a fixed_k rival of its measured budget."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from banpick_exp.analysis import EQUAL_BUDGET_TOLERANCE
from banpick_exp.cluster.backends.answering import AnsweringBackend
from banpick_exp.cluster.plan import RunPlan, plan_run
from banpick_exp.cluster.run import Run
from banpick_exp.errors import UserError
from banpick_exp.policy.rules.top_p import TopP
from banpick_exp.report.run import read_run
from banpick_exp.sweep.dry_run import print_plan
from banpick_exp.sweep.search.ladder import covers, missing_rungs

OWN = ["policy=top_p", "policy.p=choice(0.4,0.6)", "policy.k_min=3", "task.max_problems=6", "task.speed_seconds=0",
       "cluster=inline", "cluster.engines=2", "tracking=none", "run=mine"]  # fmt: skip


def planned(tmp_path: Path, *typed: str) -> RunPlan:
    return plan_run([*(typed or OWN), f"output_dir={tmp_path}"])


def asking(plan: RunPlan) -> list[str]:
    return [point.label for point in plan.sweep.ladder.asking]


def ladder_of(plan: RunPlan) -> list[str]:
    """Of the run's finished fixed_k points, the most experts first."""
    done = [record for record in read_run(plan.folder).done if record.series == "fixed_k"]
    return [record.label for record in sorted(done, key=lambda record: -record.mean_kept)]


def ran(plan: RunPlan) -> tuple[int, str]:
    plan.folder.write_manifest(plan.sweep.manifest())
    output = io.StringIO()
    return Run(plan, Console(file=output, width=300), AnsweringBackend(0.0)).run(), output.getvalue()


@pytest.mark.parametrize(
    ("measured", "rivals", "rungs"),
    [
        ([4.4, 8.0], [8], [4.4]),
        ([4.2, 3.9], [8], [4]),
        ([4.6, 4.65, 4.72, 5.1], [8], [4.6, 4.72, 5]),
        ([4.4, 4.2], [4, 8], [4.4]),
        ([7.8, 7.7], [8], [7.7]),
        ([0.6, 0.8, 1.4, 9.2], [8], [1, 1.4]),
        ([2.004], [], [2]),
    ],
)
def test_a_budget_gets_the_whole_k_that_is_near_or_one_with_its_fraction(
    measured: list[float], rivals: list[float], rungs: list[float]
) -> None:
    assert missing_rungs(measured, rivals, 8) == rungs
    for kept in measured:
        near = any(abs(kept - k) <= EQUAL_BUDGET_TOLERANCE for k in (*rivals, *rungs))
        assert near == (0.75 <= kept <= 8), "every budget that can have a rival has one, whatever the others are"


def test_what_a_rule_may_keep_is_covered_or_it_asks() -> None:
    assert covers([8], 7.75, 8) and not covers([8], 7.74, 8) and covers([1, 1.5, 2], 1, 2) and not covers([1, 2], 1, 2)


def test_points_that_may_lack_a_rival_are_priced_and_said(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    assert len(asking(plan)) == 2, "top_p keeps 3 to 8 of 8, and stock is 8"
    out = io.StringIO()
    print_plan(plan.sweep, plan.estimate, Console(file=out, width=300))
    assert "Ladder: up to 2 fixed_k points more" in out.getvalue()
    alone = planned(tmp_path, *OWN, "search.ladder=none")
    assert asking(alone) == []
    assert plan.estimate.max_generated_tokens == 5 / 3 * alone.estimate.max_generated_tokens


def test_nothing_is_added_where_nothing_is_missing(tmp_path: Path) -> None:
    rest = ["task.max_problems=6", "tracking=none"]
    for typed in (
        ["+sweep=pick_strength", *rest], ["policy=none", *rest], ["policy=fixed_k", "policy.k=4", *rest],
        ["policy=pick", *rest], [*OWN, "search.ladder=none"],
        ["policy=ban", "policy.budget=4.6", 'sweep.reference=[["policy=fixed_k","policy.k=4.6"]]', *rest],
    ):  # fmt: skip
        assert asking(planned(tmp_path, *typed)) == []
    assert len(asking(planned(tmp_path, "policy=ban", "policy.budget=4.6", *rest))) == 1


def test_another_search_knows_no_ladder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"search\.ladder=none is idle under search=racing"):
        planned(tmp_path, *OWN, "search=racing", "search.ladder=none")
    assert asking(planned(tmp_path, *OWN, "search=racing")) == []


def test_a_run_ends_with_a_rival_for_each_point_and_repeats_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Engines that answer by themselves measure the most that a rule may keep: here 4.4 of 8."""
    monkeypatch.setattr(TopP, "budget", lambda *_: (3.0, 4.4))
    alone = planned(tmp_path, *OWN, "search.ladder=none")
    code, said = ran(alone)
    assert code == 0 and "fixed_k k=" not in said and len(alone.folder.record_files()) == 3
    plan = planned(tmp_path)
    code, said = ran(plan)
    assert code == 0
    assert "fixed_k k=4.4 (search.ladder=none leaves them out)" in said
    assert "[1/1] fixed_k k=4.4" in said
    found = read_run(plan.folder)
    assert ladder_of(plan) == ["fixed_k k=4.4"]
    assert set(found.verdicts["reference_label"]) == {"fixed_k k=4.4"} and "No verdict" not in found.headline
    before = {path: path.stat().st_mtime_ns for path in plan.folder.record_files()}
    code, said = ran(planned(tmp_path))
    assert code == 0 and "Every point of this run is finished" in said
    assert {path: path.stat().st_mtime_ns for path in plan.folder.record_files()} == before
    next(iter(p for p in plan.folder.record_files() if '"fixed_k k=4.4"' in p.read_text())).unlink()
    code, said = ran(planned(tmp_path))
    assert code == 0 and {path for path in plan.folder.record_files()} == set(before), "the rung alone is asked again"


def test_a_rung_of_an_earlier_driver_is_a_rival_for_what_came_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TopP, "budget", lambda *_: (3.0, 4.4))
    first = [text for text in OWN if not text.startswith("policy.p=")]
    assert ran(planned(tmp_path, *first, "policy.p=0.4"))[0] == 0
    monkeypatch.setattr(TopP, "budget", lambda *_: (3.0, 4.5))
    plan = planned(tmp_path, *first, "policy.p=choice(0.4,0.6)")
    assert ran(plan)[0] == 0 and ladder_of(plan) == ["fixed_k k=4.4"], "4.5 is near the rung that ran"


def test_a_set_up_has_rungs_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TopP, "budget", lambda *_: (3.0, 4.0))
    plan = planned(tmp_path, *OWN, "task.max_tokens=choice(12,24)")
    assert ran(plan)[0] == 0 and len(plan.folder.record_files()) == 2 * (3 + 1)
    assert sorted(ladder_of(plan)) == ["fixed_k k=4 task.max_tokens=12", "fixed_k k=4 task.max_tokens=24"]
