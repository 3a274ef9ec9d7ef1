"""What a benchmark is: where its files are, what is asked, and who grades. Its settings are a file of conf/task/."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from banpick_exp.tasks.config import TaskConfig

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
    ask: Callable[[str], str] = str
    """The prompt, made of the question."""
    grader: str = "exact_match"
    """A name of `graders.registry`."""
    version: int = 0
    """0 is a benchmark that only says where files lie: their content is all of its identity. Any that asks or grades
    in its own way begins with 1 and is raised with every change, because answers change with it."""
    missing: str | None = None
    """What to say where its own files are not in this installation; None: such a file is the user's to bring."""
    source: object | None = None
    """A `source.Source` where its problems are fetched first; None: they ship with us, or are the user's."""
