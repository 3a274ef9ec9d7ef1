"""Records as one flat frame: a row for each point and domain."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars as pl  # at run time inside the functions: planning imports this module and must stay light
from banpick_exp.records import METRIC_KEYS, OVERALL


def points_frame(records: Iterable[Mapping[str, Any]]) -> pl.DataFrame:
    """Records as one flat frame: a row for each point and domain, the first of them `overall`.

    Intervals become two columns (`accuracy_lo`, `accuracy_hi`, ...), knobs one JSON text (`knobs`); `samples` is the n
    of avg@n, `repeat` above 0 marks a repeat of another point, `budget_target` is what its knob was solved for, and
    `solved_knob` what was found (`beta=0.334`). A failed point has one row, `overall`, with null metrics. No records
    give an empty frame with the same columns.
    """
    import polars as pl

    number, text = pl.Float64, pl.String
    schema: dict[str, Any] = {
        "fingerprint": text, "status": text, "reason": text, "policy": text, "label": text, "knobs": text,
        "domain": text, "accuracy": number, "accuracy_lo": number, "accuracy_hi": number, "delta": number,
        "delta_lo": number, "delta_hi": number, "n_problems": pl.Int64, "tokens_per_second": number, "speedup": number,
        "speedup_lo": number, "speedup_hi": number, "mean_kept": number, "mean_kept_by_layer": pl.List(number),
        "truncated_fraction": number, "model": text, "calibration": text, "command": text, "finished_at": text,
        "samples": pl.Int64, "repeat": pl.Int64, "budget_target": number,
        "solved_knob": text,
    }  # fmt: skip
    rows = []
    for record in records:
        metrics = record["metrics"] or {}
        blocks = {OVERALL: metrics.get("overall"), **metrics.get("domains", {})}
        knobs = {knob: value for knob, value in record["policy"].items() if knob != "name"}
        for domain, block in blocks.items():
            row = {key: value for key, value in record.items() if key in schema}
            row |= {"policy": record["policy"]["name"], "knobs": json.dumps(knobs), "domain": domain}
            row |= {"model": str(record["model"].get("name", ""))} | _flat_metrics(block or {})
            row |= {"samples": int(record["task"].get("samples", 1)), "repeat": int(record.get("repeat") or 0)}
            spent = record.get("budget") or {"target": record["policy"].get("budget")}
            row |= {"budget_target": spent["target"]}
            row |= {"solved_knob": f"{spent['knob']}={spent['value']:g}" if "knob" in spent else None}
            rows.append(row)
    return pl.DataFrame(rows, schema=schema)


def _flat_metrics(block: Mapping[str, Any]) -> dict[str, Any]:
    pairs = {"accuracy_ci95": "accuracy", "delta_ci95": "delta", "speedup_spread": "speedup"}
    flat: dict[str, Any] = {}
    for key in METRIC_KEYS:
        value = block.get(key)
        if key in pairs:
            low, high = value or (None, None)
            flat |= {f"{pairs[key]}_lo": low, f"{pairs[key]}_hi": high}
        else:
            flat[key] = value
    return flat
