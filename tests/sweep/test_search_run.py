"""A race on the real engine, without Ray: blocks, decisions, records, and a driver that dies and goes on."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from banpick_exp.cluster.actor import EngineActor
from banpick_exp.cluster.run import Sweep
from banpick_exp.evaluation.blocks import FOLDER, read_block
from banpick_exp.records import load_points, read_outcomes
from banpick_exp.report import print_pareto
from banpick_exp.report.compare import main as compare
from banpick_exp.run_folder import write_manifest
from banpick_exp.sweep.plan import SweepPlan, plan_sweep
from banpick_exp.sweep.search.strategy import Work, setup

if TYPE_CHECKING:
    from banpick_exp.engine.engine import Engine

pytestmark = pytest.mark.engine

SMALL = [
    "task.max_problems=32", "task.throughput_prompts=3", "task.throughput_repeats=1", "task.throughput_tokens=2",
    "tracking=none",
]  # fmt: skip
SPACE = [
    "policy=pick", "policy.mode=boost", "policy.boost=choice(0.05,15)", "policy.experts={0:[3,7],1:[2,9],2:[1,5]}",
    'sweep.reference=[["policy=fixed_k","policy.k=1"]]', *SMALL,
]  # fmt: skip
RACING = ["search=racing", "search.blocks=[0.25,0.5,1]"]


class Run:
    """A driver and its engine: what `runner` and `dispatch` do, one call at a time."""

    def __init__(self, plan: SweepPlan, engine: Engine) -> None:
        self.sweep = Sweep(plan, Console(file=io.StringIO()))
        self.plan = plan
        self.actor = EngineActor(
            plan.points[0], str(plan.folder.path), str(plan.folder.path.parent.parent / "calibrations")
        )
        self.actor._engine = engine
        self.stock = {setup(p): p.fingerprint for p in plan.points if p.rule.name == "none"}
        self.calls: list[tuple[str, str, int]] = []

    def go(self, limit: int = 1000) -> list[tuple[str, str, int]]:
        """Does the work of the search, at most `limit` calls of it; returns (kind, label, block)."""
        spending = self.sweep._spending(self.plan.points, self.sweep._pending())
        works = spending.begin()
        while works and len(self.calls) < limit:
            work = works.pop(0)
            works += spending.finished(work, self._call(work))
        return self.calls

    def _call(self, work: Work) -> dict[str, Any] | None:
        self.calls.append((work.kind, work.point.label, work.block))
        if work.kind == "block":
            self.actor.run_block(work.point, self.plan.search, work.block)
            return None
        record = self.actor.run_point(work.point, self.stock[setup(work.point)], "typed", self.plan.search)
        self.sweep.finish_point(record)
        return record


def planned(folder: Path, *typed: str) -> SweepPlan:
    plan = plan_sweep([*typed, f"output_dir={folder}"])
    write_manifest(plan.folder.path, plan.manifest())
    return plan


@pytest.fixture(scope="module")
def grid(tiny_engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> SweepPlan:
    plan = planned(tmp_path_factory.mktemp("grid"), *SPACE)
    Run(plan, tiny_engine).go()
    return plan


@pytest.fixture(scope="module")
def race(tiny_engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> SweepPlan:
    """A race whose driver dies in the second round, and a second driver and engine actor that finish it."""
    folder = tmp_path_factory.mktemp("race")
    plan = planned(folder, *SPACE, *RACING)
    first = Run(plan, tiny_engine).go(limit=6)
    assert [block for _, _, block in first] == [0, 0, 0, 0, 1, 1]
    before = {path: path.stat().st_mtime_ns for path in (plan.folder.path / FOLDER).iterdir()}
    again = plan_sweep([*SPACE, *RACING, f"output_dir={folder}", f"resume={plan.folder.path}"])
    rest = Run(again, tiny_engine).go()
    assert not set(first) & set(rest), "no finished block is answered again"
    assert before.items() <= {path: path.stat().st_mtime_ns for path in (plan.folder.path / FOLDER).iterdir()}.items()
    return again


def test_a_race_stops_what_is_broken_and_finishes_the_rest(race: SweepPlan) -> None:
    records, set_aside = load_points(race.folder.path / "points")
    assert set_aside == []
    by_label = {record["label"]: record for record in records}
    status = {label: record["status"] for label, record in by_label.items()}
    broken = next(label for label in status if "boost=15" in label)
    assert status.pop(broken) == "dropped" and set(status.values()) == {"done"} and len(status) == 3
    stopped = by_label[broken]
    overall = stopped["metrics"]["overall"]
    assert overall["n_problems"] in (24, 48) and overall["speedup"] is None and overall["mean_kept"] == 8
    assert f"after {overall['n_problems']} of 96 problems" in stopped["reason"]
    assert "below none" in stopped["reason"] or "below pick" in stopped["reason"]
    outcomes = read_outcomes(race.folder.path / "points", stopped["fingerprint"])
    assert outcomes.height == overall["n_problems"]
    assert outcomes["correct"].mean() == pytest.approx(overall["accuracy"])


def test_survivors_have_ordinary_records(race: SweepPlan, grid: SweepPlan) -> None:
    whole = {record["fingerprint"]: record for record in load_points(grid.folder.path / "points")[0]}
    for record in load_points(race.folder.path / "points")[0]:
        if record["status"] != "done":
            continue
        same = whole[record["fingerprint"]]
        ours, theirs = (read_outcomes(p.folder.path / "points", record["fingerprint"]) for p in (race, grid))
        assert ours["problem_id"].to_list() == theirs["problem_id"].to_list(), "in file order again"
        differ = (ours["answer"] != theirs["answer"]).sum()
        assert differ <= 10, "batches move some greedy answers, not many"
        for key in ("implied", "routing_table"):
            assert record["engagement"][key] == same["engagement"][key]
        assert record["metrics"]["overall"]["mean_kept"] == pytest.approx(same["metrics"]["overall"]["mean_kept"])
        assert record["timing"]["timed_tokens"] == same["timing"]["timed_tokens"] == 2 * 3 * 2


def test_the_blocks_of_a_point_are_not_taken_for_anothers(race: SweepPlan) -> None:
    stock = race.points[0].fingerprint
    assert read_block(race.folder.path, stock, race.search, 0) is not None
    for change in ({"seed": 1}, {"blocks": (0.5, 1.0)}):
        assert read_block(race.folder.path, stock, race.search.model_copy(update=change), 0) is None
    path = race.folder.path / FOLDER / f"{stock}.0.json"
    content = path.read_bytes()
    path.write_bytes(content[:-10])
    assert read_block(race.folder.path, stock, race.search, 0) is None
    path.write_bytes(content)


def test_the_race_is_shown_with_what_it_stopped(race: SweepPlan) -> None:
    console = Console(file=io.StringIO(), width=200)
    print_pareto(race.folder.path, console)
    shown = " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]
    assert "dropped pick boost=15" in shown and "which keeps no more" in shown


def test_the_table_of_what_was_saved(race: SweepPlan, grid: SweepPlan, tmp_path: Path) -> None:
    file = tmp_path / "table.md"
    assert compare([str(grid.folder.path), str(race.folder.path), "--markdown", str(file)]) == 0
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in file.read_text().splitlines() if line]
    head, _, first, second = lines[:4]
    whole, raced = dict(zip(head, first, strict=True)), dict(zip(head, second, strict=True))
    assert (whole["search"], raced["search"], raced["dropped"]) == ("grid", "racing", "1")
    tokens = [read_outcomes(grid.folder.path / "points", p.fingerprint)["tokens"].sum() for p in grid.points]
    assert whole["answer tokens"] == f"{sum(tokens):,}" and whole["timed tokens"] == f"{4 * 12}"
    assert raced["timed tokens"] == f"{3 * 12}" and float(raced["of the first"].rstrip("%")) < 100
    covered, front = raced["front covered"].split(" of ")
    assert covered == front


def test_a_point_at_a_budget_is_solved_first_and_then_answered_in_blocks(tiny_engine: Engine, tmp_path: Path) -> None:
    typed = ["policy=top_p", "policy.budget=5", *SMALL, "search=racing", "search.blocks=[0.5,1]"]
    plan = planned(tmp_path, *typed)
    assert Run(plan, tiny_engine).go()
    point = next(point for point in plan.points if point.budget is not None)
    blocks = [read_block(plan.folder.path, point.fingerprint, plan.search, number) for number in (0, 1)]
    assert blocks[0] and blocks[1] and blocks[0].rules == blocks[1].rules
    record = next(r for r in load_points(plan.folder.path / "points")[0] if r["fingerprint"] == point.fingerprint)
    if not record["budget"]["corrected"]:  # what the sample showed holds for all problems: the blocks are the answers
        assert record["timing"]["block_seconds"] > 0 and record["policy"] == blocks[0].rules["math"]
    assert record["status"] == "done" and record["metrics"]["overall"]["mean_kept"] == pytest.approx(5, abs=0.05)
