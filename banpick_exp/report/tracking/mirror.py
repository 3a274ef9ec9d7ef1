"""The calls of W&B, in the process that `process.MirrorProcess` starts: nothing else imports W&B.

Each point is one run, opened and closed at once: an offline run cannot be continued. The summary run is open from first
to last, which proves at once that W&B works here.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from banpick_exp.disk import read_table
from banpick_exp.report.figures.names import FIGURES
from banpick_exp.report.tracking.config import TrackingConfig
from banpick_exp.report.tracking.process import children, kill_processes
from banpick_exp.run_folder import RunFolder

TABLES = ("points", "guards", "repeats")
"""Of the run folder, as `RunFolder.table_path` names them."""
VALIDATION = re.compile(r"\d+ validation errors? for ")
ALONE_SECONDS = 10.0
"""How long W&B may take to close its runs once the driver is gone: nobody else would end it."""


class Mirror:
    """One sweep in W&B: `open`, a `point` for each record, `finish`; `abandon` where the driver is gone."""

    def open(self, tracking: Mapping[str, Any], folder: Path, group: str, config: Mapping[str, Any]) -> str:
        """Open the summary run. Returns the name of its folder, as `point` does."""
        self._tracking, self._folder, self._group = TrackingConfig.model_validate(tracking), RunFolder(folder), group
        if self._tracking.mode == "online":
            _require_key()
        self._summary = self._run("summary", "summary", config)
        return _folder_of(self._summary)

    def point(
        self,
        label: str,
        config: Mapping[str, Any],
        tags: Sequence[str],
        metrics: Mapping[str, float],
        status: str,
        reason: str | None,
    ) -> str:
        """Log one record as a run of its own."""
        run = self._run(label, "point", config, tags)
        run.log(dict(metrics))
        run.summary.update({"status": status, "reason": reason})
        run.finish(exit_code=0 if status == "done" else 1)
        return _folder_of(run)

    def finish(self, summary: Mapping[str, Any], artifacts: Mapping[str, Path]) -> tuple[list[str], list[str]]:
        """Close the summary run with its numbers, tables, pictures and artifacts.

        Returns: what failed of the summary, and of the W&B report.
        """
        failed: list[str] = []
        of_report: list[str] = []
        with _collecting("the summary", failed):
            self._finish_summary(summary, dict(artifacts))
        if self._tracking.mode == "online":
            with _collecting("the W&B report", of_report):
                from banpick_exp.report.tracking.wandb_report import publish

                publish(
                    entity=self._summary.entity,
                    project=self._tracking.project,
                    group=self._group,
                    headline=str(summary.get("headline", "")),
                )
        with _collecting("closing the summary", failed):
            self._summary.finish()
        del self._summary
        return failed, of_report

    def abandon(self) -> None:
        """Close the summary of a run that did not come to its end."""
        if hasattr(self, "_summary"):
            self._summary.finish(exit_code=1)

    def _finish_summary(self, summary: Mapping[str, Any], artifacts: dict[str, Path]) -> None:
        run, folder = self._summary, self._folder
        run.summary.update(dict(summary))
        for name, path in (("points", folder.table_path("points")), ("report", folder.report)):
            if path.exists():
                artifacts.setdefault(name, path)
        if logged := _tables(folder) | _pictures(folder, artifacts.get("report")):
            run.log(logged)
        for name, path in artifacts.items():
            run.log_artifact(_artifact(name, Path(path)))

    def _run(self, name: str, job_type: str, config: Mapping[str, Any], tags: Sequence[str] = ()) -> Any:
        import wandb

        # Made anew for each run: `init` writes the run's own values into the settings it is given. Everything W&B
        # would collect beyond what we hand it is off: source, git state, machine, installed packages, console.
        settings = wandb.Settings(
            mode=self._tracking.mode, silent=True, quiet=True, console="off", symlink=False,
            init_timeout=self._tracking.timeout_seconds,
            disable_git=True, disable_code=True, save_code=False, disable_job_creation=True, x_disable_meta=True,
            x_disable_stats=True, x_disable_machine_info=True, x_save_requirements=False, host="-", username="-",
            sagemaker_disable=True,  # it would take the run's id from the training job
        )  # fmt: skip
        run = wandb.init(
            project=self._tracking.project, entity=self._tracking.entity, group=self._group, name=name,
            job_type=job_type, config=dict(config), tags=list(tags), dir=str(self._folder.path),
            settings=settings, reinit="create_new",  # runs beside each other in one process: the summary stays open
        )  # fmt: skip
        if not Path(run.dir).resolve().is_relative_to(self._folder.mirror.resolve()):
            run.finish(exit_code=1)
            raise OSError(f"it cannot write {self._folder.mirror}, and put its files into {Path(run.dir).parent}")
        return run


def _folder_of(run: Any) -> str:
    return Path(run.dir).parent.name


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


def _require_key() -> None:
    """RuntimeError when W&B knows no key: its `init` would ask for one and wait, whenever there is a terminal."""
    import wandb

    wandb.setup(wandb.Settings(silent=True))
    if not wandb.login(prompt=False):
        raise RuntimeError("it has no API key")


@contextlib.contextmanager
def _collecting(what: str, failures: list[str]) -> Any:
    try:
        yield
    except Exception as error:  # by design any: the mirror must not cost the sweep
        failures.append(f"{what}: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    lines = (str(error).strip() or type(error).__name__).splitlines()
    # pydantic's first line is a count; the next two are the setting and what is wrong with it.
    return ": ".join(line.strip() for line in lines[1:3]) if VALIDATION.match(lines[0]) else lines[0]


def main() -> None:
    """Serve the calls that come over the socket whose number is typed, until the driver closes it or is gone."""
    connection = Connection(int(sys.argv[1]))
    calls: SimpleQueue[tuple[str, dict[str, Any]] | None] = SimpleQueue()
    threading.Thread(target=_listen, args=(connection, calls), daemon=True).start()
    mirror = Mirror()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the driver is gone
        while (call := calls.get()) is not None:
            name, arguments = call
            try:
                answer = (True, getattr(mirror, name)(**arguments))
            except Exception as error:  # whatever W&B raises is an answer
                answer = (False, _first_line(error))
            connection.send(answer)
    mirror.abandon()


def _listen(connection: Connection, calls: SimpleQueue[tuple[str, dict[str, Any]] | None]) -> None:
    """A thread of its own: the main one may hang in W&B when the driver goes."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            calls.put(connection.recv())
    calls.put(None)
    time.sleep(ALONE_SECONDS)
    kill_processes(children(os.getpid()))
    os._exit(1)


if __name__ == "__main__":
    main()
