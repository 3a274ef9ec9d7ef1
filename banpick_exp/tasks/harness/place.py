"""Where the problems of an lm-eval task lie, once they are made: a file whose name tells what it was made of.

A task of lm-eval's own goes by its name and the package's version; a YAML of the user's by the content of its files, so
that a changed task is another file, and asks to be made again.
"""

from __future__ import annotations

import hashlib
from importlib import metadata
from pathlib import Path
from shlex import quote
from typing import Any

from banpick_exp.errors import UserError
from banpick_exp.tasks.data_folder import data_folder
from banpick_exp.tasks.harness.sources import Sources, is_local, sources_of


def version() -> str:
    """Of lm-eval. Raises UserError where it is not installed."""
    try:
        return metadata.version("lm-eval")
    except metadata.PackageNotFoundError:
        raise UserError(MISSING) from None


MISSING = (
    "task=lm_eval needs the package lm-eval, which is not installed here: nothing could be asked or graded. Type pip"
    " install lm-eval, or another task."
)


PREFIX = "lm_eval:"
"""Before the name of a task of lm-eval's, where benchmarks of ours are named too."""
TEST, CALIBRATION = "test", "calibration"
"""Splits as we call them: the problems that lm-eval asks, and those of another split of the task's own."""


def problems_path(name: str, split: str = TEST) -> Path:
    """The file of a task's problems, there or not. Raises UserError for a YAML that is none, or no lm-eval."""
    ending = ".jsonl" if split == TEST else f".{split}.jsonl"
    if not is_local(name):
        safe = "".join(sign if sign.isalnum() or sign in "_.-" else "-" for sign in name)
        return data_folder() / "lm_eval" / f"{safe}-{version()}{ending}"
    path = Path(name).expanduser()
    if not path.is_file():
        raise UserError(
            f"task.name={name}: there is no such file, so there is nothing to ask. Type the path of a YAML of lm-eval's"
            " form, or the name of a task that lm-eval has."
        )
    sources = sources_of(path.resolve())
    digest = hashlib.sha256(f"{version()}\0{sources.digest}\0".encode())
    for each in local_data(sources):
        digest.update(hashlib.sha256(each.read_bytes()).digest())
    return data_folder() / "lm_eval" / f"{path.stem}-{digest.hexdigest()[:12]}{ending}"


def how_to_make(name: str) -> str:
    """What to type to have a task's problems made."""
    return f"python -m banpick_exp tasks fetch {quote(name if is_local(name) else PREFIX + name)}"


def local_data(sources: Sources) -> list[Path]:
    """The files that a task names as its data and that are there; others are the Hub's, or patterns."""

    def texts(value: Any) -> list[str]:
        if isinstance(value, dict):
            return [text for each in value.values() for text in texts(each)]
        if isinstance(value, list):
            return [text for each in value for text in texts(each)]
        return [value] if isinstance(value, str) else []

    given = texts((sources.config.get("dataset_kwargs") or {}).get("data_files"))
    return [Path(text) for text in given if Path(text).is_file()]
