"""A W&B report of one sweep: the verdict, the front, the heat map, parallel coordinates, every point, the flips.

What it holds is proved against a stand-in for the server (tests/report/test_wandb_report.py); no account has seen one
yet. It takes nothing from a W&B run that does not hold it: panels of a figure or a table are there where these are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from banpick_exp.report.figures.names import BUDGET, KNOBS
from banpick_exp.report.tracking.names import run_name

WIDE = 24
"""Columns of a panel grid."""
HEADS = {
    "points": ("All points", "One row a point: verdict against fixed_k at equal budget, guards, what to type."),
    "flips": ("Flips", "Of the best policies, the problems that they solved and stock lost, and the other way round."),
}


def compose(
    *,
    entity: str,
    project: str,
    group: str,
    verdict: str,
    facts: Sequence[str] = (),
    axes: Sequence[str] = (),
    tables: Sequence[str] = (),
    figures: Sequence[str] = (),
    summary_run: str | None = None,
) -> Any:
    """The `wandb_workspaces` Report, not saved yet.

    Args:
        group: the W&B group of the sweep's runs, `<sweep>/<run>`.
        verdict: the sentence that ends the run in print.
        axes: entries of a point's configuration that vary, `policy.boost`.
        tables, figures: those that the summary run has, by their keys.
        summary_run: its id; a sweep that was resumed has several.
    """
    import wandb_workspaces.reports.v2 as wr
    from wandb_workspaces import expr

    def runs(job_type: str) -> Any:
        filters = [expr.Metric("Group") == run_name(group), expr.Metric("JobType") == job_type]
        if job_type == "summary" and summary_run is not None:
            filters.append(expr.Metric("ID") == summary_run)
        return wr.Runset(entity=entity, project=project, name=f"{job_type} runs", filters=filters)

    def grid(job_type: str, *panels: Any) -> Any:
        return wr.PanelGrid(runsets=[runs(job_type)], panels=list(panels))

    def pictures(*names: str) -> Any:
        layout = wr.Layout(w=WIDE, h=16)
        return wr.MediaBrowser(media_keys=list(names), num_columns=1, layout=layout)

    accuracy, speed, kept = (wr.SummaryMetric(key) for key in ("acc/overall", "perf/speedup", "route/mean_kept"))
    halves = [wr.Layout(x=x, y=0, w=WIDE // 2, h=10) for x in (0, WIDE // 2)]
    blocks: list[Any] = [wr.H1("Verdict"), wr.P(verdict)]
    if facts:
        blocks.append(wr.UnorderedList(items=list(facts)))
    blocks += [
        wr.H1("Front"),
        grid(
            "point",
            wr.ScatterPlot(title="Accuracy against experts kept, as measured", x=kept, y=accuracy, layout=halves[0]),
            wr.ScatterPlot(title="Accuracy against speed-up over stock", x=speed, y=accuracy, layout=halves[1]),
        ),
    ]
    answering = [name for name in figures if name in (KNOBS, BUDGET)]
    if answering:
        blocks += [wr.H1("Knobs" if KNOBS in answering else "Budgets"), grid("summary", pictures(*answering))]
    columns = [wr.ParallelCoordinatesPlotColumn(metric=wr.Config(axis), display_name=_last(axis)) for axis in axes]
    columns += [
        wr.ParallelCoordinatesPlotColumn(metric=kept, display_name="experts kept"),
        wr.ParallelCoordinatesPlotColumn(
            metric=wr.SummaryMetric("difference_points"), display_name="points over fixed_k at equal budget"
        ),
    ]
    title = "Knobs, measured budget, difference"
    parallel = wr.ParallelCoordinatesPlot(title=title, columns=columns, layout=wr.Layout(w=WIDE, h=12))
    blocks += [wr.H1("Parallel coordinates"), grid("point", parallel)]
    for name in (name for name in HEADS if name in tables):
        head, said = HEADS[name]
        table = wr.WeavePanelSummaryTable(table_name=name, layout=wr.Layout(w=WIDE, h=18))
        blocks += [wr.H1(head), wr.P(said), grid("summary", table)]
    if others := [name for name in figures if name not in answering]:
        blocks += [wr.H1("Figures"), grid("summary", pictures(*others))]
    return wr.Report(
        entity=entity, project=project, title=run_name(f"Routing policies: {group}"), description=verdict,
        width="fluid", blocks=blocks,
    )  # fmt: skip


def _last(axis: str) -> str:
    """`boost` of `policy.boost`, `rule` of its name."""
    word = axis.rpartition(".")[2]
    return "rule" if axis == "policy.name" else word
