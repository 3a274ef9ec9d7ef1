"""In which batches and order a repeat is asked, and that it has no speed."""

from __future__ import annotations

from itertools import chain
from typing import Any

from banpick_exp.evaluation.answer import DomainRun, batches
from banpick_exp.evaluation.metrics import point_metrics
from banpick_exp.evaluation.speed import Timed
from banpick_exp.records import Counters, Outcome


def test_a_repeat_asks_the_same_in_other_batches_and_order() -> None:
    assert batches(5, 1, 0, 256) == [[0, 1, 2, 3, 4]]
    assert batches(0, 1, 0, 256) == []
    for repeat, sizes in ((1, [4, 4, 2]), (2, [2] * 5), (4, [1] * 10)):
        found = batches(10, 1, repeat, 8)
        assert [len(batch) for batch in found] == sizes
        asked = list(chain.from_iterable(found))
        assert sorted(asked) == list(range(10)) and asked != list(range(10))
    assert batches(10, 1, 1, 8) == batches(10, 1, 1, 8) != batches(10, 1, 2, 8)
    assert [len(batch) for batch in batches(10, 1, 1, 256)] == [5, 5], "halved where fewer are asked than fit"
    together = list(chain.from_iterable(batches(10, 3, 1, 8)))
    assert all(together[i] // 3 == together[i + 1] // 3 for i in range(0, 30, 3)), "samples of a problem stay together"


def test_what_was_not_timed_has_no_speed() -> None:
    graded: dict[str, Any] = {"correct": True, "truncated": False, "tokens": 3, "answer": "x"}
    outcome = Outcome(problem_id="p", domain="math", task="math", **graded)
    stock = {"math": DomainRun([outcome], Counters([100] * 2, [400] * 2, [[400]] * 2))}
    found = point_metrics(stock, stock, Timed())
    assert found.overall.speedup is None and found.domains["math"].speed == ()
