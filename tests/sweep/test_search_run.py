"""A race on the real engine, without Ray: blocks, decisions, records, and a driver that dies and goes on."""

from __future__ import annotations

import contextlib
import io
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from loaded_backend import Done, LoadedBackend
from rich.console import Console

from banpick_exp.cluster.plan import RunPlan, plan_run
from banpick_exp.cluster.run import Run
from banpick_exp.evaluation.blocks import read_block
from banpick_exp.evaluation.cut import Cut
from banpick_exp.report import compare
from banpick_exp.report.run import read_run
from banpick_exp.report.terminal import print_pareto
from banpick_exp.sweep.search import cuts

if TYPE_CHECKING:
    from banpick_exp.engine.engine import Engine

pytestmark = pytest.mark.engine

SMALL = [
    "task.max_problems=32", "task.speed_seconds=0.1",
    "tracking=none",
]  # fmt: skip
SPACE = [
    "policy=pick", "policy.mode=boost", "policy.boost=choice(0.05,15)", "policy.experts={0:[3,7],1:[2,9],2:[1,5]}",
    'sweep.reference=[["policy=fixed_k","policy.k=1"]]', *SMALL,
]  # fmt: skip
RACING = ["search=racing", "search.blocks=[0.25,0.5,1]"]


def planned(folder: Path, *typed: str) -> RunPlan:
    plan = plan_run([*typed, "cluster=inline", f"output_dir={folder}"])
    plan.folder.write_manifest(plan.sweep.manifest())
    return plan


def run(plan: RunPlan, engine: Engine, limit: int = 1000) -> list[Done]:
    """What the engine was asked for in this run, whose driver dies after `limit` points and blocks."""
    backend = LoadedBackend(engine, limit)
    with contextlib.suppress(KeyboardInterrupt):
        Run(plan, Console(file=io.StringIO()), backend).run()
    return backend.done


