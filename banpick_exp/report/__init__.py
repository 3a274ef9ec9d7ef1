"""What a run found: the printed table, the figures and the page, all read from the run folder's records."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from banpick_exp.records import OVERALL
from banpick_exp.report.figures.front import pareto_png
from banpick_exp.report.figures.heat_map import heat_map
from banpick_exp.report.maps import Maps, draw_maps, maps_of
from banpick_exp.report.page.page import write_page
from banpick_exp.report.page.repeats import print_repeats, repeats_summary
from banpick_exp.report.run import Run, load_run, read_run
from banpick_exp.report.terminal import print_pareto

__all__ = ["heat_map", "load_run", "print_pareto", "print_repeats", "repeats_summary", "write_report"]

PAGE = "report.html"


def write_report(
    run_dir: Path, frame: pl.DataFrame | None = None, found: pl.DataFrame | None = None, *, policy: str | None = None
) -> list[Path]:
    """Write the figures and `report.html` into a run folder; returns their paths, none when no point is done.

    Args:
        frame, found: what `load_run` gave, where a caller has it already.
        policy: label or fingerprint of the point whose expert usage is drawn; by default the best at equal budget.
    """
    run = read_run(Path(run_dir), frame, found)
    if not run.done:
        return []
    maps = maps_of(run, policy)
    return [*draw_figures(run, maps), write_page([run], [maps], run.folder / PAGE)]


def draw_figures(run: Run, maps: Maps) -> list[Path]:
    """The figures for papers (PNG, 300 dpi) in the run's folder: `pareto.png` and the heat maps it has numbers for."""
    overall = run.frame.filter((pl.col("status") == "done") & (pl.col("domain") == OVERALL))
    title = f"Routing policies on {run.models or 'model'}: {run.name}"
    subtitle = f"{run.headline}  {max(overall['n_problems']):,} problems a point."
    return [pareto_png(overall, run.folder / "pareto.png", title=title, subtitle=subtitle), *draw_maps(run, maps)]
