"""Which points a page, a figure or a printed table tells one by one, where a run has more than anyone reads.

Those that decide what a run found come first: the front, the references, the best of each rule at each budget, the
largest effects. They take turns, so that a front of hundreds, as noise makes it, leaves room for the others.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import polars as pl

from banpick_exp.analysis import EQUAL_BUDGET_TOLERANCE
from banpick_exp.analysis.pairing import REFERENCE_POLICIES
from banpick_exp.records import OVERALL

MOST_SHOWN = 400
"""Points that the page and the figures tell one by one; as many findings of guards, too."""
MOST_PRINTED = 100
"""Rows of the printed table."""
MOST_LISTED = 40
"""The same on a terminal too narrow for all columns: what is at the top must not have gone by."""
MOST_DRAWN = 120
"""Marks with an interval in a figure for papers, where the page does not tell all points either."""
MOST_EFFECTS = 40
"""Of the largest differences to fixed_k, those either way together."""


def in_order(done: pl.DataFrame, verdicts: pl.DataFrame) -> list[str]:
    """Fingerprints of all done points, those to be shown first at the head.

    Args:
        done: rows of `points_frame` with `on_front` and `sure`, of every domain.
        verdicts: as `analysis.verdicts` returns them.
    """
    overall = done.filter(pl.col("domain") == OVERALL).sort("accuracy", descending=True, maintain_order=True)
    front = overall.filter("on_front").sort("sure", descending=True, maintain_order=True)
    elsewhere = done.filter(pl.col("sure") & (pl.col("domain") != OVERALL)).unique("fingerprint", maintain_order=True)
    kinds = (front, _references(overall), _best_of_each(overall), _largest_effects(verdicts), elsewhere)
    return list(dict.fromkeys([*_in_turn([each["fingerprint"].to_list() for each in kinds]), *overall["fingerprint"]]))


def _references(overall: pl.DataFrame) -> pl.DataFrame:
    return overall.filter(pl.col("policy").is_in(REFERENCE_POLICIES)).sort("mean_kept", descending=True)


def _best_of_each(overall: pl.DataFrame) -> pl.DataFrame:
    """The most accurate of each rule at each budget, the best of all first."""
    budget = (pl.col("mean_kept") / EQUAL_BUDGET_TOLERANCE).round()
    return overall.unique(["policy", budget], keep="first", maintain_order=True)


def _largest_effects(verdicts: pl.DataFrame) -> pl.DataFrame:
    """Points whose difference to fixed_k is the surest: what beats it or loses to it before the others."""
    compared = verdicts.filter((pl.col("domain") == OVERALL) & pl.col("difference").is_not_null())
    tied, size = pl.col("verdict") == "ties", pl.col("difference").abs()
    return compared.sort(tied, size, descending=[False, True], maintain_order=True).head(MOST_EFFECTS)


def _in_turn(lists: Sequence[Sequence[str]]) -> Iterable[str]:
    """One of each list, then the second of each, and so on."""
    return (name for names in itertools.zip_longest(*lists) for name in names if name is not None)
