"""One number, as GSM8K is graded: `#### 1,234`, `The answer is $1,234.00`, or else the last number of all.

Behind the last mark it is the last number of its sentence: `the answer is 3 + 4 = 7 apples`. Thousands separators,
currency and percent signs say nothing, a Unicode minus is a minus, and 3/4 is 0.75. A number without a mark is graded,
but not called found.
"""

from __future__ import annotations

import re
from fractions import Fraction

from banpick_exp.tasks.config import TaskConfig
from banpick_exp.tasks.graders.exact_match import normalised
from banpick_exp.tasks.graders.grader import Grade
from banpick_exp.tasks.graders.marked import Marked, MarkedGrader
from banpick_exp.tasks.problem import Problem

MARK = re.compile(r"####|\b(?:answer|result)(?:\s+is\b|\s*:|\s*=)|\\boxed\s*\{", re.IGNORECASE)
SENTENCE_END = re.compile(r"\n|(?<!\d)[.!?;](?=\s)|(?<=\d)[.!?;](?=\s|\Z)")
THOUSANDS = r"\d{1,3}(?:(?:,|\{,\}|\\,|[\u00a0\u2009\u202f])\d{3})+(?!\d)"
NUMBER = re.compile(
    rf"(?<![\w.^])(?<!\^\{{)(?:[-\u2212\u2013]\s?)?[$\u20ac\u00a3]?(?:[-\u2212])?(?:{THOUSANDS}|\d+)?(?:\.\d+|(?<=\d))"
    r"(?:\s?/\s?\d+(?![\d.]))?"
)
LONGEST = 60
"""Characters of a number: what is longer is a loop, and int() of it takes its time."""


def value_of(number: str) -> Fraction | None:
    """The value of a number as `NUMBER` finds it; None for what is none, or is divided by 0."""
    text = number.replace("\u2212", "-").replace("\u2013", "-")
    text = re.sub(r"[\s,{}\\$\u20ac\u00a3\u00a0\u2009\u202f%]", "", text)
    if len(text) > LONGEST:
        return None
    try:
        return Fraction(text) if "." not in text.partition("/")[0] or "/" not in text else None
    except (ValueError, ZeroDivisionError):
        return None


def last_number(text: str) -> str | None:
    """The last number of a text, as it stands there."""
    found = None
    for match in NUMBER.finditer(text):
        found = match[0]
    return found


def stated(text: str) -> tuple[str, bool] | None:
    """The number that a text states, and whether behind a mark; None where it has none."""
    for mark in reversed(list(MARK.finditer(text))):
        rest = text[mark.end() :].lstrip()
        end = SENTENCE_END.search(rest)
        if (number := last_number(rest[: end.start()] if end else rest)) is not None:
            return number, True
    number = last_number(text)
    return None if number is None else (number, False)


class Numeric(MarkedGrader):
    """Equality of the last number."""

    name = "numeric"
    version = 2
    """2: an exponent (`72 cm^2`) is no number of its own."""
    from_gold = True

    def normalised(self, answer: str) -> str:
        """GSM8K's right answers end in `#### 18`: the number, without its separators."""
        text = normalised(answer)
        found = stated(text)
        value = None if found is None else value_of(found[0])
        return text if value is None else str(value)

    def graded(self, part: Marked, problem: Problem) -> Grade | None:
        found = stated(part.text)
        if found is None:
            return None
        number, marked = found
        value = value_of(number)
        return Grade(
            answer=number,
            found=marked or part.by_task,
            correct=value is not None and str(value) in problem.answers,
        )

    def never_given(self, answer: str, task: TaskConfig) -> str | None:
        if value_of(answer) is not None:
            return None
        return "is no number, and task.grader=numeric compares numbers: write one, or type another task.grader"
