"""What the end of a run, or `report`, wrote as tables, for who reads hundreds of runs: never an old answer."""

from __future__ import annotations

from typing import Literal

import polars as pl

from banpick_exp.found import Found
from banpick_exp.report.run import opened_run
from banpick_exp.run_folder import RunFolder


def table_of(folder: RunFolder, table: Literal["points", "verdicts"]) -> pl.LazyFrame:
    """One of a run's tables, scanned; where a record came or went since it was written, or it is damaged, made anew
    from the records.

    Raises UserError for a run whose records cannot be opened.
    """
    path = folder.table_path(table)
    if folder.tells_all(path):
        try:
            scanned = pl.scan_parquet(path, glob=False)
            scanned.collect_schema()
            return scanned
        # Damage makes Polars panic too, and a panic is no Exception.
        except (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException):
            pass  # the records have it all
    run = opened_run(str(folder.path))
    return (run.frame_of_all if table == "points" else run.verdicts).lazy()


def what_was_found(folder: RunFolder) -> Found:
    """The verdict in a sentence and how many points there are, in the same way."""
    found = folder.found() if folder.tells_all(folder.found_path) else None
    return opened_run(str(folder.path)).found if found is None else found
