"""What a benchmark is: where its files are, what is asked, and who grades. Its settings are a file of conf/task/."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from banpick_exp.tasks.benchmarks.source import Source
from banpick_exp.tasks.config import TaskConfig
from banpick_exp.tasks.problem import Problem

FilesOf = Callable[[TaskConfig, str], Mapping[str, Path]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Benchmark:
    """A benchmark, chosen by `task.name`."""

    name: str
    files: FilesOf
    """The files of a split, one a domain of the task. Raises UserError for a domain or split that it does not have.
    Not asked where `task.data_files` is typed: that names the files of any benchmark."""
    prompt_key: str = "prompt"
    """The field of a row that holds the question."""
    answer_key: str = "answer"
    """The field of a row that holds the right answer, or a list of them."""
    response_key: str = "response"
    """The field of a row that holds a whole right completion, steps and all; a file may lack it."""
    material_key: str = "material"
    """The field of a row that holds what the grader needs beside the answer; a file may lack it."""
    stop_key: str | None = None
    """The field of a row that lists the texts at which an answer ends; None: such a field is not read."""
    choices_key: str | None = None
    """The field of a row that lists [context, continuation], whose likelihood is asked; None: such a field is not
    read."""
    ask: Callable[[str], str] = str
    """The prompt, made of the question."""
    grader: str = "exact_match"
    """A name of `graders.registry`."""
    version: int = 0
    """0 is a benchmark that only says where files lie: their content is all of its identity. Any that asks or grades
    in its own way begins with 1 and is raised with every change, because answers change with it."""
    missing: str | Callable[[TaskConfig], str] | None = None
    """What to say where its own files are not in this installation; None: such a file is the user's to bring."""
    source: Source | None = None
    """Where its problems are fetched from first; None: they ship with us, or are the user's."""
    published: bool = False
    """Its rows are as somebody published them: those that repeat another are told of, and not refused."""
    check: Callable[[TaskConfig, Sequence[Problem]], Sequence[str]] | None = None
    """Looks at the problems of a domain beside the task's settings: what to tell the user. Raises UserError."""
