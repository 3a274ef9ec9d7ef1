"""A run, read: its points, front, verdicts, guards, and the calibrations its policies followed."""

from __future__ import annotations

import copy
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import polars as pl

from banpick_exp.analysis import (
    Gain,
    accuracy_name,
    guards,
    headline,
    hypervolume_gain,
    pareto_front,
    points_frame,
    repeat_spread,
    verdicts,
    without_repeats,
)
from banpick_exp.analysis.finding import AGAINST_STOCK
from banpick_exp.analysis.frame import vs_base
from banpick_exp.analysis.pairing import REFERENCE_POLICIES, Outcomes, OutcomesOnce
from banpick_exp.analysis.verdict import gains_in
from banpick_exp.disk import ASIDE, reading
from banpick_exp.errors import UserError
from banpick_exp.found import Found
from banpick_exp.manifest import MANIFEST, Manifest
from banpick_exp.records import OVERALL, STATUSES, PointRecord
from banpick_exp.report.followed import Followed, followed_calibrations
from banpick_exp.report.published import Published, published_beside
from banpick_exp.report.shown import MOST_SHOWN, in_order
from banpick_exp.report.text import Row
from banpick_exp.run_folder import LeftOut, RunFolder
from banpick_exp.setups import numbered, setup_of_record
from banpick_exp.sweep.rerun import as_typed
from banpick_exp.sweep.search.selection import DEV, Pick, picks

