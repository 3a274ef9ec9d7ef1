"""What policies demand beside stock: experts that a decode step touches, and the hits and misses of the best cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from banpick_exp.evaluation.demand.found import Cached, Compared, DemandFile, Group, Number, PointDemand
from banpick_exp.report.demanded import usual_window
from banpick_exp.report.figures.sheet import Sheet, figure_on, words
from banpick_exp.report.figures.styles import STYLES

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "^", "s", "D", "v", "P")
"""Points of one family stand beside each other here, so a line has a style of its own."""
PANELS = 3
PANEL_INCHES = 3.0
ASIDE = 0.07


def demand_figure(found: DemandFile, sheet: Sheet) -> Any:
    """Three panels for each group (model, task, engine); None where no point has figures."""
    groups = [group for group in found.groups if any(point.invalid is None for point in group.points)]
    if not groups:
        return None
    columns, below = (1, PANELS) if sheet.narrow else (PANELS, 1)
    heights = [inches for group in groups for inches in (_legend_inches(group, sheet), *[PANEL_INCHES] * below)]
    with figure_on(sheet, 0.9 + sum(heights)) as figure:
        grid = figure.add_gridspec(len(heights), columns, height_ratios=heights)
        for number, group in enumerate(groups):
            top = number * (1 + below)
            places = [grid[top + 1 + at // columns, at % columns] for at in range(PANELS)]
            axes_of = [figure.add_subplot(place) for place in places]
            _row(axes_of, group)
            named = figure.add_subplot(grid[top, :])
            named.set_axis_off()
            lines, labels = axes_of[0].get_legend_handles_labels()
            named.legend(lines, labels, loc="center left", ncols=_legend_columns(sheet), borderaxespad=0)
        note = (
            "Bars: 95 % intervals, by leaving out one problem after the other. Stock and each policy on their own"
            " answers to the same problems. A cache holds so many experts of each layer and stays for the window."
        )
        words(figure, sheet, f"Expert demand, {found.run}", "", note)
        return figure


def _legend_columns(sheet: Sheet) -> int:
    """Labels are long: a name and all its knobs."""
    return 1 if sheet.narrow else 2


def _legend_inches(group: Group, sheet: Sheet) -> float:
    lines = -(-(1 + len(group.points)) // _legend_columns(sheet))
    return 0.1 + 0.024 * sheet.size * lines


def _row(axes_of: Any, group: Group) -> None:
    valid = [point for point in group.points if point.invalid is None]
    first = valid[0].overall
    batches = [step.sequences for step in first.steps]

    def touched(point: PointDemand) -> list[Compared]:
        return [step.experts for step in point.overall.steps if step.sequences in batches]

    named = f"{group.model.name}, {group.task}" if group.task else group.model.name
    _panel(axes_of[0], valid, batches, touched, named, "sequences of a decode step", "distinct experts a layer")
    window = usual_window(first)
    if window is None or not window.caches:
        axes_of[1].set_axis_off()
        axes_of[2].set_axis_off()
        return
    sizes = [cache.experts for cache in window.caches]

    def of(part: Callable[[Cached], Compared]) -> Callable[[PointDemand], list[Compared]]:
        def values(point: PointDemand) -> list[Compared]:
            own = next((each for each in point.overall.windows if each.tokens == window.tokens), None)
            return [] if own is None else [part(cache) for cache in own.caches]

        return values

    experts, title = "experts of a layer in the cache", f"windows of {window.tokens} tokens"
    _panel(axes_of[1], valid, sizes, of(lambda cache: cache.hit_rate), title, experts, "hit rate of the best (SCH)")
    _panel(axes_of[2], valid, sizes, of(lambda cache: cache.misses), title, experts, "misses a token and layer")


def _panel(
    axes: Any,
    points: Sequence[PointDemand],
    places: Sequence[int],
    values: Callable[[PointDemand], list[Compared]],
    title: str,
    x_title: str,
    y_title: str,
) -> None:
    lines = [("stock", [each.stock for each in values(points[0])], "#000000", STYLES["none"][1])]
    for number, point in enumerate(points):
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        lines.append((point.label, [each.policy for each in values(point)], colour, marker))
    for number, (label, numbers, colour, marker) in enumerate(lines):
        x = [at + ASIDE * (number - (len(lines) - 1) / 2) for at in range(len(numbers))]
        _line(axes, x, numbers, label, colour, marker)
    axes.set_xticks(range(len(places)), [str(place) for place in places])
    axes.set(xlabel=x_title, ylabel=y_title, xlim=(-0.5, max(len(places) - 0.5, 0.5)))
    axes.set_title(title)
    axes.set_ylim(bottom=0)


def _line(axes: Any, x: Sequence[float], numbers: Sequence[Number], label: str, colour: str, marker: Any) -> None:
    if not numbers:
        return
    y = [each.value for each in numbers]
    bars = [[each.value - each.ci95[0] for each in numbers], [each.ci95[1] - each.value for each in numbers]]
    axes.errorbar(
        x, y, yerr=bars, color=colour, marker=marker, markersize=5, linewidth=1.2, elinewidth=0.8, capsize=2,
        label=label,
    )  # fmt: skip
