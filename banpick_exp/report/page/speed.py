"""Speed: what a policy saves by batch size and phase, and the distinct experts of a step, which explain it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from banpick_exp.records import PointRecord, SpeedCell
from banpick_exp.report.page.beside_stock import beside_stock
from banpick_exp.report.page.html_tables import html_table
from banpick_exp.report.page.panels import shape_id
from banpick_exp.report.page.points import point_index
from banpick_exp.report.page.rest import IN_RECORDS, not_here
from banpick_exp.report.page.scatter import Mark, Panel, draw, extent
from banpick_exp.report.page.section import Section, by_run
from banpick_exp.report.run import Run
from banpick_exp.report.text import in_words, speed_words

INTRODUCTION = (
    "<p>Stock and the policy take turns every few steps of one running batch; a figure is the median of the ratios with"
    " its 95 % interval, a tie where that holds 1. Stock's own row is the noise of this clock. <i>Distinct experts</i>:"
    " of a layer, used by some token of a step. At small batch a decode reads each of them from memory, so their number"
    " decides; at large batch and in a prefill it is the kept pairs.</p>"
)
MOST_DRAWN = 5
"""Lines beside stock's: more than that cross each other until none can be followed."""
COLOURS = 6  # .r0 to .r5 in report.css; stock has the first place and its own colour
ASIDE = 0.09
"""Between two points of one batch size, in powers of 2."""
NOTHING = '<p class="small">Nothing was timed batch by batch in this run.</p>'


def speed_html(run: Run) -> str:
    """A picture of the points that the verdict is about and a table of all that are shown."""
    # A checkpoint that was made from another was timed against stock of its own: no row of the same table.
    timed = [r for r in run.shown_done if r.measured.overall.speed and r.model.base is None]
    if not timed:
        return NOTHING
    return INTRODUCTION + _picture(run, timed) + _table(run, timed) + not_here(run.unshown, IN_RECORDS)


SECTION = Section(key="speed", title="Speed by batch", html=by_run(speed_html))


def _picture(run: Run, timed: list[PointRecord]) -> str:
    """Decode speed-up against batch: stock, and the points that the verdict is about, the gains ringed."""
    drawn = _drawn(run, timed)
    if not drawn:
        return ""
    index, marks, lines, legend = point_index([run]), [], [], []
    for place, record in enumerate(drawn):
        colour = "ink" if record.is_stock else f"r{place % COLOURS}"
        cells = [cell for cell in record.measured.overall.speed if cell.phase == "decode"]
        aside = (place - (len(drawn) - 1) / 2) * ASIDE  # side by side: an interval hides no other
        shape = shape_id(record.policy_name)
        marks += [
            Mark(
                x=math.log2(cell.batch) + aside,
                y=cell.speedup,
                bar=cell.ci95,
                shape=shape,
                colour=colour,
                index=index[run.folder.path, record.fingerprint],
                ringed=record.fingerprint in run.ringed,
            )
            for cell in cells
        ]
        lines.append((colour, [(math.log2(cell.batch) + aside, cell.speedup) for cell in cells]))
        mark = f'<use href="#{shape}" class="{colour}"/>'
        swatch = f'<svg width="18" height="18" viewBox="-9 -9 18 18" aria-hidden="true">{mark}</svg>'
        gains = " (a gain: ringed)" if record.fingerprint in run.ringed else ""
        legend.append(f"<li>{swatch}{escape(in_words(record.label) + gains)}</li>")
    batches = sorted({cell.batch for r in drawn for cell in r.measured.overall.speed if cell.phase == "decode"})
    if batches:
        lines.append(("one", [(math.log2(batches[0]) - 0.3, 1.0), (math.log2(batches[-1]) + 0.3, 1.0)]))
    panel = Panel(
        title="Decode speed-up over stock against batch size",
        caption="Decode speed-up against batch size",
        x_title="sequences that decode at once",
        y_title="speed-up over stock",
        marks=marks,
        ladders=lines,
        x_ticks=[math.log2(batch) for batch in batches],
        x_names=[str(batch) for batch in batches],
    )
    ends = extent([1.0, *(end for mark in marks for end in mark.bar or ())], 0.06)
    return (
        f'<figure class="narrow"><figcaption>{panel.caption}</figcaption>{draw(panel, ends, "t-speed")}</figure>'
        f'<ul class="legend">{"".join(legend)}</ul>'
    )


def _drawn(run: Run, timed: Sequence[PointRecord]) -> list[PointRecord]:
    """Stock, then at most MOST_DRAWN of `beside_stock`; where nothing was compared, of the front, fewest kept first."""
    by_name = {record.fingerprint: record for record in timed if not record.is_stock}
    told = [by_name[name] for each in beside_stock(run) if (name := each.record.fingerprint) in by_name]
    if not told:
        rows = {row["fingerprint"]: row for row in run.done_rows().iter_rows(named=True)}
        front = [record for record in by_name.values() if rows[record.fingerprint]["on_front"]]
        told = sorted(front, key=lambda record: (not rows[record.fingerprint]["sure"], record.mean_kept))
    return [*(record for record in timed if record.is_stock), *told[:MOST_DRAWN]]


def _table(run: Run, timed: list[PointRecord]) -> str:
    head = list(dict.fromkeys(_name(cell) for record in timed for cell in record.measured.overall.speed))
    body = []
    for record in sorted(timed, key=lambda record: (-record.mean_kept, record.label)):
        cells = {_name(cell): cell for cell in record.measured.overall.speed}
        body.append([escape(record.label), *(_cell(cells.get(name)) for name in head)])
    caption = f"Speed-up over stock, with distinct experts of a step (stock's in brackets), {run.name}"
    return html_table(caption, ["policy", *head], body)


def _name(cell: SpeedCell) -> str:
    return f"decode {cell.batch}" if cell.phase == "decode" else f"prefill, {cell.batch:,} tokens"


def _cell(cell: SpeedCell | None) -> str:
    if cell is None:
        return "-"
    words = speed_words(cell.speedup, *cell.ci95)
    if cell.unique_experts is None or cell.stock_unique_experts is None:
        return words
    return f'{words} <span class="small">{cell.unique_experts:.1f} ({cell.stock_unique_experts:.1f})</span>'
