"""Which files a task reads, what they are, and their problems: all of the same bytes, read once.

The content of the files is part of every result's identity, so the problems must be those that were hashed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from banpick_exp.config import suggestion
from banpick_exp.errors import UserError
from banpick_exp.tasks.benchmarks.benchmark import Benchmark
from banpick_exp.tasks.config import TaskConfig
from banpick_exp.tasks.graders.grader import FIRST_GRADER
from banpick_exp.tasks.graders.pattern import PROBE_SECONDS, REMEDY, never_ends
from banpick_exp.tasks.invisible import invisible
from banpick_exp.tasks.problem import Problem
from banpick_exp.tasks.reading import lists_note, read_problems, repeats_note
from banpick_exp.tasks.registry import benchmark_of, grader_of
from banpick_exp.tasks.templates import domains_there, files_of_template

CALIBRATION_SPLIT = "calibration"
COMPOSED = b"answers compared in NFC"
"""Part of the identity of files with answers or marks of answers beyond ASCII, which were once compared as they were
written; all others are judged as ever, and keep theirs."""

Loaded = tuple[Problem, ...]

MOST_NAMED = 8
"""Domains that are named one by one."""
MOST_KEPT = 32
_kept: dict[tuple[object, ...], Loaded] = {}
"""Problems by the content they were read from: settings that vary do not parse the same bytes again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskFiles:
    """One split of a task. `problems` per domain, None where unknown; `missing`: what a real run still needs."""

    paths: dict[str, str]
    identity: str
    problems: dict[str, int | None]
    missing: str | None = None
    loaded: Mapping[str, Loaded] = field(default_factory=dict, repr=False, compare=False)
    """The problems themselves, per domain; empty where something is missing."""
    notes: tuple[str, ...] = ()
    """What to tell the user: problems that are no problems of their own."""


def inspect_task(task: TaskConfig, split: str | None = None) -> TaskFiles:
    """The files of `split` (the task's own when None), one a domain, hashed, and their problems.

    Raises UserError for a template without its placeholders, a file that is not there or holds no problems, any row
    that could not be asked or graded as it is meant, and a pattern that takes too long on short texts already.
    """
    if task.answer_pattern is not None and (text := never_ends(task.answer_pattern)):
        raise UserError(
            f"task.answer_pattern={task.answer_pattern!r} takes more than {PROBE_SECONDS:g} s on a text of {text}, and"
            f" as good as for ever on a completion. {REMEDY}"
        )
    split = task.split if split is None else split
    benchmark = benchmark_of(task)
    grader = grader_of(task)
    if (refusal := grader.refused(task)) is not None:
        raise UserError(refusal)
    if task.data_files is not None:
        paths: Mapping[str, Path] = files_of_template(task.data_files, task, split)
    else:
        paths = benchmark.files(task, split)
        if benchmark.missing is not None and not all(path.is_file() for path in paths.values()):
            return TaskFiles(
                paths={domain: str(path) for domain, path in paths.items()},
                identity="unbuilt",
                problems=dict.fromkeys(paths),
                missing=benchmark.missing if isinstance(benchmark.missing, str) else benchmark.missing(task),
            )
    digest = hashlib.sha256()
    if benchmark.version:
        digest.update(f"{benchmark.name}\0{benchmark.version}\0{grader.name}\0{grader.version}\0".encode())
    if (graded_by := grader.identity()) != FIRST_GRADER:  # a calibration asks who is right, too
        digest.update(f"{json.dumps(graded_by)}\0".encode())
    loaded: dict[str, Loaded] = {}
    checked: list[str] = []
    for domain, path in paths.items():
        data = _content(task, path, domain, split)
        digest.update(f"{domain}\0{len(data)}\0".encode())
        digest.update(data)
        loaded[domain] = _problems(data, path, benchmark, task, domain, split)
        checked += benchmark.check(task, loaded[domain]) if benchmark.check is not None else ()
    compared = [task.answer_separator or "", task.answer_pattern or ""]
    compared += [answer for problems in loaded.values() for problem in problems for answer in problem.answers]
    if not all(text.isascii() for text in compared):
        digest.update(COMPOSED)
    return TaskFiles(
        paths={domain: str(path.resolve()) for domain, path in paths.items()},
        identity=digest.hexdigest()[:16],
        problems={domain: len(problems) for domain, problems in loaded.items()},
        loaded=loaded,
        notes=(*grader.notes(task), *checked, *_notes(paths, loaded)),
    )


def _notes(paths: Mapping[str, Path], loaded: Mapping[str, Loaded]) -> Iterator[str]:
    domain_of: dict[str, str] = {}
    for domain, problems in loaded.items():
        if note := repeats_note(paths[domain], problems):
            yield note
        if note := lists_note(paths[domain], problems):
            yield note
        shared = [other for problem in problems if (other := domain_of.setdefault(problem.question, domain)) != domain]
        for other in dict.fromkeys(shared):
            yield (
                f"{shared.count(other)} of {len(problems)} problems of {paths[domain]} are asked in domain {other} too:"
                " over all domains they count twice, so intervals are too narrow. Leave them out of one file."
            )


def _what_there_is(task: TaskConfig, domain: str, split: str) -> str:
    """Domains that have a file of this split, the likeliest first: a name may be misspelt."""
    found = domains_there(task.data_files, split) if task.data_files is not None else []
    if not found:
        return ""
    more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
    there = f"Of split {split} there are files for {', '.join(found[:MOST_NAMED])}{more}. "
    return suggestion(domain, found, "task.domains=[").replace("? ", "]? ") + there


def _content(task: TaskConfig, path: Path, domain: str, split: str) -> bytes:
    place = f"task.data_files={task.data_files}" if task.data_files is not None else f"task={task.name}"
    remedy = "Put it there, or type another task.data_files, task.domains or task.split."
    if hidden := invisible(str(path)):
        remedy = f"Its name holds {hidden}, which nobody sees: type {str(path)!a} without it. {remedy}"
    try:
        if not path.is_file():
            what = "is no plain file" if path.exists() else "there is no file"
            remedy = _what_there_is(task, domain, split) + remedy
            raise UserError(
                f"{place}: {what} {path} (domain {domain}, split {split}), so there is nothing to ask. {remedy}"
                if what.startswith("there")
                else f"{place}: {path} {what} (domain {domain}, split {split}), so there is nothing to ask. {remedy}"
            )
        return path.read_bytes()
    except OSError as error:
        remedy = "Make it readable, or type another task.data_files." if isinstance(error, PermissionError) else remedy
        raise UserError(
            f"{place}: {path} cannot be read ({error.strerror}; domain {domain}, split {split}), so there is nothing"
            f" to ask. {remedy}"
        ) from None


def _problems(data: bytes, path: Path, benchmark: Benchmark, task: TaskConfig, domain: str, split: str) -> Loaded:
    content = hashlib.sha256(data).digest()
    rules = (grader_of(task).name, task.answer_separator, task.answer_pattern, task.chat_template)
    key = (content, str(path), benchmark, domain, split, rules)
    if key not in _kept:
        problems = read_problems(data, path, benchmark, task, domain=domain, split=split)
        while len(_kept) >= MOST_KEPT:
            del _kept[next(iter(_kept))]
        _kept[key] = problems
    return _kept[key]
