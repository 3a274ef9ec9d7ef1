"""W&B mirrors the local records: one W&B run a point, one summary run a sweep, offline unless asked.

Only the driver writes, and each point once, when it is complete: an offline run id cannot be continued. A tracker that
cannot start stops the sweep before any engine loads; one that fails later must not, so later failures are collected and
reported once, and the records on disk lose nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from banpick_exp.errors import UserError
from banpick_exp.records import OVERALL, Metrics, PointRecord
from banpick_exp.report.figures.names import FIGURES
from banpick_exp.report.tracking.config import TrackingConfig
from banpick_exp.report.tracking.environment import of_no_run
from banpick_exp.run_folder import RunFolder, read_table

GIVE_UP_AFTER = 3  # failures in a row: each online one may wait for a network timeout, and the sweep waits with it
TABLES = ("points", "guards", "repeats")
"""Of the run folder, as `RunFolder.table_path` names them."""
POINT_CONFIG = {
    "fingerprint",
    "policy",
    "model",
    "engine",
    "task",
    "versions",
    "calibration",
    "command",
    "budget",
    "seed",
    "repeat",
}
"""What of a record is the configuration of its W&B run."""
SECRET = re.compile(r"api_?key|secret|passw|credential|(hf|auth|access|bearer)_?token|^token$", re.IGNORECASE)
VALIDATION = re.compile(r"\d+ validation errors? for ")


class Tracker:
    """Mirror of one sweep in W&B, or of nothing with tracking=none.

    Use: `start` before the first engine loads, `log_point` for each complete record (also for the ones a resumed run
    found: what was mirrored before is skipped), `finish` at the end.
    """

    def __init__(self, tracking: TrackingConfig) -> None:
        self._tracking = tracking
        self._failures: list[str] = []
        self._failures_in_a_row = 0
        self._summary: Any = None

    def start(self, folder: RunFolder, config: Mapping[str, Any], *, group: str | None = None) -> None:
        """Open the summary run, which proves that W&B works here; W&B's files go into the run's folder.

        Args:
            config: the sweep's composed configuration, plain dicts and lists; entries named like keys are left out.
            group: joins the runs in W&B; the name of the run by default.

        Raises: UserError when W&B cannot start, with the remedy. Never asks for a key.
        """
        if self._tracking.name == "none":
            return
        mode = self._tracking.mode
        self._folder = folder
        self._group = group or folder.name
        try:
            with of_no_run():
                if mode == "online":
                    _require_key()
                self._summary = self._open("summary", "summary", config)
        except Exception as error:  # whatever it is, W&B said no before anything expensive started
            remedy = "run `wandb login` first, or type tracking.mode=offline or tracking=none"
            if mode == "offline":
                remedy = "type tracking=none to run without it"
            raise UserError(
                f"tracking=wandb tracking.mode={mode}: W&B cannot start ({_first_line(error)}), so nothing would "
                f"be mirrored and no engine was started. To go on, {remedy}."
            ) from error

    def log_point(self, record: PointRecord) -> None:
        """Mirror one complete record as a W&B run of its own; never raises."""
        if self._summary is None or self._failures_in_a_row >= GIVE_UP_AFTER:
            return
        with self._collecting(f"point {record.fingerprint}"):
            mirrored = self._folder.mirror / "mirrored.txt"
            # With its time: a point that failed, was mirrored as such and then ran again is another record.
            entry = f"{record.fingerprint}@{record.finished_at}"
            if mirrored.exists() and entry in mirrored.read_text().split():
                return
            config = record.model_dump(mode="json", include=POINT_CONFIG, exclude_unset=True)
            run = self._open(record.label, "point", config, tags=[record.status, record.policy_name])
            run.log(point_metrics(record))
            run.summary.update({"status": record.status, "reason": record.reason})
            run.finish(exit_code=0 if record.status == "done" else 1)
            with open(mirrored, "a") as file:
                file.write(f"{entry}\n")

    def finish(self, summary: Mapping[str, Any], artifacts: Mapping[str, Path] | None = None) -> list[str]:
        """Close the summary run with the numbers, the run's table and plots, and the artifacts; never raises.

        Args:
            summary: names and plain values, such as the headline and counts.
            artifacts: name -> file or folder, such as {"calibration": folder}; `points.parquet`, `report.html` and the
                FIGURES of the run folder are taken where they exist.

        Returns: every failure since `start`, for the caller to report once; empty when all went well.
        """
        if self._summary is not None:
            with self._collecting("the summary"):
                self._finish_summary(summary, dict(artifacts or {}))
            if self._tracking.mode == "online":
                with self._collecting("the W&B report"):
                    from banpick_exp.report.tracking.wandb_report import publish

                    publish(
                        entity=self._summary.entity,
                        project=self._tracking.project,
                        group=self._group,
                        headline=str(summary.get("headline", "")),
                    )
            with self._collecting("closing the summary"):
                self._summary.finish()
            self._summary = None
        return self._failures

    def _finish_summary(self, summary: Mapping[str, Any], artifacts: dict[str, Path]) -> None:
        run, folder = self._summary, self._folder
        run.summary.update(dict(summary))
        for name, path in (("points", folder.table_path("points")), ("report", folder.report)):
            if path.exists():
                artifacts.setdefault(name, path)
        with _staging_in(folder.mirror):
            if logged := _tables(folder) | _pictures(folder, artifacts.get("report")):
                run.log(logged)
            for name, path in artifacts.items():
                run.log_artifact(_artifact(name, Path(path)))

    def _open(self, name: str, job_type: str, config: Mapping[str, Any], tags: list[str] | None = None) -> Any:
        import wandb

        # Made anew for each run: `init` writes the run's own values into the settings it is given. Everything W&B
        # would collect beyond what we hand it is off: source, git state, machine, installed packages, console.
        settings = wandb.Settings(
            mode=self._tracking.mode, silent=True, quiet=True, console="off", symlink=False, init_timeout=30,
            disable_git=True, disable_code=True, save_code=False, disable_job_creation=True, x_disable_meta=True,
            x_disable_stats=True, x_disable_machine_info=True, x_save_requirements=False, host="-", username="-",
            sagemaker_disable=True,  # it would take the run's id from the training job
        )  # fmt: skip
        return wandb.init(
            project=self._tracking.project, entity=self._tracking.entity, group=self._group, name=name,
            job_type=job_type, config=without_secrets(config), tags=tags or [], dir=str(self._folder.path),
            settings=settings, reinit="create_new",  # runs beside each other in one process: the summary stays open
        )  # fmt: skip

    @contextmanager
    def _collecting(self, what: str) -> Iterator[None]:
        try:
            with of_no_run():
                yield
        except Exception as error:  # by design any: the mirror must not cost the sweep
            self._failures.append(f"{what}: {_first_line(error)}")
            self._failures_in_a_row += 1
            if self._failures_in_a_row == GIVE_UP_AFTER:
                self._failures.append(f"gave up after {GIVE_UP_AFTER} failures in a row: later points are not mirrored")
        else:
            self._failures_in_a_row = 0


def _tables(folder: RunFolder) -> dict[str, Any]:
    """The tables that the run's folder has, as W&B shows them."""
    import wandb

    found = {}
    for name in TABLES:
        if (path := folder.table_path(name)).exists():
            frame = read_table(path).drop("mean_kept_by_layer", strict=False)  # every point logs its layers
            found[name] = wandb.Table(columns=frame.columns, data=[list(row) for row in frame.rows()])
    return found


