"""The files of a report: tables, figures for papers and the page, in the run's folder."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from banpick_exp.report.failure import or_else
from banpick_exp.report.figures.names import PARETO
from banpick_exp.report.maps import NOTHING, Maps, map_figures, maps_of
from banpick_exp.report.page.page import write_page
from banpick_exp.report.run import Run
from banpick_exp.report.sentences import problems_a_point
from banpick_exp.report.shown import MOST_DRAWN

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_report(run: Run, *, policy: str | None = None) -> list[Path]:
    """Write the figures and `report.html` into a run's folder; returns their paths, none when no point is done.

    What cannot be drawn is named on stderr and costs nothing else. Raises OSError where a file cannot be written.

    Args: policy: label or fingerprint of the point whose expert usage is drawn; by default the best at equal budget.
    """
    if not run.done:
        return []
    maps = maps_or_none(run, policy)
    figures = draw_figures(run, maps)
    work = functools.partial(write_page, [run], [maps], run.folder.report)
    return [*figures, *or_else("report.html", run.folder, lambda: [work()], lambda _: [], writes=True)]


def maps_or_none(run: Run, policy: str | None = None) -> Maps:
    """As `maps_of`; of numbers that cannot be read there are none. Raises UserError for a policy that is none."""
    if policy is not None:
        return maps_of(run, policy)
    return or_else("the heat maps", run.folder, lambda: maps_of(run), lambda _: NOTHING, writes=False)


def draw_figures(run: Run, maps: Maps) -> list[Path]:
    """The figures for papers (PNG, 300 dpi) in the run's folder: `pareto.png` and the heat maps it has numbers for."""
    figures: dict[str, Callable[[], Path]] = {PARETO: functools.partial(_draw_front, run)} | map_figures(run, maps)
    found = []
    for name, draw in figures.items():
        path = run.folder.figure_path(name)
        found += or_else(f"the figure {path.name}", run.folder, _listed(draw), lambda _: [], writes=True)
    return found


def write_tables(run: Run) -> None:
    """`points.parquet`, `verdicts.parquet`, `guards.parquet` and, where there are any, `repeats.parquet`: every point
    and finding; and `found.json`, the verdict in a sentence.

    Raises OSError where a file cannot be written; a table that cannot be made is named on stderr.
    """
    frames = {
        "points": lambda: run.frame_of_all,
        "verdicts": lambda: run.verdicts,
        "guards": lambda: run.guards,
        "repeats": lambda: run.repeats,
    }
    for name, frame in frames.items():
        or_else(f"{name}.parquet", run.folder, functools.partial(_write_table, run, name, frame), _nothing, writes=True)
    or_else("found.json", run.folder, lambda: run.folder.write_found(run.found), _nothing, writes=True)


def _write_table(run: Run, name: str, frame: Callable[[], pl.DataFrame]) -> None:
    if (found := frame()).height or name != "repeats":
        run.folder.write_table(name, found)


def _nothing(_: str) -> None:
    return None


def _listed(draw: Callable[[], Path]) -> Callable[[], list[Path]]:
    return lambda: [draw()]


def front_figure(run: Run) -> Figure:
    """`pareto.png` as a figure that is not written anywhere, for a notebook."""
    from banpick_exp.report.figures.front import pareto_figure

    return pareto_figure(**_front(run))


def _draw_front(run: Run) -> Path:
    from banpick_exp.report.figures.front import pareto_png  # half a second of Matplotlib: not before a run

    return pareto_png(path=run.folder.figure_path(PARETO), **_front(run))


def _front(run: Run) -> dict[str, Any]:
    """What the figure of the front is drawn from."""
    title = f"Routing policies on {run.models or 'model'}: {run.name}"
    mixed = "" if run.mixed_setups is None else " Points of different settings: each has a front of its own."
    drawn = run.showing(MOST_DRAWN) if run.unshown else run
    others = f" Small dots: {drawn.unshown:,} more." if drawn.unshown else ""
    subtitle = f"{problems_a_point(run)}.{others}{mixed}"
    return {
        "frame": drawn.shown_rows(),
        "title": title,
        "subtitle": f"{run.headline}  {subtitle}",
        "others": drawn.other_rows(),
        "published": run.published,
    }
