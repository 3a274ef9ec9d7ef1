"""The points of a run for a terminal too narrow for all columns: one line each, what decides first.

`policy, verdict, points with interval, kept, speed`, in that order; the rest is in the report. Nothing wraps: where the
terminal has no room the speed loses its interval, then long labels their middle, then the last columns go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.markup import escape
from rich.table import Table

from banpick_exp.report.equal_budget import is_near
from banpick_exp.report.text import STOCK, Row, in_words, points, span, speed_text

HEAD = ("policy", "verdict", "points [95 %]", "kept", "speed", "")
GAP = 2
"""Columns of the terminal between two of the table."""
SHORTEST_LABEL = 16
"""Cells; where a label has less, the last column of the table goes."""
CUT = "…"


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One point."""

    row: Row
    """Of `points_frame`."""
    verdict: Row | None
    """Of `verdicts`; None of stock and fixed_k."""
    signs: str
    """Whether it is on the front, and whether a guard was raised."""

    def cells(self, *, sure: bool) -> tuple[str, ...]:
        """`sure`: the speed with its interval."""
        said, difference = _verdict(self.row, self.verdict)
        speed = speed_text(self.row) if sure else short_speed(self.row)
        return _label(self.row), said, difference, f"{self.row['mean_kept']:.2f}", speed, self.signs


def lines_table(lines: Sequence[Line], title: str, width: int, colours: Mapping[str, str]) -> Table:
    """At most `width` columns, one line a point. `colours`: of the verdicts."""
    rows = [line.cells(sure=True) for line in lines]
    if _natural(rows) > width:
        rows = [line.cells(sure=False) for line in lines]
    columns = len(HEAD)
    while (room := width - _natural([row[1:columns] for row in rows], HEAD[1:columns]) - GAP) < SHORTEST_LABEL:
        if columns == 2:
            break
        columns -= 1
    table = Table(title=cut(title, width), title_justify="left", box=None, pad_edge=False, padding=(0, GAP, 0, 0))
    for name in HEAD[:columns]:
        table.add_column(name, no_wrap=True, justify="right" if name in ("points [95 %]", "kept", "speed") else "left")
    for line, (label, said, *more) in zip(lines, rows, strict=True):
        colour = "dim" if line.verdict is None else colours.get(line.verdict["verdict"], "default")
        cells = (escape(cut(label, max(room, 1))), f"[{colour}]{escape(said)}[/]", *map(escape, more))
        table.add_row(*cells[:columns])
    return table


def fitted_table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> Table:
    """Text as a table of at most `width` columns, one line a row; only headings wrap.

    Where there is no room, the cells of the widest column lose their middle, then the last columns go.
    """
    columns = len(head)
    cells = [max((cell_len(row[column]) for row in rows), default=0) for column in range(columns)]
    widths = [max(cell, cell_len(name)) for cell, name in zip(cells, head, strict=True)]
    if sum(widths) + GAP * columns > width:
        widths = [max(cell, *map(cell_len, (name.split() or [""]))) for cell, name in zip(cells, head, strict=True)]
    widest = cells.index(max(cells))
    while True:
        others = sum(wide + GAP for column, wide in enumerate(widths[:columns]) if column != widest)
        if width - others >= SHORTEST_LABEL or columns <= widest + 1:
            break
        columns -= 1
    room = max(min(widths[widest], width - others), 1)
    table = Table(title=cut(title, width), title_justify="left", box=None, pad_edge=False, padding=(0, GAP, 0, 0))
    for column in range(columns):
        wide = room if column == widest else widths[column]
        table.add_column(escape(head[column]), width=wide, justify="right" if column > widest else "left")
    for row in rows:
        told = [cut(text, room) if column == widest else text for column, text in enumerate(row[:columns])]
        table.add_row(*map(escape, told))
    return table


def cut(text: str, room: int) -> str:
    """The text in at most `room` cells of a terminal: its begin and its end, where knobs differ.

    >>> cut("ban_pick lambda=0.5 key_experts=16", 20)
    'ban_pick l…xperts=16'
    """
    if cell_len(text) <= room:
        return text
    end = (room - 1) // 2
    return f"{set_cell_size(text, room - 1 - end)}{CUT}{set_cell_size(text[::-1], end)[::-1]}"


def short_speed(row: Row) -> str:
    """`1.08x`; `tie` where the interval holds 1, `-` where nothing was timed; in brackets as in `speed_text`."""
    own = row["speedup"] is None
    key = "own_speedup" if own else "speedup"
    ratio, low, high = row.get(key), row.get(f"{key}_lo"), row.get(f"{key}_hi")
    if ratio is None:
        return "-"
    said = "tie" if low is not None and high is not None and low < high and low <= 1 <= high else f"{ratio:.2f}x"
    return f"({said})" if own else said


def _verdict(row: Row, verdict: Row | None) -> tuple[str, str]:
    """What it is held against with which result, and the difference there."""
    if verdict is None:
        return (
            ("stock", "-")
            if row["policy"] == STOCK or row["delta"] is None
            else ("(to stock)", span(row, "delta", "+z.1f", 100))
        )
    if verdict["verdict"] == "unmatched":
        return "unmatched", "-"
    return f"{verdict['verdict']} {short_rival(verdict)}{'' if is_near(verdict) else '*'}", points(
        verdict, simultaneous=True
    )


def short_rival(verdict: Row) -> str:
    """`stock`, or `k=5` for `fixed_k k=5`."""
    name, *knobs = in_words(str(verdict["reference_label"])).split()
    return knobs[0] if knobs else name


def _label(row: Row) -> str:
    return " ".join(in_words(str(row["label"])).split())


def _natural(rows: Sequence[Sequence[str]], head: Sequence[str] = HEAD) -> int:
    """Columns of the terminal that these need, no cell cut."""
    widths = [max(map(cell_len, column)) for column in zip(head, *rows, strict=True)]
    return sum(widths) + GAP * max(len(widths) - 1, 0)
