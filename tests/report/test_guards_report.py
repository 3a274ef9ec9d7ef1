"""What guards found, in the printed table."""

from __future__ import annotations

import io
from pathlib import Path

import polars as pl
from rich.console import Console
from synthetic_run import SyntheticRun

from banpick_exp.report.run import Run
from banpick_exp.report.terminal import print_pareto
from banpick_exp.run_folder import RunFolder


def test_the_table_prints_alarms_and_possible_noise(tmp_path: Path) -> None:
    """The last hundred problems are a sub-task of which the policy gets twenty fewer right."""
    run = SyntheticRun(problems=400)
    run.add("none")
    ban = run.add("ban", {"lambda": 0.5}, kept=5.0)
    row = pl.int_range(pl.len())
    part = (pl.lit("part") + (row // 100).cast(pl.String)).alias("task")
    outcomes = {name: frame.with_columns(part) for name, frame in run.outcomes.items()}
    lost = (pl.col("task") == "part11") & (pl.col("correct").cum_sum().over("task") <= 20)
    outcomes[ban.fingerprint] = outcomes[ban.fingerprint].with_columns(correct=pl.col("correct") & ~lost)
    stream = io.StringIO()
    folder = RunFolder(tmp_path / "sweep" / "run")
    print_pareto(Run(folder=folder, records=run.records, outcomes=outcomes), Console(file=stream))
    assert "guard subtask_drop ban lambda=0.5 (knowledge): part11: " in stream.getvalue()
