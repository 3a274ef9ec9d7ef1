"""How the problems of a point are cut into blocks, and in which order a divided search hands them out."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from banpick_exp.evaluation.blocks import block_file
from banpick_exp.evaluation.cut import Cut, divided
from banpick_exp.records import PointRecord
from banpick_exp.run_folder import RunFolder
from banpick_exp.sweep.config import RacingSearch
from banpick_exp.sweep.estimate import BLOCK_SECONDS, block_problems
from banpick_exp.sweep.plan import plan_sweep
from banpick_exp.sweep.point import Point
from banpick_exp.sweep.search.cuts import cut_of, rounds_of
from banpick_exp.sweep.search.dividing import Divided
from banpick_exp.sweep.search.grid import Grid
from banpick_exp.sweep.search.racing import Race
from banpick_exp.sweep.search.strategy import Work

LADDER = ["policy=fixed_k", "policy.k=choice(2,4)", "task.max_problems=40", "tracking=none"]  # 120 problems
RECORD = cast(PointRecord, object())  # that there is one is all that a search is told here


def planned(*typed: str) -> list[Point]:
    return list(plan_sweep([*LADDER, *typed]).points)


@pytest.mark.parametrize(
    ("rounds", "problems", "size", "found"),
    [
        ([1.0], 100, 100, [[1.0]]),
        ([1.0], 100, 1000, [[1.0]]),
        ([1.0], 101, 100, [[0.5, 1.0]]),
        ([1.0], 100, 25, [[0.25, 0.5, 0.75, 1.0]]),
        ([0.25, 1.0], 800, 400, [[0.25], [0.625, 1.0]]),
        ([0.5, 1.0], 3, 1, [[0.25, 0.5], [0.75, 1.0]]),
    ],
)
def test_a_round_is_cut_evenly(rounds: list[float], problems: int, size: int, found: list[list[float]]) -> None:
    assert divided(rounds, problems, size) == found


@pytest.mark.parametrize("size", [1, 7, 40, 119, 120, 121])
def test_every_problem_is_in_one_block(size: int) -> None:
    point = planned(f"task.block_problems={size}")[0]
    cut = rounds_of(point, plan_sweep(LADDER).search).cut
    for domain in point.task.domains:
        asked = [index for block in range(len(cut)) for index in cut.indices(40, domain, block)]
        assert sorted(asked) == list(range(40))


def test_points_that_are_paired_are_cut_alike() -> None:
    plan = plan_sweep([*LADDER, "task.block_problems=50"])
    assert {cut_of(point, plan.search) for point in plan.points} == {Cut(shares=(1 / 3, 2 / 3, 1.0), seed=0)}


def test_a_point_of_seconds_is_one_block_and_no_cut() -> None:
    plan = plan_sweep(LADDER)
    assert [cut_of(point, plan.search) for point in plan.points] == [None] * len(plan.points)


def test_blocks_take_minutes_by_the_estimate() -> None:
    short, long = planned("task.max_tokens=24")[0], planned("task.max_tokens=40", "engine.max_num_seqs=2")[0]
    assert block_problems(short) == pytest.approx(BLOCK_SECONDS * 3000 / (0.35 * 24), rel=0.1)
    assert block_problems(long) == pytest.approx(BLOCK_SECONDS * 3000 / (0.35 * 40), rel=0.1)


def test_a_race_compares_after_whole_rounds() -> None:
    plan = plan_sweep([*LADDER, "search=racing", "search.blocks=[0.25,0.5,1]", "task.block_problems=40"])
    rounds = rounds_of(plan.points[0], plan.search)
    assert rounds.ends == (1, 2, 4) and rounds.cut.shares == (0.25, 0.5, 0.75, 1.0)
    assert [list(rounds.blocks(number)) for number in range(3)] == [[0], [1], [2, 3]]


def test_a_race_says_how_much_may_come(tmp_path: Path) -> None:
    """No block is on the disk, so nothing is stopped: the most that can come does."""
    plan = plan_sweep([*LADDER, "search=racing", "search.blocks=[0.25,0.5,1]", "task.block_problems=40"])
    assert isinstance(plan.search, RacingSearch)

    def dropped(*arguments: Any) -> None:
        raise AssertionError(arguments)

    race = Race(plan.points, {}, plan.search, RunFolder(tmp_path), dropped, lambda text: None)
    works, handed_out = race.begin(), list[int]()
    while works:
        handed_out.append(len(works))
        most = race.to_come()
        record = cast(PointRecord, SimpleNamespace(status="done"))
        works = [more for w in works for more in race.finished(w, record if w.kind == "point" else None)]
        assert len(works) <= most
    assert handed_out == [3, 3, 6, 3] and race.to_come() == 0


def write_block(folder: RunFolder, point: Point, cut: Cut, number: int) -> None:
    content: dict[str, Any] = {"policy": {}, "seconds": 1.0, "swap_seconds": 0.0, "domains": {}}
    path = folder.block_path(point.fingerprint, number)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(block_file(point.fingerprint, cut, number, content))


def told(works: list[Work]) -> list[tuple[str, int]]:
    return [(work.point.label, work.block if work.kind == "block" else -1) for work in works]


def test_blocks_first_then_what_adds_them_up_and_stock_before_all(tmp_path: Path) -> None:
    plan = plan_sweep([*LADDER, "task.block_problems=60"])
    stock, two, _ = points = list(plan.points)
    search = Divided(Grid(points), lambda point: cut_of(point, plan.search), RunFolder(tmp_path))
    first = search.begin()
    assert told(first) == [(point.label, block) for point in points for block in (0, 1)]
    assert search.to_come() == 3, "each point is added up"
    done = {(work.point.label, work.block): work for work in first}
    assert search.finished(done[two.label, 1], None) == []
    assert search.progress() == (0.5, 3)
    assert search.finished(done[two.label, 0], None) == [], "stock is at work, and would be answered twice"
    assert search.waiting() == [two]
    assert search.to_come() == 3, "one of them waits for stock"
    assert search.finished(done[stock.label, 0], None) == []
    (whole,) = search.finished(done[stock.label, 1], None)
    assert (whole.kind, whole.point) == ("point", stock)
    assert told(search.finished(whole, RECORD)) == [(two.label, -1)]
    assert search.points_left() == 2 and search.waiting() == []


def test_a_point_that_fails_takes_its_blocks_along(tmp_path: Path) -> None:
    plan = plan_sweep([*LADDER, "task.block_problems=60"])
    points = list(plan.points)
    search = Divided(Grid(points), lambda point: cut_of(point, plan.search), RunFolder(tmp_path))
    first = search.begin()
    assert search.finished(first[2], RECORD) == [] and search.points_left() == 2
    assert search.finished(first[3], None) == [], "its other block was under way on another engine"
    assert search.points_left() == 2


def test_what_lies_on_the_disk_is_not_asked_for_again(tmp_path: Path) -> None:
    plan = plan_sweep([*LADDER, "task.block_problems=60"])
    stock, two, _ = points = list(plan.points)
    cut = cut_of(stock, plan.search)
    assert cut is not None
    for point, number in ((stock, 0), (stock, 1), (two, 1)):
        write_block(RunFolder(tmp_path), point, cut, number)
    search = Divided(Grid(points), lambda point: cut_of(point, plan.search), RunFolder(tmp_path))
    assert told(search.begin())[:2] == [(stock.label, -1), (two.label, 0)]


def test_a_knob_is_solved_once_by_the_first_block(tmp_path: Path) -> None:
    plan = plan_sweep(["policy=naee", "policy.budget=4", "task.max_problems=40", "task.block_problems=40"])
    points = [point for point in plan.points if point.budget is not None]
    search = Divided(Grid(points), lambda point: cut_of(point, plan.search), RunFolder(tmp_path))
    (first,) = search.begin()
    assert (first.kind, first.block) == ("block", 0)
    assert search.to_come() == 3, "two blocks, and what adds them up"
    assert [work.block for work in search.finished(first, None)] == [1, 2]
    assert search.to_come() == 1
