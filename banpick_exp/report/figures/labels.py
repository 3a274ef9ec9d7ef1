"""Names beside their marks: textalloc finds places that cover no mark, no line and no other name, and leads back.

It is greedy and draws nothing at random: the first name has the first choice, and the same figure comes out the same.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import textalloc
from matplotlib.patheffects import withStroke

LONGEST = 26
"""Characters of a line of a name."""
MOST_LINES = 2
REACH = 0.42
"""How far from its mark a name may stand, in widths of the panel."""
SHORTEST = 0.6
"""A leader shorter than this many sizes of the type is left out: the name stands beside its mark."""


@dataclass(frozen=True, slots=True)
class Name:
    """A text and the mark that it belongs to, in the units of the axes."""

    text: str
    x: float
    y: float


Marks = Sequence[tuple[float, float, float]]
"""(x, y) in the units of the axes, and the radius in points."""


def place(
    axes: Any, names: Sequence[Name], marks: Marks, line: tuple[Sequence[float], Sequence[float]], size: float
) -> list[Any]:
    """Write the names, the most important first; one without room is left out. The layout must be final.

    Args:
        marks: all that no name may cover, those without a name too; line: x and y of one that none may cover either.
    Returns: the texts that were written. Bars of intervals may run below a name, which has a white edge.
    """
    if not names:
        return []
    limits, around = (axes.get_xlim(), axes.get_ylim()), _around(axes, marks)
    lines: dict[str, Any] = {"x_lines": [list(line[0])], "y_lines": [list(line[1])]} if len(line[0]) > 1 else {}
    found: tuple[Any, ...] = textalloc.allocate(
        axes, [name.x for name in names], [name.y for name in names], [_wrapped(name.text) for name in names],
        x_scatter=around[:, 0], y_scatter=around[:, 1], textsize=size, margin=0.004, min_distance=0.02,
        max_distance=REACH, nbr_candidates=600, draw_all=False, linecolor="#333333", linewidth=0.08 * size,
        avoid_label_lines_overlap=True, avoid_crossing_label_lines=True, textcolor="#111111", linespacing=1.0, zorder=5,
        plot_kwargs={"zorder": 4.5}, **lines,
    )  # fmt: skip
    texts, leaders = found[2:]
    axes.set(xlim=limits[0], ylim=limits[1])
    written = [text for text in texts if text is not None]
    for text in written:
        text.set_path_effects([withStroke(linewidth=0.25 * size, foreground="white")])
        text.set_in_layout(False)
    for leader in (each for each in leaders if each is not None):
        (x0, x1), (y0, y1) = axes.transData.transform(leader.get_xydata()).T
        leader.set_in_layout(False)
        if math.hypot(x1 - x0, y1 - y0) * 72 / axes.figure.dpi < SHORTEST * size:
            leader.remove()
    return written


def _around(axes: Any, marks: Marks) -> np.ndarray:
    """[5 n, 2] each mark's middle and four places on its edge, in the units of the axes: the placer knows points."""
    middle = axes.transData.transform([(x, y) for x, y, _ in marks])
    radius = np.array([radius for _, _, radius in marks])[:, None] * axes.figure.dpi / 72
    edge = [middle + radius * np.array(side) for side in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))]
    return np.asarray(axes.transData.inverted().transform(np.vstack(edge)))


def _wrapped(text: str) -> str:
    lines = textwrap.wrap(text, LONGEST, break_on_hyphens=False)
    return "\n".join(lines if len(lines) <= MOST_LINES else [*lines[: MOST_LINES - 1], f"{lines[MOST_LINES - 1]} …"])
