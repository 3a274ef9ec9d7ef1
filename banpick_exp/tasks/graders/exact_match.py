"""Finds the answer in a completion; right is what equals a right answer to the letter."""

from __future__ import annotations

import unicodedata
from typing import NamedTuple

from banpick_exp.tasks.config import TaskConfig
from banpick_exp.tasks.graders.bounded import TooSlow
from banpick_exp.tasks.graders.grader import Grade, Grader
from banpick_exp.tasks.graders.pattern import last_match
from banpick_exp.tasks.problem import Problem


class Extracted(NamedTuple):
    """The answer in a completion, and whether what marks one was there."""

    text: str
    found: bool


def normalised(answer: str) -> str:
    """White space around an answer says nothing, nor does how an accent is encoded (`composed`)."""
    return composed(answer).strip()


def composed(text: str) -> str:
    """`text` in Unicode's NFC: é is the same as e with an accent put on it.

    Never into ASCII (the sign for kelvin into K): what is judged there has not changed since the first version.
    """
    whole = unicodedata.normalize("NFC", text)
    return text if whole.isascii() else whole


def extract_answer(text: str, task: TaskConfig) -> Extracted:
    """The last match of `answer_pattern`, else what follows the last separator, else all.

    Without a match nothing is found. A text without its separator is an answer that needed no steps before it: it is
    graded as it is, but not called found, since a wrong separator looks the same.

    Raises TooSlow where the search with the pattern was ended at its time limit.
    """
    if not ((task.answer_pattern or "") + (task.answer_separator or "")).isascii():
        text = composed(text)
    if task.answer_pattern is not None:
        match = last_match(task.answer_pattern, text)
        return Extracted(normalised(match), True) if match is not None else Extracted("", False)
    if task.answer_separator is not None:
        _, separator, last = text.rpartition(task.answer_separator)
        return Extracted(normalised(last), bool(separator))
    return Extracted(normalised(text), True)


class ExactMatch(Grader):
    """Equality of texts, but for white space around them."""

    name = "exact_match"
    version = 1
    from_gold = True

    def normalised(self, answer: str) -> str:
        return normalised(answer)

    def grade(self, completion: str, problem: Problem, task: TaskConfig) -> Grade:
        try:
            given = extract_answer(completion, task)
        except TooSlow:
            return Grade(answer="", found=False, correct=False, pattern_timeout=True)
        # A right answer is never empty (tasks/reading.py), so nothing found is never right.
        return Grade(answer=given.text, found=given.found, correct=given.text in problem.answers)

    def never_given(self, answer: str, task: TaskConfig) -> str | None:
        separator = task.answer_separator
        if task.answer_pattern is None and separator is not None and separator in answer:
            return (
                f"holds task.answer_separator={separator!r}, and a given answer is what follows the last one, so no"
                " answer could be right: type another task.answer_separator, or null"
            )
        return None