def _pictures(folder: RunFolder, report: Path | None) -> dict[str, Any]:
    """The figures that the run's folder has, and the page."""
    import wandb

    paths = {name: folder.figure_path(name) for name in FIGURES}
    found: dict[str, Any] = {name: wandb.Image(str(path)) for name, path in paths.items() if path.exists()}
    if report is not None:
        found["report"] = wandb.Html(str(report), inject=False)  # as it is: W&B would add a style sheet of its own
    return found


def _artifact(name: str, root: Path) -> Any:
    """A file, or a folder file by file: `add_dir` writes to the console whatever the settings say."""
    import wandb

    artifact = wandb.Artifact(name, type=name)
    for file in [root] if root.is_file() else sorted(path for path in root.rglob("*") if path.is_file()):
        inside = file.name if file == root else str(file.relative_to(root))
        artifact.add_file(str(file), name=inside, skip_cache=True)
    return artifact


def point_metrics(record: PointRecord) -> dict[str, float]:
    """A record's numbers under W&B keys: acc/* (fractions), perf/* (tokens/s, ratios, seconds), route/* (experts), and
    budget/* of a solved knob."""
    values: dict[str, float | None] = {f"perf/{name}": number for name, number in record.timing.plain().items()}
    if record.metrics is not None:
        for domain, metrics in record.metrics.all().items():
            values |= _domain_metrics(domain, metrics)
        for cell in record.metrics.overall.speed:
            name = cell.phase if cell.phase == "prefill" else f"decode_{cell.batch}"
            values |= {f"perf/speedup/{name}": cell.speedup, f"route/unique_experts/{name}": cell.unique_experts}
        kept = record.metrics.overall.mean_kept_by_layer
        values |= {f"route/kept_layer_{layer:02d}": mean for layer, mean in enumerate(kept)}
    if (budget := record.budget) is not None:
        values |= {"budget/target": budget.target, "budget/measured": budget.measured, "budget/value": budget.value}
        values["budget/probes"] = len(budget.probes)
    return {key: value for key, value in values.items() if value is not None}


