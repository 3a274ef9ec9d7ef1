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
from typing import Any, Literal

from banpick_exp.errors import UserError
from banpick_exp.records import OVERALL

FIGURES = ("pareto", "usage", "influence", "kept")
"""Images of the run folder, as banpick_exp.report names them."""
GIVE_UP_AFTER = 3  # failures in a row: each online one may wait for a network timeout, and the sweep waits with it
SECRET = re.compile(r"api_?key|secret|passw|credential|(hf|auth|access|bearer)_?token|^token$", re.IGNORECASE)


class Tracker:
    """Mirror of one sweep in W&B, or of nothing with `name="none"`.

    Use: `start` before the first engine loads, `log_point` for each complete record (also for the ones a resumed run
    found: what was mirrored before is skipped), `finish` at the end.
    """

    def __init__(
        self,
        name: Literal["none", "wandb"] = "wandb",
        mode: Literal["offline", "online"] = "offline",
        project: str = "banpick",
        entity: str | None = None,
    ) -> None:
        self.enabled = name == "wandb"
        self.mode = mode
        self.project = project
        self.entity = entity
        self.failures: list[str] = []
        self._failures_in_a_row = 0
        self._summary: Any = None

    def start(self, run_dir: Path, config: Mapping[str, Any], *, group: str | None = None) -> None:
        """Open the summary run, which proves that W&B works here; W&B's files go to `<run_dir>/wandb`.

        Args:
            run_dir: `outputs/<sweep>/<run>`.
            config: the sweep's composed configuration, plain dicts and lists; entries named like keys are left out.
            group: joins the runs in W&B; the last two parts of `run_dir` by default.

        Raises: UserError when W&B cannot start, with the remedy. Never asks for a key.
        """
        if not self.enabled:
            return
        self._run_dir = Path(run_dir)
        self._group = group or "/".join(self._run_dir.parts[-2:])
        try:
            if self.mode == "online":
                _require_key()
            self._summary = self._open("summary", "summary", config)
        except Exception as error:  # whatever it is, W&B said no before anything expensive started
            remedy = "run `wandb login` first, or type tracking.mode=offline or tracking=none"
            if self.mode == "offline":
                remedy = "type tracking=none to run without it"
            raise UserError(
                f"tracking=wandb tracking.mode={self.mode}: W&B cannot start ({_first_line(error)}), so nothing would "
                f"be mirrored and no engine was started. To go on, {remedy}."
            ) from error

    def log_point(self, record: Mapping[str, Any]) -> None:
        """Mirror one complete record as a W&B run of its own; never raises."""
        if self._summary is None or self._failures_in_a_row >= GIVE_UP_AFTER:
            return
        with self._collecting(f"point {record.get('fingerprint')}"):
            ledger = self._run_dir / "wandb" / "mirrored.txt"
            # With its time: a point that failed, was mirrored as such and then ran again is another record.
            entry = f"{record['fingerprint']}@{record['finished_at']}"
            if ledger.exists() and entry in ledger.read_text().split():
                return
            policy = record["policy"]["name"]
            keys = ["fingerprint", "policy", "model", "engine", "task", "versions", "calibration", "command", "budget"]
            keys += ["seed", "repeat"]
            config = {key: record[key] for key in keys if key in record}
            run = self._open(record["label"], "point", config, tags=[record["status"], policy])
            run.log(point_metrics(record))
            run.summary.update({"status": record["status"], "reason": record["reason"]})
            run.finish(exit_code=0 if record["status"] == "done" else 1)
            with open(ledger, "a") as file:
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
            if self.mode == "online":
                with self._collecting("the W&B report"):
                    from banpick_exp.report.tracking.wandb_report import publish

                    publish(
                        entity=self._summary.entity, project=self.project, group=self._group,
                        headline=str(summary.get("headline", "")),
                    )  # fmt: skip
            with self._collecting("closing the summary"):
                self._summary.finish()
            self._summary = None
        return self.failures

    def _finish_summary(self, summary: Mapping[str, Any], artifacts: dict[str, Path]) -> None:
        import polars as pl
        import wandb

        run, folder = self._summary, self._run_dir
        run.summary.update(dict(summary))
        logged: dict[str, Any] = {}
        if (folder / "points.parquet").exists():
            frame = pl.read_parquet(folder / "points.parquet").drop("mean_kept_by_layer")
            logged["points"] = wandb.Table(columns=frame.columns, data=[list(row) for row in frame.rows()])
            artifacts.setdefault("points", folder / "points.parquet")
        for name in FIGURES:
            if (folder / f"{name}.png").exists():
                logged[name] = wandb.Image(str(folder / f"{name}.png"))
        if (folder / "report.html").exists():
            artifacts.setdefault("report", folder / "report.html")
        for name in ("guards", "repeats"):
            if (folder / f"{name}.parquet").exists():
                table = pl.read_parquet(folder / f"{name}.parquet")
                logged[name] = wandb.Table(columns=table.columns, data=[list(row) for row in table.rows()])
        with _staging_in(folder / "wandb"):
            if "report" in artifacts:
                # As it is: W&B would add a style sheet of its own.
                logged["report"] = wandb.Html(str(artifacts["report"]), inject=False)
            if logged:
                run.log(logged)
            for name, path in artifacts.items():
                artifact, root = wandb.Artifact(name, type=name), Path(path)
                # File by file, also for a folder: `add_dir` writes to the console whatever the settings say.
                for file in [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file()):
                    inside = file.name if file == root else str(file.relative_to(root))
                    artifact.add_file(str(file), name=inside, skip_cache=True)
                run.log_artifact(artifact)

    def _open(self, name: str, job_type: str, config: Mapping[str, Any], tags: list[str] | None = None) -> Any:
        import wandb

        # Made anew for each run: `init` writes the run's own values into the settings it is given. Everything W&B
        # would collect beyond what we hand it is off: source, git state, machine, installed packages, console.
        settings = wandb.Settings(
            mode=self.mode, silent=True, quiet=True, console="off", symlink=False, init_timeout=30,
            disable_git=True, disable_code=True, save_code=False, disable_job_creation=True, x_disable_meta=True,
            x_disable_stats=True, x_disable_machine_info=True, x_save_requirements=False, host="-", username="-",
        )  # fmt: skip
        return wandb.init(
            project=self.project, entity=self.entity, group=self._group, name=name, job_type=job_type,
            config=without_secrets(config), tags=tags, dir=str(self._run_dir), settings=settings,
            reinit="create_new",  # runs beside each other in one process: the summary stays open
        )  # fmt: skip

    @contextmanager
    def _collecting(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # by design any: the mirror must not cost the sweep
            self.failures.append(f"{what}: {_first_line(error)}")
            self._failures_in_a_row += 1
            if self._failures_in_a_row == GIVE_UP_AFTER:
                self.failures.append(f"gave up after {GIVE_UP_AFTER} failures in a row: later points are not mirrored")
        else:
            self._failures_in_a_row = 0


def point_metrics(record: Mapping[str, Any]) -> dict[str, float]:
    """A record's numbers under W&B keys: acc/* (fractions), perf/* (tokens/s, ratios, seconds), route/* (experts), and
    budget/* of a solved knob."""
    metrics = record["metrics"] or {}
    values: dict[str, float | None] = {f"perf/{name}": seconds for name, seconds in (record["timing"] or {}).items()}
    blocks = {OVERALL: metrics["overall"], **metrics["domains"]} if metrics else {}
    for domain, block in blocks.items():
        suffix = "" if domain == OVERALL else f"/{domain}"
        values[f"acc/{domain}"] = block["accuracy"]
        values |= {f"acc/{key}{suffix}": block[key] for key in ("delta", "n_problems", "truncated_fraction")}
        for name, key in (("acc/accuracy", "accuracy_ci95"), ("acc/delta", "delta_ci95")):
            low, high = block[key] or (None, None)
            values |= {f"{name}_lo{suffix}": low, f"{name}_hi{suffix}": high}
        low, high = block["speedup_spread"] or (None, None)
        values |= {f"perf/{key}{suffix}": block[key] for key in ("tokens_per_second", "speedup")}
        values |= {f"perf/speedup_min{suffix}": low, f"perf/speedup_max{suffix}": high}
        values[f"route/mean_kept{suffix}"] = block["mean_kept"]
    if metrics:
        kept = enumerate(metrics["overall"]["mean_kept_by_layer"] or [])
        values |= {f"route/kept_layer_{layer:02d}": mean for layer, mean in kept}
    if budget := record.get("budget"):
        values |= {f"budget/{key}": budget[key] for key in ("target", "measured", "value")}
        values["budget/probes"] = len(budget["probes"])
    return {key: value for key, value in values.items() if value is not None}


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
    return (str(error).strip() or type(error).__name__).splitlines()[0]
