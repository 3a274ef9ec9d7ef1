"""The Pareto front for papers; `report.page` draws the interactive one.

Frames in, files out. Every policy family has a colour of the Okabe-Ito palette and a marker of its own, so that the
figures read in grey and with any colour vision.
"""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from banpick_exp.analysis import accuracy_name
from banpick_exp.analysis.front import SAME_BUDGET
from banpick_exp.analysis.pairing import REFERENCE_POLICIES
from banpick_exp.report.figures.picture import Picture
from banpick_exp.report.figures.styles import (
    MOST_SHADED,
    PAPER,
    Style,
    family_name,
    family_styles,
    save,
    short_label,
    side_by_side,
)
from banpick_exp.report.published import Published, legend

# Where a label may stand from its point, in points, the nearest first; from the fifth pair on with a line to the point.
OFFSETS = [(7, 4), (7, -10), (-7, 4), (-7, -10), (0, 9), (0, -15), (14, 14), (14, -20), (-14, 14), (-14, -20)]
OFFSETS += [(24, 26), (24, -32), (-24, 26), (-24, -32), (0, 24), (0, -30), (40, 44), (40, -50), (-40, 44), (-40, -50)]
MOST_CROSSED = 2
MOST_NAMED = 120
"""Points that are tried for a name: long before, there is no room left."""
LEGEND_COLUMNS = 7


def pareto_png(
    frame: pl.DataFrame,
    path: Path,
    *,
    title: str,
    subtitle: str,
    others: pl.DataFrame | None = None,
    published: Sequence[Published] = (),
) -> Path:
    """`pareto_figure` as a file, 300 dpi; returns its path."""
    return save(pareto_figure(frame, title=title, subtitle=subtitle, others=others, published=published), path)


def pareto_figure(
    frame: pl.DataFrame,
    *,
    title: str,
    subtitle: str,
    others: pl.DataFrame | None = None,
    published: Sequence[Published] = (),
) -> Figure:
    """Two panels: accuracy against the measured budget, and against the speed-up.

    Args:
        frame: done rows of one domain with the columns of `points_frame`, `on_front` and `sure`.
        others: more such rows that are only dots, without interval, ring or name.
        published: what papers report of the same, as hollow marks.
    """
    elsewhere = [each.policy for each in published]
    styles = family_styles([*frame["policy"], *([] if others is None else others["policy"]), *elsewhere])
    import matplotlib

    with matplotlib.rc_context(PAPER):
        figure = Picture(figsize=(10.2, 5.0), layout="constrained")
        FigureCanvasAgg(figure)  # no pyplot: no window, no global state, safe beside Ray's threads
        engine: Any = figure.get_layout_engine()
        engine.set(rect=(0, 0.0, 1, 0.885), w_pad=0.08)
        left, right = figure.subplots(1, 2, sharey=True)
        by_budget, by_speed = side_by_side(frame), frame.with_columns(x=pl.col("speedup"))
        _budget_panel(left, by_budget, styles, f"{accuracy_name(frame)} (%)")
        _speed_panel(right, by_speed, styles)
        if others is not None and others.height:
            _dots(left, others, "mean_kept", styles)
            _dots(right, others, "speedup", styles)
        if published:
            kept = [(each.mean_kept, each) for each in published if each.mean_kept is not None]
            speeds = [(each.speedup, each) for each in published if each.speedup is not None]
            _hollow(left, kept, styles)
            _hollow(right, speeds, styles)
            left.scatter([], [], s=45, facecolors="none", edgecolors="black", marker="o", label=legend(published))
        _words(figure, title, subtitle)
        _legend(figure, left)
        figure.canvas.draw()  # the layout must be final before text can be measured
        _annotate(left, by_budget, errors="accuracy")
        _annotate(right, by_speed, errors="speedup")
        return figure


def _dots(axes: Axes, frame: pl.DataFrame, x: str, styles: Mapping[str, Style]) -> None:
    there = frame.drop_nulls(x)
    colours = [styles[policy][0] for policy in there["policy"]]
    axes.scatter(there[x], there["accuracy"] * 100, s=3, c=colours, alpha=0.35, linewidths=0, zorder=1.5)


def _hollow(axes: Axes, placed: Sequence[tuple[float, Published]], styles: Mapping[str, Style]) -> None:
    """Published figures at their x: the mark of the policy's family, empty."""
    for x, each in placed:
        colour, marker, size = styles[each.policy]
        axes.plot(
            [x], [100 * each.accuracy], linestyle="none", marker=marker, markersize=size + 2, zorder=3.5,
            markerfacecolor="none", markeredgecolor=colour, markeredgewidth=1.3,
        )  # fmt: skip


