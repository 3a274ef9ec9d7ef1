"""Many rules: accuracy against the measured budget, and a forest plot of the differences to fixed_k at equal budget."""

from __future__ import annotations

from typing import Any

import polars as pl

from banpick_exp.report.figures.panels import Ringed, budget_panel, dots, legend_below, legend_inches, names
from banpick_exp.report.figures.sheet import Sheet, figure_on, signed, words
from banpick_exp.report.figures.styles import family_styles
from banpick_exp.report.one_line import cut

LINE = 1.35
"""Height of a row, in sizes of the type."""
BUDGET = 2.1
"""Inches of the budget panel in a column, with its words."""
MARGIN = 0.42
"""Inches that its numbers and title need at the left."""
LONGEST = 44
"""Characters of a label."""
NOTE = (
    "Right of 0 a rule is better than the fixed_k point of the same measured budget (within 0.25 experts). Bars:"
    " 95\u00a0% for all comparisons at once; filled: beats or loses, hollow: a tie."
)


def draw_budgets(
    frame: pl.DataFrame,
    compared: pl.DataFrame,
    sheet: Sheet,
    *,
    title: str,
    text: str,
    others: pl.DataFrame | None = None,
    ringed: Ringed = (),
) -> Any:
    """The figure; the panels stand below each other in a column.

    Args:
        frame: done rows of one domain with the columns of `points_frame`; `others`: more of them, drawn as dots.
        compared: rows of `verdicts` at equal budget.
    """
    styles = family_styles([*frame["policy"], *([] if others is None else others["policy"])])
    rows = foremost(compared, sheet.most_rows)
    line = LINE * sheet.size / 72
    forest = line * (rows.height + 1.5) + 0.45
    left_out = compared.height - rows.height
    note = NOTE + (f" {left_out} more comparisons are in the tables." if left_out else "")
    named = set(rows["policy"])  # beside their own mark in the forest
    budget = BUDGET + legend_inches(sheet, len(set(styles) - named) + 1, note)
    above = 0.55 if sheet.titled else 0.0
    beside = max(0.36 * sheet.width, forest) + budget - BUDGET
    shape: dict[str, Any] = {"nrows": 2, "height_ratios": (BUDGET, forest)} if sheet.narrow else {"ncols": 2}
    with figure_on(sheet, (budget + forest if sheet.narrow else beside) + above) as figure:
        upper, lower = figure.subplots(**shape)
        budget_panel(upper, frame, styles, sheet, ringed)
        if others is not None and others.height:
            dots(upper, others, "mean_kept", styles)
        forest_panel(lower, rows, styles, sheet)
        legend_below(figure, upper, sheet, note=note, without=named)
        words(figure, sheet, title, text)
        figure.canvas.draw()  # the layout must be final before text can be measured
        figure.set_layout_engine("none")
        if sheet.narrow:  # the long names of the forest need not make the other panel narrow
            box, left = upper.get_position(), MARGIN / sheet.width
            upper.set_position((left, box.y0, 0.985 - left, box.height))
        names(upper, frame, sheet, ringed, few=False)
        return figure


def forest_panel(axes: Any, rows: pl.DataFrame, styles: Any, sheet: Sheet) -> None:
    """A line a comparison, in the order of `rows` from the top down, with its budget and its number at the right."""
    axes.axvline(0, color="#444444", linewidth=0.9, zorder=1)
    ends = []
    for at, row in enumerate(rows.iter_rows(named=True)):
        colour, marker, size = styles[row["policy"]]
        low, middle, high = (100 * row[name] for name in ("lo_simultaneous", "difference", "hi_simultaneous"))
        ends += [low, high]
        axes.plot([low, high], [at, at], color=colour, linewidth=0.16 * sheet.size, zorder=2, solid_capstyle="butt")
        axes.plot(
            [middle], [at], linestyle="none", marker=marker, markersize=0.8 * size * sheet.size / 9, zorder=3,
            color=colour, markerfacecolor="white" if row["verdict"] == "ties" else colour, markeredgewidth=0.9,
        )  # fmt: skip
        text = f"{row['mean_kept']:.2f}  {signed(middle)}"
        axes.text(1.02, at, text, transform=axes.get_yaxis_transform(), va="center", ha="left", family="DejaVu Sans")
        if at and row["reference_label"] != rows["reference_label"][at - 1]:
            axes.axhline(at - 0.5, color="#CCCCCC", linewidth=0.5, zorder=0)
    if max(map(abs, ends)) < 1:  # of equal answers there is no difference to make a scale of
        axes.set_xlim(-1, 1)
    axes.text(1.02, -1, "kept  diff.", transform=axes.get_yaxis_transform(), va="center", ha="left", color="#444444")
    longest = max(12, int(sheet.characters() * (0.45 if sheet.narrow else 0.25)))
    axes.set_yticks(range(rows.height), [cut(label, min(LONGEST, longest)) for label in rows["label"]])
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    axes.set(ylim=(rows.height - 0.4, -1.5), xlabel="difference to fixed_k (points)")
    axes.spines["left"].set_visible(False)


def foremost(compared: pl.DataFrame, most: int) -> pl.DataFrame:
    """At most so many rows of `verdicts`, by the rival's budget, the largest and the best difference first.

    Of more: what beats or loses before what ties, and the best of each rule before all.
    """
    ranked = compared.with_columns(
        best=pl.col("difference") == pl.col("difference").max().over("policy"), tied=pl.col("verdict") == "ties"
    )
    chosen = ranked.sort("best", "tied", pl.col("difference").abs(), descending=[True, False, True]).head(most)
    return chosen.sort("reference_mean_kept", "difference", descending=True).drop("best", "tied")
