"""The files of a report: figures for papers and the page, in the run's folder."""

from __future__ import annotations

from pathlib import Path

from banpick_exp.report.figures.front import pareto_png
from banpick_exp.report.figures.names import PARETO
from banpick_exp.report.maps import Maps, draw_maps, maps_of
from banpick_exp.report.page.page import write_page
from banpick_exp.report.run import Run
from banpick_exp.report.sentences import problems_a_point


def write_report(run: Run, *, policy: str | None = None) -> list[Path]:
    """Write the figures and `report.html` into a run's folder; returns their paths, none when no point is done.

    Args: policy: label or fingerprint of the point whose expert usage is drawn; by default the best at equal budget.
    """
    if not run.done:
        return []
    maps = maps_of(run, policy)
    return [*draw_figures(run, maps), write_page([run], [maps], run.folder.report)]


def draw_figures(run: Run, maps: Maps) -> list[Path]:
    """The figures for papers (PNG, 300 dpi) in the run's folder: `pareto.png` and the heat maps it has numbers for."""
    rows = run.done_rows()
    title = f"Routing policies on {run.models or 'model'}: {run.name}"
    mixed = "" if run.mixed_setups is None else " Points of different settings: each has a front of its own."
    subtitle = f"{run.headline}  {problems_a_point(run)}.{mixed}"
    return [pareto_png(rows, run.folder.figure_path(PARETO), title=title, subtitle=subtitle), *draw_maps(run, maps)]
