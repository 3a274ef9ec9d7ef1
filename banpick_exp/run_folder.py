"""Where a run writes, which run a `resume=` means, and whether this machine lets us: checked before anything starts."""

from __future__ import annotations

import contextlib
import json
import netrc
import os
import tempfile
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from banpick_exp.config import TrackingConfig
from banpick_exp.errors import UserError
from banpick_exp.validation import suggestion

MANIFEST = "run.json"
MANIFEST_VERSION = 1
BEFORE_SEARCH = {"search": "grid"}
"""What a manifest that does not name its search means."""


def new_run_dir(output_dir: str, sweep: str, now: datetime) -> Path:
    """`<output_dir>/<sweep>/<timestamp>`, absolute, of a run that does not exist yet."""
    parent = Path(output_dir).expanduser().absolute() / sweep
    name = now.strftime("%Y%m%d-%H%M%S")
    candidate, count = parent / name, 1
    while candidate.exists():
        count += 1
        candidate = parent / f"{name}-{count}"
    return candidate


def find_run_dir(resume: str, output_dir: str, sweep: str) -> Path:
    """The folder `resume` names: a path, or the name of a run of this sweep. UserError where there is none."""
    runs = Path(output_dir).expanduser().absolute() / sweep
    for folder in (runs / resume, Path(resume).expanduser().absolute()):
        if folder.is_dir():
            if (folder / MANIFEST).is_file():
                return folder
            raise UserError(
                f"resume={resume} is the folder {folder}, which has no {MANIFEST}: it is no run, and its files would be"
                " mixed up with ours. Leave resume out to begin a new run."
            )
    known = sorted((path.parent.name for path in runs.glob(f"*/{MANIFEST}")), reverse=True)
    listed = f"Runs of {sweep}: {', '.join(known[:5])}." if known else f"There is no run of {sweep} in {runs} yet."
    raise UserError(
        f"resume={resume} is no folder and no run: there is nothing to continue."
        f" {suggestion(resume, known, 'resume=')}{listed}"
    )


def check_manifest(run_dir: Path, expected: Mapping[str, Any]) -> None:
    """UserError unless `run_dir` was begun with the same sweep, models and tasks."""
    path = run_dir / MANIFEST
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(
            f"{path} cannot be read ({error}): nobody can say which sweep it is. Begin a new run."
        ) from None
    stored = stored if isinstance(stored, dict) else {}
    phrases = {"sweep": "of the sweep", "models": "of the model(s)", "tasks": "on the data of"}
    for key, phrase in (phrases | {"search": "with search ="}).items():
        found, wanted = stored.get(key, BEFORE_SEARCH.get(key)), expected.get(key, BEFORE_SEARCH.get(key))
        same = (
            set(found) == set(wanted) if isinstance(found, dict) else found == wanted
        )  # a renamed model is the same one
        if not same:
            raise UserError(
                f"resume={run_dir} holds a run {phrase} {_named(found)}, but this command is {phrase} {_named(wanted)}:"
                " their points must not be mixed. Leave resume out, or repeat that run's own command with resume:"
                f" {stored.get('command', 'it is not recorded')}"
            )


def write_manifest(run_dir: Path, manifest: Mapping[str, Any]) -> None:
    """Creates the run folder with its `run.json`; a manifest that is there already stays."""
    run_dir.mkdir(parents=True, exist_ok=True)
    path = run_dir / MANIFEST
    if path.exists():
        return
    partial = path.with_name(f".{MANIFEST}.{os.getpid()}")
    partial.write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    partial.replace(path)


def check_writable(folder: Path) -> None:
    """UserError unless a file can be written in `folder`; what had to be created for the try is removed again."""
    created = []
    try:
        for path in [*reversed(folder.parents), folder]:
            if not path.is_dir():
                path.mkdir()
                created.append(path)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"banpick")
    except OSError as error:
        raise UserError(
            f"output_dir: {folder} cannot be written ({error.strerror or error}): every result would be lost."
            " Type output_dir=FOLDER with a folder of yours."
        ) from None
    finally:
        for path in reversed(created):
            with contextlib.suppress(OSError):  # another run began to write there meanwhile
                path.rmdir()


def check_tracking(tracking: TrackingConfig, environment: Mapping[str, str]) -> None:
    """UserError when W&B is to be online and neither the environment nor the netrc file has a key. Prints no key."""
    if tracking.name != "wandb" or tracking.mode != "online" or environment.get("WANDB_API_KEY", "").strip():
        return
    host = urlsplit(environment.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or "api.wandb.ai"
    home = Path(environment.get("HOME", "~")).expanduser()
    named = environment.get("NETRC")
    for path in [Path(named).expanduser()] if named else [home / ".netrc", home / "_netrc"]:
        try:
            entry = netrc.netrc(str(path)).authenticators(host)
        except (OSError, netrc.NetrcParseError):
            continue
        if entry is not None and entry[2]:
            return
    raise UserError(
        "tracking.mode=online needs a W&B key, and there is none: the first point could not be logged. Type wandb"
        " login, or set WANDB_API_KEY, or type tracking.mode=offline (upload later with wandb sync) or tracking=none."
    )


def _named(value: object) -> str:
    return (
        ", ".join(f"{name} ({identity})" for identity, name in value.items()) if isinstance(value, dict) else str(value)
    )
