"""A run, read: its points, front, verdicts, guards, and the calibrations its policies followed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
from banpick_exp.analysis.pairing import Outcomes
from banpick_exp.errors import UserError
from banpick_exp.evaluation.calibration import arrays
from banpick_exp.evaluation.calibration.artifact import read_artifact
from banpick_exp.records import OVERALL, PointRecord
from banpick_exp.report.text import Row
from banpick_exp.run_folder import MANIFEST, Manifest, RunFolder


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """What is said about one run; all else follows from its records and outcomes, each part when it is asked for."""

    folder: RunFolder
    records: Sequence[PointRecord]
    """All points, those that failed and repeats too."""
    outcomes: Outcomes
    """Fingerprint -> outcomes, of all points that did not fail."""

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

    @cached_property
    def frame_of_all(self) -> pl.DataFrame:
        """As `points_frame` returns it."""
        return points_frame(self.records)

    @cached_property
    def frame(self) -> pl.DataFrame:
        """`frame_of_all` with `on_front` and `sure`, without done points that repeat others: `repeats` has those."""
        first = pl.col("repeat") == pl.col("repeat").min()
        return pareto_front(self.frame_of_all, self.outcomes).filter(first | (pl.col("status") != "done"))

    @cached_property
    def verdicts(self) -> pl.DataFrame:
        """As `analysis.verdicts` returns them, against fixed_k."""
        return verdicts(self.records, self.outcomes)

    @cached_property
    def verdict_of(self) -> dict[tuple[str, str], Row]:
        """(fingerprint, domain) -> row of `verdicts`; references have none."""
        return {(row["fingerprint"], row["domain"]): row for row in self.verdicts.iter_rows(named=True)}

    @cached_property
    def headline(self) -> str:
        return headline(self.verdicts)

    @cached_property
    def hypervolume(self) -> list[Gain]:
        """Over the fixed_k ladder's, all domains together: by measured budget and by speed-up, those that there are."""
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
        left out.
        """
        found = self.guards.filter(pl.col("level") != "ok")
        expected = pl.col("fingerprint").is_in(self._ladder) & (pl.col("level") == "warning")
        return found.filter(~expected).sort(pl.col("level") != "invalid", maintain_order=True)

    @cached_property
    def may_be_noise(self) -> pl.DataFrame:
        """Rows of `guards` about changes large enough to be named that chance explains, the ladder's left out."""
        named = (pl.col("level") == "ok") & pl.col("guard").is_in(AGAINST_STOCK) & pl.col("value").is_not_null()
        return self.guards.filter(named & ~pl.col("fingerprint").is_in(self._ladder))

    @property
    def _ladder(self) -> list[str]:
        return [record.fingerprint for record in self.records if record.policy_name == "fixed_k"]

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
    def models(self) -> str:
        return ", ".join(sorted({record.model.name for record in self.records}))

    @cached_property
    def tasks(self) -> str:
        return ", ".join(sorted({f"{record.task.name} {record.task.split}" for record in self.records}))

    @cached_property
    def calibrations(self) -> dict[str, tuple[str, dict[str, arrays.DomainCalibration]]]:
        """Fingerprint -> score its policies followed, arrays per domain; of the artifacts beside this run."""
        found = {}
        for fingerprint in sorted({record.calibration for record in self.records if record.calibration}):
            folder = self.folder.calibrations / fingerprint
            domains = arrays.load(folder, fingerprint)
            if domains is not None:
                found[fingerprint] = (str(read_artifact(folder).settings["score"]), domains)
        return found


def read_run(folder: RunFolder) -> Run:
    """What is in a run folder: every record and its outcomes, read once."""
    records, _ = folder.load_points()
    return Run(folder=folder, records=records, outcomes=folder.all_outcomes(records))


def require_run(typed: str) -> Run:
    """The run in a folder that was typed. Raises UserError, with what to type, for one that holds no finished point."""
    folder = RunFolder(Path(typed).expanduser())
    if not folder.points.is_dir():
        what = f"has no {folder.points.name}/" if folder.path.is_dir() else "is no folder"
        raise UserError(f"{typed} {what}, so it is no run and there is nothing to report. {_what_to_type(folder.path)}")
    run = read_run(folder)
    if not run.done:
        reasons = sorted({str(record.reason) for record in run.records if record.reason})
        command = run.manifest.command or "the sweep's command"
        raise UserError(
            f"{typed} has {len(run.records)} points and none is done, so there is no front to draw"
            + (f" (first reason: {reasons[0]})" if reasons else "")
            + f". Type {command} resume={folder.path.resolve()} to finish it."
        )
    return run


def _what_to_type(folder: Path) -> str:
    runs = sorted(path.parent for depth in ("", "*/", "*/*/") for path in folder.glob(f"{depth}*/{MANIFEST}"))
    if (folder.parent / MANIFEST).is_file():
        runs = [folder.parent]
    if runs:
        return f"Type one of these: {', '.join(map(str, runs[-5:]))}."
    return "Type the folder that a sweep printed, e.g. outputs/pick_strength/<time>: it holds run.json and points/."