def _budget_panel(axes: Axes, frame: pl.DataFrame, styles: Mapping[str, Style], y_label: str) -> None:
    """`frame`: as `side_by_side` returns it; what stands side by side is shaded."""
    groups = list(frame.filter(pl.col("beside") >= 3).group_by((pl.col("mean_kept") / SAME_BUDGET).round()))
    for _, group in groups if len(groups) <= MOST_SHADED else ():
        x = group["x"].to_numpy()
        axes.axvspan(x.min() - 0.06, x.max() + 0.06, color="#F1F1F1", linewidth=0, zorder=0)
        text = f"keep {group['mean_kept'].to_numpy().mean():.2f}"
        spot = axes.get_xaxis_transform()
        axes.text((x.min() + x.max()) / 2, 0.012, text, ha="center", fontsize=7, color="#555555", transform=spot)
    _panel(axes, frame, styles, errors="accuracy")
    whole = range(math.ceil(frame["mean_kept"].min()), math.floor(frame["mean_kept"].max()) + 1)  # type: ignore[arg-type]
    if 1 < len(whole) <= 16:
        axes.set_xticks(whole)  # none beyond K, where points standing side by side reach
    axes.set(xlabel="measured budget: mean experts kept per token", ylabel=y_label)
    axes.set_title("Accuracy at the measured budget (bars: 95 % interval)", loc="left")


def _speed_panel(axes: Axes, frame: pl.DataFrame, styles: Mapping[str, Style]) -> None:
    _panel(axes, frame, styles, errors="speedup")
    axes.set(xlabel="speed-up over stock (generated tokens/s)")
    axes.set_title("Accuracy and speed (bars: 95 % interval)", loc="left")
    axes.axvline(1.0, color="#999999", linewidth=0.8, linestyle=":", zorder=1)
    axes.tick_params(labelleft=False)


def _words(figure: Figure, title: str, subtitle: str) -> None:
    figure.suptitle(title, x=0.012, y=0.985, ha="left", fontsize=12, fontweight="bold")
    lines = textwrap.wrap(subtitle, 140)[:2]
    figure.text(0.012, 0.945, "\n".join(lines), ha="left", va="top", fontsize=9, color="#333333", linespacing=1.3)


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    columns = math.ceil(len(labels) / math.ceil(len(labels) / LEGEND_COLUMNS))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, handletextpad=0.4, fontsize=9)


def _panel(axes: Axes, frame: pl.DataFrame, styles: Mapping[str, Style], *, errors: str) -> None:
    """Points at `x`: the fixed_k ladder as a line, then each family; `errors` names the interval to draw."""
    percent = frame.with_columns(pl.col("accuracy", "accuracy_lo", "accuracy_hi") * 100)
    ladder = percent.filter(pl.col("policy").is_in(REFERENCE_POLICIES)).sort("mean_kept")
    axes.plot(ladder["x"], ladder["accuracy"], color="#8C8C8C", linewidth=1.3, zorder=2)
    for name, (colour, marker, size) in styles.items():
        part = percent.filter(pl.col("policy") == name)
        along = part["accuracy"] if errors == "accuracy" else part["x"]
        low, high = part[f"{errors}_lo"].fill_null(along), part[f"{errors}_hi"].fill_null(along)
        # The spread is of the runs and the point their middle: a rounding below zero must not stop the figure.
        bars = np.stack([(along - low).to_numpy(), (high - along).to_numpy()]).clip(0)
        yerr, xerr = (bars, None) if errors == "accuracy" else (None, bars)
        axes.errorbar(
            part["x"], part["accuracy"], yerr=yerr, xerr=xerr, linestyle="none",
            marker=marker, markersize=size, color=colour, ecolor=colour, elinewidth=0.9, capsize=0, zorder=3,
            markeredgecolor="white", markeredgewidth=0.6, label=family_name(name),
        )  # fmt: skip
    for sure, line, name in ((True, "solid", "on the front for sure"), (False, (0, (2, 2)), "within noise")):
        front = percent.filter(pl.col("on_front") & (pl.col("sure") == sure))
        axes.scatter(
            front["x"], front["accuracy"], s=110, facecolors="none", edgecolors="black", linewidths=0.9, zorder=4,
            linestyles=[line], label=name,
        )  # fmt: skip


