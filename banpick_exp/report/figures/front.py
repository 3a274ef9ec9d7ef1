"""The front for papers: accuracy against the measured budget, and against the speed-up. `report.page` has the
interactive one.

Frames in, files out. Every policy family has a colour of the Okabe-Ito palette and a marker of its own, so that the
figures read in grey and with any colour vision.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl

from banpick_exp.report.figures.panels import (
    MOST_BARS,
    Ringed,
    budget_panel,
    dots,
    hollow,
    legend_below,
    legend_inches,
    names,
    published_entry,
    speed_panel,
)
from banpick_exp.report.figures.sheet import Sheet, figure_on, words
from banpick_exp.report.figures.styles import family_styles
from banpick_exp.report.published import Published

NOTE = "Bars: 95\u00a0% intervals. "
FEW_BARS = "Bars: 95\u00a0% intervals, of stock, fixed_k and ringed points alone. "
RINGED = "Ringed: beats fixed_k at equal budget, over all domains and for all points at once."
NO_RING = "No point is ringed: none beats fixed_k at equal budget over all domains."


def draw_front(
    frame: pl.DataFrame,
    sheet: Sheet,
    *,
    title: str,
    text: str,
    others: pl.DataFrame | None = None,
    published: Sequence[Published] = (),
    ringed: Ringed = (),
) -> Any:
    """Two panels, beside each other or, in a column, below each other.

    Args:
        frame: done rows of one domain with the columns of `points_frame`.
        others: more such rows that are only dots, without interval, ring or name.
        published: what papers report of the same, as hollow marks.
        ringed: fingerprints of the points that gain.
    """
    styles = family_styles(
        [*frame["policy"], *([] if others is None else others["policy"]), *(each.policy for each in published)]
    )
    timed = frame["speedup"].drop_nulls().len() > 0
    lines, columns = (1 + timed, 1) if sheet.narrow else (1, 1 + timed)
    bars = NOTE if frame.height <= MOST_BARS else FEW_BARS
    note = bars + (RINGED if ringed else NO_RING)
    height = lines * (2.2 if sheet.narrow else 0.42 * sheet.width) + legend_inches(sheet, len(styles) + 1, note)
    height += 0.55 if sheet.titled else 0.0
    with figure_on(sheet, height) as figure:
        panels = figure.subplots(lines, columns, squeeze=False, sharey=True).flat
        budget_panel(panels[0], frame, styles, sheet, ringed)
        if others is not None and others.height:
            dots(panels[0], others, "mean_kept", styles)
        if published:
            kept = [(each.mean_kept, each) for each in published if each.mean_kept is not None]
            hollow(panels[0], kept, styles, sheet)
            published_entry(panels[0], published)
        if timed:
            speed_panel(panels[1], frame, styles, sheet, ringed)
            if others is not None and others.height:
                dots(panels[1], others, "speedup", styles)
            speeds = [(each.speedup, each) for each in published if each.speedup is not None]
            hollow(panels[1], speeds, styles, sheet)
        legend_below(figure, panels[0], sheet, note=note)
        words(figure, sheet, title, text)
        figure.canvas.draw()  # the layout must be final before text can be measured
        figure.set_layout_engine("none")
        names(panels[0], frame, sheet, ringed)
        return figure
