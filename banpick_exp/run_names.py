"""Which folder a run has: a new one by its time, or the one that `resume` names. Imports nothing heavy."""

from __future__ import annotations

import errno
import os
from datetime import datetime
from pathlib import Path

from banpick_exp.config import suggestion
from banpick_exp.errors import UserError
from banpick_exp.manifest import MANIFEST


def new_run_dir(output_dir: str, sweep: str, now: datetime) -> Path:
    """`<output_dir>/<sweep>/<timestamp>`, absolute, of a run that does not exist yet."""
    parent = _runs_of(output_dir, sweep)
    name = now.strftime("%Y%m%d-%H%M%S")
    candidate, count = parent / name, 1
    while os.path.lexists(candidate):
        count += 1
        candidate = parent / f"{name}-{count}"
    return candidate


def _runs_of(output_dir: str, sweep: str) -> Path:
    """`<output_dir>/<sweep>`, absolute; UserError for an output_dir that is no name of a folder."""
    if not output_dir.strip():
        raise UserError(
            f"output_dir={output_dir!r} names no folder: every result would land in whatever folder the command is"
            " typed in. Type output_dir=. for that one, or leave output_dir out for outputs/."
        )
    if "\0" in output_dir:
        raise UserError(f"output_dir={output_dir!r} holds a zero byte, which no folder's name can. Type another.")
    parent = Path(output_dir).expanduser().absolute() / sweep
    try:
        os.lstat(parent)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise UserError(
                f"output_dir={_shortened(output_dir)} is longer than this file system allows ({len(output_dir)}"
                " characters): no result could be written there. Type output_dir=FOLDER with a shorter one."
            ) from None
    return parent


def _shortened(text: str, most: int = 60) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


def find_run_dir(resume: str, output_dir: str, sweep: str) -> Path:
    """The folder `resume` names: a path, or the name of a run of this sweep. UserError where there is none."""
    runs = _runs_of(output_dir, sweep)
    for folder in (runs / resume, Path(resume).expanduser().absolute()):
        if os.path.isdir(folder):  # of a name that is too long too: that is no folder
            if (folder / MANIFEST).is_file():
                return folder
            raise UserError(
                f"resume={resume} is the folder {folder}, which has no {MANIFEST}: it is no run, and its files would be"
                " mixed up with ours. Leave resume out to begin a new run."
            )
    known = sorted((path.name for path in _folders(runs) if (path / MANIFEST).is_file()), reverse=True)
    listed = f"Runs of {sweep}: {', '.join(known[:5])}." if known else f"There is no run of {sweep} in {runs} yet."
    raise UserError(
        f"resume={resume} is no folder and no run: there is nothing to continue."
        f" {suggestion(resume, known, 'resume=')}{listed}"
    )


def _folders(parent: Path) -> list[Path]:
    return sorted(path for path in parent.iterdir() if path.is_dir()) if parent.is_dir() else []
