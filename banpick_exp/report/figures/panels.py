"""Accuracy against the measured budget, and against the speed-up: the panels that several figures share.

What is measured stands where it was measured, and a name stands on the budget panel alone.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from banpick_exp.analysis import accuracy_name
from banpick_exp.analysis.front import SAME_BUDGET
from banpick_exp.analysis.pairing import REFERENCE_POLICIES
from banpick_exp.report.figures.labels import Name, place
from banpick_exp.report.figures.sheet import SCREEN, Sheet
from banpick_exp.report.figures.styles import Style, family_name
from banpick_exp.report.published import Published, legend
from banpick_exp.report.text import STOCK, in_words

MOST_NAMED = 14
MOST_BARS = 60
"""Points that all have their bar; of more only the references and the gains, for bars would hide the points."""
MOST_RULES = 4
"""Rules that are named where they are best; of more the legend tells them apart."""
CROWD = 3
"""Points of one rule at one budget that share a name."""
MOST_DRAWN_AS_PATHS = 1000
"""Dots of a figure in SVG or PDF; more are one picture in it."""
RING = "beats fixed_k"
LEGEND_COLUMNS = 7
Ringed = Collection[str]
"""Fingerprints of the points that gain; see `Run.ringed`."""


def budget_panel(axes: Any, frame: pl.DataFrame, styles: Mapping[str, Style], sheet: Sheet, ringed: Ringed) -> None:
    """Each point at its measured budget, bars are 95 % of the accuracy."""
    from matplotlib.ticker import MaxNLocator

    _points(axes, frame, "mean_kept", styles, sheet, ringed, errors="accuracy")
    whole = range(math.ceil(frame["mean_kept"].min() - 0.01), math.floor(frame["mean_kept"].max() + 0.01) + 1)  # type: ignore[operator]
    if 1 < len(whole) <= 16:
        axes.set_xticks(whole)
    # Without steps of 2.5: names may move the limits after the layout, and `72.5` would need more room than `72` had.
    axes.yaxis.set_major_locator(MaxNLocator(nbins="auto", steps=[1, 2, 5, 10]))
    axes.margins(x=0.06)
    axes.set_xlabel("measured budget (experts kept a token)")
    axes.set_ylabel(f"{accuracy_name(frame)} (%)")


def speed_panel(axes: Any, frame: pl.DataFrame, styles: Mapping[str, Style], sheet: Sheet, ringed: Ringed) -> None:
    """Each point at its speed-up over stock; bars are 95 % of that."""
    axes.axvline(1.0, color="#999999", linewidth=0.8, linestyle=":", zorder=1)
    _points(axes, frame.drop_nulls("speedup"), "speedup", styles, sheet, ringed, errors="speedup")
    axes.set_xlabel("speed-up over stock (generated tokens/s)")


def dots(axes: Any, frame: pl.DataFrame, x: str, styles: Mapping[str, Style]) -> None:
    """Points without interval, ring or name."""
    there = frame.drop_nulls(x)
    colours = [styles[policy][0] for policy in there["policy"]]
    axes.scatter(
        there[x], there["accuracy"] * 100, s=3, c=colours, alpha=0.35, linewidths=0, zorder=1.4,
        rasterized=there.height > MOST_DRAWN_AS_PATHS,
    )  # fmt: skip


def hollow(axes: Any, placed: Sequence[tuple[float, Published]], styles: Mapping[str, Style], sheet: Sheet) -> None:
    """Published figures at their x: the mark of the policy's family, empty."""
    for x, each in placed:
        colour, marker, size = styles[each.policy]
        axes.plot(
            [x], [100 * each.accuracy], linestyle="none", marker=marker, zorder=3.5,
            markersize=(size + 2) * sheet.size / SCREEN.size, markerfacecolor="none", markeredgecolor=colour,
            markeredgewidth=1.1,
        )  # fmt: skip


