"""Where graders of their own marks look: behind the thought, and at what the task's separator or pattern marks.

A typed mark wins over those that a grader knows itself, so that it means the same whoever grades.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, NamedTuple

from banpick_exp.tasks.config import TaskConfig
from banpick_exp.tasks.graders.bounded import TooSlow
from banpick_exp.tasks.graders.exact_match import extract_answer
from banpick_exp.tasks.graders.grader import Grade, Grader
from banpick_exp.tasks.graders.signs import legible
from banpick_exp.tasks.graders.thought import after_thought
from banpick_exp.tasks.problem import Problem


class Marked(NamedTuple):
    """A part of a completion."""

    text: str
    by_task: bool
    """It is what the task's own mark marks, so all of it is the answer."""


def marked_part(completion: str, task: TaskConfig) -> Marked | None:
    """The part in which the answer is looked for; None where there is none: no end of the thought, no match.

    Raises TooSlow where the search with the task's pattern was ended at its time limit.
    """
    text = after_thought(completion)
    if text is None:
        return None
    if task.answer_pattern is None and task.answer_separator is None:
        return Marked(text, False)
    found = extract_answer(text, task)
    if task.answer_pattern is not None:
        return Marked(found.text, True) if found.found else None
    return Marked(found.text, found.found)


class MarkedGrader(Grader):
    """A grader of its own marks: it looks for the answer in one part of a completion."""

    reads_signs: ClassVar[bool] = False
    """It reads numbers and letters, so signs that mean the same are made the same (`signs`)."""

    def grade(self, completion: str, problem: Problem, task: TaskConfig) -> Grade:
        try:
            part = marked_part(completion, task)
        except TooSlow:
            return Grade(answer="", found=False, correct=False, pattern_timeout=True)
        if part is not None and self.reads_signs:
            part = part._replace(text=legible(part.text))
        grade = None if part is None else self.graded(part, problem)
        return grade or Grade(answer="", found=False, correct=False)

    @abstractmethod
    def graded(self, part: Marked, problem: Problem) -> Grade | None:
        """The grade of the answer in `part`; None where there is none."""
