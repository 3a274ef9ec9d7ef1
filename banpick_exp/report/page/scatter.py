"""One scatter panel as SVG text: axes, the reference ladder as a line, points with bars, rings around gains.

Points are `<use>` elements that carry `data-p`, the index of the point in the page's data; report.js does the rest.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

WIDTH, HEIGHT = 580, 400
LEFT, RIGHT, TOP, BOTTOM = 50, 14, 12, 46
DOT = 4
"""Units between two dots."""
Range = tuple[float, float]
Knots = Sequence[tuple[float, float]]
"""(x, y) of a line, from left to right or back."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """One point: where, its interval along one axis (None: none), how it looks and which entry of the data it is."""

    x: float
    y: float
    bar: Range | None
    shape: str
    colour: str
    index: int
    ringed: bool = False
    """It is a gain."""
    text: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hollow:
    """A figure from elsewhere, drawn empty: where, how it looks, and what it is."""

    x: float
    y: float
    shape: str
    colour: str
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """What a panel shows. `vertical`: the bars are intervals of y, else of x."""

    title: str
    """For those who hear it."""
    caption: str
    """Above the panel."""
    x_title: str
    y_title: str
    marks: Sequence[Mark]
    ladders: Sequence[tuple[str, Knots]] = ()
    """Colour class and knots of each reference line."""
    dots: Sequence[tuple[str, Knots]] = ()
    """Colour class and places of points that are no marks: seen, and not told."""
    hollows: Sequence[Hollow] = ()
    vertical: bool = True
    x_ticks: Sequence[float] | None = None
    x_names: Sequence[str] | None = None
    """Of the ticks, where they are not their values."""
    x_line: float | None = None


def ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Round numbers from `low` to `high`, about `count` of them. Example: ticks(0, 10, 5) = [0, 2, 4, 6, 8, 10]."""
    raw = (high - low) / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 10) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def extent(values: Sequence[float], margin: float = 0.05) -> Range:
    """The range of `values` with a margin on both sides; a single value gets room around it."""
    low, high = min(values), max(values)
    room = (high - low) * margin or max(abs(high) * margin, 0.5)
    return low - room, high + room


def draw(panel: Panel, y_range: Range, label_id: str) -> str:
    """The panel as one `<svg>`; points outside `y_range` are clipped, as a zoomed view wants it."""
    bars = [end for mark in panel.marks if mark.bar and not panel.vertical for end in mark.bar]
    lone = [] if panel.x_line is None else [panel.x_line]
    dotted = [x for _, places in panel.dots for x, _ in places]
    hollow = [each.x for each in panel.hollows]
    x_range = extent([*(mark.x for mark in panel.marks), *bars, *lone, *dotted, *hollow])
    scale = _Scale(x_range, y_range)
    dots = (f'<path class="bar dots {colour}" d="{_dots(places, scale)}"/>' for colour, places in panel.dots)
    inside = [mark for mark in panel.marks if y_range[0] <= mark.y <= y_range[1]]
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" class="panel" role="group" aria-labelledby="{label_id}" tabindex="-1">',
        f'<title id="{label_id}">{escape(panel.title)}</title>',
        *_axes(panel, scale),
        f'<svg x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT - RIGHT}" height="{HEIGHT - TOP - BOTTOM}" '
        f'viewBox="{LEFT} {TOP} {WIDTH - LEFT - RIGHT} {HEIGHT - TOP - BOTTOM}" overflow="hidden">',
        *(f'<path class="ladder {colour}" d="{_line(knots, scale)}"/>' for colour, knots in panel.ladders),
        *dots,
        *_bars(panel, scale),
        "</svg>",
        *(_hollow(each, scale) for each in panel.hollows if y_range[0] <= each.y <= y_range[1]),
        *(_point(mark, scale) for mark in sorted(inside, key=lambda mark: mark.ringed)),
        *_labels(inside, scale),
        "</svg>",
    ]
    return "".join(parts)


