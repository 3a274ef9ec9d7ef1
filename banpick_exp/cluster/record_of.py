"""The record of a point, whether it ran, was stopped or failed: what it was, and what came of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from banpick_exp.policy.budget import policy_of
from banpick_exp.records import (
    SCHEMA_VERSION,
    BudgetAccount,
    Engagement,
    FailedProblem,
    ModelUsed,
    PointMetrics,
    PointRecord,
    Status,
    TaskUsed,
    Timing,
)
from banpick_exp.sweep.identity import TASK_NO_RESULT
from banpick_exp.sweep.point import Point
from banpick_exp.tasks.registry import grader_of
from banpick_exp.versions import versions


def record_of(
    point: Point,
    command: str,
    *,
    status: Status,
    reason: str | None,
    metrics: PointMetrics | None = None,
    engagement: Engagement | None = None,
    timing: Timing | None = None,
    policy: dict[str, object] | None = None,
    budget: BudgetAccount | None = None,
    failed_problems: Sequence[FailedProblem] = (),
) -> PointRecord:
    """`command`: what to type to run the point again; `policy`: as it ran, where a knob was solved."""
    shape, base = point.checkpoint.shape, point.checkpoint.base
    sizes = {"num_layers": shape.num_layers, "num_experts": shape.num_experts, "top_k": shape.top_k}
    model = {
        **point.model.model_dump(exclude={"suggested_tasks"} if base else {"suggested_tasks", "made_from"}),
        "dtype_reason": point.dtype_reason,
        "identity": point.checkpoint.identity,
        **sizes,
        **({"base": dataclasses.asdict(base)} if base else {}),
    }
    optional: dict[str, Any] = {} if budget is None else {"budget": budget}
    if failed_problems:
        optional["failed_problems"] = tuple(failed_problems)
    if point.calibration_overlap:
        optional["calibration_overlap"] = point.calibration_overlap
    if point.score is not None:
        optional["score"] = point.score
    return PointRecord(
        schema_version=SCHEMA_VERSION,
        finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
        fingerprint=point.fingerprint,
        status=status,
        reason=reason,
        label=point.label,
        seed=point.seed,
        repeat=point.repeat,
        policy=policy or policy_of(point.rule, point.budget),
        model=ModelUsed.model_validate(model),
        engine=point.engine.model_dump(),
        task=TaskUsed.model_validate(
            {**point.task.model_dump(mode="json", exclude=set(TASK_NO_RESULT)), "identity": point.data_identity}
            | ({} if point.reward_model is None else {"reward_identity": point.reward_model})
        ),
        versions=versions() | grader_of(point.task).built_from(),
        calibration=point.calibration_fingerprint,
        metrics=metrics,
        engagement=engagement or Engagement(),
        timing=timing or Timing(),
        command=command,
        **optional,
    )
