"""`run.json`: which run a folder holds. Written once, sealed, and asked before a run goes on. Imports nothing heavy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from banpick_exp.disk import ASIDE, create_folder, write_atomically
from banpick_exp.errors import CannotWrite, UserError
from banpick_exp.records import digest_of_json

MANIFEST = "run.json"
MANIFEST_VERSION = 1
MANIFEST_SEAL = "manifest_sha256"
"""Key of `run.json` that is no part of the manifest: SHA-256 of the rest, canonically."""


class DamagedManifest(UserError):
    """`run.json` is there and is not what was written."""


class Candidate(BaseModel):
    """Of search=select: one point that dev may choose, and the same on the typed split."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    group: str
    """Dev chooses one of each."""
    label: str
    dev: str
    """Fingerprint."""
    test: str
    """Fingerprint."""


class Manifest(BaseModel):
    """`run.json`: which run this is. A resumed run must agree in sweep, models, tasks, search and set-ups."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    schema_version: int = MANIFEST_VERSION
    sweep: str | None = None
    models: dict[str, str] = {}
    """Identity of each checkpoint -> its name."""
    tasks: dict[str, str] = {}
    """Identity of each task's data -> its name."""
    search: str = "grid"
    """What a manifest that does not name its search means."""
    command: str = ""
    setups: tuple[dict[str, Any], ...] = ()
    """What its points are asked with (`setups.Setup`), each once; empty in manifests of old."""
    candidates: tuple[Candidate, ...] = ()
    """What dev chooses from under search=select, in the order of the space; empty under any other."""


def read_manifest(path: Path) -> Manifest:
    """What a `run.json` says; an empty one where there is none.

    Raises DamagedManifest for one that was cut, edited or is no manifest, UserError where it cannot be read.
    """
    if not path.is_file():
        return Manifest()
    try:
        plain = json.loads(path.read_bytes())
        seal = plain.pop(MANIFEST_SEAL, None)  # those of old have none
        if seal is not None and seal != digest_of_json(plain):
            raise ValueError(f"its content is not that of its {MANIFEST_SEAL}")
        return Manifest.model_validate(plain)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}): nobody can say which sweep it is.") from None
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise DamagedManifest(
            f"{path} is damaged ({reason}): nobody can say which sweep it is. The points are as they were: the"
            " run's own command with resume goes on with them where they are all its own, and writes the file anew."
        ) from None


def check_same_run(folder: Path, expected: Manifest) -> None:
    """UserError unless the run in `folder` was begun with the same sweep, models, tasks and search."""
    stored = read_manifest(folder / MANIFEST)
    pairs = (
        ("of the sweep", stored.sweep, expected.sweep),
        ("of the model(s)", stored.models, expected.models),
        ("on the data of", stored.tasks, expected.tasks),
        ("with search =", stored.search, expected.search),
    )
    for phrase, found, wanted in pairs:
        if _identity(found) != _identity(wanted):
            raise UserError(
                f"resume={folder} holds a run {phrase} {_named(found)}, but this command is {phrase}"
                f" {_named(wanted)}: their points must not be mixed. Leave resume out, or repeat that run's own"
                f" command with resume: {stored.command or 'it is not recorded'}"
            )


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Creates the folder with its `run.json`; a manifest that is there already stays, and a damaged one gives way.

    Raises CannotWrite.
    """
    try:
        create_folder(path.parent)
        if path.exists():
            try:
                read_manifest(path)
                return
            except DamagedManifest:
                path.replace(path.with_name(f"{MANIFEST}{ASIDE}"))
    except OSError as error:
        raise CannotWrite.of(error, path) from None
    plain = manifest.model_dump(mode="json")
    text = json.dumps({**plain, MANIFEST_SEAL: digest_of_json(plain)}, indent=2, sort_keys=True) + "\n"
    write_atomically(path, text.encode())


def _identity(value: object) -> object:
    """What counts of it: a renamed model is the same one."""
    return set(value) if isinstance(value, dict) else value


def _named(value: object) -> str:
    return (
        ", ".join(f"{name} ({identity})" for identity, name in value.items()) if isinstance(value, dict) else str(value)
    )
