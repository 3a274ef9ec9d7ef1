"""A run folder, read: its points, front, verdicts, guards, and the calibrations its policies followed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from banpick_exp.analysis import (
    BUDGET_TOLERANCE,
    accuracy_name,
    guards,
    headline,
    pareto_front,
    points_frame,
    repeat_spread,
    verdicts,
    without_repeats,
)
from banpick_exp.errors import UserError
from banpick_exp.evaluation.calibration import arrays
from banpick_exp.evaluation.calibration.artifact import read_artifact
from banpick_exp.records import OVERALL, load_outcomes, load_points
from banpick_exp.run_folder import MANIFEST

POINTS = "points"


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a report says about one run. `records`: all points; `outcomes`: of the done and invalid ones."""

    folder: Path
    records: list[dict[str, Any]]
    outcomes: Mapping[str, pl.DataFrame]
    frame: pl.DataFrame
    """As `points_frame` returns it, with `on_front`; done repeats left out, `repeats` speaks of them."""
    found: pl.DataFrame
    """As `verdicts` returns it, against fixed_k only."""

    @cached_property
    def name(self) -> str:
        """`<sweep>/<run>`."""
        return "/".join(self.folder.resolve().parts[-2:])

    @cached_property
    def done(self) -> list[dict[str, Any]]:
        """Without repeats."""
        return [record for record in without_repeats(self.records) if record["status"] == "done"]

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

    @cached_property
    def models(self) -> str:
        return ", ".join(sorted({str(record["model"].get("name", "")) for record in self.records}))

    @cached_property
    def tasks(self) -> str:
        return ", ".join(sorted({f"{r['task'].get('name', '')} {r['task'].get('split', '')}" for r in self.records}))

    @cached_property
    def headline(self) -> str:
        return headline(self.found)

    @cached_property
    def manifest(self) -> dict[str, Any]:
        path = self.folder / MANIFEST
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    @cached_property
    def guards(self) -> pl.DataFrame:
        """One row a finding; see `analysis.guards`."""
        return guards(self.records, self.outcomes)

    @cached_property
    def calibrations(self) -> dict[str, tuple[str, dict[str, arrays.DomainCalibration]]]:
        """Fingerprint -> score its policies followed, arrays per domain; of the artifacts beside this run."""
        found = {}
        for fingerprint in sorted({str(r["calibration"]) for r in self.records if r["calibration"]}):
            folder = self.folder.parent.parent / "calibrations" / fingerprint
            domains = arrays.load(folder, fingerprint)
            if domains is not None:
                found[fingerprint] = (str(read_artifact(folder).settings["score"]), domains)
        return found

    @cached_property
    def verdict_of(self) -> dict[tuple[str, str], dict[str, Any]]:
        """(fingerprint, domain) -> row of `found`."""
        return {(row["fingerprint"], row["domain"]): row for row in self.found.iter_rows(named=True)}


def load_run(run_dir: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    """A run's points (`points_frame` with `on_front`) and its verdicts, from its records and outcomes."""
    run = read_run(run_dir)
    return run.frame, run.found


def read_run(run_dir: Path, frame: pl.DataFrame | None = None, found: pl.DataFrame | None = None) -> Run:
    """What is in a run folder; `frame` and `found` where a caller has them already."""
    records, _ = load_points(Path(run_dir) / POINTS)
    outcomes = load_outcomes(Path(run_dir) / POINTS, records)
    if found is None:
        found = verdicts(records, outcomes)
    return Run(
        folder=Path(run_dir),
        records=records,
        outcomes=outcomes,
        frame=first_of_repeats(pareto_front(points_frame(records)) if frame is None else frame),
        found=found.filter(pl.col("against") == "fixed_k"),
    )


def first_of_repeats(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame without the done points that repeat others; repeats that went wrong stay, to be told of."""
    return frame.filter((pl.col("repeat") == pl.col("repeat").min()) | (pl.col("status") != "done"))


def require_run(typed: str) -> Run:
    """The run in a folder that was typed. Raises UserError, with what to type, for one that holds no finished point."""
    folder = Path(typed).expanduser()
    if not (folder / POINTS).is_dir():
        what = "has no points/" if folder.is_dir() else "is no folder"
        raise UserError(f"{typed} {what}, so it is no run and there is nothing to report. {_what_to_type(folder)}")
    run = read_run(folder)
    if not run.done:
        reasons = sorted({str(record["reason"]) for record in run.records if record["reason"]})
        command = run.manifest.get("command", "the sweep's command")
        raise UserError(
            f"{typed} has {len(run.records)} points and none is done, so there is no front to draw"
            + (f" (first reason: {reasons[0]})" if reasons else "")
            + f". Type {command} resume={folder.resolve()} to finish it."
        )
    return run


def _what_to_type(folder: Path) -> str:
    runs = sorted(path.parent for depth in ("", "*/", "*/*/") for path in folder.glob(f"{depth}*/{MANIFEST}"))
    if (folder.parent / MANIFEST).is_file():
        runs = [folder.parent]
    if runs:
        return f"Type one of these: {', '.join(map(str, runs[-5:]))}."
    return "Type the folder that a sweep printed, e.g. outputs/pick_strength/<time>: it holds run.json and points/."


def chosen_policy(run: Run, label: str | None = None) -> tuple[dict[str, Any] | None, str]:
    """The point whose routing is drawn beside stock's, and why it: the one asked for, else the best at equal budget.

    Raises UserError for a label that no done point has.
    """
    others = [record for record in run.done if record["policy"]["name"] != "none"]
    if label is not None:
        for record in others:
            if label in (record["label"], record["fingerprint"]):
                return record, "as asked for"
        known = ", ".join(f'"{record["label"]}"' for record in others[:12])
        raise UserError(
            f'--policy "{label}" is no finished policy of {run.folder}: nothing could be drawn. Type one of: {known}.'
        )
    compared = run.found.filter((pl.col("domain") == OVERALL) & pl.col("lo_simultaneous").is_not_null())
    near = compared.filter(pl.col("budget_gap").abs() <= BUDGET_TOLERANCE)
    for row in (near if near.height else compared).sort("lo_simultaneous", descending=True).iter_rows(named=True):
        record = next(record for record in run.done if record["fingerprint"] == row["fingerprint"])
        rival = "stock" if row["reference_label"] == "none" else row["reference_label"]
        if row["verdict"] == "beats":
            return record, f"beats {rival}"
        return record, f"no policy gains over all domains; of those that tie this one stands best, against {rival}"
    return (others[0], "no policy was compared; the first point") if others else (None, "")