MOST_TOLD = 5
"""Files that are named when a run is read; the others are counted."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """What is said about one run; all else follows from its records and outcomes, each part when it is asked for."""

    folder: RunFolder
    records: Sequence[PointRecord]
    """All points of the result, those that failed and repeats too."""
    outcomes: Outcomes
    """Fingerprint -> outcomes, of all points that did not fail."""
    left_out: Sequence[LeftOut] = ()
    """What is in the folder and cannot be trusted."""
    dev: Sequence[PointRecord] = ()
    """Of search=select: what dev chose from. It is no part of the result: of the best of many the score is too good."""
    most_shown: int = MOST_SHOWN
    """Points that are told one by one where there are more; the others are counted, or listed on demand."""
    pictures: dict[str, str] = field(init=False, default_factory=dict)
    """What a page drew of it, by name: a copy that shows fewer points has the same."""

    @cached_property
    def name(self) -> str:
        """`<sweep>/<run>`."""
        return self.folder.name

    @cached_property
    def manifest(self) -> Manifest:
        return self.folder.manifest()

    @cached_property
    def done(self) -> list[PointRecord]:
        """Without repeats."""
        return [record for record in without_repeats(self.records) if record.status == "done"]

    @property
    def recorded(self) -> int:
        """Points that have a record, those whose record cannot be used too: of so many some are done."""
        return len(self.records) + len(self.left_out)

    @cached_property
    def frame_of_all(self) -> pl.DataFrame:
        """As `points_frame` returns it."""
        return vs_base(points_frame(self.records), self.records, self.outcomes)

    @cached_property
    def frame(self) -> pl.DataFrame:
        """`frame_of_all` with `on_front` and `sure`, without done points that repeat others: `repeats` has those.

        Each set-up has a front of its own: points that were asked with other settings push none off.
        """
        numbers = numbered(map(setup_of_record, self.records))
        setup = dict(zip((record.fingerprint for record in self.records), numbers, strict=True))
        every = self.frame_of_all.with_columns(
            setup=pl.Series([setup[name] for name in self.frame_of_all["fingerprint"]], dtype=pl.Int64)
        ).with_row_index("place")
        fronts = [pareto_front(each, self.outcomes) for each in every.partition_by("setup")]
        first = pl.col("repeat") == pl.col("repeat").min()
        found = pl.concat(fronts) if fronts else pareto_front(every)
        return found.sort("place").drop("place", "setup").filter(first | (pl.col("status") != "done"))

    @cached_property
    def verdicts(self) -> pl.DataFrame:
        """As `analysis.verdicts` returns them, against fixed_k."""
        return verdicts(self.records, self.outcomes)

    @cached_property
    def verdict_of(self) -> dict[tuple[str, str], Row]:
        """(fingerprint, domain) -> row of `verdicts`; references have none."""
        return {(row["fingerprint"], row["domain"]): row for row in self.verdicts.iter_rows(named=True)}

    @cached_property
    def ringed(self) -> frozenset[str]:
        """Fingerprints of the points that a figure rings as gains: they beat fixed_k, at no larger a budget, over all
        domains and for all points at once, and no other point is better beyond noise. A reference is none.
        """
        gains = gains_in(self.verdicts).filter(pl.col("domain") == OVERALL)["fingerprint"]
        return frozenset(gains) & frozenset(self.done_rows().filter("on_front")["fingerprint"])

    @cached_property
    def on_dev(self) -> Run:
        """The points of dev as a run of their own, for their guards."""
        return replace(self, records=self.dev, dev=(), left_out=())

    @cached_property
    def picks(self) -> list[Pick]:
        """What dev chose, a group each; empty under any search but select."""
        return picks(self.manifest.candidates, self.dev)

    @cached_property
    def headline(self) -> str:
        if self.picks and not any(pick.chosen for pick in self.picks):
            return "No verdict: on dev no candidate is better than stock, so none was asked on the split of the result."
        if self.records and all(record.series in REFERENCE_POLICIES for record in self.records):
            return (
                "No verdict: this run holds stock and fixed_k alone, and fixed_k is itself the rival of every policy."
                " Type a policy beside it, e.g. python -m banpick_exp"
                """ 'sweep.blocks=[["policy=fixed_k","policy.k=range(1,K)"],"""
                """["policy=top_p","policy.p=choice(0.7,0.8)"]]'"""
            )
        return headline(self.verdicts)

    @property
    def found(self) -> Found:
        """What is kept of it for who looks at hundreds of runs."""
        statuses = Counter(record.status for record in (*self.records, *self.dev))
        counts: dict[str, int] = {status: statuses[status] for status in STATUSES if statuses[status]}
        return Found(headline=self.headline, points=counts)

    @cached_property
    def hypervolume(self) -> list[Gain]:
        """Over the fixed_k ladder's, all domains together: by measured budget and by speed-up, those that there are.

        None of several set-ups: one number would be over fronts that are no comparison.
        """
        if self.mixed_setups is not None:
            return []
        axes: tuple[Literal["mean_kept", "speedup"], ...] = ("mean_kept", "speedup")
        found = (hypervolume_gain(self.frame, self.outcomes, axis) for axis in axes)
        return [gain for gain in found if gain is not None]

    @cached_property
    def guards(self) -> pl.DataFrame:
        """One row a finding; see `analysis.guards`."""
        return guards(self.records, self.outcomes)

    @cached_property
    def raised(self) -> pl.DataFrame:
        """Rows of `guards` to be read, the invalid ones first.

        That answers get worse down the fixed_k ladder is what it is there to show: what is only a warning there is
        left out; not that problems are.
        """
        found = self.guards.filter(pl.col("level") != "ok")
        expected = pl.col("fingerprint").is_in(self._ladder) & (pl.col("level") == "warning")
        expected &= pl.col("guard") != "failed_problems"
        return found.filter(~expected).sort(pl.col("level") != "invalid", maintain_order=True)

    @cached_property
    def mixed_setups(self) -> str | None:
        """How the settings of its points differ and what that means; None where all were asked alike."""
        found = self.guards.filter(pl.col("guard") == "mixed_setups")
        return str(found["detail"][0]) if found.height else None

    @cached_property
    def may_be_noise(self) -> pl.DataFrame:
        """Rows of `guards` about changes large enough to be named that chance explains, the ladder's left out."""
        named = (pl.col("level") == "ok") & pl.col("guard").is_in(AGAINST_STOCK) & pl.col("value").is_not_null()
        return self.guards.filter(named & ~pl.col("fingerprint").is_in(self._ladder))

    @property
    def _ladder(self) -> list[str]:
        return [record.fingerprint for record in self.records if record.series == "fixed_k"]

    @cached_property
    def repeats(self) -> pl.DataFrame:
        """How far scores move between repeats; see `analysis.repeat_spread`."""
        return repeat_spread(self.records, self.outcomes)

    @cached_property
    def measure(self) -> str:
        """`accuracy`, or `avg@4` of a sampling task."""
        return accuracy_name(self.frame.filter(pl.col("status") == "done"))

    @cached_property
    def domains(self) -> list[str]:
        """`overall` first, then those of the task."""
        return self.frame.filter(pl.col("status") == "done")["domain"].unique(maintain_order=True).to_list()

    def done_rows(self, domain: str = OVERALL) -> pl.DataFrame:
        """The done points of `frame`, a row each."""
        return self.frame.filter((pl.col("status") == "done") & (pl.col("domain") == domain))

    @cached_property
    def by_importance(self) -> list[str]:
        """Fingerprints of `done`, what decides the result first; see `report.shown`."""
        return in_order(self.frame.filter(pl.col("status") == "done"), self.verdicts)

    def foremost(self, most: int) -> frozenset[str]:
        """The fingerprints of at most so many points of `done`: those to be told one by one."""
        if len(self.done) <= most:
            return frozenset(record.fingerprint for record in self.done)
        return frozenset(self.by_importance[:most])

    @cached_property
    def shown(self) -> frozenset[str]:
        """Those of the page and the figures: all, or the foremost `most_shown`."""
        return self.foremost(self.most_shown)

    @cached_property
    def shown_done(self) -> list[PointRecord]:
        """`done`, those shown."""
        return [record for record in self.done if record.fingerprint in self.shown]

    @property
    def unshown(self) -> int:
        """Done points that are not told one by one."""
        return len(self.done) - len(self.shown)

    def shown_rows(self, domain: str = OVERALL) -> pl.DataFrame:
        """`done_rows` of the points that are shown."""
        return self._rows_shown(domain, shown=True)

    def other_rows(self, domain: str = OVERALL) -> pl.DataFrame:
        """`done_rows` of the others."""
        return self._rows_shown(domain, shown=False)

    def _rows_shown(self, domain: str, *, shown: bool) -> pl.DataFrame:
        rows = self.done_rows(domain)
        if not self.unshown:
            return rows if shown else rows.clear()
        inside = pl.Series([name in self.shown for name in rows["fingerprint"]], dtype=pl.Boolean)
        return rows.filter(inside if shown else ~inside)

    def showing(self, most: int) -> Run:
        """The same run with fewer points told one by one; what was computed of it stays."""
        fewer = copy.copy(self)
        for name in ("shown", "shown_done"):
            fewer.__dict__.pop(name, None)
        object.__setattr__(fewer, "most_shown", most)
        return fewer

    @cached_property
    def models(self) -> str:
        return ", ".join(sorted({record.model.name for record in self.records}))

    @cached_property
    def tasks(self) -> str:
        return ", ".join(sorted({f"{record.task.name} {record.task.split}" for record in self.records}))

    @cached_property
    def published(self) -> tuple[Published, ...]:
        """What papers report of this model on this task."""
        return published_beside(self.done)

    @cached_property
    def calibrations(self) -> dict[str, Followed]:
        """Fingerprint -> the scores that its policies followed, by domain; see `report.followed`."""
        return followed_calibrations(self.folder, (*self.records, *self.dev))


