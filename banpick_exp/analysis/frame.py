"""Records as one flat frame: a row for each point and domain."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import polars as pl

from banpick_exp.records import OVERALL, Metrics, PointRecord

_TEXT, _NUMBER, _COUNT = pl.String, pl.Float64, pl.Int64
_SCHEMA: dict[str, Any] = {
    "fingerprint": _TEXT, "status": _TEXT, "reason": _TEXT, "policy": _TEXT, "label": _TEXT, "knobs": _TEXT,
    "domain": _TEXT, "accuracy": _NUMBER, "accuracy_lo": _NUMBER, "accuracy_hi": _NUMBER, "delta": _NUMBER,
    "delta_lo": _NUMBER, "delta_hi": _NUMBER, "n_problems": _COUNT, "tokens_per_second": _NUMBER, "speedup": _NUMBER,
    "speedup_lo": _NUMBER, "speedup_hi": _NUMBER, "mean_kept": _NUMBER, "mean_kept_by_layer": pl.List(_NUMBER),
    "truncated_fraction": _NUMBER, "model": _TEXT, "calibration": _TEXT, "command": _TEXT, "finished_at": _TEXT,
    "samples": _COUNT, "repeat": _COUNT, "budget_target": _NUMBER, "solved_knob": _TEXT,
}  # fmt: skip
_INTERVALS = {"accuracy_ci95": "accuracy", "delta_ci95": "delta"}


def points_frame(records: Iterable[PointRecord]) -> pl.DataFrame:
    """Records as one flat frame: a row for each point and domain, the first of them `overall`.

    Intervals become two columns (`accuracy_lo`, `accuracy_hi`, ...), knobs one JSON text (`knobs`); `samples` is the n
    of avg@n, `repeat` above 0 marks a repeat of another point, `budget_target` is what its knob was solved for, and
    `solved_knob` what was found (`beta=0.334`). A failed point has one row, `overall`, with null metrics. No records
    give an empty frame with the same columns.
    """
    return pl.DataFrame([row for record in records for row in _rows(record)], schema=_SCHEMA)


def _rows(record: PointRecord) -> Iterator[dict[str, Any]]:
    point = {
        "fingerprint": record.fingerprint,
        "status": record.status,
        "reason": record.reason,
        "policy": record.policy_name,
        "label": record.label,
        "knobs": json.dumps(record.knobs),
        "model": record.model.name,
        "calibration": record.calibration,
        "command": record.command,
        "finished_at": record.finished_at,
        "samples": record.task.samples,
        "repeat": record.repeat,
        "budget_target": record.budget_target,
        "solved_knob": record.solved_knob,
    }
    if record.metrics is None:
        yield point | {"domain": OVERALL}
        return
    for domain, metrics in record.metrics.all().items():
        yield point | {"domain": domain} | _flat(metrics)


def _flat(metrics: Metrics) -> dict[str, Any]:
    flat = metrics.model_dump()
    for key, name in _INTERVALS.items():
        flat[f"{name}_lo"], flat[f"{name}_hi"] = flat.pop(key) or (None, None)
    spread = flat.pop("speedup_spread")  # of records of old: the ends of three timed runs
    flat["speedup_lo"], flat["speedup_hi"] = flat.pop("speedup_ci95") or spread or (None, None)
    del flat["speed"]
    return flat
