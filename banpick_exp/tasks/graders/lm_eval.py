"""What lm-eval's own task says: its filters and metrics, asked in a process beside the engine (`lm_eval_process`).

A problem's material holds the document and the requests that were made of it, so nothing of the data set is needed.
Right is where the metric `task.metric` (null: the task's first) is above 0.5: 1 for all that is right or wrong.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

from banpick_exp.config import suggestion
from banpick_exp.errors import UserError
from banpick_exp.tasks.config import TaskConfig
from banpick_exp.tasks.graders.bounded import BoundedProcess, TooSlow
from banpick_exp.tasks.graders.exact_match import normalised
from banpick_exp.tasks.graders.grader import Grade, Grader
from banpick_exp.tasks.graders.serving import ENDS
from banpick_exp.tasks.harness.place import MISSING
from banpick_exp.tasks.harness.sources import package_folder, sources_of
from banpick_exp.tasks.problem import Problem

LIMIT_SECONDS = 30.0
"""Processor time of one answer; nearly all take milliseconds."""
START_SECONDS = 900.0
"""Of waiting for lm-eval to be imported, on a busy machine; some seconds on an idle one."""
RIGHT_ABOVE = 0.5
NOT_FOUND = "[invalid]"
"""What lm-eval's filters put where they find no answer."""

_judge = BoundedProcess(
    "lm_eval_process.py",
    arguments=[json.dumps([path for path in sys.path if path])],
    ends=ENDS,
    start_seconds=START_SECONDS,
)


class LmEval(Grader):
    """Right as lm-eval's task sees it."""

    name = "lm_eval"
    version = 1
    libraries = ("lm-eval",)

    def normalised(self, answer: str) -> str:
        return normalised(answer)

    def refused(self, task: TaskConfig) -> str | None:
        if task.source is None:
            return (
                f"task.grader=lm_eval judges lm-eval's own tasks, and task.name={task.name} is none: no answer could be"
                " judged. Type task=lm_eval task.name=TASK, or another task.grader."
            )
        if task.answer_separator is not None or task.answer_pattern is not None:
            return (
                "task.answer_separator and task.answer_pattern say how an answer is found, and lm-eval's tasks have"
                " filters for that: they would change nothing. Leave them out, or type another task.grader."
            )
        return MISSING if importlib.util.find_spec("lm_eval") is None else None

    def grade(self, completion: str, problem: Problem, task: TaskConfig) -> Grade:
        """Raises UserError where the task's own code fails, or is another than the problems were made with."""
        material = material_of(problem)
        metric = metric_of(material, task)
        responses: list[Any] = json.loads(completion) if problem.choices else [completion]
        path = _checked(material["yaml"], material["digest"])
        question = [path, material["doc"], material["kinds"], material["requests"], responses, metric.partition("/")[2]]
        try:
            found = _judge.ask(question, LIMIT_SECONDS)
        except TooSlow:
            return Grade(answer="", found=False, correct=False, grader_timeout=True)
        value = found.get(metric)
        if value is None:
            raise UserError(
                f"task.name={task.name}: lm-eval's task, asked about problem {problem.problem_id}, gave no {metric}"
                f" ({found.get('error', 'it has ' + ', '.join(found))}). An error in a grader is no wrong answer, so"
                " nothing was graded. Mend the task, or type another task.metric."
            )
        if problem.choices:
            return Grade(answer=_likeliest(problem, responses), found=True, correct=value > RIGHT_ABOVE)
        answer = found[f"answer/{metric.partition('/')[2]}"]
        return Grade(answer=answer, found=answer != NOT_FOUND, correct=value > RIGHT_ABOVE)


def material_of(problem: Problem) -> dict[str, Any]:
    """What `harness.building` keeps beside a problem: a text within JSON, so that the order of a document's keys and
    its numbers come back as they were."""
    found: dict[str, Any] = json.loads(json.loads(problem.material or '"{}"'))
    return found


def metric_of(material: dict[str, Any], task: TaskConfig) -> str:
    """metric/filter: what `task.metric` names, or the task's first. Raises UserError for what it does not have."""
    offered = [str(each) for each in material["metrics"]]
    fitting = [each for each in offered if task.metric in (None, each, each.partition("/")[0])]
    if not fitting:
        raise UserError(
            f"task.metric={task.metric} is no metric of {task.name} that judges one problem: nothing could be graded."
            f" {suggestion(str(task.metric), offered, 'task.metric=')}Choices: {', '.join(offered)}."
        )
    return fitting[0]


def _likeliest(problem: Problem, scores: list[list[Any]]) -> str:
    if len(scores) == 1:
        return "written" if scores[0][1] else "not written"
    best = max(range(len(scores)), key=lambda place: scores[place][0])
    context, continuation = problem.choices[best]
    return (continuation if context == problem.choices[0][0] else context + continuation).strip()


@functools.lru_cache(maxsize=256)
def _checked(place: str, digest: str) -> str:
    """Where the YAML of a task is; UserError where it, or what it uses, has changed since its problems were made."""
    root = package_folder()
    path = Path(place) if root is None or Path(place).is_absolute() else root.parent / place
    if not path.is_file() or sources_of(path).digest != digest:
        raise UserError(
            f"{path} is not there any more, or it or a file that it uses has changed since its problems were made: they"
            " would be graded as another task. Put it back, or have them made again: python -m banpick_exp tasks fetch."
        )
    return str(path)
