"""A sweep's plan with where it runs and where its results are mirrored: everything that a run needs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from banpick_exp.cluster.config import ClusterConfig
from banpick_exp.cluster.room import engines_that_fit, here
from banpick_exp.config import Section
from banpick_exp.report.tracking.config import TrackingConfig
from banpick_exp.report.tracking.key import check_tracking
from banpick_exp.run_folder import RunFolder
from banpick_exp.sweep.estimate import Estimate, weight_bytes
from banpick_exp.sweep.plan import SweepPlan, plan_sweep

SECTIONS: dict[str, type[Section]] = {"cluster": ClusterConfig, "tracking": TrackingConfig}


@dataclass(frozen=True, kw_only=True, slots=True)
class RunPlan:
    """What `run.run_sweep` takes."""

    sweep: SweepPlan
    cluster: ClusterConfig
    tracking: TrackingConfig

    @property
    def folder(self) -> RunFolder:
        return self.sweep.folder

    @property
    def estimate(self) -> Estimate:
        return self.sweep.estimate(self.engines)

    @property
    def engines(self) -> int:
        """Engines side by side, as far as it is known before a cluster is reached: on one that stands already, and of
        GPU engines, `auto` counts as 1."""
        if self.cluster.engines != "auto":
            return self.cluster.engines
        if self.cluster.backend != "ray" or self.cluster.address is not None or not self.sweep.points:
            return 1
        point = self.sweep.points[0]
        if point.engine.gpus:
            return 1
        return engines_that_fit([here(self.cluster)], point.engine, weight_bytes(point.checkpoint.location))


def plan_run(arguments: Sequence[str], *, now: datetime | None = None) -> RunPlan:
    """Plans what was typed after `python -m banpick_exp`. Raises UserError for anything in it that cannot work."""
    sweep = plan_sweep(arguments, sections=SECTIONS, now=now)
    plan = RunPlan(
        sweep=sweep,
        cluster=sweep.section("cluster", ClusterConfig),
        tracking=sweep.section("tracking", TrackingConfig),
    )
    check_tracking(plan.tracking, os.environ)
    return plan
