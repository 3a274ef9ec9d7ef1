"""The files of a report: tables, figures for papers and the page, in the run's folder."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from banpick_exp.report.drawn import Draw, answers
from banpick_exp.report.failure import or_else
from banpick_exp.report.followed import keep_followed
from banpick_exp.report.maps import NOTHING, Maps, map_figures, maps_of
from banpick_exp.report.page.page import write_page
from banpick_exp.report.run import Run

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
    """The figures (PNG, 300 dpi) in the run's folder: the one that answers its question (`knobs.png` or `budget.png`),
    `pareto.png` and the heat maps it has numbers for.
    """
    figures: dict[str, Callable[[], Path]] = {
        name: functools.partial(_draw, run, name, draw) for name, draw in answers(run).items()
    }
    found = []
    for name, work in (figures | map_figures(run, maps)).items():
        path = run.folder.figure_path(name)
        found += or_else(f"the figure {path.name}", run.folder, _listed(work), lambda _: [], writes=True)
    return found


def write_tables(run: Run, typed: Mapping[str, Path] | None = None) -> None:
    """What of its calibrations the report draws (`typed`: see `keep_followed`), so that a copy keeps its figures; then
    `points.parquet`, `verdicts.parquet`, `guards.parquet` and, where there are any, `repeats.parquet`: every point
    and finding; and `found.json`, the verdict in a sentence.

    Raises OSError where a file cannot be written; a table that cannot be made is named on stderr.
    """
    records = (*run.records, *run.dev)
    kept = "what the figures read of the calibrations"
    or_else(kept, run.folder, lambda: keep_followed(run.folder, records, typed), _nothing, writes=True)
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


def answering_figure(run: Run) -> Figure:
    """The figure that answers the run's question, not written anywhere: for a notebook."""
    from banpick_exp.report.figures.sheet import SCREEN

    draw = next(iter(answers(run).values()))
    figure: Figure = draw(SCREEN)
    return figure


def _draw(run: Run, name: str, draw: Draw) -> Path:
    from banpick_exp.report.figures.sheet import SCREEN, save

    return save(draw(SCREEN), run.folder.figure_path(name))
