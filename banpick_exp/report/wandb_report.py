"""A W&B report of one sweep, by W&B's API: the verdict in words, the front from the logged points, the figures.

W&B keeps this part of its API in a package of its own, which is not among this project's dependencies: without it
nothing else is missing, and the error says what to install.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

MISSING = (
    "a W&B report needs the package wandb-workspaces, which is not installed: type pip install wandb-workspaces and"
    " resume the run; runs, figures and report.html are in W&B already"
)
FIGURES = ("pareto", "usage", "influence", "kept")
"""Keys under which the summary run holds the figures."""


def publish(*, entity: str, project: str, group: str, headline: str, facts: Sequence[str] = ()) -> str:
    """Save the report in W&B and return its address. Raises ModuleNotFoundError (MISSING) without wandb-workspaces."""
    report = compose(entity=entity, project=project, group=group, headline=headline, facts=facts)
    report.save()
    return str(report.url)


def compose(*, entity: str, project: str, group: str, headline: str, facts: Sequence[str] = ()) -> Any:
    """The `wandb_workspaces` Report, not saved yet. `group`: the W&B group of the sweep's runs, `<sweep>/<run>`."""
    try:
        import wandb_workspaces.reports.v2 as wr
        from wandb_workspaces import expr
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(MISSING) from error

    def runs(job_type: str) -> Any:
        filters = [expr.Metric("Group") == group, expr.Metric("JobType") == job_type]
        return wr.Runset(entity=entity, project=project, name=f"{job_type} runs", filters=filters)

    accuracy, speed, kept = (wr.SummaryMetric(key) for key in ("acc/overall", "perf/speedup", "route/mean_kept"))
    front = [
        wr.ScatterPlot(title="Accuracy against speed-up", x=speed, y=accuracy),
        wr.ScatterPlot(title="Accuracy against measured budget", x=kept, y=accuracy),
    ]
    figures = [wr.MediaBrowser(title="Figures", media_keys=list(FIGURES), num_columns=1)]
    blocks = [wr.H1("Verdict"), wr.P(headline)]
    if facts:
        blocks.append(wr.UnorderedList(items=list(facts)))
    blocks += [
        wr.H1("Pareto front"),
        wr.PanelGrid(runsets=[runs("point")], panels=front),
        wr.H1("Figures"),
        wr.PanelGrid(runsets=[runs("summary")], panels=figures),
    ]
    return wr.Report(
        entity=entity, project=project, title=f"Routing policies: {group}"[:128], description=headline, width="fluid",
        blocks=blocks,
    )  # fmt: skip
