"""What a grader is: it finds the answer in a completion and says whether it is right."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from banpick_exp.tasks.config import TaskConfig
from banpick_exp.tasks.problem import Problem


@dataclass(frozen=True, slots=True)
class Grade:
    """What became of one completion."""

    answer: str
    """What was taken for the answer; empty where there is none."""
    found: bool
    """The mark of an answer (the task's separator or pattern) was there, so nothing else was taken for one."""
    correct: bool
    pattern_timeout: bool = False
    """Nothing was found because the search with task.answer_pattern was ended at its time limit (`pattern`)."""


class Grader(ABC):
    """Grades completions. Changes of what it calls right are a new `version`: old results are graded differently."""

    name: ClassVar[str]
    version: ClassVar[int]

    @abstractmethod
    def normalised(self, answer: str) -> str:
        """An answer as it is compared: the right one and the given one go through the same."""

    @abstractmethod
    def grade(self, completion: str, problem: Problem, task: TaskConfig) -> Grade:
        """The grade of one completion."""

    def grade_all(self, given: Sequence[tuple[str, Problem]], task: TaskConfig) -> list[Grade]:
        """The grades of completions, each with its problem. A grader that needs a process makes one for all."""
        return [self.grade(completion, problem, task) for completion, problem in given]

    def refused(self, task: TaskConfig) -> str | None:
        """Why it cannot grade this task here, with the remedy (a package, a permission); None where it can.

        Asked before anything starts; loads nothing heavy.
        """
        return None

    def never_given(self, answer: str, task: TaskConfig) -> str | None:
        """Why no completion could ever be graded as this normalised right answer, None where one could."""
        return None
