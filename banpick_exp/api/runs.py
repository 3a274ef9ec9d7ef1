"""`bp.runs(folder)`: many runs at once, each read when it is asked for, their tables in one lazy frame."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any, Literal, overload

import polars as pl

from banpick_exp.api.run import Run
from banpick_exp.cluster.commands.list import HEAD, cells
from banpick_exp.cluster.outputs import ListedRun, listing
from banpick_exp.errors import UserError
from banpick_exp.report.page.html_tables import html_table
from banpick_exp.report.tables import table_of

SHOWN = 20


@dataclass(frozen=True, eq=False)
class Runs(Sequence[Run]):
    """The runs of an output folder, the one that was at work last first."""

    listed: Sequence[ListedRun]
    """Each at a glance, as `python -m banpick_exp list` tells it."""

    @overload
    def __getitem__(self, which: int | str) -> Run: ...

    @overload
    def __getitem__(self, which: slice) -> Runs: ...

    def __getitem__(self, which: int | str | slice) -> Run | Runs:
        """By place, by `<sweep>/<run>`, or some of them. Raises UserError for a name that none has."""
        if isinstance(which, slice):
            return Runs(self.listed[which])
        if isinstance(which, int):
            return Run(self.listed[which].folder.path)
        found = next((run for run in self.listed if run.name == which), None)
        if found is None:
            names = ", ".join(run.name for run in self.listed[:5])
            raise UserError(f"{which} is none of these {len(self)} runs. Give SWEEP/RUN: {names}.")
        return Run(found.folder.path)

    def __len__(self) -> int:
        return len(self.listed)

    def __iter__(self) -> Iterator[Run]:
        return (Run(run.folder.path) for run in self.listed)

    def of(self, sweep: str) -> Runs:
        """Those of one sweep."""
        return Runs([run for run in self.listed if run.name.partition("/")[0] == sweep])

    @cached_property
    def table(self) -> pl.DataFrame:
        """A row a run: run, phase, host, recorded and planned points, headline, whether it tells all records,
        age_seconds, folder."""
        schema: dict[str, Any] = {
            "run": pl.String, "phase": pl.String, "host": pl.String, "recorded": pl.Int64, "planned": pl.Int64,
            "headline": pl.String, "told_all": pl.Boolean, "age_seconds": pl.Float64, "folder": pl.String,
        }  # fmt: skip
        rows = [{name: getattr(run, name) for name in schema if name not in ("run", "folder")} for run in self.listed]
        named = [
            row | {"run": run.name, "folder": str(run.folder.path)} for row, run in zip(rows, self.listed, strict=True)
        ]
        return pl.DataFrame(named, schema=schema)

    @property
    def points(self) -> pl.LazyFrame:
        """The points of all runs, `run` in front of the columns of points.parquet, whose `knobs` are JSON text: each
        sweep has its own. Read by Polars from those tables, of runs whose table lacks a record from the records."""
        return _all_of(self.listed, "points")

    @property
    def verdicts(self) -> pl.LazyFrame:
        """The verdicts of all runs, `run` in front of the columns of `Run.verdicts`, read in the same way."""
        return _all_of(self.listed, "verdicts")

    def __repr__(self) -> str:
        return f"<Runs: {len(self)}{', the newest ' + self.listed[0].name if self.listed else ''}>"

    def _repr_html_(self) -> str:
        rows = [[escape(cell) for cell in cells(run)] for run in self.listed[:SHOWN]]
        return html_table(f"{len(self)} runs, the newest {min(SHOWN, len(self))} shown", HEAD, rows)


def runs(folder: str | os.PathLike[str] = "outputs") -> Runs:
    """All runs below an output folder, or of one sweep's folder: hundreds in a second or two, none read yet.

    Raises UserError for a folder that is not there.
    """
    return Runs([run for run in listing(Path(folder).expanduser()).runs if run.recorded])


def _all_of(listed: Sequence[ListedRun], table: Literal["points", "verdicts"]) -> pl.LazyFrame:
    frames = [table_of(run.folder, table).select(pl.lit(run.name).alias("run"), pl.all()) for run in listed]
    return pl.concat(frames, how="diagonal_relaxed") if frames else pl.LazyFrame({"run": []}, schema={"run": pl.String})