def _domain_metrics(domain: str, metrics: Metrics) -> dict[str, float | None]:
    suffix = "" if domain == OVERALL else f"/{domain}"
    return {
        f"acc/{domain}": metrics.accuracy,
        f"acc/accuracy_lo{suffix}": metrics.accuracy_ci95[0],
        f"acc/accuracy_hi{suffix}": metrics.accuracy_ci95[1],
        f"acc/delta{suffix}": metrics.delta,
        f"acc/delta_lo{suffix}": metrics.delta_ci95[0] if metrics.delta_ci95 else None,
        f"acc/delta_hi{suffix}": metrics.delta_ci95[1] if metrics.delta_ci95 else None,
        f"acc/n_problems{suffix}": metrics.n_problems,
        f"acc/truncated_fraction{suffix}": metrics.truncated_fraction,
        f"perf/tokens_per_second{suffix}": metrics.tokens_per_second,
        f"perf/speedup{suffix}": metrics.speedup,
        f"perf/speedup_lo{suffix}": metrics.speedup_ci95[0] if metrics.speedup_ci95 else None,
        f"perf/speedup_hi{suffix}": metrics.speedup_ci95[1] if metrics.speedup_ci95 else None,
        f"route/mean_kept{suffix}": metrics.mean_kept,
    }


def without_secrets(value: Any) -> Any:
    """A copy of nested dicts and lists without the entries whose name says they hold a key; leaves as they are."""
    if isinstance(value, Mapping):
        return {str(key): without_secrets(item) for key, item in value.items() if not SECRET.search(str(key))}
    return [without_secrets(item) for item in value] if isinstance(value, list | tuple) else value


def _require_key() -> None:
    """RuntimeError when W&B knows no key: its `init` would ask for one and wait, whenever there is a terminal."""
    import wandb

    wandb.setup(wandb.Settings(silent=True))
    if not wandb.login(prompt=False):
        raise RuntimeError("it has no API key")


@contextmanager
def _staging_in(folder: Path) -> Iterator[None]:
    """W&B copies artifacts to the user's home, and an offline run then points there: keep the run folder whole."""
    before = os.environ.get("WANDB_DATA_DIR")
    os.environ["WANDB_DATA_DIR"] = str(folder.resolve())
    try:
        yield
    finally:
        if before is None:
            del os.environ["WANDB_DATA_DIR"]
        else:
            os.environ["WANDB_DATA_DIR"] = before


def _first_line(error: Exception) -> str:
    lines = (str(error).strip() or type(error).__name__).splitlines()
    # pydantic's first line is a count; the next two are the setting and what is wrong with it.
    return ": ".join(line.strip() for line in lines[1:3]) if VALIDATION.match(lines[0]) else lines[0]
