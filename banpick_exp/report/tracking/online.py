"""What W&B's server is asked about runs that it has: are they there, what the end of a sweep adds to them, the report.

In the process that calls W&B, as `mirror` is. Every call is short, so that one that hangs shows as such.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

TIMEOUT = 20
"""Seconds of one request."""


def look(entity: str | None, project: str, runs: Sequence[str]) -> tuple[str, list[str]]:
    """Whose project it is (the key's own where `entity` is None), and which runs (by their ids) are not there."""
    api = _api()
    whose = entity or str(api.default_entity)
    return whose, [run for run in runs if _run(api, whose, project, run) is None]


def complete(entity: str | None, project: str, told: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Bring the summaries of runs up to what is told of them (id -> values). Returns the ids that are not there."""
    api = _api()
    whose = entity or str(api.default_entity)
    missing = []
    for name, values in told.items():
        if (run := _run(api, whose, project, name)) is None:
            missing.append(name)
            continue
        there = dict(run.summary_metrics)
        if changed := {key: value for key, value in values.items() if there.get(key) != value}:
            run.summary.update(changed)
    return missing


def publish(entity: str | None, project: str, **shown: Any) -> str:
    """Make the report, as `wandb_report.compose` says; returns its address."""
    from banpick_exp.report.tracking.wandb_report import compose

    report = compose(entity=entity or str(_api().default_entity), project=project, **shown)
    report.save()
    return str(report.url)


def _api() -> Any:
    import wandb

    return wandb.Api(timeout=TIMEOUT)


def _run(api: Any, entity: str, project: str, name: str) -> Any:
    """None of a run that is not there."""
    import wandb

    try:
        return api.run(f"{entity}/{project}/{name}")
    except wandb.errors.CommError as error:
        if "could not find" not in str(error).lower():
            raise
        return None
