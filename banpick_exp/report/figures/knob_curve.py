"""One knob: accuracy against it with its band and stock's line, and the difference to fixed_k at equal budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from banpick_exp.analysis.front import SAME_BUDGET
from banpick_exp.report.figures.sheet import Sheet, figure_on, words
from banpick_exp.report.figures.styles import family_styles
from banpick_exp.report.question import Cells, Knob, Swept

WIDE = 8.0
"""How many times the least value the largest is before the axis takes logarithms."""
TALL = 1.75
"""Inches of a panel."""
MOST_TICKS = 7
MOST_DOMAINS = 4
SIGNS = (
    "▲ beats, ▼ loses to the fixed_k point of the nearest measured budget,"
    " ○ ties; bands are 95\u00a0%, right for all values at once."
)
APART = " Grey: fixed_k has no point within 0.25 experts, so the budget counts too."


def draw_curve(
    asked: Swept, frame: pl.DataFrame, maps: Sequence[Cells], sheet: Sheet, *, title: str, text: str, measure: str
) -> Any:
    """The figure: accuracy, the difference and, where it varies, the measured budget, each against the knob.

    Args:
        frame: rows of `points_frame` of one domain, references too.
        maps: the same domain, then others, of which a wide sheet has the difference too.
    """
    knob = asked.knobs[0]
    at, ticks, words_ = _scale(knob)
    by_name = {row["fingerprint"]: row for row in frame.iter_rows(named=True)}
    rows = [by_name[asked.places[(i,)]] for i in range(len(knob.values))]
    kept = np.array([row["mean_kept"] for row in rows], float)
    first = 2 + int(np.ptp(kept) > SAME_BUDGET)
    domains = () if sheet.narrow or not sheet.domains else maps[1 : 1 + MOST_DOMAINS]
    colour = family_styles([asked.policy])[asked.policy][0]
    lines = first if sheet.narrow else 1 + bool(domains)
    height = lines * (TALL + (0.0 if sheet.narrow else 0.45)) + 0.5 + (0.6 if sheet.titled else 0.0)
    apart = any((~each.near & ~np.isnan(each.difference)).any() for each in maps[: 1 + len(domains)])
    with figure_on(sheet, height) as figure:
        words(figure, sheet, title, text, SIGNS + (APART if apart else ""))
        if sheet.narrow:
            drawn = list(figure.subplots(first, 1, sharex=True))
        else:
            parts = figure.subfigures(lines, 1, squeeze=False).flat
            drawn = list(parts[0].subplots(1, first))
            drawn += list(parts[1].subplots(1, len(domains), sharey=True, squeeze=False).flat) if domains else []
        _accuracy(drawn[0], at, rows, frame, colour, measure)
        _difference(drawn[1], at, maps[0], colour, sheet)
        drawn[1].set_title("difference to fixed_k (points)")
        if first > 2:
            drawn[2].plot(at, kept, color=colour, marker="o", markersize=0.5 * sheet.size)
            drawn[2].set_title("experts kept a token")
        for axes, each in zip(drawn[first:], domains, strict=True):
            _difference(axes, at, each, colour, sheet)
            axes.set_title(f"difference, {each.domain}")
        for axes in drawn[-1:] if sheet.narrow else drawn:
            axes.set_xlabel(knob.name)
        for axes in drawn:
            if knob.numbers and _logarithmic(knob):
                axes.set_xscale("log")
            axes.set_xticks(ticks, words_, rotation=0 if knob.numbers else 20)
            axes.minorticks_off()
            axes.grid(False, axis="x")
        return figure


def _accuracy(axes: Any, at: np.ndarray, rows: list[Any], frame: pl.DataFrame, colour: str, measure: str) -> None:
    value, low, high = (
        100 * np.array([row[name] for row in rows], float) for name in ("accuracy", "accuracy_lo", "accuracy_hi")
    )
    axes.fill_between(at, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.plot(at, value, color=colour, marker="o", markersize=4, label=rows[0]["policy"])
    stock = frame.filter(pl.col("policy") == "none")
    if stock.height:
        axes.axhline(
            100 * stock["accuracy"][0], color="black", linewidth=1.0, linestyle="--", zorder=1.5, label="stock"
        )
    axes.set_title(f"{measure} (%)")
    axes.legend(loc="best", handlelength=1.8, borderaxespad=0.2)


def _difference(axes: Any, at: np.ndarray, found: Cells, colour: str, sheet: Sheet) -> None:
    value, low, high = (each[0] for each in (found.difference, found.low, found.high))
    axes.axhline(0, color="#444444", linewidth=1.0, zorder=1.5)
    axes.fill_between(at, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.plot(at, value, color=colour, linewidth=1.0, zorder=2)
    for verdict, marker in (("beats", "^"), ("loses", "v"), ("ties", "o")):
        for near in (True, False):
            here = (found.verdict[0] == verdict) & (found.near[0] == near)
            face = "white" if verdict == "ties" else colour if near else "#999999"
            axes.plot(
                at[here], value[here], linestyle="none", marker=marker, markersize=0.75 * sheet.size, zorder=3,
                markerfacecolor=face, markeredgecolor=colour if near else "#999999", markeredgewidth=1.0,
            )  # fmt: skip


def _logarithmic(knob: Knob) -> bool:
    return min(knob.values) > 0 and max(knob.values) / min(knob.values) >= WIDE


def _scale(knob: Knob) -> tuple[np.ndarray, list[float], list[str]]:
    """Where each value stands, and which of them are named: numbers to scale, words beside each other."""
    at = np.array(knob.values, float) if knob.numbers else np.arange(len(knob.values), dtype=float)
    step = -(-len(at) // MOST_TICKS)
    return at, at[::step].tolist(), list(knob.words[::step])
