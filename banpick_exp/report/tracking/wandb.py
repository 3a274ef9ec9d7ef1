"""W&B mirrors the local records: one W&B run a point, one summary run a sweep, offline unless asked.

Only the driver writes, and each point once, when it is complete. A tracker that cannot start stops the sweep before any
engine loads; one that fails or hangs later must not: it works beside the run (`mirroring`), and what it could not
mirror in the end is reported once, while the records on disk lose nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from banpick_exp.errors import UserError
from banpick_exp.records import PointRecord
from banpick_exp.report.tracking.config import TrackingConfig
from banpick_exp.report.tracking.logged import point_config, point_metrics, without_secrets
from banpick_exp.report.tracking.mirroring import Mirroring, NoAnswer, Order
from banpick_exp.report.tracking.process import Trouble
from banpick_exp.run_folder import RunFolder


class Tracker:
    """Mirror of one sweep in W&B, or of nothing with tracking=none.

    Use: `start` before the first engine loads, `log_point` for each complete record (also for the ones a resumed run
    found: what was mirrored before is skipped), `finish` at the end.
    """

    def __init__(self, tracking: TrackingConfig) -> None:
        self._tracking = tracking
        self._failures: list[str] = []
        self._mirroring: Mirroring | None = None

    @property
    def on(self) -> bool:
        """Whether anything is mirrored."""
        return self._tracking.name != "none"

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
        if self._tracking.name == "none":
            return
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

    def log_point(self, record: PointRecord) -> None:
        """Mirror one complete record as a W&B run of its own, beside the run: returns at once, never raises."""
        if self._mirroring is None:
            return
        arguments = {
            "label": record.label,
            "config": point_config(record),
            "tags": [record.status, record.policy_name],
            "metrics": point_metrics(record),
            "status": record.status,
            "reason": record.reason,
        }
        # With its time: a point that failed, was mirrored as such and then ran again is another record.
        self._mirroring.add(Order("point", arguments, entry=f"{record.fingerprint}@{record.finished_at}"))

    def finish(self, summary: Mapping[str, Any], artifacts: Mapping[str, Path] | None = None) -> list[str]:
        """Close the summary run with the numbers, the run's table and plots, and the artifacts; never raises.

        Waits for the points that are on their way and makes up for those that W&B missed, as long as it answers each
        call within `tracking.timeout_seconds`.

        Args:
            summary: names and plain values, such as the headline and counts.
            artifacts: name -> file or folder, such as {"calibration": folder}; `points.parquet`, `report.html` and the
                FIGURES of the run folder are taken where they exist.

        Returns: what is not mirrored, for the caller to report once; empty when all is.
        """
        if self._mirroring is not None:
            mirroring, self._mirroring = self._mirroring, None
            arguments = {"summary": dict(summary), "artifacts": dict(artifacts or {})}
            self._failures = mirroring.finish(Order("finish", arguments))
        return self._failures
