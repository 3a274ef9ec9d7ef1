"""Flips: which problems two points answered differently, and which answers show it."""

from __future__ import annotations

from typing import Any

import polars as pl

from banpick_exp.analysis.flips import flips


def outcomes(*rows: tuple[str, str, bool, str], **more: Any) -> pl.DataFrame:
    """(domain, problem, correct, completion)."""
    domains, problems, correct, completions = zip(*rows, strict=True)
    columns = {"domain": domains, "problem_id": problems, "task": ["t"] * len(rows), "correct": correct}
    shown = {
        "completion": completions,
        "answer": completions,
        "truncated": [False] * len(rows),
        "gold": ["g"] * len(rows),
    }
    return pl.DataFrame(columns | shown | more)


def test_wins_come_first_and_equal_answers_are_none() -> None:
    a = outcomes(("m", "1", False, "a1"), ("m", "2", True, "a2"), ("c", "1", True, "a3"), ("m", "3", False, "a4"))
    b = outcomes(("c", "1", False, "b3"), ("m", "1", True, "b1"), ("m", "2", True, "b2"), ("m", "3", False, "b4"))
    found = flips(a, b).select("domain", "problem_id", "solved_by", "completion_a", "completion_b", "gold")
    assert found.rows() == [("c", "1", "a", "a3", "b3", "g"), ("m", "1", "b", "a1", "b1", "g")]


def test_problems_that_one_was_not_asked_are_none() -> None:
    assert flips(outcomes(("m", "1", True, "x")), outcomes(("m", "2", False, "y"))).height == 0


def test_of_several_samples_those_that_show_it() -> None:
    a = outcomes(*(("m", "1", right, f"a{i}") for i, right in enumerate((False, True, True))), sample=[0, 1, 2])
    b = outcomes(*(("m", "1", right, f"b{i}") for i, right in enumerate((True, False, False))), sample=[0, 1, 2])
    (row,) = flips(a, b).to_dicts()
    assert (row["share_a"], row["share_b"], row["solved_by"]) == (2 / 3, 1 / 3, "a")
    assert (row["completion_a"], row["completion_b"]) == ("a1", "b1")
    assert (row := flips(b, a).to_dicts()[0])["solved_by"] == "b" and row["completion_a"] == "b1"


def test_records_of_old_have_no_completions() -> None:
    old = ["completion", "gold"]
    (row,) = flips(outcomes(("m", "1", True, "x")).drop(old), outcomes(("m", "1", False, "y")).drop(old)).to_dicts()
    assert row["answer_a"] == "x" and row["completion_a"] is None and row["gold"] is None
