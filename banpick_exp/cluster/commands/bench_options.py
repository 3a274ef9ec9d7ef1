"""What the options of several benches have in common: lists of numbers, and files that can be written."""

from __future__ import annotations

import argparse
import shlex
import tempfile
from pathlib import Path


def unwritable_problem(option: str, path: Path, example: str) -> str | None:
    """Why what is measured would be lost, and what to type; `example`: a file's name."""
    if not path.parent.is_dir():
        return (
            f"{option} {path}: there is no folder {path.parent}, so what is measured would be lost. Make it first:"
            f" mkdir -p {shlex.quote(str(path.parent))}"
        )
    if path.is_dir():
        inside = shlex.quote(str(path / example))
        return f"{option} {path} is a folder, and a file is written. Name one in it: {option} {inside}"
    try:
        with open(path, "ab") if path.exists() else tempfile.TemporaryFile(dir=path.parent):
            return None
    except OSError as error:
        why = error.strerror or error
        return f"{option} {path} cannot be written ({why}): what is measured would be lost. Type {option} ~/{example}"


def path_of(text: str) -> Path:
    """A shell leaves the ~ of --output=~/bench.jsonl alone."""
    return Path(text).expanduser()


def numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of whole numbers such as 1,8,32") from None
