"""The problems of a task, where they are asked: they must be those that were planned."""

from __future__ import annotations

from banpick_exp.errors import UserError
from banpick_exp.tasks.config import TaskConfig
from banpick_exp.tasks.files import inspect_task
from banpick_exp.tasks.problem import Problem
from banpick_exp.tasks.registry import check_grades_here


def load_problems(
    task: TaskConfig, split: str, limit: int | None = None, *, identity: str | None = None
) -> dict[str, list[Problem]]:
    """The first `limit` problems (all if None) of each domain, in file order.

    `identity` is that of the files when they were planned (`TaskFiles.identity`): a file that was changed or replaced
    since is a UserError, because its answers would be kept under the name of others. So is all that planning refuses.
    """
    check_grades_here(task)
    files = inspect_task(task, split)
    if files.missing is not None:
        raise UserError(f"Nothing can be asked: {files.missing}.")
    if identity is not None and files.identity != identity:
        raise UserError(
            f"{', '.join(files.paths.values())}: the content has changed since the sweep was planned ({identity}, now"
            f" {files.identity}), so its answers would be kept under the identity of others. Start the sweep"
            " again, and leave its files alone while it runs."
        )
    return {domain: list(problems[:limit]) for domain, problems in files.loaded.items()}
