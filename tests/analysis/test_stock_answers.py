"""What stock's own answers say of a task: answers made by hand."""

from __future__ import annotations

import polars as pl
import pytest

from banpick_exp.analysis.stock_answers import MIN_PROBLEMS, stock_alarms

COUNT = 2 * MIN_PROBLEMS


def answers(found: bool, right: int, count: int = COUNT) -> pl.DataFrame:
    """`count` problems of which `right` are right; every answer and every gold answer is another."""
    rows = [
        {
            "problem_id": f"p{i}",
            "domain": "math",
            "correct": i < right,
            "found": found,
            "answer": f"{i}",
            "gold": f"{i if i < right else -i}",
            "completion": f"steps;{i}",
        }
        for i in range(count)
    ]
    return pl.DataFrame(rows)


@pytest.mark.parametrize(
    ("outcomes", "alarms"),
    [
        (answers(found=False, right=0), ["nothing_found"]),
        (answers(found=False, right=COUNT - 2), []),
        (answers(found=False, right=COUNT // 4), ["nothing_found"]),
        (answers(found=True, right=0), ["stock_at_zero"]),
        (answers(found=True, right=COUNT), []),
        (answers(found=False, right=0, count=MIN_PROBLEMS - 1), []),
    ],
    ids=[
        "no answer",
        "answers that need no separator",
        "a wrong separator",
        "none right",
        "all right",
        "too few to tell",
    ],
)
def test_what_is_wrong_with_stock(outcomes: pl.DataFrame, alarms: list[str]) -> None:
    assert [alarm.guard for alarm in stock_alarms(outcomes)] == alarms
