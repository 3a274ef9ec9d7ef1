"""Flips: problems that one point solved and another lost, and the other way round, with what both wrote."""

from __future__ import annotations

import polars as pl

from banpick_exp.analysis.pairing import PROBLEM
from banpick_exp.records import that_count

_SIDE = ("answer", "completion", "truncated")
"""What is told of each side, of the answer that shows the flip."""


def flips(a: pl.DataFrame, b: pl.DataFrame) -> pl.DataFrame:
    """The problems of which two points, asked the same ones, have different shares of right answers.

    As many rows with `solved_by` a as a verdict on a against b counts wins, with b as it counts losses. Of several
    samples a problem, the first right answer of the side that has more of them is shown beside the other's first wrong
    one; where one of them was chosen, it alone is looked at.

    Args: outcomes of two points, as `RunFolder.all_outcomes` gives them.

    Returns: a row a problem, those that `a` solved first, each part in the order of `a`: domain, problem_id, task,
        solved_by (`a` or `b`), share_a and share_b (0 to 1, of right answers), gold, then answer, completion and
        truncated of both. Null where outcomes do not tell them: records of old have no completions.
    """
    both = _by_problem(a).join(_by_problem(b), on=PROBLEM, suffix="_b", maintain_order="left")
    share_a, share_b = pl.col("share"), pl.col("share_b")
    solved = pl.when(share_a > share_b).then(pl.lit("a")).otherwise(pl.lit("b"))
    differ = both.filter(share_a != share_b).with_columns(solved_by=solved).sort("solved_by", maintain_order=True)
    first = pl.col("solved_by") == "a"
    sides = [
        column
        for name in _SIDE
        for column in (
            pl.when(first).then(f"right_{name}").otherwise(f"wrong_{name}").alias(f"{name}_a"),
            pl.when(first).then(f"wrong_{name}_b").otherwise(f"right_{name}_b").alias(f"{name}_b"),
        )
    ]
    return differ.select(*PROBLEM, "task", "solved_by", share_a.alias("share_a"), "share_b", "gold", *sides)


def _by_problem(outcomes: pl.DataFrame) -> pl.DataFrame:
    """A row a problem: its share of right answers, and the first right and the first wrong one of them."""
    types = {"answer": pl.String, "completion": pl.String, "truncated": pl.Boolean, "gold": pl.String}
    absent = [pl.lit(None, dtype=kind).alias(name) for name, kind in types.items() if name not in outcomes.columns]
    right = pl.col("correct")
    shown = [
        pl.col(name).filter(right if which == "right" else ~right).first().alias(f"{which}_{name}")
        for which in ("right", "wrong")
        for name in _SIDE
    ]
    problems = that_count(outcomes).with_columns(absent).group_by(PROBLEM, maintain_order=True)
    return problems.agg(pl.col("task").first(), pl.col("gold").first(), right.mean().alias("share"), *shown)
