"""Which policies the page sets beside stock, answer by answer: those that the verdict is about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import polars as pl

from banpick_exp.analysis.pairing import References
from banpick_exp.records import OVERALL, PointRecord
from banpick_exp.report.equal_budget import at_equal_budget
from banpick_exp.report.run import Run
from banpick_exp.report.text import Row, against, in_words, points

MOST_BESIDE = 8
"""Policies in one menu."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BesideStock:
    """A policy and the stock point that was asked the same in the same way."""

    record: PointRecord
    stock: PointRecord
    why: str
    """`best at about 4 experts: ties with fixed_k k=4 +0.1 [-0.9, +1.2]`."""


def beside_stock(run: Run) -> list[BesideStock]:
    """The gains (`Run.ringed`), the best at each budget, then the largest loser: at most MOST_BESIDE.

    Those with a stock point of their own set-up alone. Empty where nothing was compared.
    """
    rows = run.verdicts.filter((pl.col("domain") == OVERALL) & pl.col("difference").is_not_null())
    references, found = References(run.done), dict[str, BesideStock]()
    by_name = {record.fingerprint: record for record in run.done}
    for row, why in _chosen(run, rows):
        record = by_name[row["fingerprint"]]
        stock = references.stock(record)
        if stock is not None and record.fingerprint not in found:
            said = f"{why}: {against(row)} {points(row, simultaneous=True)}"
            found[record.fingerprint] = BesideStock(record=record, stock=stock, why=said)
    every = list(found.values())
    return every if len(every) <= MOST_BESIDE else [*every[: MOST_BESIDE - 1], every[-1]]


def _chosen(run: Run, rows: pl.DataFrame) -> list[tuple[Row, str]]:
    """Rows of `verdicts` and why they are told; the largest loser is the last."""
    if not rows.height:
        return []
    best_first = rows.sort("lo_simultaneous", descending=True, maintain_order=True)
    gains = best_first.filter(pl.col("fingerprint").is_in(list(run.ringed)))
    # By whole experts: each policy of a budget between two may have a rival of its own.
    near = at_equal_budget(best_first).sort("lo_simultaneous", descending=True, maintain_order=True)
    best = near.unique(pl.col("mean_kept").round(), keep="first", maintain_order=True)
    best = best.head(MOST_BESIDE).sort("mean_kept", descending=True, maintain_order=True)
    chosen = [(row, "gain") for row in gains.iter_rows(named=True)]
    for row in (best if best.height else best_first.head(1)).iter_rows(named=True):
        chosen.append((row, f"best at about {row['mean_kept']:.0f} experts"))
    last = rows.filter(pl.col("verdict") == "loses").sort("difference", maintain_order=True)
    return [*chosen, *((row, "largest loss") for row in last.head(1).iter_rows(named=True))]


def policy_menu(chosen: Sequence[BesideStock], key: str) -> str:
    """A menu that shows one of the blocks `data-of="<key>"` at a time, in their order; the page's script does it."""
    if len(chosen) < 2:
        return ""
    options = "".join(
        f'<option value="{i}">{escape(in_words(each.record.label))} ({escape(each.why.split(":")[0])})</option>'
        for i, each in enumerate(chosen)
    )
    return f'<p class="controls"><label>policy <select data-chooses="{escape(key)}">{options}</select></label></p>'