@dataclass(frozen=True, slots=True)
class _Scale:
    x_range: Range
    y_range: Range

    def x(self, value: float) -> float:
        low, high = self.x_range
        return round(LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return round(HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)


def _axes(panel: Panel, scale: _Scale) -> list[str]:
    floor, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = []
    low, high = scale.x_range
    marked = ticks(*scale.x_range) if panel.x_ticks is None else panel.x_ticks
    for value, name in zip(marked, panel.x_names or [f"{value:g}" for value in marked], strict=True):
        if not low <= value <= high:
            continue
        x = scale.x(value)
        parts.append(f'<path class="grid" d="M{x} {TOP}V{floor}"/>')
        parts.append(f'<text x="{x}" y="{floor + 16}" text-anchor="middle">{escape(name)}</text>')
    for value in ticks(*scale.y_range):
        y = scale.y(value)
        parts.append(f'<path class="grid" d="M{LEFT} {y}H{right}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{value:g}</text>')
    if panel.x_line is not None:
        parts.append(f'<path class="one" d="M{scale.x(panel.x_line)} {TOP}V{floor}"/>')
    middle = (TOP + floor) / 2
    parts.append(f'<path class="axis" d="M{LEFT} {TOP}V{floor}H{right}"/>')
    parts.append(f'<text class="name" x="{(LEFT + right) / 2}" y="{HEIGHT - 10}" text-anchor="middle">')
    parts.append(f"{escape(panel.x_title)}</text>")
    parts.append(f'<text class="name" transform="translate(13 {middle})rotate(-90)" text-anchor="middle">')
    parts.append(f"{escape(panel.y_title)}</text>")
    return parts


def _line(knots: Knots, scale: _Scale) -> str:
    return "M" + "L".join(f"{scale.x(x)} {scale.y(y)}" for x, y in knots) if knots else ""


def _dots(places: Knots, scale: _Scale) -> str:
    """Short strokes on a lattice, each place once: of ten thousand points a few thousand places are left."""
    lattice = {(DOT * round(scale.x(x) / DOT), DOT * round(scale.y(y) / DOT)) for x, y in places}
    return "".join(f"M{x} {y}h0" for x, y in sorted(lattice))


def _bars(panel: Panel, scale: _Scale) -> list[str]:
    paths: dict[str, list[str]] = {}
    for mark in panel.marks:
        if mark.bar is not None:
            low, high = mark.bar
            if panel.vertical:
                piece = f"M{scale.x(mark.x)} {scale.y(low)}V{scale.y(high)}"
            else:
                piece = f"M{scale.x(low)} {scale.y(mark.y)}H{scale.x(high)}"
            paths.setdefault(mark.colour, []).append(piece)
    return [f'<path class="bar {colour}" d="{"".join(pieces)}"/>' for colour, pieces in paths.items()]


def _point(mark: Mark, scale: _Scale) -> str:
    at = f'x="{scale.x(mark.x)}" y="{scale.y(mark.y)}"'
    ring = f'<use href="#ring" class="front" {at}/>' if mark.ringed else ""
    return f'{ring}<use href="#{mark.shape}" class="point {mark.colour}" {at} data-p="{mark.index}"/>'


EMPTY = "fill:none;opacity:1;stroke-width:1.6"
"""Here and not in the style sheet: a page without published figures is the same to the byte."""


def _hollow(each: Hollow, scale: _Scale) -> str:
    at = f'x="{scale.x(each.x)}" y="{scale.y(each.y)}"'
    title = f"<title>{escape(each.text)}</title>"
    return f'<use href="#{each.shape}" class="bar {each.colour}" style="{EMPTY}" {at}>{title}</use>'


def _labels(marks: Sequence[Mark], scale: _Scale) -> list[str]:
    """Names that cover no mark and no other name, each at the nearest place beside its own mark, with a line to it
    where that is not the next one; without room they are left out.
    """
    taken = [(scale.x(m.x) - 5, scale.y(m.y) - 5, scale.x(m.x) + 5, scale.y(m.y) + 5) for m in marks]
    parts = []
    for mark in (each for each in marks if each.text):
        x, y, wide = scale.x(mark.x), scale.y(mark.y), 6.4 * len(mark.text)
        for left, base, far in _beside(x, y, wide):
            box = (left, base - 10, left + wide, base + 2)
            inside = box[0] > LEFT and box[2] < WIDTH and box[1] > TOP and box[3] < HEIGHT - BOTTOM
            clear = all(box[0] > t[2] or t[0] > box[2] or box[1] > t[3] or t[1] > box[3] for t in taken)
            if inside and clear:
                taken.append(box)
                if far:
                    end = min(max(x, box[0]), box[2]), box[3] if box[3] < y else box[1]
                    parts.append(f'<path class="axis" d="M{x} {y}L{end[0]:.1f} {end[1]:.1f}"/>')
                parts.append(f'<text class="tag" x="{left:.1f}" y="{base:.1f}">{escape(mark.text)}</text>')
                break
    return parts


def _beside(x: float, y: float, wide: float) -> Iterator[tuple[float, float, bool]]:
    """Left end and base line of places for a name `wide` long, the nearest first, and whether it needs a line."""
    for away in (0, 14, 28, 44):
        for below in (True, False):
            for left in (x + 9 + away / 2, x - 9 - away / 2 - wide, *([x - wide / 2] if away else [])):
                yield left, y + 16 + away if below else y - 8 - away, away > 0


def shape_path(marker: Any, size: float) -> str:
    """Path of a matplotlib marker around 0 0, `size` units across: page and paper show the same shapes."""
    from matplotlib.markers import MarkerStyle

    style = MarkerStyle(marker)
    path = style.get_path().transformed(style.get_transform())
    pieces = []
    for vertices, code in path.iter_segments(curves=True):
        pairs = [f"{size * x:.2f} {-size * y:.2f}" for x, y in zip(vertices[::2], vertices[1::2], strict=True)]
        pieces.append({1: "M", 2: "L", 3: "Q", 4: "C"}.get(int(code), "") + " ".join(pairs) if code != 79 else "Z")
    return "".join(pieces)