def read_run(folder: RunFolder) -> Run:
    """What is in a run folder: every record and its outcomes, read once. Changes nothing there."""
    points = folder.read_points()
    split = DEV if folder.manifest().candidates else None
    return Run(
        folder=folder,
        records=[record for record in points.records if record.task.split != split],
        outcomes=OutcomesOnce(points.outcomes),
        left_out=points.left_out,
        dev=[record for record in points.records if record.task.split == split],
    )


def require_folder(typed: str) -> RunFolder:
    """The folder of a run that was typed. Raises UserError, with what to type, for one that holds no points."""
    folder = RunFolder(Path(typed).expanduser())
    if not folder.points.is_dir():
        if (folder.path / MANIFEST).is_file():  # it was stopped before its first point
            again = resume_command(Run(folder=folder, records=(), outcomes={}))
            raise UserError(f"{typed} has no point yet, so there is nothing to report. Type {again} to go on with it.")
        what = f"has no {folder.points.name}/" if folder.path.is_dir() else "is no folder"
        raise UserError(f"{typed} {what}, so it is no run and there is nothing to report. {_what_to_type(folder.path)}")
    return folder


def opened_run(typed: str) -> Run:
    """The run in a folder that was typed, whatever came of its points; says on stderr which records are left out.

    Raises UserError, with what to type, for a folder that is no run, or whose files cannot be opened.
    """
    folder = require_folder(typed)
    with reading(typed):
        run = read_run(folder)
    for line in (*left_out_lines(run), *_aside_line(run)):
        print(line, file=sys.stderr)
    return run


def require_run(typed: str) -> Run:
    """As `opened_run`. Raises UserError for a run that holds no finished point, too."""
    run = opened_run(typed)
    if not run.done:
        reasons = sorted({str(record.reason) for record in run.records if record.reason})
        raise UserError(
            f"{typed} has {len(run.records)} points and none is done, so there is no front to draw"
            + (f" (first reason: {reasons[0]})" if reasons else "")
            + f". Type {resume_command(run)} to finish it."
        )
    return run


def left_out_lines(run: Run) -> list[str]:
    """One line a record that was left out, the first few, then a count; the last line says what to do."""
    if not run.left_out:
        return []
    lines = [f"Left out: {each.file}: {each.reason}" for each in run.left_out[:MOST_TOLD]]
    if len(run.left_out) > MOST_TOLD:
        lines.append(f"Left out: {len(run.left_out) - MOST_TOLD} more")
    return [
        *lines,
        f"Nothing was changed. Put the files back from a copy, or type {resume_command(run)} to run the"
        f" {len(run.left_out)} point(s) again.",
    ]


def _aside_line(run: Run) -> list[str]:
    aside = run.folder.aside_files()
    if not aside:
        return []
    again = sum(path.with_name(path.name.removesuffix(ASIDE)).exists() for path in aside)
    were = "record was" if len(aside) == 1 else "records were"
    return [f"{len(aside)} {were} set aside earlier (*{ASIDE}) in {run.folder.points}; {again} measured again since."]


def resume_command(run: Run) -> str:
    """The command that goes on with a run, for a shell."""
    command = run.manifest.command or "the sweep's command with"
    return f"{command} {shlex.quote(f'resume={as_typed(str(run.folder.path.resolve()))}')}"


def _what_to_type(folder: Path) -> str:
    runs = sorted(path.parent for depth in ("", "*/", "*/*/") for path in folder.glob(f"{depth}*/{MANIFEST}"))
    if (folder.parent / MANIFEST).is_file():
        runs = [folder.parent]
    if runs:
        return f"Type one of these: {', '.join(map(str, runs[-5:]))}."
    return "Type the folder that a sweep printed, e.g. outputs/pick_strength/<time>: it holds run.json and points/."
