"""The clock on a real engine: turns within one batch, counted and paired, and nothing of them stays."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pytest

from banpick_exp.analysis import median_interval
from banpick_exp.evaluation import speed
from banpick_exp.evaluation.answer import DomainPolicy
from banpick_exp.evaluation.speed import Cell, Rounds, Timed, speed_cells, time_against_stock, timed_cells
from banpick_exp.policy import parse_policy
from banpick_exp.records import Counters
from banpick_exp.tasks.config import TaskConfig
from banpick_exp.tasks.load import load_problems

if TYPE_CHECKING:
    from banpick_exp.engine.engine import Engine

DOMAINS = ("math", "code")
TASK = TaskConfig(name="tiny", domains=DOMAINS, speed_batches=(1, 4), speed_seconds=0.5)
PROBLEMS = load_problems(TASK, "test", 12)


def time_fixed_k(engine: Engine, k: int, task: TaskConfig = TASK) -> Timed:
    rule = parse_policy("fixed_k", {"k": k})
    policies = dict.fromkeys(DOMAINS, DomainPolicy(rule=rule, calibration_key="", calibration=None))
    return time_against_stock(engine, policies, task, PROBLEMS)


@pytest.fixture(params=["stepped", "whole"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Both ways of taking turns: the second is that of engines in several processes."""
    if request.param == "whole":
        monkeypatch.setattr(speed, "can_step", lambda engine: False)
    yield request.param


@pytest.mark.engine
def test_each_phase_and_batch_is_timed_and_counted(tiny_engine: Engine, way: str) -> None:
    tiny_engine.set_policy("none", {})
    before = tiny_engine.generate([p.prompt for p in PROBLEMS["math"]], max_tokens=12, salt="before timing")
    timed = time_fixed_k(tiny_engine, 2)
    cells = speed_cells(timed)
    assert [(cell.phase, cell.batch) for cell in cells[:2]] == [("decode", 1), ("decode", 4)]
    assert cells[2].phase == "prefill" and cells[3].phase == "decode" and cells[3].batch == 12
    for cell in cells:
        assert cell.mean_kept == 2, "the policy's turns alone are counted"
        assert cell.rounds >= speed.MIN_ROUNDS and cell.ci95[0] <= cell.speedup <= cell.ci95[1]
        assert cell.tokens_per_second > 1
    if way == "stepped":
        one = cells[0]
        assert (one.unique_experts, one.stock_unique_experts) == (2, 8), "one token uses what it keeps"
        many = cells[3]
        assert many.unique_experts is not None and many.stock_unique_experts is not None
        assert 2 < many.unique_experts < many.stock_unique_experts <= 32
    else:
        assert {cell.unique_experts for cell in cells} == {None}
    assert [cell.batch for domain in DOMAINS for cell in speed_cells(timed, domain)] == [12, 12]
    tiny_engine.set_policy("none", {})
    after = tiny_engine.generate([p.prompt for p in PROBLEMS["math"]], max_tokens=12, salt="after timing")
    assert after == before and not tiny_engine.llm.llm_engine.has_unfinished_requests()


@pytest.mark.engine
def test_more_time_gives_more_rounds_and_none_gives_none(tiny_engine: Engine) -> None:
    longer = TASK.model_copy(update={"speed_seconds": 6.0, "speed_precision": 1e-9, "speed_batches": (1,)})
    few, many = time_fixed_k(tiny_engine, 5), time_fixed_k(tiny_engine, 5, longer)
    assert len(many.others[0]) > len(few.others[0])
    begin = time.perf_counter()
    assert time_fixed_k(tiny_engine, 5, TASK.model_copy(update={"speed_seconds": 0.0})) == Timed()
    assert time.perf_counter() - begin < 0.1


@pytest.mark.engine
def test_a_batch_that_the_engine_cannot_hold_is_left_out(tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "timed_cells", lambda *_: [Cell("decode", 1000), Cell("decode", 2)])
    timed = time_fixed_k(tiny_engine, 4)
    assert timed.others == [] and [cell.batch for cell in speed_cells(timed)] == [2]
    assert not tiny_engine.llm.llm_engine.has_unfinished_requests()


# ---------------------------------------------------------------- without an engine


def rounds(stock: list[float], policy: list[float], batch: int = 4) -> Rounds:
    found = Rounds(Cell("decode", batch))
    counters = Counters(tokens=[batch], kept=[5 * batch], usage=[[batch] * 5])
    for a, b in zip(stock, policy, strict=True):
        found.add({"stock": a, "policy": b}, batch, 1, counters)
    return found


def test_domains_are_added_up_round_by_round() -> None:
    timed = Timed({"a": rounds([2.0, 4.0, 2.0], [1.0, 2.0, 1.0]), "b": rounds([1.0, 1.0, 1.0], [1.0, 1.0, 2.0])}, [])
    (cell,) = speed_cells(timed)
    middle, low, high = median_interval(np.array([3 / 2, 5 / 3, 3 / 3]))
    assert (cell.speedup, cell.ci95, cell.rounds) == (middle, (low, high), 3)
    assert speed_cells(timed, "a")[0].speedup == 2 and speed_cells(timed, "b")[0].speedup == 1
    assert speed_cells(timed, "c") == [] and speed_cells(Timed()) == []


def test_what_else_the_machine_does_cancels() -> None:
    """Both sides of a round are slowed alike: the ratio stays where three long runs would have lost it."""
    busy = [1.0, 3.0, 1.0, 2.0, 5.0, 1.0, 1.5]
    (cell,) = speed_cells(Timed({"a": rounds([1.2 * b for b in busy], busy)}, []))
    assert cell.speedup == pytest.approx(1.2) and cell.ci95 == pytest.approx((1.2, 1.2))


def test_the_accuracy_runs_batch_comes_last_and_no_batch_is_timed_twice() -> None:
    task = TASK.model_copy(update={"speed_batches": (32, 1, 8, 8)})
    assert [c.batch for c in timed_cells(task, PROBLEMS, 256) if c.phase == "decode"] == [1, 8, 12]
    assert [c.batch for c in timed_cells(task, PROBLEMS, 8) if c.phase == "decode"] == [1, 8]
    assert [c.batch for c in timed_cells(task.model_copy(update={"samples": 3}), PROBLEMS, 256)][-1] == 36
