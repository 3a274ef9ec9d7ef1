"""W&B mirrors the local records: one W&B run a point, one summary run a sweep, offline unless asked.

Only the driver writes, and each point once. A point's verdict is known when the sweep ends: then it is held against all
others. Online a point is mirrored when it is complete, so that it can be watched, and the server is told its verdict at
the end. Offline nobody can look before `wandb sync`, and a run that was closed cannot be continued: so offline a point
is mirrored at the end, from its record, with its verdict; a driver that is killed before leaves all of them to the one
that resumes. Holding thousands of W&B runs open until then would cost a file and a stream each, and lose them all with
the process. What is mirrored already is not mirrored again: where a resumed run has changed its verdict, `report RUN
--wandb` tells the server.

A tracker that cannot start stops the sweep before any engine loads; one that fails or hangs later must not: it works
beside the run (`mirroring`), and what it could not mirror in the end is reported once, while the records on disk lose
nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from banpick_exp.errors import UserError
from banpick_exp.records import PointRecord
from banpick_exp.report.failure import or_else
from banpick_exp.report.tracking.config import TrackingConfig
from banpick_exp.report.tracking.found import FoundOut
from banpick_exp.report.tracking.logged import kept_by_layer, point_config, point_metrics, without_secrets
from banpick_exp.report.tracking.mirroring import Mirroring, NoAnswer, Order
from banpick_exp.report.tracking.place import (
    SUMMARY,
    Place,
    id_of,
    publish_command,
    sync_command,
    write_place,
)
from banpick_exp.report.tracking.process import Trouble
from banpick_exp.run_folder import RunFolder

TOLD_AT_ONCE = 10
"""Points whose summaries one call completes: it must end within `tracking.timeout_seconds`."""


class Tracker:
    """Mirror of one sweep in W&B, or of nothing with tracking=none.

    Use: `start` before the first engine loads, `log_point` for each complete record (also for the ones a resumed run
    found: what was mirrored before is skipped), `finish` at the end.
    """

    def __init__(self, tracking: TrackingConfig, *, at_once: bool | None = None) -> None:
        """`at_once`: mirror a point when it is complete and not at the end; by default online alone."""
        self._tracking = tracking
        self._at_once = tracking.mode == "online" if at_once is None else at_once
        self._failures: list[str] = []
        self._mirroring: Mirroring | None = None

    @property
    def on(self) -> bool:
        """Whether anything is mirrored."""
        return self._tracking.name != "none"

    @property
    def at_once(self) -> bool:
        """Whether a point is mirrored when it is complete."""
        return self.on and self._at_once

    @property
    def on_their_way(self) -> int:
        """Points that are handed over and not mirrored yet."""
        return 0 if self._mirroring is None else self._mirroring.on_their_way

    def start(self, folder: RunFolder, config: Mapping[str, Any], *, group: str | None = None) -> None:
        """Open the summary run, which proves that W&B works here; W&B's files go into the run's folder.

        Args:
            config: the sweep's composed configuration, plain dicts and lists; entries named like keys are left out.
            group: joins the runs in W&B; the name of the run by default.

        Raises: UserError when W&B cannot start within `tracking.timeout_seconds`, with the remedy. Never asks for a
            key.
        """
        if not self.on:
            return
        self._folder = folder
        mode, limit = self._tracking.mode, self._tracking.timeout_seconds
        opening = Order(
            "open",
            {
                "tracking": self._tracking.model_dump(),
                "folder": folder.path,
                "group": group or folder.name,
                "config": without_secrets(config),
            },
        )
        mirroring = Mirroring(folder, opening, timeout_seconds=limit, offline=mode == "offline")
        try:
            mirroring.start()
        except (Trouble, OSError) as error:  # W&B said no before anything expensive started
            remedy = "run `wandb login` first, or type tracking.mode=offline or tracking=none"
            if mode == "offline":
                remedy = "type tracking=none to run without it"
            if isinstance(error, NoAnswer):
                remedy = f"type tracking.timeout_seconds={4 * limit:g} where W&B is only slow, or {remedy}"
            raise UserError(
                f"tracking=wandb tracking.mode={mode}: W&B cannot start ({error}), so nothing would "
                f"be mirrored and no engine was started. To go on, {remedy}."
            ) from error
        self._mirroring = mirroring
        self._place = Place(
            entity=self._tracking.entity or os.environ.get("WANDB_ENTITY"),
            project=self._tracking.project,
            group=group or folder.name,
            timeout_seconds=limit,
        )
        write_place(folder, self._place)

    def log_point(self, record: PointRecord) -> None:
        """A record is complete. Mirrored at once it becomes a W&B run of its own, beside the run: returns at once,
        never raises."""
        if self._mirroring is not None and self._at_once:
            self._mirroring.add(_point(record, {"status": record.status, "reason": record.reason}))

    def finish(
        self,
        summary: Mapping[str, Any],
        artifacts: Sequence[tuple[str, str, Path]] = (),
        found: FoundOut | None = None,
    ) -> list[str]:
        """Close the summary run with the numbers, the run's tables and plots, and the artifacts; never raises.

        Waits for the points that are on their way, mirrors those that waited for the end and makes up for those that
        W&B missed, as long as it answers each call within `tracking.timeout_seconds`. Online it then completes the
        points' summaries and makes the W&B report.

        Args:
            summary: names and plain values, such as the headline and counts.
            artifacts: type, name and file or folder, such as ("calibration", "calibration-ab12", folder);
                `points.parquet`, `report.html` and the FIGURES of the run folder are taken where they exist.
            found: what all points together say.

        Returns: what is not mirrored, for the caller to report once; empty when all is.
        """
        if self._mirroring is not None:
            mirroring, self._mirroring = self._mirroring, None
            told, tables = {}, {}
            if found is not None:
                told = or_else("W&B's verdicts", self._folder, lambda: told_of(found), lambda _: {}, writes=False)
                tables = or_else("W&B's tables", self._folder, lambda: plain_tables(found), lambda _: {}, writes=False)
            closing = Order("finish", {"summary": dict(summary), "tables": tables, "artifacts": list(artifacts)})
            records = [] if found is None else found.every
            points = (_point(r, told.get(r.fingerprint, {"status": r.status, "reason": r.reason})) for r in records)
            after = self._after(mirroring, found, told) if found is not None else ()
            self._failures = mirroring.finish(closing, points, after if self._tracking.mode == "online" else ())
        return self._failures

    def to_publish(self) -> list[str]:
        """What to type to have an offline run in W&B, after `finish`; nothing of any other."""
        if not self.on or self._tracking.mode == "online":
            return []
        return [
            "W&B: mirrored offline. To upload it and to make its report there, type",
            f"  {sync_command(self._folder)}",
            f"  {publish_command(self._folder)}",
        ]

    def _after(self, mirroring: Mirroring, found: FoundOut, told: Mapping[str, Mapping[str, Any]]) -> Iterator[Order]:
        """What the server is told when everything is there."""
        yield from completions(self._place, mirroring.runs, found, told)
        shown = or_else("the W&B report", self._folder, found.shown, lambda _: None, writes=False)
        if shown is not None:
            yield publication(self._place, mirroring.runs, shown)


def told_of(found: FoundOut) -> dict[str, dict[str, Any]]:
    """Fingerprint -> what the end of the sweep adds to its summary."""
    return {record.fingerprint: found.of_point(record) for record in found.every}


def plain_tables(found: FoundOut) -> dict[str, tuple[Sequence[str], Sequence[Sequence[Any]]]]:
    """The tables as `mirror.Mirror.finish` takes them."""
    return {name: (table.columns, table.rows) for name, table in found.tables.items()}


def completions(
    place: Place, runs: Mapping[str, str], found: FoundOut, told: Mapping[str, Mapping[str, Any]]
) -> Iterator[Order]:
    """Calls that bring the summaries of mirrored points up to what the sweep found, a few points each."""
    there = [
        (id_of(run), told[record.fingerprint])
        for record in found.every
        if record.fingerprint in told and (run := runs.get(entry_of(record)))
    ]
    for first in range(0, len(there), TOLD_AT_ONCE):
        told_now = dict(there[first : first + TOLD_AT_ONCE])
        arguments = {"entity": place.entity, "project": place.project, "told": told_now}
        yield Order("complete", arguments, what="the verdicts of the points")


def publication(place: Place, runs: Mapping[str, str], shown: Mapping[str, Any]) -> Order:
    """The call that makes the W&B report."""
    summary_run = id_of(runs[SUMMARY]) if SUMMARY in runs else None
    arguments = {**place.model_dump(include={"entity", "project", "group"}), **shown, "summary_run": summary_run}
    return Order("publish", arguments, what="the W&B report")


def entry_of(record: PointRecord) -> str:
    """What the list of mirrored points says of a record. With its time: a point that failed, was mirrored as such and
    then ran again is another one."""
    return f"{record.fingerprint}@{record.finished_at}"


def _point(record: PointRecord, told: Mapping[str, Any]) -> Order:
    arguments = {
        "label": record.label,
        "config": point_config(record),
        "tags": [record.status, record.policy_name],
        "metrics": point_metrics(record) | {key: value for key, value in told.items() if value is not None},
        "kept_by_layer": kept_by_layer(record),
        "status": record.status,
    }
    return Order("point", arguments, entry=entry_of(record))
