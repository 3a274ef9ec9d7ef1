"""Where in W&B a run is mirrored, and as which W&B runs: kept beside W&B's own files, for who publishes later."""

from __future__ import annotations

import contextlib
import shlex

from pydantic import BaseModel, ConfigDict, ValidationError

from banpick_exp.disk import write_atomically
from banpick_exp.run_folder import RunFolder

SUMMARY = "summary"
"""What the list says of the run that holds the tables and the figures."""


class Place(BaseModel):
    """Project and group, and whose; None is whoever's key uploads it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    entity: str | None
    project: str
    group: str
    timeout_seconds: float = 30


def place_of(folder: RunFolder) -> Place | None:
    """None of a run that was not mirrored, or whose file is damaged."""
    try:
        return Place.model_validate_json(folder.mirror_place.read_bytes())
    except (OSError, ValidationError):
        return None


def write_place(folder: RunFolder, place: Place) -> None:
    """Replace it; where it cannot be written the run is mirrored all the same, and cannot be published later."""
    with contextlib.suppress(OSError):
        write_atomically(folder.mirror_place, (place.model_dump_json(indent=1) + "\n").encode())


def mirrored_runs(folder: RunFolder) -> dict[str, str]:
    """Entry (`<fingerprint>@<finished_at>`, or SUMMARY) -> the name of its W&B run's folder, which ends in `-<id>`; the
    latest of several. Lists of old name no folders: they are empty then."""
    try:
        lines = folder.mirrored.read_text().splitlines()
    except OSError:
        return {}
    return {entry: run.strip() for entry, _, run in (line.partition(" ") for line in lines) if entry}


def id_of(run: str) -> str:
    """Of a W&B run, by the name of its folder: `offline-run-20261128_110513-foz6o7ej`."""
    return run.rpartition("-")[2]


def sync_command(folder: RunFolder) -> str:
    """What uploads an offline run."""
    return f"wandb sync {shlex.quote(str(folder.mirror))}/offline-run-*"


def publish_command(folder: RunFolder) -> str:
    """What makes its W&B report."""
    return f"python -m banpick_exp report {shlex.quote(str(folder.path))} --wandb"
