"""Where the problems of a published benchmark come from, and how a row of theirs becomes a row of ours.

They are fetched once (`python -m banpick_exp tasks fetch NAME`) into a folder of the user's and read from there
like any JSON lines: the whole prompt stands in the file, so its content is all of the identity.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from banpick_exp.tasks.data_folder import data_folder

SourceRow = Mapping[str, Any]
"""A row as its source has it."""
OurRow = dict[str, Any]
"""problem_id, task, prompt, answer, response, material, as `reading` takes them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One file of ours, and what it is made of."""

    domain: str
    split: str
    """Ours: test, calibration."""
    of: str
    """The split of the source."""
    rows: int | None
    """As many the source says it has; None: a choice among them."""
    convert: Callable[[SourceRow, int], OurRow | None]
    """A row of the source, with its place from 0; None leaves it out."""
    local: str
    """A pattern (fnmatch) for the names of this part's files, where they were downloaded by other means."""
    config: str | None = None
    file: str | None = None
    """A file of the source's repository, where its splits cannot be named."""
    most: int | None = None
    """Rows that are enough; the others are not read."""

    @property
    def name(self) -> str:
        return f"{self.domain}_{self.split}.jsonl"


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Whose problems they are, which version, and under which licence."""

    place: str
    """An id of the Hugging Face Hub; of a package its name."""
    revision: str
    """A commit of the Hub; of a package its version is noted when it is read."""
    licence: str
    """As its source states it."""
    parts: tuple[Part, ...] = ()
    gated: bool = False
    """The Hub asks for a login and consent."""
    package: Callable[[], Iterator[SourceRow]] | None = None
    """Reads the rows from an installed package instead of the Hub."""
    generated: Callable[[str, str, int, int], Iterator[OurRow]] | None = None
    """Makes the rows of (domain, split, how many, seed): there are as many as one likes."""
    borrowed: tuple[tuple[str, str], ...] = ()
    """Splits that another benchmark's file serves for: (split, path below the data folder)."""


def fetched_path(name: str, domain: str, split: str, source: Source) -> Path:
    """Where the problems lie once they are fetched."""
    borrowed = dict(source.borrowed)
    return data_folder() / borrowed.get(split, f"{name}/{domain}_{split}.jsonl")


def as_line(row: OurRow) -> str:
    """A row as its file has it, keys that hold nothing left out."""
    return json.dumps({key: value for key, value in row.items() if value is not None}, ensure_ascii=False)
