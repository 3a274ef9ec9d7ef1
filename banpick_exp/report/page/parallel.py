"""Parallel coordinates: each point a line over its knobs, its measured budget and its difference to fixed_k."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from banpick_exp.analysis.pairing import REFERENCE_POLICIES
from banpick_exp.records import OVERALL, PointRecord
from banpick_exp.report.equal_budget import is_near
from banpick_exp.report.page.html_tables import html_table, verdict_cell
from banpick_exp.report.page.rest import IN_TABLE, not_here
from banpick_exp.report.page.scatter import extent, ticks
from banpick_exp.report.page.section import Section, by_run
from banpick_exp.report.question import Knob, knob_names, knob_of
from banpick_exp.report.run import Run
from banpick_exp.report.text import Row, against, points

FEWEST_KNOBS = 2
MOST_LINES = 160
"""Of one rule that are drawn; beyond, nobody follows a line."""
MOST_RULES = 6
MOST_NAMED = 12
"""Values of an axis that each have their own place and name."""
LONGEST_TYPED = 5
"""Letters of a number that somebody chose."""
APART, HEIGHT = 155, 300
RIGHT, TOP, BOTTOM = 84, 34, 14
LEFT, LETTER = 24, 7
"""Left of the longest name on the first axis, and a letter of it."""
COLOURS = {"beats": "green", "loses": "red", "ties": "grey", "unmatched": "grey"}
INTRODUCTION = (
    "<p>Each line is a point: its knobs, the budget that was measured, and its difference to fixed_k at the nearest"
    " budget, over all domains. {key} Dashed: fixed_k keeps another budget there, so the difference is about the budget"
    " too. Point at a line to read it, or walk with the arrow keys; drag along an axis to keep the lines that pass"
    " there, click the axis to let go.</p>"
)
NOTHING = '<p class="small">No rule of this run varied two knobs or more, so there is nothing to set side by side.</p>'


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """One upright axis."""

    title: str
    names: Sequence[tuple[float, str]]
    """(place from 0, at the bottom, to 1; what stands there)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A point over the axes."""

    record: PointRecord
    row: Row | None
    """Of `verdicts`; None where nothing was compared."""
    places: Sequence[float | None]
    """On each axis, 0 to 1; None where it has no value."""
    words: Sequence[str]
    """What it has on each axis."""

    @property
    def verdict(self) -> str:
        return "unmatched" if self.row is None else str(self.row["verdict"])


def parallel_html(run: Run) -> str:
    """A figure and a folded table for each rule of which two knobs or more vary."""
    by_rule: dict[str, list[PointRecord]] = {}
    for record in run.done:
        if record.series not in REFERENCE_POLICIES:
            by_rule.setdefault(record.series, []).append(record)
    swept = {rule: (records, _knobs(records)) for rule, records in by_rule.items()}
    drawn = {rule: found for rule, found in swept.items() if len(found[1]) >= FEWEST_KNOBS}
    if not drawn:
        return NOTHING
    foremost = sorted(drawn, key=lambda rule: -len(drawn[rule][0]))[:MOST_RULES]
    rest = f'<p class="small">Not drawn: {escape(", ".join(sorted(set(drawn) - set(foremost))))}.</p>'
    key = " ".join(
        f'<b class="v-{colour}">{words}</b>'
        for words, colour in (("Green beats it,", "green"), ("orange loses,", "red"), ("grey ties.", "grey"))
    )
    figures = "".join(_rule_html(run, rule, *drawn[rule]) for rule in foremost)
    return f'{INTRODUCTION.format(key=key)}<div class="maps pairs">{figures}</div>' + (
        rest if len(drawn) > MOST_RULES else ""
    )


SECTION = Section(key="knobs", title="Knobs", html=by_run(parallel_html))


def _setting(record: PointRecord) -> dict[str, Any]:
    """Its knobs, of one that was solved the value found; the budget has an axis of its own."""
    return {name: value for name, value in record.knobs.items() if name != "budget"}


def _knobs(records: Sequence[PointRecord]) -> tuple[Knob, ...]:
    """Those that vary as they were typed, and one that was solved, by the values that were found."""
    asked = [{name: value for name, value in each.asked_policy().items() if name != "budget"} for each in records]
    solved = [record.budget.knob for record in records if record.budget is not None]
    names = dict.fromkeys([*knob_names(asked, drawn=True), *solved])
    settings = [_setting(record) for record in records]
    knobs = (knob_of(name, settings) for name in names)
    return tuple(knob for knob in knobs if len(knob.values) > 1)


def _rule_html(run: Run, rule: str, records: Sequence[PointRecord], knobs: Sequence[Knob]) -> str:
    rank = {fingerprint: place for place, fingerprint in enumerate(run.by_importance)}
    told = sorted(records, key=lambda record: rank[record.fingerprint])[: min(MOST_LINES, run.most_shown)]
    axes, lines = _over_axes(run, told, knobs)
    cut = (
        f": {len(told):,} of {len(records):,} points, those that decide the result" if len(told) < len(records) else ""
    )
    title = f"{rule}{cut}"
    head = ["policy", *(axis.title for axis in axes[:-1]), "at equal budget"]
    rows = [
        [escape(line.record.label), *map(escape, line.words[:-1]), "-" if line.row is None else verdict_cell(line.row)]
        for line in lines
    ]
    table = html_table(f"The lines of {rule} as a table", head, rows)
    return (
        f"<div><figure><figcaption>{escape(title)}</figcaption>{_svg(rule, axes, lines)}"
        '<p class="told small" role="status" aria-live="polite">&nbsp;</p></figure>'
        f'<details class="more"><summary>The same as a table</summary>{table}</details>'
        f"{not_here(len(records) - len(told), IN_TABLE)}</div>"
    )


def _over_axes(run: Run, records: Sequence[PointRecord], knobs: Sequence[Knob]) -> tuple[list[Axis], list[Line]]:
    """The axes (the knobs, the budget, the difference) and the points over them."""
    found = [run.verdict_of.get((record.fingerprint, OVERALL)) for record in records]
    rows = [None if row is None or row["difference"] is None else row for row in found]
    kept = [record.mean_kept for record in records]
    differences = [None if row is None else 100 * row["difference"] for row in rows]
    columns = [_knob_axis(knob, records) for knob in knobs]
    columns.append(_number_axis("measured budget", kept))
    columns.append(_number_axis("difference, points", [*differences, 0.0], "+"))
    lines = [
        Line(
            record=record,
            row=row,
            places=[places[i] for _, places in columns],
            words=[
                *(knob.words[knob.place(_setting(record))] for knob in knobs),
                f"{record.mean_kept:.2f}",
                "unmatched" if row is None else f"{against(row)} {points(row, simultaneous=True)}",
            ],
        )
        for i, (record, row) in enumerate(zip(records, rows, strict=True))
    ]
    return [axis for axis, _ in columns], lines


def _knob_axis(knob: Knob, records: Sequence[PointRecord]) -> tuple[Axis, Sequence[float | None]]:
    """Few values, or words: each at a place of its own, at equal distances. Many numbers: on their scale."""
    settings = [_setting(record) for record in records]
    words = [
        f"{value:.3g}" if isinstance(value, float) else word
        for value, word in zip(knob.values, knob.words, strict=True)
    ]
    found = any(len(word) > LONGEST_TYPED for word in knob.words)  # by solving or sampling: nobody types 0.462804
    if knob.numbers and (found or len(knob.values) > MOST_NAMED):
        return _number_axis(knob.name, [float(knob.values[knob.place(each)]) for each in settings])
    last = max(len(knob.values) - 1, 1)
    every = math.ceil(len(knob.values) / MOST_NAMED)
    names = [(place / last, word) for place, word in enumerate(words) if place % every == 0]
    return Axis(title=knob.name, names=names), [knob.place(each) / last for each in settings]


def _number_axis(title: str, values: Sequence[float | None], sign: str = "") -> tuple[Axis, Sequence[float | None]]:
    known = [value for value in values if value is not None]
    low, high = min(known), max(known)
    if low > 0 and high > 100 * low:
        logs: list[float | None] = [None if value is None else math.log10(value) for value in values]
        bottom, top = extent([each for each in logs if each is not None], 0.02)
        powers = range(math.ceil(bottom), math.floor(top) + 1)
        marked = [(float(power), f"{10.0**power:g}") for power in powers]
        return _placed(title, logs, bottom, top, marked)
    if high - low < 1e-9:
        return Axis(title=title, names=[(0.5, f"{low:{sign}g}")]), [None if v is None else 0.5 for v in values]
    bottom, top = extent(known, 0.03)
    marked = [(value, f"{value:{sign}g}" if value else "0") for value in ticks(bottom, top, 5)]
    return _placed(title, values, bottom, top, marked)


def _placed(
    title: str, values: Sequence[float | None], low: float, high: float, marked: Sequence[tuple[float, str]]
) -> tuple[Axis, Sequence[float | None]]:
    names = [((value - low) / (high - low), name) for value, name in marked]
    return Axis(title=title, names=names), [None if v is None else (v - low) / (high - low) for v in values]


def _y(place: float) -> float:
    return round(HEIGHT - BOTTOM - place * (HEIGHT - TOP - BOTTOM), 1)


def _svg(rule: str, axes: Sequence[Axis], lines: Sequence[Line]) -> str:
    left = LEFT + LETTER * max([len(name) for _, name in axes[0].names] + [len(axes[0].title) // 2])
    xs = [left + APART * number for number in range(len(axes))]
    width = xs[-1] + RIGHT
    label = f"{rule}: {len(lines)} points as lines over {', '.join(axis.title for axis in axes)}"
    order = {"ties": 0, "unmatched": 0, "loses": 1, "beats": 2}  # what is said last lies on top
    parts = [
        f'<div class="scroll"><svg viewBox="0 0 {width} {HEIGHT}" width="{width}" height="{HEIGHT}"'
        f' class="parallel" role="application" tabindex="0" aria-label="{escape(label)}">',
        *(_line(line, xs) for line in sorted(lines, key=lambda line: order[line.verdict])),
        *(_axis(number, axis, xs) for number, axis in enumerate(axes)),
        "</svg></div>",
    ]
    return "".join(parts)


def _line(line: Line, xs: Sequence[int]) -> str:
    known = [(x, _y(place)) for x, place in zip(xs, line.places, strict=True) if place is not None]
    path = "M" + "L".join(f"{x} {y}" for x, y in known)
    heights = " ".join("-" if place is None else f"{_y(place)}" for place in line.places)
    dashed = "" if line.row is None or is_near(line.row) else " far"
    told = f"{line.record.label}: kept {line.words[-2]}, {line.words[-1]}"
    return (
        f'<path class="line v-{COLOURS[line.verdict]}{dashed}" d="{path}" data-y="{heights}"'
        f' data-told="{escape(told)}"/>'
    )


def _axis(number: int, axis: Axis, xs: Sequence[int]) -> str:
    """With its names to the left, of the last one to the right, where no line runs."""
    x, last = xs[number], number == len(xs) - 1
    parts = [
        f'<path class="axis" d="M{x} {TOP}V{HEIGHT - BOTTOM}"/>',
        f'<text class="name" x="{x}" y="16" text-anchor="middle">{escape(axis.title)}</text>',
    ]
    side, anchor = (7, "start") if last else (-7, "end")
    for place, name in axis.names:
        parts.append(f'<path class="axis" d="M{x - 3} {_y(place)}h6"/>')
        parts.append(f'<text x="{x + side}" y="{_y(place) + 4:.1f}" text-anchor="{anchor}">{escape(name)}</text>')
    parts.append(f'<rect class="kept" x="{x - 6}" y="{TOP}" width="12" height="0"/>')
    grip = f'x="{x - 16}" y="{TOP - 6}" width="32" height="{HEIGHT - TOP - BOTTOM + 12}"'
    parts.append(f'<rect class="grip" {grip}/>')
    return "".join(parts)