def published_entry(axes: Any, published: Sequence[Published]) -> None:
    """What the hollow marks are, for the legend."""
    axes.plot([], [], linestyle="none", marker="o", markerfacecolor="none", markeredgecolor="black",
              label=legend(published))  # fmt: skip


def legend_below(figure: Any, axes: Any, sheet: Sheet, *, note: str = "", without: Collection[str] = ()) -> None:
    """One for all panels, as wide as the sheet, under a note; `without`: families that are named elsewhere."""
    entries = zip(*axes.get_legend_handles_labels(), strict=True)
    kept = [(handle, label) for handle, label in entries if label not in {family_name(name) for name in without}]
    longest = max(len(label) for _, label in kept) + 5
    columns = max(1, min(LEGEND_COLUMNS, sheet.characters() // longest, len(kept)))
    figure.legend(
        [handle for handle, _ in kept], [label for _, label in kept], loc="outside lower left",
        ncols=math.ceil(len(kept) / math.ceil(len(kept) / columns)), handletextpad=0.3, columnspacing=1.0,
        borderaxespad=0.1, title="\n".join(textwrap.wrap(note, int(0.95 * sheet.characters()))), alignment="left",
        title_fontproperties={"size": sheet.size},
    )  # fmt: skip


def legend_inches(sheet: Sheet, entries: int, note: str) -> float:
    """About the height that `legend_below` takes."""
    lines = math.ceil(entries * 21 / sheet.characters()) + math.ceil(len(note) / (0.9 * sheet.characters()))
    return 1.45 * sheet.size / 72 * lines + 0.1


def names(axes: Any, frame: pl.DataFrame, sheet: Sheet, ringed: Ringed, *, few: bool = True) -> list[Any]:
    """Names on the budget panel: stock, the ladder, gains and, of a few rules, each at its best.

    Three or more points of a rule at one budget share a name that counts them. The layout must be final.
    """
    named = to_name(frame, ringed, few=few)
    plain, ring = 0.4 * sheet.size, 0.7 * sheet.size
    marks = [
        (row["mean_kept"], 100 * row["accuracy"], ring if row["fingerprint"] in ringed else plain)
        for row in frame.iter_rows(named=True)
    ]
    ladder = frame.filter(pl.col("policy").is_in(REFERENCE_POLICIES)).sort("mean_kept")
    line = ladder["mean_kept"].to_list(), (100 * ladder["accuracy"]).to_list()
    return place(axes, named, marks, line, sheet.size)


def to_name(frame: pl.DataFrame, ringed: Ringed, *, few: bool = True) -> list[Name]:
    """What `names` writes, the most important first."""
    found: list[Name | None] = [*_gains(frame, ringed), _stock(frame), _ladder(frame)]
    if few and frame["policy"].n_unique() <= MOST_RULES + len(REFERENCE_POLICIES):
        found += _rules(frame, ringed)
    return [name for name in found if name is not None][:MOST_NAMED]


def _stock(frame: pl.DataFrame) -> Name | None:
    rows = frame.filter(pl.col("policy") == STOCK)
    return _name(in_words(STOCK), rows.row(0, named=True)) if rows.height else None


def _ladder(frame: pl.DataFrame) -> Name | None:
    """The line has one name: its rungs stand at their k."""
    rows = frame.filter(pl.col("policy") == "fixed_k").sort("mean_kept")
    return _name("fixed_k ladder", rows.row(rows.height // 3, named=True)) if rows.height > 1 else (
        _name(rows["label"][0], rows.row(0, named=True)) if rows.height else None
    )  # fmt: skip


def _gains(frame: pl.DataFrame, ringed: Ringed) -> list[Name]:
    """Each by its label; those of a crowd together, with their number."""
    found = []
    for policy, crowd in _all_crowds(frame):
        wins = crowd.filter(pl.col("fingerprint").is_in(list(ringed)))
        if wins.height and crowd.height >= CROWD:
            found.append(_name(f"{policy}: {crowd.height} points, {wins.height} gain", wins.row(0, named=True)))
        else:
            found += [_name(row["label"], row) for row in wins.iter_rows(named=True)]
    return sorted(found, key=lambda name: -name.y)


def _rules(frame: pl.DataFrame, ringed: Ringed) -> list[Name]:
    """What gains nothing: each rule at its best, a crowd by its number, from the best down."""
    found = []
    best = frame.group_by("policy").agg(pl.col("accuracy").max())
    highest = dict(best.iter_rows())
    for policy, crowd in _all_crowds(frame):
        first = crowd.row(0, named=True)
        if crowd["fingerprint"].is_in(list(ringed)).any():
            continue
        if crowd.height >= CROWD:
            found.append(_name(f"{policy}: {crowd.height} points", first))
        elif first["accuracy"] == highest[policy]:
            found.append(_name(first["label"], first))
    return sorted(found, key=lambda name: -name.y)


def _all_crowds(frame: pl.DataFrame) -> Iterator[tuple[str, pl.DataFrame]]:
    rules = frame.filter(~pl.col("policy").is_in(REFERENCE_POLICIES))
    for (policy,), part in rules.group_by("policy", maintain_order=True):
        yield from ((str(policy), crowd) for crowd in _crowds(part))


def _crowds(part: pl.DataFrame) -> list[pl.DataFrame]:
    """Points of one rule by their budget, those nearer than SAME_BUDGET to the next together, each the best first."""
    ordered = part.sort("mean_kept", maintain_order=True)
    step = ordered["mean_kept"].diff().fill_null(0.0) > SAME_BUDGET
    grouped = ordered.with_columns(crowd=step.cast(pl.Int64).cum_sum())
    return [each.sort("accuracy", descending=True, maintain_order=True) for each in grouped.partition_by("crowd")]


def _name(text: str, row: dict[str, Any]) -> Name:
    return Name(text, row["mean_kept"], 100 * row["accuracy"])


def _points(
    axes: Any, frame: pl.DataFrame, x: str, styles: Mapping[str, Style], sheet: Sheet, ringed: Ringed, *, errors: str
) -> None:
    """The fixed_k ladder as a line, then each family; `errors` names the interval to draw."""
    percent = frame.with_columns(pl.col("accuracy", "accuracy_lo", "accuracy_hi") * 100)
    ladder = percent.filter(pl.col("policy").is_in(REFERENCE_POLICIES)).sort("mean_kept")
    axes.plot(ladder[x], ladder["accuracy"], color="#8C8C8C", linewidth=1.3, zorder=2)
    small = sheet.size / SCREEN.size
    for name, (colour, marker, size) in styles.items():
        part = percent.filter(pl.col("policy") == name)
        if not part.height:
            continue
        along = part["accuracy"] if errors == "accuracy" else part[x]
        low, high = part[f"{errors}_lo"].fill_null(along), part[f"{errors}_hi"].fill_null(along)
        # The spread is of the runs and the point their middle: a rounding below zero must not stop the figure.
        if frame.height > MOST_BARS and name not in REFERENCE_POLICIES:
            gain = part["fingerprint"].is_in(list(ringed))
            low, high = (pl.select(pl.when(gain).then(end).otherwise(along)).to_series() for end in (low, high))
        bars = np.stack([(along - low).to_numpy(), (high - along).to_numpy()]).clip(0)
        yerr, xerr = (bars, None) if errors == "accuracy" else (None, bars)
        axes.errorbar(
            part[x], part["accuracy"], yerr=yerr, xerr=xerr, linestyle="none", marker=marker, markersize=size * small,
            color=colour, ecolor=f"{colour}80", elinewidth=0.8, capsize=0, zorder=3.2 if name == STOCK else 3,
            markeredgecolor="white", markeredgewidth=0.5, label=family_name(name),
        )  # fmt: skip
    wins = percent.filter(pl.col("fingerprint").is_in(list(ringed)))
    if wins.height:
        axes.scatter(
            wins[x], wins["accuracy"], s=110 * small**2, facecolors="none", edgecolors="black", linewidths=0.9,
            zorder=4, label=RING,
        )  # fmt: skip
