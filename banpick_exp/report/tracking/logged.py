"""What W&B is told of a record, as plain values: no key, and nothing that the records do not say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from banpick_exp.records import OVERALL, Metrics, PointRecord
from banpick_exp.report.tracking.names import metric_key

POINT_CONFIG = {
    "fingerprint",
    "policy",
    "model",
    "engine",
    "task",
    "versions",
    "calibration",
    "command",
    "budget",
    "seed",
    "repeat",
}
"""What of a record is the configuration of its W&B run."""
SECRET = re.compile(r"api_?key|secret|passw|credential|(hf|auth|access|bearer)_?token|^token$", re.IGNORECASE)


def point_config(record: PointRecord) -> dict[str, Any]:
    """The configuration of a record's W&B run, without keys."""
    return without_secrets(record.model_dump(mode="json", include=POINT_CONFIG, exclude_unset=True))


LAYER = "layer"
"""The step of what a point tells of each layer."""
BY_LAYER = "route/kept_by_layer"
Direction = Literal["max", "min", "last"]
_BETTER_LARGER = re.compile(r"^(acc/(?!n_problems|truncated)|perf/(speedup|tokens_per_second)|wins$|difference)")
_BETTER_SMALLER = re.compile(r"^(acc/truncated|perf/.*seconds|losses$|failed$|invalid$|guard/|cost/|engine_load)")


def direction(key: str) -> Direction:
    """Which end of a number is the better one, for W&B's summary: `last` where neither is, as of experts kept."""
    return "max" if _BETTER_LARGER.match(key) else "min" if _BETTER_SMALLER.match(key) else "last"


def kept_by_layer(record: PointRecord) -> list[float]:
    """Mean experts kept, a layer each: the one thing of a point that is a line, and not one number."""
    return [] if record.metrics is None else list(record.metrics.overall.mean_kept_by_layer)


def point_metrics(record: PointRecord) -> dict[str, float]:
    """A record's numbers under W&B keys: acc/* (fractions), perf/* (tokens/s, ratios, seconds), route/* (experts), and
    budget/* of a solved knob. Each is one number a run."""
    values: dict[str, float | None] = {f"perf/{name}": number for name, number in record.timing.plain().items()}
    if record.metrics is not None:
        for domain, metrics in record.metrics.all().items():
            values |= _domain_metrics(domain, metrics)
        for cell in record.metrics.overall.speed:
            name = cell.phase if cell.phase == "prefill" else f"decode_{cell.batch}"
            values |= {f"perf/speedup/{name}": cell.speedup, f"route/unique_experts/{name}": cell.unique_experts}
    if (budget := record.budget) is not None:
        values |= {"budget/target": budget.target, "budget/measured": budget.measured, "budget/value": budget.value}
        values["budget/probes"] = len(budget.probes)
    return {metric_key(key): value for key, value in values.items() if value is not None}


def _domain_metrics(domain: str, metrics: Metrics) -> dict[str, float | None]:
    suffix = "" if domain == OVERALL else f"/{domain}"
    return {
        f"acc/{domain}": metrics.accuracy,
        f"acc/accuracy_lo{suffix}": metrics.accuracy_ci95[0],
        f"acc/accuracy_hi{suffix}": metrics.accuracy_ci95[1],
        f"acc/delta{suffix}": metrics.delta,
        f"acc/delta_lo{suffix}": metrics.delta_ci95[0] if metrics.delta_ci95 else None,
        f"acc/delta_hi{suffix}": metrics.delta_ci95[1] if metrics.delta_ci95 else None,
        f"acc/n_problems{suffix}": metrics.n_problems,
        f"acc/truncated_fraction{suffix}": metrics.truncated_fraction,
        f"perf/tokens_per_second{suffix}": metrics.tokens_per_second,
        f"perf/speedup{suffix}": metrics.speedup,
        f"perf/speedup_lo{suffix}": metrics.speedup_ci95[0] if metrics.speedup_ci95 else None,
        f"perf/speedup_hi{suffix}": metrics.speedup_ci95[1] if metrics.speedup_ci95 else None,
        f"route/mean_kept{suffix}": metrics.mean_kept,
    }


def without_secrets(value: Any) -> Any:
    """A copy of nested dicts and lists without the entries whose name says they hold a key; leaves as they are."""
    if isinstance(value, Mapping):
        return {str(key): without_secrets(item) for key, item in value.items() if not SECRET.search(str(key))}
    return [without_secrets(item) for item in value] if isinstance(value, list | tuple) else value
