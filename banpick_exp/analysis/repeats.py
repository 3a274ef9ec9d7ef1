"""How much a score moves when nothing that should matter changes: batch size, seed, order."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping
from statistics import NormalDist
from typing import Any

import polars as pl

from banpick_exp.analysis.pairing import PROBLEM, Outcomes
from banpick_exp.records import OVERALL, Metrics, PointRecord, that_count
from banpick_exp.tasks.config import GREEDY

REPEATED = ("max_num_seqs", "seed", "repeat")
"""Settings that repeats differ in. Tensor parallelism and dtype are no repeats: they are other experiments."""

_SCHEMA: dict[str, Any] = {
    "label": pl.String, "policy": pl.String, "domain": pl.String, "repeats": pl.Int64,
    "settings": pl.List(pl.String), "accuracy_mean": pl.Float64, "accuracy_sd": pl.Float64,
    "accuracy_min": pl.Float64, "accuracy_max": pl.Float64, "sampling_error": pl.Float64, "unstable": pl.Float64,
    "n_problems": pl.Int64, "fingerprints": pl.List(pl.String),
}  # fmt: skip


def repeat_spread(records: Iterable[PointRecord], outcomes: Outcomes | None = None) -> pl.DataFrame:
    """The spread of accuracy over done points that differ only in engine.max_num_seqs, a seed or `repeat`.

    Args:
        records: points of any kind; those without a repeat are left out.
        outcomes: fingerprint -> per-problem outcomes, for `unstable`.

    Returns: one row a repeated point x domain ("overall" first): label without the repeated settings, policy, domain,
        repeats, settings (what differed, one text a repeat), accuracy_mean, accuracy_sd (n - 1), accuracy_min and
        accuracy_max (0..1), sampling_error (standard error of one run's accuracy from its number of problems: a spread
        well below it does not move conclusions), unstable (share of problems that not all repeats score alike; null
        without outcomes), n_problems, fingerprints.
    """
    groups: dict[str, list[PointRecord]] = {}
    for record in records:
        if record.status == "done":
            groups.setdefault(_identity(record), []).append(record)
    rows = []
    for group in groups.values():
        if len(group) < 2:
            continue
        group.sort(key=lambda record: record.repeat)  # records come in the order of their file names
        for domain in (OVERALL, *group[0].measured.domains):
            rows.append(_row(group, domain, outcomes))
    return pl.DataFrame(rows, schema=_SCHEMA)


def _row(group: list[PointRecord], domain: str, outcomes: Outcomes | None) -> dict[str, Any]:
    first, metrics = group[0], [record.measured.of(domain) for record in group]
    scores = [each.accuracy for each in metrics]
    mean = statistics.fmean(scores)
    return {
        "label": _label(first),
        "policy": first.series,
        "domain": domain,
        "repeats": len(group),
        "settings": _settings(group),
        "accuracy_mean": mean,
        "accuracy_sd": statistics.stdev(scores),
        "accuracy_min": min(scores),
        "accuracy_max": max(scores),
        "sampling_error": _sampling_error(metrics[0], mean, _counted(first)),
        "unstable": None if outcomes is None else _unstable([outcomes[r.fingerprint] for r in group], domain),
        "n_problems": metrics[0].n_problems,
        "fingerprints": [record.fingerprint for record in group],
    }


def _counted(record: PointRecord) -> int:
    """Answers a problem that accuracy is the mean of."""
    return record.task.samples if record.task.choose == "mean" else 1


def _sampling_error(metrics: Metrics, mean: float, samples: int) -> float:
    if samples == 1:
        return math.sqrt(mean * (1 - mean) / metrics.n_problems)
    low, high = metrics.accuracy_ci95  # of avg@n: over problems
    return (high - low) / 2 / NormalDist().inv_cdf(0.975)


def _unstable(frames: list[pl.DataFrame], domain: str) -> float:
    """Share of the problems of a domain whose number of right answers is not the same in all repeats."""
    counts = [
        that_count(frame)
        .filter((pl.col("domain") == domain) | (domain == OVERALL))
        .group_by(PROBLEM)
        .agg(pl.col("correct").sum())
        for frame in frames
    ]
    varied = pl.concat(counts).group_by(PROBLEM).agg((pl.col("correct").n_unique() > 1).alias("varies"))
    return float(varied["varies"].sum() / varied.height)


def _identity(record: PointRecord) -> str:
    def shared(settings: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in settings.items() if key not in REPEATED}

    # The label tells what no section does, such as the calibration's score. The calibration itself may not be compared:
    # its fingerprint follows the engine's settings, max_num_seqs among them.
    task = GREEDY | shared(record.task.plain())
    same = [record.model.plain(), shared(record.engine), task, record.asked_policy(), _label(record)]
    return json.dumps(same, sort_keys=True, default=str)


def _label(record: PointRecord) -> str:
    return " ".join(part for part in record.label.split() if part.split("=")[0].split(".")[-1] not in REPEATED)


def _settings(group: list[PointRecord]) -> list[str]:
    """What differs between the repeats, a text each."""
    found = [_repeated_settings(record) for record in group]
    names = dict.fromkeys(name for settings in found for name in settings)
    varied = [name for name in names if len({str(settings.get(name)) for settings in found}) > 1]
    return [" ".join(f"{name}={settings[name]}" for name in varied if name in settings) for settings in found]


def _repeated_settings(record: PointRecord) -> dict[str, Any]:
    """Those of REPEATED that the record tells, by the name they are typed by."""
    own = {"repeat": record.repeat} if record.seed is None else {"seed": record.seed, "repeat": record.repeat}
    places = {"engine.": record.engine, "task.": record.task.plain(), "": own}
    return {f"{at}{key}": values[key] for at, values in places.items() for key in REPEATED if key in values}
