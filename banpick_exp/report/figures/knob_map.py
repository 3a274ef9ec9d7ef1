"""Two knobs: a cell for each pair of values, with its difference to fixed_k at equal budget and the verdict's sign."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from banpick_exp.analysis.front import SAME_BUDGET
from banpick_exp.report.figures.sheet import CHARACTER, Sheet, figure_on, signed, words
from banpick_exp.report.question import Cells, Knob, Swept
from banpick_exp.report.text import MARKS

NARROWEST = 0.34
"""Inches of a cell that holds a number."""
SMALLEST = 0.13
"""Inches of a cell of a map that has no numbers."""
ROW = 0.34
ALONE = 0.5
"""Inches of a row, the same where a sheet has one map."""
TALLEST = 7.5
LINES = 2
"""Of maps; of more domains only all together are drawn."""
MOST_TICKS = 24
ON_PALE, ON_DARK = "#101010", "#fefefe"
"""What is written in a cell; no ink and no paper, which a page on dark paper changes: a cell stays as pale as it is."""
FAINTEST = 2.5
"""The best gain has at least the 1/FAINTEST of the full colour."""
LEAST = 10.0
"""Points; a scale that ends below would make noise bright."""
SIGNS = (
    "▲ beats, ▼ loses to the fixed_k point of the nearest measured budget,"
    " no sign: a tie; for all cells at once (95\u00a0%)."
)
APART = " (In brackets): fixed_k has no point within 0.25 experts, so the budget counts too."
BLANK = " Grey: not measured."


def draw_map(asked: Swept, maps: Sequence[Cells], sheet: Sheet, *, title: str, text: str) -> Any:
    """The figure: all domains together and, where there is room, each domain, on one colour scale.

    Args: maps: of `overall` first.
    """
    across, down = asked.knobs
    label = CHARACTER * sheet.size / 72 * max(map(len, down.words))
    room = sheet.width - 0.75 - label
    cell = NARROWEST if len(across.values) * NARROWEST <= room else SMALLEST
    in_line = max(1, min(len(maps), int(room / (len(across.values) * cell + 0.25))))
    if sheet.narrow or not sheet.domains or math.ceil(len(maps) / in_line) > LINES:
        maps, in_line = maps[:1], 1
    lines = math.ceil(len(maps) / in_line)
    tall = ROW if sheet.domains else ALONE
    row = max(
        SMALLEST, min(tall if cell == NARROWEST else SMALLEST * 1.2, (TALLEST - 1.5) / (len(down.values) * lines))
    )
    tilted = max(map(len, across.words)) * CHARACTER * sheet.size / 72 > room / in_line / len(across.values)
    above = 0.75 if sheet.titled else 0.0
    height = lines * (len(down.values) * row + 0.45 + (0.4 if tilted else 0)) + 0.55 + above
    notes = (SIGNS, APART if any(_apart(each).any() for each in maps) else "",
             BLANK if any(np.isnan(each.difference).any() for each in maps) else "")  # fmt: skip
    with figure_on(sheet, max(height, 1.9)) as figure:
        panels = figure.subplots(lines, in_line, squeeze=False, sharex=True, sharey=True)
        scale, extend = _scale(maps)
        images = []
        for axes, each in zip(panels.flat, maps, strict=False):
            images.append(_panel(axes, each, scale))
            axes.set_title(f"{each.domain}" if len(maps) > 1 else "")
            _ticks(axes, across, down, tilted)
        for axes in panels.flat[len(maps) :]:
            axes.set_visible(False)
        for axes in panels[:, 0]:
            axes.set_ylabel(down.name)
        for axes in panels[-1]:
            axes.set_xlabel(across.name)
        bar = figure.colorbar(images[0], ax=list(panels.flat), pad=0.02, fraction=0.06, aspect=25, extend=extend)
        bar.set_label("difference to fixed_k (points)")
        bar.outline.set_visible(False)
        words(figure, sheet, title, text, "".join(notes))
        figure.canvas.draw()  # the layout must be final before a cell can be measured
        for axes, each in zip(panels.flat, maps, strict=False):
            _numbers(axes, each, sheet, scale)
        return figure


def _scale(maps: Sequence[Cells]) -> tuple[float, str]:
    """Where the colours end, and at which end something lies beyond: a gain is not to be pale beside a broken model."""
    highest = max(float(np.nanmax(each.difference, initial=0.0)) for each in maps)
    largest = max(float(np.nanmax(np.abs(each.difference), initial=0.0)) for each in maps)
    scale = min(max(largest, 1.0), max(FAINTEST * highest, LEAST))
    return scale, "min" if largest > scale else "neither"


def _panel(axes: Any, found: Cells, scale: float) -> Any:
    axes.set_facecolor("#D9D9D9")
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    image = axes.imshow(found.difference, cmap="RdBu", vmin=-scale, vmax=scale, aspect="auto", interpolation="nearest")
    rows, columns = found.difference.shape
    axes.hlines(np.arange(rows - 1) + 0.5, -0.5, columns - 0.5, color="white", linewidth=0.6)
    axes.vlines(np.arange(columns - 1) + 0.5, -0.5, rows - 0.5, color="white", linewidth=0.6)
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(-0.5, rows - 0.5))
    return image


def _ticks(axes: Any, across: Knob, down: Knob, tilted: bool) -> None:
    for axis, knob in ((axes.xaxis, across), (axes.yaxis, down)):
        step = math.ceil(len(knob.words) / MOST_TICKS)
        axis.set_ticks(range(0, len(knob.words), step), knob.words[::step])
        axis.set_tick_params(length=0)
    if tilted:
        axes.tick_params(axis="x", rotation=45)
        for tick in axes.get_xticklabels():
            tick.set(ha="right", rotation_mode="anchor")


def _apart(found: Cells) -> np.ndarray:
    return ~np.isnan(found.difference) & ~found.near


def _numbers(axes: Any, found: Cells, sheet: Sheet, scale: float) -> None:
    """As much as every cell has room for: difference and sign, the interval, the budget where it varies; else signs."""
    box = axes.get_window_extent()
    rows, columns = found.difference.shape
    dpi = axes.figure.dpi
    wide, tall = (72 / dpi * side / count for side, count in ((box.width, columns), (box.height, rows)))
    varies = bool(np.isfinite(found.kept).any()) and np.ptp(found.kept[np.isfinite(found.kept)]) > SAME_BUDGET
    lines = {at: _lines(found, at, varies) for at in np.ndindex(rows, columns) if not np.isnan(found.difference[at])}
    character = CHARACTER * sheet.size
    most = next(
        (
            count
            for count in (3, 2, 1)
            if all(len(line) * character < wide for text in lines.values() for line in text[:count])
            and count * 1.15 * sheet.size < tall
        ),
        0,
    )
    for (row, column), text in lines.items():
        said = "\n".join(text[:most]) if most else MARKS.get(str(found.verdict[row, column]), "")
        dark = abs(found.difference[row, column]) > 0.6 * scale
        bold = "bold" if found.verdict[row, column] == "beats" and found.near[row, column] else "normal"
        axes.text(
            column, row, said, ha="center", va="center", color=ON_DARK if dark else ON_PALE, linespacing=1.05,
            fontsize=sheet.size if most else min(sheet.size, 0.8 * wide, 0.8 * tall), fontweight=bold,
        ).set_in_layout(False)  # fmt: skip


def _lines(found: Cells, at: tuple[int, ...], varies: bool) -> list[str]:
    sign = MARKS.get(str(found.verdict[at]), "") if found.near[at] else ""
    number = signed(found.difference[at])
    first = f"{number} {sign}".strip() if found.near[at] else f"({number})"
    interval = f"[{signed(found.low[at])}, {signed(found.high[at])}]"
    return [first, *([f"keeps {found.kept[at]:.2f}"] if varies else []), interval]
