"""Problems in, graded answers out: JSON lines through `datasets`, and the exact-match grader."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from banpick_exp.errors import UserError
from banpick_exp.models.tiny import ASSETS
from banpick_exp.tasks.config import TaskConfig
from banpick_exp.tasks.problem import Problem

if TYPE_CHECKING:
    from datasets import Dataset

SHIPPED_DATA = ASSETS / "data"


def data_file(task: TaskConfig, domain: str, split: str) -> Path:
    """Where the problems of one domain and split lie: the file that the plan has hashed."""
    template = task.data_files or str(SHIPPED_DATA / "{domain}_{split}.jsonl")
    return Path(template.format(domain=domain, split=split)).expanduser()


def load_problems(task: TaskConfig, split: str, limit: int | None = None) -> dict[str, list[Problem]]:
    """The first `limit` problems (all if None) of each domain, in file order.

    Raises UserError for a missing file, or a line without `prompt` and `answer`.
    """
    return {domain: _load_domain(task, domain, split, limit) for domain in task.domains}


def _load_domain(task: TaskConfig, domain: str, split: str, limit: int | None) -> list[Problem]:
    from datasets import disable_progress_bars, load_dataset

    path = data_file(task, domain, split)
    if not path.is_file():
        raise UserError(
            f"task.data_files: {path} does not exist, so domain {domain} has no {split} problems. "
            f"Name existing files, for example task.data_files='\"data/{{domain}}_{{split}}.jsonl\"'."
        )
    disable_progress_bars()
    rows: Dataset = load_dataset("json", data_files=str(path), split="train")
    missing = {"prompt", "answer"} - set(rows.column_names)
    if missing or not len(rows):
        raise UserError(
            f"{path}: {'no lines' if not len(rows) else 'no column ' + ', '.join(sorted(missing))}: nothing could be "
            f'graded. Each line needs {{"prompt": "...", "answer": "..."}}.'
        )
    problems = [
        Problem(
            problem_id=str(row.get("problem_id") or row.get("id") or f"{domain}-{split}-{index:06d}"),
            domain=domain,
            task=str(row.get("task") or domain),
            prompt=row["prompt"],
            answer=str(row["answer"]),
        )
        for index, row in enumerate(rows.select(range(min(limit or len(rows), len(rows)))))
    ]
    if len({p.problem_id for p in problems}) < len(problems):
        raise UserError(f"{path}: problem ids repeat, so answers could not be paired. Make every id unique.")
    return problems
