"""Rows of a benchmark's source: from the Hugging Face Hub, or from files of it that were downloaded by other means."""

from __future__ import annotations

import csv
import gzip
import json
import logging
import os
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from banpick_exp.errors import UserError
from banpick_exp.tasks.benchmarks.source import Part, Source, SourceRow

KINDS = (".parquet", ".jsonl", ".json", ".jsonl.gz", ".json.gz", ".csv")
"""Endings of files that are read."""


def rows_of_hub(name: str, source: Source, part: Part) -> Iterator[SourceRow]:
    """Through `datasets`, of the pinned commit. Raises UserError (one line) where the Hub cannot be reached."""
    import datasets

    datasets.disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # each of its retries would be two lines
    try:
        if part.file is not None:
            kind = "parquet" if part.file.endswith(".parquet") else "json"
            file = f"hf://datasets/{source.place}@{source.revision}/{part.file}"
            yield from datasets.load_dataset(kind, data_files=file, split="train", streaming=True)
        else:
            yield from datasets.load_dataset(source.place, part.config, split=part.of, revision=source.revision)
    except Exception as error:  # each layer below has errors of its own: connections, consent, files that are not there
        why = " ".join(str(error).split())[:160]
        consent = " It asks for consent: accept its terms on the Hub, then type hf auth login." if source.gated else ""
        raise UserError(
            f"tasks fetch {name}: {source.place}@{source.revision[:12]} cannot be read ({type(error).__name__}: {why}),"
            f" so nothing was fetched.{consent} Without network, copy its files ({part.file or part.local}) here from a"
            f" machine that has them: type python -m banpick_exp tasks fetch {name} --from FILE_OR_FOLDER."
        ) from None


def rows_of_files(name: str, part: Part, given: Path, *, only: bool) -> Iterator[SourceRow]:
    """Rows of the files below `given` (or of it alone) that are this part's by their name, in the order of names.

    `only`: the benchmark has this part alone, so a single file is its, whatever its name. Raises UserError for what
    cannot be read; yields nothing where no file is this part's.
    """
    for path in local_files(part, given, only=only):
        try:
            yield from _rows(path)
        except (OSError, ValueError, csv.Error, EOFError) as error:
            raise UserError(
                f"tasks fetch {name} --from {given}: {path}: {error}, so nothing was fetched. Copy it again."
            ) from None


def local_files(part: Part, given: Path, *, only: bool) -> list[Path]:
    """The files that are this part's."""
    if given.is_file():
        return [given] if only or fnmatch(given.name, part.local) else []
    if not os.access(given, os.R_OK | os.X_OK):  # `rglob` finds nothing there, and says nothing
        raise UserError(f"--from {given} cannot be looked into, so nothing was fetched. Make it readable.")
    found = sorted(path for path in given.rglob("*") if path.name.lower().endswith(KINDS) and path.is_file())
    below = [path for path in found if part.config is None or part.config in path.relative_to(given).parts]
    return [path for path in below or found if fnmatch(path.name, part.local)]


def _rows(path: Path) -> Iterator[SourceRow]:
    if path.suffix.lower() == ".parquet":
        from banpick_exp.disk import read_table

        yield from read_table(path).iter_rows(named=True)
    elif path.suffix.lower() == ".csv":
        csv.field_size_limit(2**31 - 1)
        with open(path, encoding="utf-8-sig", newline="") as file:
            yield from csv.DictReader(file, strict=True)
    else:
        with gzip.open(path, "rt") if path.suffix.lower() == ".gz" else open(path, encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _object(line, number)


def _object(line: str, number: int) -> SourceRow:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {number} is no JSON ({error.msg})") from None
    if not isinstance(row, dict):
        raise ValueError(f"line {number} is no JSON object")
    return row
