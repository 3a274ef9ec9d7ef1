"""What to type where a policy has no fixed_k point at its budget: the run's command with the rungs that are missing."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable

import polars as pl

from banpick_exp.analysis import EQUAL_BUDGET_TOLERANCE
from banpick_exp.records import OVERALL, PointRecord
from banpick_exp.report.run import Run
from banpick_exp.sweep.overrides import key_of
from banpick_exp.sweep.search import ladder

REFERENCE = "sweep.reference"


def missing_rungs(run: Run) -> list[float]:
    """k, to two decimals and ascending, of fixed_k points beside policies that have none at equal budget.

    None for a policy that keeps more experts than the checkpoint selects: no rung is there.
    """
    near = pl.col("budget_gap").abs() <= EQUAL_BUDGET_TOLERANCE
    far = run.verdicts.filter((pl.col("domain") == OVERALL) & ~near.fill_null(False))
    native = {record.fingerprint: record.model.top_k or math.inf for record in run.done}
    kept = [row["mean_kept"] for row in far.iter_rows(named=True) if row["mean_kept"] < native[row["fingerprint"]]]
    return ladder.missing_rungs(kept, (), math.inf)


def rivals_command(run: Run) -> str:
    """The run's command, for a shell, with those rungs beside the ones it has; empty where none is missing."""
    missing = missing_rungs(run)
    if not missing or not run.manifest.command:
        return ""
    words = [word for word in shlex.split(run.manifest.command) if key_of(word) not in (REFERENCE, "resume")]
    rungs = ",".join(f"{k:g}" for k in sorted({*_ladder(run.records), *missing}))
    return shlex.join([*words, f'{REFERENCE}=[["policy=fixed_k","policy.k=choice({rungs})"]]'])


def _ladder(records: Iterable[PointRecord]) -> set[float]:
    return {record.knobs["k"] for record in records if record.series == "fixed_k"}
