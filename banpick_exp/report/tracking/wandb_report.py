"""A W&B report of one sweep, by W&B's API: the verdict in words, the front from the logged points, the figures.

What it holds is proved against a stand-in for the server (tests/report/test_wandb_report.py); no account has seen one
yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from banpick_exp.report.figures.names import FIGURES


def publish(*, entity: str, project: str, group: str, headline: str, facts: Sequence[str] = ()) -> str:
    """Save the report in W&B and return its address."""
    report = compose(entity=entity, project=project, group=group, headline=headline, facts=facts)
    report.save()
    return str(report.url)


def compose(*, entity: str, project: str, group: str, headline: str, facts: Sequence[str] = ()) -> Any:
    """The `wandb_workspaces` Report, not saved yet. `group`: the W&B group of the sweep's runs, `<sweep>/<run>`."""
    import wandb_workspaces.reports.v2 as wr
    from wandb_workspaces import expr

    def runs(job_type: str) -> Any:
        filters = [expr.Metric("Group") == group, expr.Metric("JobType") == job_type]
        return wr.Runset(entity=entity, project=project, name=f"{job_type} runs", filters=filters)

    accuracy, speed, kept = (wr.SummaryMetric(key) for key in ("acc/overall", "perf/speedup", "route/mean_kept"))
    front: list[Any] = [
        wr.ScatterPlot(title="Accuracy against speed-up", x=speed, y=accuracy),
        wr.ScatterPlot(title="Accuracy against measured budget", x=kept, y=accuracy),
    ]
    figures: list[Any] = [wr.MediaBrowser(title="Figures", media_keys=list(FIGURES), num_columns=1)]
    blocks: list[Any] = [wr.H1("Verdict"), wr.P(headline)]
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