def _annotate(axes: Axes, frame: pl.DataFrame, *, errors: str) -> None:
    """Name the ladder and the front where there is room, the ladder first, then the front from the best accuracy down.

    A label never covers a point or another label, and takes the place that crosses the fewest bars and ladder pieces; a
    name that would cross more than MOST_CROSSED is left out (the page has it on hover). All boxes are in pixels.
    """
    frame = frame.filter(pl.col("x").is_not_null())  # a run without timings has no speed-up to stand at
    half = 4.5 * axes.figure.dpi / 72
    points = axes.transData.transform(np.column_stack([frame["x"], frame["accuracy"] * 100]))
    taken = np.column_stack([points - half, points + half])
    crossed = _lines(axes, frame, errors)
    is_ladder = frame["policy"].is_in(REFERENCE_POLICIES).to_list()
    named = [i for i, front in enumerate(frame["on_front"]) if front or is_ladder[i]]
    for i in sorted(named, key=lambda i: (not is_ladder[i], -frame["accuracy"][i]))[:MOST_NAMED]:
        text, at = short_label(frame["policy"][i], frame["label"][i]), (frame["x"][i], frame["accuracy"][i] * 100)
        place = _free_place(axes, text, at, taken, crossed)
        if place is None or (place.crossings > MOST_CROSSED and not is_ladder[i]):
            continue
        note = _note(axes, text, at, place.offset)
        note.set_path_effects([withStroke(linewidth=1.8, foreground="white")])
        taken = np.vstack([taken, place.box])
        if abs(place.offset[1]) > 12:  # far enough to need a line to its point
            _lead(axes, at, place.offset)


@dataclass(frozen=True, slots=True)
class _Place:
    offset: tuple[int, int]
    box: np.ndarray
    """In pixels."""
    crossings: int
    """Bars and pieces of the ladder under it."""


def _free_place(
    axes: Axes, text: str, at: tuple[float, float], taken: np.ndarray, crossed: np.ndarray
) -> _Place | None:
    """Of the places that cover nothing `taken` the one with the fewest crossings, then the nearest; None: no room."""
    figure: Any = axes.figure
    renderer = figure.canvas.get_renderer()
    inside = axes.get_window_extent(renderer)
    measured = _note(axes, text, at, (1, 0))  # once: a text is as large wherever it stands
    left, low, right, top = measured.get_window_extent(renderer).extents
    measured.remove()
    point = figure.dpi / 72
    places = []
    for dx, dy in OFFSETS:
        start = left + (dx - 1) * point - {"left": 0, "right": right - left, "center": (right - left) / 2}[_side(dx)]
        box = np.array([start, low + dy * point, start + right - left, top + dy * point])
        fits = inside.x0 <= box[0] and box[2] <= inside.x1 and inside.y0 <= box[1] and box[3] <= inside.y1
        if fits and not _overlaps(box, taken).any():
            places.append(_Place((dx, dy), box, int(_overlaps(box, crossed).sum())))
    return min(places, key=lambda place: place.crossings, default=None)


def _note(axes: Axes, text: str, at: tuple[float, float], offset: tuple[int, int]) -> Any:
    note = axes.annotate(
        text, at, xytext=offset, textcoords="offset points", fontsize=7, color="#222222", ha=_side(offset[0]), zorder=5
    )
    note.set_in_layout(False)
    return note


def _side(dx: int) -> str:
    """Which end of a text stands at its offset."""
    return "left" if dx > 0 else "right" if dx < 0 else "center"


def _lead(axes: Axes, at: tuple[float, float], offset: tuple[int, int]) -> None:
    """A thin line from a label to its point."""
    dx, dy = offset
    leader = {"arrowstyle": "-", "color": "#777777", "linewidth": 0.5, "shrinkA": 0, "shrinkB": 3}
    start = (dx, dy + (7 if dy < 0 else 0))
    line = axes.annotate("", at, xytext=start, textcoords="offset points", arrowprops=leader)
    line.set_in_layout(False)


def _lines(axes: Axes, frame: pl.DataFrame, errors: str) -> np.ndarray:
    """Boxes [n, 4] in pixels that cover the error bars (one each) and the ladder (ten a step)."""
    accuracy, x = (frame["accuracy"] * 100).to_numpy(), frame["x"].to_numpy()
    scale = 100 if errors == "accuracy" else 1
    low = frame[f"{errors}_lo"].fill_null(frame[errors]).to_numpy() * scale
    high = frame[f"{errors}_hi"].fill_null(frame[errors]).to_numpy() * scale
    starts, ends = ((x, low), (x, high)) if errors == "accuracy" else ((low, accuracy), (high, accuracy))
    bars = [axes.transData.transform(np.column_stack(corner)) for corner in (starts, ends)]
    ladder = frame.filter(pl.col("policy").is_in(REFERENCE_POLICIES)).sort("mean_kept")
    knots = axes.transData.transform(np.column_stack([ladder["x"], ladder["accuracy"] * 100]))
    steps = np.concatenate([np.linspace(a, b, 11) for a, b in itertools.pairwise(knots)] or [np.zeros((0, 2))])
    return np.vstack([np.column_stack(bars), np.column_stack([steps - 1, steps + 1])])


def _overlaps(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    left, low, right, top = others.T
    return (box[0] < right) & (left < box[2]) & (box[1] < top) & (low < box[3])
