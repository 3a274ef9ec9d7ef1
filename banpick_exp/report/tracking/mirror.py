"""The calls of W&B, in the process that `process.MirrorProcess` starts: nothing else imports W&B.

Each point is one run, opened and closed at once: an offline run cannot be continued. The summary run is open from first
to last, which proves at once that W&B works here. What is one number a run is a summary metric and no history: W&B
draws a panel of every history, and one with a single dot says nothing.
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
from banpick_exp.report.tracking import online
from banpick_exp.report.tracking.config import TrackingConfig
from banpick_exp.report.tracking.logged import BY_LAYER, LAYER, direction
from banpick_exp.report.tracking.names import artifact_name, metric_key, run_name, tag
from banpick_exp.report.tracking.process import children, kill_processes
from banpick_exp.run_folder import RunFolder

FRAMES = {"points": "points_by_domain", "guards": "guards", "repeats": "repeats"}
"""Tables of the run folder, as `RunFolder.table_path` names them -> as W&B does."""
VALIDATION = re.compile(r"\d+ validation errors? for ")
ALONE_SECONDS = 10.0
"""How long W&B may take to close its runs once the driver is gone: nobody else would end it."""


class Mirror:
    """One sweep in W&B: `open`, a `point` for each record, `finish`; `abandon` where the driver is gone.

    `look`, `complete` and `publish` ask the server about runs that are there already, whoever put them there.
    """

    look, complete, publish = (staticmethod(each) for each in (online.look, online.complete, online.publish))

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
        metrics: Mapping[str, Any],
        kept_by_layer: Sequence[float],
        status: str,
    ) -> str:
        """Log one record as a run of its own."""
        run = self._run(label, "point", config, tags)
        if len(kept_by_layer) > 1:
            run.define_metric(LAYER, hidden=True, summary="none")
            run.define_metric(BY_LAYER, step_metric=LAYER, summary="none")
            for layer, kept in enumerate(kept_by_layer):
                run.log({LAYER: layer, BY_LAYER: kept})
        _summarise(run, metrics)
        run.finish(exit_code=0 if status == "done" else 1)
        return _folder_of(run)

    def finish(
        self,
        summary: Mapping[str, Any],
        tables: Mapping[str, tuple[Sequence[str], Sequence[Sequence[Any]]]],
        artifacts: Sequence[tuple[str, str, Path]],
    ) -> tuple[str, list[str]]:
        """Close the summary run with its numbers, tables, pictures and artifacts.

        Args:
            tables: name -> columns and rows, beside those of the run's folder.
            artifacts: type, name below the sweep's, and the file or folder.

        Returns: the name of its folder, and what failed.
        """
        failed: list[str] = []
        where = _folder_of(self._summary)
        with _collecting("the summary", failed):
            self._finish_summary(summary, tables, artifacts)
        with _collecting("closing the summary", failed):
            self._summary.finish()
        del self._summary
        return where, failed

    def abandon(self) -> None:
        """Close the summary of a run that did not come to its end."""
        if hasattr(self, "_summary"):
            self._summary.finish(exit_code=1)

    def _finish_summary(
        self,
        summary: Mapping[str, Any],
        tables: Mapping[str, tuple[Sequence[str], Sequence[Sequence[Any]]]],
        artifacts: Sequence[tuple[str, str, Path]],
    ) -> None:
        run, folder, sweep = self._summary, self._folder, self._group.split("/")
        _summarise(run, summary)
        own = [("points", "points", folder.table_path("points")), ("report", "report", folder.report)]
        if logged := _tables(folder, tables) | _pictures(folder):
            for key in logged:
                run.define_metric(key, summary="last")
            run.log(logged)
        for kind, name, path in own:
            if path.exists():
                run.log_artifact(_artifact(kind, artifact_name(*sweep, name), path))
        for kind, name, path in artifacts:  # of the sweep, not of its run: the next run of it has the same
            run.log_artifact(_artifact(kind, artifact_name(sweep[0], name), Path(path)))

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
            project=self._tracking.project, entity=self._tracking.entity, group=run_name(self._group),
            name=run_name(name), job_type=job_type, config=dict(config), tags=list(dict.fromkeys(map(tag, tags))),
            dir=str(self._folder.path),
            settings=settings, reinit="create_new",  # runs beside each other in one process: the summary stays open
        )  # fmt: skip
        if not Path(run.dir).resolve().is_relative_to(self._folder.mirror.resolve()):
            run.finish(exit_code=1)
            raise OSError(f"it cannot write {self._folder.mirror}, and put its files into {Path(run.dir).parent}")
        return run


def _folder_of(run: Any) -> str:
    return Path(run.dir).parent.name


def _summarise(run: Any, values: Mapping[str, Any]) -> None:
    """Numbers and words of the run, one each; which end of a number is the better one, W&B is told."""
    found = {metric_key(key): value for key, value in values.items()}
    for key, value in found.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            run.define_metric(key, summary=direction(key))
    run.summary.update(found)


def _tables(folder: RunFolder, more: Mapping[str, tuple[Sequence[str], Sequence[Sequence[Any]]]]) -> dict[str, Any]:
    """The tables that were made for W&B, and those that the run's folder has."""
    import wandb

    wandb.Table.MAX_ROWS = wandb.Table.MAX_ARTIFACT_ROWS  # it would cut a table of 10,000 points without a word
    found = {
        name: wandb.Table(columns=list(names), data=[list(row) for row in rows]) for name, (names, rows) in more.items()
    }
    for name, shown in FRAMES.items():
        if (path := folder.table_path(name)).exists():
            frame = read_table(path).drop("mean_kept_by_layer", strict=False)  # every point logs its layers
            found[shown] = wandb.Table(columns=frame.columns, data=[list(row) for row in frame.rows()])
    return found


def _pictures(folder: RunFolder) -> dict[str, Any]:
    """The figures that the run's folder has, and the page."""
    import wandb

    paths = {name: folder.figure_path(name) for name in FIGURES}
    found: dict[str, Any] = {name: wandb.Image(str(path)) for name, path in paths.items() if path.exists()}
    if folder.report.exists():
        found["report"] = wandb.Html(str(folder.report), inject=False)  # W&B would add a style sheet of its own
    return found


def _artifact(kind: str, name: str, root: Path) -> Any:
    """A file, or a folder file by file: `add_dir` writes to the console whatever the settings say."""
    import wandb

    artifact = wandb.Artifact(name, type=kind)
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
