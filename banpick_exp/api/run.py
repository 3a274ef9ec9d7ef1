"""`bp.Run(folder)`: one run, for a notebook. Its numbers are those of its report: the same functions make both."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
from rich.console import Group

from banpick_exp.analysis.flips import flips
from banpick_exp.analysis.pairing import PROBLEM
from banpick_exp.api import glance
from banpick_exp.api.knobs import with_knobs
from banpick_exp.config import suggestion
from banpick_exp.errors import UserError
from banpick_exp.records import OVERALL, PointRecord
from banpick_exp.report.asked import questions_of
from banpick_exp.report.run import Run as ReportedRun
from banpick_exp.report.run import opened_run, require_folder
from banpick_exp.report.text import STOCK

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_NAMED = 8


class Run:
    """A run of a sweep, read from its folder when something of it is asked for. Changes nothing there."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """`path`: the folder that the sweep printed. Raises UserError, with what to type, for one that is no run."""
        self.path: Path = require_folder(os.fspath(path)).path

    @cached_property
    def reported(self) -> ReportedRun:
        """All that a report says of it. Raises UserError for files that cannot be opened."""
        return opened_run(str(self.path))

    @property
    def name(self) -> str:
        """`<sweep>/<run>`."""
        return self.reported.name

    @property
    def headline(self) -> str:
        """The verdict in a sentence."""
        return self.reported.headline

    @cached_property
    def points(self) -> pl.DataFrame:
        """A row for each point and domain (the first `overall`), also of failed points: the columns of points.parquet,
        as `analysis.points_frame` describes them, and `knobs` as a struct with a field for each knob."""
        return with_knobs(self.reported.frame_of_all)

    def front(self, domain: str = OVERALL) -> pl.DataFrame:
        """The rows of `points` on the Pareto front of a domain, with `sure`: whether noise does not decide it.

        Raises UserError for a domain that the run has not.
        """
        self._check_domain(domain)
        rows = with_knobs(self.reported.done_rows(domain))
        return rows.filter("on_front").sort("mean_kept", "accuracy", descending=True)

    def verdicts(self) -> pl.DataFrame:
        """Every policy against fixed_k at the nearest measured budget, overall and by domain, adjusted for all at once:
        the columns of `analysis.verdicts`."""
        return self.reported.verdicts

    def guards(self) -> pl.DataFrame:
        """What looks wrong, a row a finding: those of `analysis.guards` that the report raises."""
        return self.reported.raised

    def flips(self, a: str, b: str = "none") -> pl.DataFrame:
        """Problems that `a` solved and `b` lost, and the other way round, with both completions.

        Args: labels or fingerprints of two points, such as `pick boost=1`; `none`, or `stock`, is stock.

        Returns: as `analysis.flips.flips`, and `question`, null where the task's files are not here or have changed.
        Raises UserError for a point that is not there, or has no answers.
        """
        one, other = self._answered(a), self._answered(b)
        found = flips(self.reported.outcomes[one.fingerprint], self.reported.outcomes[other.fingerprint])
        asked = questions_of(one.task)
        questions = [asked.get(key) for key in found.select(*PROBLEM).iter_rows()]
        return found.with_columns(pl.Series("question", questions, dtype=pl.String))

    def plot(self) -> Figure:
        """The figure that answers the sweep's question, as `report` draws it: of one or two knobs, or of budgets.

        Raises UserError where no point is done.
        """
        from banpick_exp.report.files import answering_figure

        if not self.reported.done:
            raise UserError(f"{self.path}: no point is done, so there is nothing to draw. Its points are in .points.")
        return answering_figure(self.reported)

    def _answered(self, name: str) -> PointRecord:
        name = STOCK if name == "stock" else name  # as tables and figures call it
        records = [record for record in self.reported.records if name in (record.label, record.fingerprint)]
        if not records:
            labels = [record.label for record in self.reported.records]
            more = " ..." if len(labels) > MOST_NAMED else ""
            raise UserError(
                f"{name} is no point of {self.name}. {suggestion(name, labels)}Give a label or a fingerprint of"
                f" .points: {', '.join(labels[:MOST_NAMED])}{more}."
            )
        if len(records) > 1:
            prints = ", ".join(record.fingerprint for record in records)
            raise UserError(f"{name} names {len(records)} points of {self.name}. Give a fingerprint: {prints}.")
        if records[0].fingerprint not in self.reported.outcomes:
            raise UserError(f"{name} failed ({records[0].reason}), so it has no answers. Give another point.")
        return records[0]

    def _check_domain(self, domain: str) -> None:
        known = self.reported.domains
        if known and domain not in known:
            raise UserError(f"{domain} is no domain of {self.name}. Give one of {', '.join(known)}.")

    def __repr__(self) -> str:
        return f"<Run {self.name}: {self.headline}>"

    def _repr_html_(self) -> str:
        return glance.as_html(self.reported)

    def __rich__(self) -> Group:
        return glance.as_rich(self.reported)
