"""What a driver keeps of a finished point, three kilobytes in place of fifty, and how it reads that from the disk.

Counters, domains, timings and settings stay on the disk: no search asks for them, and a driver of 10,000 points holds
each of its records for days. So of a record that was checked when it was written nothing else is even made, which is
what resumes 10,000 points in seconds. Imports nothing heavy.
"""

from __future__ import annotations

import functools
from typing import Any

from pydantic import BaseModel, ConfigDict, create_model

from banpick_exp.records import (
    OUTCOMES_SEAL,
    Engagement,
    Metrics,
    ModelUsed,
    PointMetrics,
    PointRecord,
    TaskUsed,
    Timing,
)

_NO_MODEL, _NO_ENGAGEMENT, _NO_TIMING = ModelUsed(), Engagement(), Timing()
_FIELDS, _OF_METRICS, _OF_ALL = (set(part.model_fields) for part in (PointRecord, Metrics, PointMetrics))
"""Shared by all that is remembered: a set of its own would be a kilobyte a part."""
_LESS: dict[str, Any] = {"model": _NO_MODEL, "engagement": _NO_ENGAGEMENT, "timing": _NO_TIMING, "command": None}
_NO_CELLS: dict[str, Any] = {"speed": (), "mean_kept_by_layer": ()}


def remembered(record: PointRecord) -> PointRecord:
    """A record's name, its policy, what became of it and its overall numbers."""
    overall = None if record.metrics is None else record.metrics.overall.__dict__
    return _slim(record.__dict__, record.task.split, overall)


def read_remembered(content: bytes) -> tuple[PointRecord, str | None]:
    """`remembered` of the record in this sealed JSON, and the digest of its outcomes (None of a failed point).

    For content that was checked already: neither its seal nor what is left out is looked at. Raises ValueError.
    """
    read = _Read.model_validate_json(content)
    kept = read.__dict__
    outcomes, task, metrics = kept.pop(OUTCOMES_SEAL), kept.pop("task"), kept.pop("metrics")
    return _slim(kept, task.split, None if metrics is None else metrics.overall.__dict__), outcomes


def _slim(kept: dict[str, Any], split: str, overall: dict[str, Any] | None) -> PointRecord:
    metrics = None
    if overall is not None:
        numbers = Metrics.model_construct(_OF_METRICS, **{**overall, **_NO_CELLS})
        metrics = PointMetrics.model_construct(_OF_ALL, overall=numbers, domains={})
    less = {**_LESS, "engine": {}, "versions": {}, "task": _task(split), "metrics": metrics}
    return PointRecord.model_construct(_FIELDS, **{**kept, **less})


@functools.cache
def _task(split: str) -> TaskUsed:
    return TaskUsed(split=split)


def _reader(of: type[BaseModel], without: set[str], **instead: Any) -> type[BaseModel]:
    """A model that takes of a JSON object the fields of `of`, as that types them, but for some."""
    fields: dict[str, Any] = {name: (f.annotation, f) for name, f in of.model_fields.items() if name not in without}
    return create_model(f"Read{of.__name__}", __config__=ConfigDict(extra="ignore"), **(fields | instead))


_ReadMetrics = _reader(PointMetrics, {"domains"}, overall=(_reader(Metrics, set(_NO_CELLS)), ...))
_Read = _reader(
    PointRecord,
    {*_LESS, "engine", "versions"},
    task=(_reader(TaskUsed, set(TaskUsed.model_fields) - {"split"}), ...),
    metrics=(_ReadMetrics | None, ...),
    **{OUTCOMES_SEAL: (str | None, ...)},
)
