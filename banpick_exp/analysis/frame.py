"""Records as one flat frame: a row for each point and domain."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import polars as pl

from banpick_exp.analysis.compare import compare_counts
from banpick_exp.analysis.pairing import Outcomes, References, all_answers, pair
from banpick_exp.records import OVERALL, Metrics, PointRecord

_TEXT, _NUMBER, _COUNT = pl.String, pl.Float64, pl.Int64
_SCHEMA: dict[str, Any] = {
    "fingerprint": _TEXT, "status": _TEXT, "reason": _TEXT, "policy": _TEXT, "label": _TEXT, "knobs": _TEXT,
    "domain": _TEXT, "accuracy": _NUMBER, "accuracy_lo": _NUMBER, "accuracy_hi": _NUMBER, "delta": _NUMBER,
    "delta_lo": _NUMBER, "delta_hi": _NUMBER, "n_problems": _COUNT, "tokens_per_second": _NUMBER, "speedup": _NUMBER,
    "speedup_lo": _NUMBER, "speedup_hi": _NUMBER, "mean_kept": _NUMBER, "mean_kept_by_layer": pl.List(_NUMBER),
    "truncated_fraction": _NUMBER, "model": _TEXT, "calibration": _TEXT, "command": _TEXT, "finished_at": _TEXT,
    "samples": _COUNT, "repeat": _COUNT, "budget_target": _NUMBER, "solved_knob": _TEXT, "own_speedup": _NUMBER,
    "own_speedup_lo": _NUMBER, "own_speedup_hi": _NUMBER, "choose": _TEXT,
}  # fmt: skip
_INTERVALS = {"accuracy_ci95": "accuracy", "delta_ci95": "delta"}


def points_frame(records: Iterable[PointRecord]) -> pl.DataFrame:
    """Records as one flat frame: a row for each point and domain, the first of them `overall`.

    Intervals become two columns (`accuracy_lo`, `accuracy_hi`, ...), knobs one JSON text (`knobs`); `samples` is the n
    of avg@n (`choose`: what else becomes of n answers), `repeat` above 0 marks a repeat of another point,
    `budget_target` is what its knob was solved for, and `solved_knob` what was found (`beta=0.334`). Of a checkpoint
    that was made from another `policy` names it too (`none on pruned`), what was measured against its own stock is no
    `speedup` but `own_speedup`, and `delta` is null: `vs_base` has that to the other's stock. A failed point has one
    row, `overall`, with null metrics. No records give an empty frame with the same columns.
    """
    return pl.DataFrame([row for record in records for row in _rows(record)], schema=_SCHEMA)


def _rows(record: PointRecord) -> Iterator[dict[str, Any]]:
    point = {
        "fingerprint": record.fingerprint,
        "status": record.status,
        "reason": record.reason,
        "policy": record.series,
        "label": record.label,
        "knobs": json.dumps(record.knobs),
        "model": record.model.name,
        "calibration": record.calibration,
        "command": record.command,
        "finished_at": record.finished_at,
        "samples": record.task.samples,
        "choose": record.task.choose,
        "repeat": record.repeat,
        "budget_target": record.budget_target,
        "solved_knob": record.solved_knob,
    }
    if record.metrics is None:
        yield point | {"domain": OVERALL}
        return
    for domain, metrics in record.metrics.all().items():
        flat = _flat(metrics)
        if record.model.base is not None:
            flat |= {f"own_{name}": flat.pop(name) for name in ("speedup", "speedup_lo", "speedup_hi")}
            flat |= dict.fromkeys(("delta", "delta_lo", "delta_hi"))
        yield point | {"domain": domain} | flat


def vs_base(frame: pl.DataFrame, records: Iterable[PointRecord], outcomes: Outcomes) -> pl.DataFrame:
    """The frame with `delta` of checkpoints that were made from another: against stock of that, as `none` has it.

    Null where that stock is not done, or answered none of the problems.
    """
    done = [record for record in records if record.status == "done"]
    made, references = [record for record in done if record.model.base is not None], References(done)
    rows = []
    for record in made:
        stock = references.stock(record)
        if stock is None:
            continue
        pairs = pair(*all_answers((record, stock), outcomes).values())
        for domain in record.measured.all():
            if (part := pairs.domain(domain)).n:
                found = compare_counts(*part.differences("correct"), comparisons=1)
                rows.append((record.fingerprint, domain, found["difference"], found["lo"], found["hi"]))
    if not rows:
        return frame
    names = ("delta", "delta_lo", "delta_hi")
    schema = {"fingerprint": _TEXT, "domain": _TEXT, **dict.fromkeys(names, _NUMBER)}
    return frame.update(pl.DataFrame(rows, schema=schema, orient="row"), on=["fingerprint", "domain"], how="left")


def _flat(metrics: Metrics) -> dict[str, Any]:
    flat = metrics.model_dump()
    for key, name in _INTERVALS.items():
        flat[f"{name}_lo"], flat[f"{name}_hi"] = flat.pop(key) or (None, None)
    spread = flat.pop("speedup_spread")  # of records of old: the ends of three timed runs
    flat["speedup_lo"], flat["speedup_hi"] = flat.pop("speedup_ci95") or spread or (None, None)
    del flat["speed"]
    return flat
