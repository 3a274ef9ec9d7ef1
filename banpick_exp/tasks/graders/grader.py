"""What a grader is: it finds the answer in a completion and says whether it is right."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any, ClassVar

from banpick_exp.tasks.config import TaskConfig
from banpick_exp.tasks.problem import Problem

FIRST_GRADER = ["exact_match", 1]
"""Identity of the only grader there was when fingerprints began: it is left out of them."""


@dataclass(frozen=True, slots=True)
class Grade:
    """What became of one completion."""

    answer: str
    """What was taken for the answer; empty where there is none."""
    found: bool
    """The mark of an answer (the task's separator or pattern, or one that the grader knows) was there, so nothing else
    was taken for one."""
    correct: bool
    pattern_timeout: bool = False
    """Nothing was found because the search with task.answer_pattern was ended at its time limit (`pattern`)."""
    grader_timeout: bool = False
    """It counts as wrong because the grader failed: a limit of time or memory of its own, or a sandbox that did not
    come up. A program that runs into its limits is just wrong (`code`)."""


class Grader(ABC):
    """Grades completions. Changes of what it calls right are a new `version`: old results are graded differently."""

    name: str
    version: int
    libraries: ClassVar[tuple[str, ...]] = ()
    """Distributions that decide what is right: their versions are part of the grader's."""
    from_gold: ClassVar[bool] = False
    """It needs nothing of a problem but its right answers, so an outcome alone can be graded again."""

    answers_repeat: ClassVar[bool] = True
    """Equal answers are often the same text, so that a majority of them means something."""

    @abstractmethod
    def normalised(self, answer: str) -> str:
        """An answer as it is compared: the right one and the given one go through the same."""

    @abstractmethod
    def grade(self, completion: str, problem: Problem, task: TaskConfig) -> Grade:
        """The grade of one completion."""

    def grade_all(self, given: Sequence[tuple[str, Problem]], task: TaskConfig) -> list[Grade]:
        """The grades of completions, each with its problem. A grader that needs a process makes one for all."""
        return [self.grade(completion, problem, task) for completion, problem in given]

    def built_from(self) -> dict[str, str]:
        """What decides beside its own version: libraries and theirs; empty where nothing. Loads none of them."""
        found = {}
        for library in self.libraries:
            try:
                found[library] = metadata.version(library)
            except metadata.PackageNotFoundError:
                continue
        return found

    def identity(self) -> list[Any]:
        """What of it decides a result: part of the fingerprint of points, and of the problems."""
        made_of = self.built_from()
        return [self.name, self.version, *([made_of] if made_of else [])]

    def refused(self, task: TaskConfig) -> str | None:
        """Why it cannot grade this task, with the remedy (a package, a permission); None where it can.

        Asked of who plans, and again where it grades; loads nothing heavy.
        """
        return None

    def lacking(self, task: TaskConfig) -> str | None:
        """What this very machine lacks to grade with it, with the remedy; None where nothing.

        Asked where it grades, before an engine loads: who plans may be a login node, which needs none of it.
        """
        return None

    def notes(self, task: TaskConfig) -> Sequence[str]:
        """What to tell who plans a sweep with it."""
        return ()

    def wrong_material(self, material: str | None) -> str | None:
        """Why a problem with this material (JSON text) could not be graded, with the remedy; None where it could."""
        return None

    def never_given(self, answer: str, task: TaskConfig) -> str | None:
        """Why no completion could ever be graded as this normalised right answer, with the remedy; None where one
        could."""
        return None
