"""What the problems of a run asked: records hold answers, so the questions are read from the task's own files."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping

from banpick_exp.evaluation.regrading import task_of
from banpick_exp.records import TaskUsed
from banpick_exp.tasks.files import inspect_task

Questions = Mapping[tuple[str, str], str]
"""(domain, problem_id) -> prompt."""


def questions_of(task: TaskUsed) -> Questions:
    """What a point was asked; empty where the files are gone, or are no longer those that were asked."""
    return _questions(json.dumps(task.plain(), sort_keys=True))


@functools.lru_cache(maxsize=8)
def _questions(task: str) -> Questions:
    used = TaskUsed.model_validate_json(task)
    # A report imports nobody's grader: of a run that came from elsewhere it would be anybody's code.
    if ":" in str(used.plain().get("grader", "")):
        return {}
    try:
        settings = task_of(used, {"allow_code": True})  # they are only looked at
        files = inspect_task(settings, settings.split)
    except Exception:  # by design any: a report without questions is a report
        return {}
    if files.identity != used.identity:
        return {}
    return {(p.domain, p.problem_id): p.prompt for problems in files.loaded.values() for p in problems}
