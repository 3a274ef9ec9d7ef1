"""What was found about one point and its run, as plain values for `policy.json`: no number is computed here."""

from __future__ import annotations

from typing import Any

import polars as pl

from banpick_exp.records import OVERALL, PointRecord
from banpick_exp.report.run import Run
from banpick_exp.report.sentences import alarms

NUMBERS = (
    "accuracy", "accuracy_lo", "accuracy_hi", "delta", "delta_lo", "delta_hi", "n_problems", "mean_kept", "speedup",
    "speedup_lo", "speedup_hi", "own_speedup", "own_speedup_lo", "own_speedup_hi", "tokens_per_second",
    "truncated_fraction",
)  # fmt: skip
"""Columns of `points_frame` that are told of a domain."""
OF_VERDICT = (
    "domain", "verdict", "reference_label", "difference", "lo", "hi", "lo_simultaneous", "hi_simultaneous", "p_holm",
    "comparisons", "n_pairs", "wins", "losses", "mean_kept", "reference_mean_kept", "budget_gap", "note",
)  # fmt: skip
OF_FRONT = (
    "fingerprint", "label", "accuracy", "accuracy_lo", "accuracy_hi", "mean_kept", "speedup", "speedup_lo",
    "speedup_hi", "own_speedup", "own_speedup_lo", "own_speedup_hi",
)  # fmt: skip


def measured(run: Run, record: PointRecord, how: str | None) -> dict[str, Any]:
    """`how`: how the point was chosen where its score decided, None where it was named."""
    own = run.frame_of_all.filter(pl.col("fingerprint") == record.fingerprint)
    verdicts = run.verdicts.filter(pl.col("fingerprint") == record.fingerprint)
    return {
        "accuracy_is": run.measure,
        "chosen": how,
        "headline": run.headline,
        "read_first": alarms(run),
        "points_of_the_run": len(run.done),
        "task": _task(record),
        "engine": {"dtype": record.model.plain().get("dtype"), **record.engine},
        "domains": {row["domain"]: _plain(row, NUMBERS) for row in own.iter_rows(named=True)},
        "mean_kept_by_layer": list(record.measured.overall.mean_kept_by_layer),
        "speed": [cell.model_dump(mode="json") for cell in record.measured.overall.speed],
        "against_fixed_k": [_plain(row, OF_VERDICT) for row in verdicts.iter_rows(named=True)],
        "stock": _stock(run, record),
        "front": [_plain(row, OF_FRONT) for row in _front(run).iter_rows(named=True)],
    }


def raised(run: Run, record: PointRecord) -> list[dict[str, Any]]:
    """Findings of the guards about the point that should be read."""
    found = run.guards.filter((pl.col("fingerprint") == record.fingerprint) & (pl.col("level") != "ok"))
    return [_plain(row, ("guard", "domain", "level", "value", "detail")) for row in found.iter_rows(named=True)]


def _task(record: PointRecord) -> dict[str, Any]:
    """What was asked; where a file of problems lies is no business of a reader elsewhere."""
    return {name: value for name, value in record.task.plain().items() if name != "data_files"}


def _stock(run: Run, record: PointRecord) -> dict[str, Any] | None:
    """Stock of the same model and settings, all domains; None where it is not done."""
    rows = run.frame_of_all.filter((pl.col("domain") == OVERALL) & (pl.col("status") == "done"))
    alike = {
        each.fingerprint
        for each in run.done
        if each.is_stock
        and each.engine == record.engine
        and each.task == record.task
        and each.model.identity in (record.model.identity, record.model.base and record.model.base.identity)
    }
    found = rows.filter(pl.col("fingerprint").is_in(alike) & (pl.col("policy") == "none"))
    return next((_plain(row, OF_FRONT) for row in found.iter_rows(named=True)), None)


def _front(run: Run) -> pl.DataFrame:
    return run.done_rows().filter("on_front").sort("mean_kept", "fingerprint")


def _plain(row: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: row[name] for name in names}
