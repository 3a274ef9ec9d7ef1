r"""One number, as GSM8K is graded: `#### 1,234`, `The answer is $1,234.00`, `\boxed{12}`, or else the last of all.

The last mark counts. Of a box it is the number within; behind another mark the first that follows, or what stands
behind the equals sign where a sum is told: `the answer is 3 + 4 = 7 apples`. What names two numbers is none of them.
Thousands separators, currency, units and percent signs say nothing, a Unicode minus is a minus, and 3/4 and
`\frac{3}{4}` are 0.75. A number without a mark is graded, but not called found.
"""

from __future__ import annotations

import re
from fractions import Fraction

from banpick_exp.tasks.config import TaskConfig
from banpick_exp.tasks.graders.exact_match import normalised
from banpick_exp.tasks.graders.grader import Grade
from banpick_exp.tasks.graders.marked import Marked, MarkedGrader
from banpick_exp.tasks.graders.math_process import last_box, unboxed
from banpick_exp.tasks.graders.signs import legible
from banpick_exp.tasks.problem import Problem

MARK = re.compile(r"####|\b(?:answer|result)(?:\s+is\b|\s*:|\s*=)", re.IGNORECASE)
SENTENCE_END = re.compile(r"\n|(?<!\d)[.!?;](?=\s)|(?<=\d)[.!?;](?=\s|\Z)")
CLAUSE_END = re.compile(r"[,;(](?=\s|[a-zA-Z(\d])|\b(?:because|since|as|for|where|which|when|if)\b")
"""Behind a number: what follows says why, and for whom."""
SEPARATED = r"(?:,|\{,\}|,?\\[,;:! ]|[\u00a0\u2009\u202f])"
THOUSANDS = rf"\d{{1,3}}(?:{SEPARATED}\d{{3}})+(?!\d)"
NUMBER = re.compile(
    rf"(?<![\w.^])(?<!\^\{{)(?:[-\u2013]\s?)?[$\u20ac\u00a3]?-?(?:{THOUSANDS}|\d+)?(?:\.\d+|(?<=\d))"
    r"(?:\s?/\s?\d+(?![\d.]))?"
)
FRACTION = re.compile(r"(?:(\d{1,20})\s*)?\\[dtc]?frac\s*(?:\{\s*(-?\d{1,20})\s*\}\s*\{\s*(\d{1,20})\s*\}|(\d)\s*(\d))")
SQUARED = re.compile(r"\^\s*\{?\s*-?\d")
OPERATOR = re.compile(
    r"[\s$]*(?:[-+*/x\u00d7\u00b7\u00f7^]|\\times\b|\\cdot\b|\\div\b|times\b|plus\b|minus\b)[\s$({]*\d"
)
SECOND = re.compile(r"[\s$})\]]*(?:\\[a-z]+\s*\{\s*)?(?:or|and)\b[\s$({}]*-?[\s$]*\d")
"""Behind a number: it is part of a sum, or one of two."""
IN_BRACES = re.compile(r"(?<![\w^}])\{\s*(-?[\d.,]+)\s*\}")
NO_NUMBER = re.compile(r"\\(?:sqrt|pi|log|ln|exp|sin|cos|tan|infty|pm|binom)\b|[a-zA-Z]\s*=[^=]*[a-zA-Z]\s*=")
"""In a box: more than a number."""
LONGEST = 60
"""Characters of a number: what is longer is a loop, and int() of it takes its time."""


def value_of(number: str) -> Fraction | None:
    """The value of a number as `NUMBER` finds it; None for what is none, or is divided by 0."""
    text = number.replace("\u2212", "-").replace("\u2013", "-")
    text = re.sub(r"[\s,{}\\$\u20ac\u00a3\u00a0\u2009\u202f%;:!]", "", text)
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


def _with_fractions(text: str) -> str:
    r"""`text` with 7/2 for \frac{7}{2} and for 3\frac12."""

    def written(match: re.Match[str]) -> str:
        over, under = match[2] or match[4], match[3] or match[5]
        return f"{int(match[1]) * int(under) + int(over)}/{under}" if match[1] else f"{over}/{under}"

    return FRACTION.sub(written, text)


def _in_box(content: str) -> str | None:
    """The number that a box holds; what it holds where that is more than one; None where there is none in it."""
    content = IN_BRACES.sub(r"\1", unboxed(content))
    text = content.rpartition("=")[2] if last_number(content.rpartition("=")[2]) else content
    numbers = list(NUMBER.finditer(text))
    if not numbers:
        return None
    first = numbers[0]
    alone = len(numbers) == 1 and not NO_NUMBER.search(text) and not SQUARED.match(text, first.end())
    return first[0] if alone else content.strip()


def _behind_mark(text: str) -> str | None:
    """The number that a sentence states behind its mark; all of it where that is two, or a sum that nobody did."""
    first = NUMBER.search(text)
    if first is None:
        return None
    end = CLAUSE_END.search(text, first.end())
    clause = text[: end.start()] if end else text
    _, equals, behind = clause.rpartition("=")
    if equals and (told := NUMBER.search(behind)):
        return told[0]
    if OPERATOR.match(text, first.end()):
        rest = text[end.end() :] if end else ""
        return last_number(rest) or clause.strip()
    return clause.strip() if SECOND.match(text, first.end()) else first[0]


def stated(text: str) -> tuple[str, bool] | None:
    """The number that a text states, and whether behind a mark; None where it has none."""
    text = _with_fractions(text)
    box, limit = last_box(text), len(text)
    for mark in reversed(list(MARK.finditer(text))):
        if box is not None and mark.start() < box[1]:
            break
        rest, limit = text[mark.end() : limit].lstrip(), mark.start()  # behind the next mark is no number
        end = SENTENCE_END.search(rest)
        if (number := _behind_mark(rest[: end.start()] if end else rest)) is not None:
            return number, True
    if box is not None:
        number = _in_box(text[box[0] : box[1]])
        return None if number is None else (number, True)
    number = last_number(text)
    return None if number is None else (number, False)


class Numeric(MarkedGrader):
    """Equality of the number that is stated last."""

    name = "numeric"
    version = 3
    """2: an exponent (`72 cm^2`) is no number of its own. 3: the number in the box, the first behind a mark,
    whatever is said after it; LaTeX's fractions; two numbers are none; full-width digits and every minus."""
    reads_signs = True
    from_gold = True

    def normalised(self, answer: str) -> str:
        """GSM8K's right answers end in `#### 18`: the number, without its separators."""
        text = normalised(answer)
        found = stated(legible(text))
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