@pytest.fixture(scope="module")
def grid(tiny_engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> RunPlan:
    plan = planned(tmp_path_factory.mktemp("grid"), *SPACE)
    run(plan, tiny_engine)
    return plan


@pytest.fixture(scope="module")
def race(tiny_engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> RunPlan:
    """A race whose driver dies in the second round, and a second driver and engine actor that finish it."""
    folder = tmp_path_factory.mktemp("race")
    plan = planned(folder, *SPACE, *RACING)
    first = run(plan, tiny_engine, limit=6)
    assert [block for _, _, block in first] == [0, 0, 0, 0, 1]  # the rest of the round is one call, which ends it
    before = block_times(plan)
    again = planned(folder, *SPACE, *RACING, f"resume={plan.folder.path}")
    rest = run(again, tiny_engine)
    assert not set(first) & set(rest), "no finished block is answered again"
    assert before.items() <= block_times(plan).items()
    return again


def block_times(plan: RunPlan) -> dict[Path, int]:
    """When each block of a run was written."""
    blocks = plan.folder.block_path(plan.sweep.points[0].fingerprint, 0).parent
    return {path: path.stat().st_mtime_ns for path in blocks.iterdir()}


def cut_of(plan: RunPlan) -> Cut:
    cut = cuts.cut_of(plan.sweep.points[0], plan.sweep.search)
    assert cut is not None
    return cut


def test_a_race_stops_what_is_broken_and_finishes_the_rest(race: RunPlan) -> None:
    records, set_aside = race.folder.load_points()
    assert set_aside == []
    by_label = {record.label: record for record in records}
    status = {label: record.status for label, record in by_label.items()}
    broken = next(label for label in status if "boost=15" in label)
    assert status.pop(broken) == "dropped" and set(status.values()) == {"done"} and len(status) == 3
    stopped = by_label[broken]
    overall, reason = stopped.measured.overall, stopped.reason or ""
    assert overall.n_problems in (24, 48) and overall.speedup is None and overall.mean_kept == 8
    assert f"after {overall.n_problems} of 96 problems" in reason
    assert "below none" in reason or "below pick" in reason
    outcomes = race.folder.outcomes(stopped.fingerprint)
    assert outcomes.height == overall.n_problems
    assert outcomes["correct"].mean() == pytest.approx(overall.accuracy)


def test_survivors_have_ordinary_records(race: RunPlan, grid: RunPlan) -> None:
    whole = {record.fingerprint: record for record in grid.folder.load_points()[0]}
    for record in race.folder.load_points()[0]:
        if record.status != "done":
            continue
        same = whole[record.fingerprint]
        ours, theirs = (plan.folder.outcomes(record.fingerprint) for plan in (race, grid))
        assert ours["problem_id"].to_list() == theirs["problem_id"].to_list(), "in file order again"
        differ = (ours["answer"] != theirs["answer"]).sum()
        assert differ <= 10, "batches move some greedy answers, not many"
        assert record.engagement.implied == same.engagement.implied
        assert record.engagement.routing_table == same.engagement.routing_table
        assert record.mean_kept == pytest.approx(same.mean_kept)
        assert record.timing.timed_tokens and same.timing.timed_tokens, "both are timed like any other point"


def test_the_blocks_of_a_point_are_not_taken_for_anothers(race: RunPlan) -> None:
    stock, cut = race.sweep.points[0].fingerprint, cut_of(race)
    assert read_block(race.folder, stock, cut, 0) is not None
    for other in (replace(cut, seed=1), replace(cut, shares=(0.5, 1.0))):
        assert read_block(race.folder, stock, other, 0) is None
    path = race.folder.block_path(stock, 0)
    content = path.read_bytes()
    path.write_bytes(content[:-10])
    assert read_block(race.folder, stock, cut, 0) is None
    path.write_bytes(content)


def test_the_race_is_shown_with_what_it_stopped(race: RunPlan) -> None:
    console = Console(file=io.StringIO(), width=200)
    print_pareto(read_run(race.folder), console)
    shown = " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]
    assert "dropped pick boost=15" in shown and "which keeps no more" in shown


def test_the_table_of_what_was_saved(race: RunPlan, grid: RunPlan, tmp_path: Path) -> None:
    file = tmp_path / "table.md"
    assert compare.run([str(grid.folder.path), str(race.folder.path), "--markdown", str(file)]) == 0
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in file.read_text().splitlines() if line]
    head, _, first, second = lines[:4]
    whole, raced = dict(zip(head, first, strict=True)), dict(zip(head, second, strict=True))
    assert (whole["search"], raced["search"], raced["dropped"]) == ("grid", "racing", "1")
    tokens = [grid.folder.outcomes(point.fingerprint)["tokens"].sum() for point in grid.sweep.points]
    timed = [sum(record.timing.timed_tokens or 0 for record in plan.folder.load_points()[0]) for plan in (grid, race)]
    assert whole["answer tokens"] == f"{sum(tokens):,}" and whole["timed tokens"] == f"{timed[0]:,}"
    assert raced["timed tokens"] == f"{timed[1]:,}" and int(raced["answer tokens"].replace(",", "")) < sum(tokens)
    covered, front = raced["front covered"].split(" of ")
    assert covered == front


def test_a_point_at_a_budget_is_solved_first_and_then_answered_in_blocks(tiny_engine: Engine, tmp_path: Path) -> None:
    typed = ["policy=top_p", "policy.budget=5", *SMALL, "search=racing", "search.blocks=[0.5,1]"]
    plan = planned(tmp_path, *typed)
    assert run(plan, tiny_engine)
    point = next(point for point in plan.sweep.points if point.budget is not None)
    blocks = [read_block(plan.folder, point.fingerprint, cut_of(plan), number) for number in (0, 1)]
    assert blocks[0] and blocks[1] and blocks[0].rules == blocks[1].rules
    record = plan.folder.read_point(point.fingerprint)
    assert record.budget is not None
    if not record.budget.corrected:  # what the sample showed holds for all problems: the blocks are the answers
        assert record.timing.block_seconds and record.policy == blocks[0].rules["math"]
    assert record.status == "done" and record.mean_kept == pytest.approx(5, abs=0.05)
