r"""One letter of several choices, A to J, as GPQA and MMLU-Pro are answered.

Statements, the last of which wins: `The answer is (B)`, `Answer: B`, `\boxed{B}`, `the correct option is B`; without
any, a letter that stands out: `**B**`, `(B)`, `[B]`, `"B"`, or a line that is the letter alone. In mid-sentence it is
none: A is an article, and I a pronoun. A statement that names two choices is no choice.
"""

from __future__ import annotations

import re

from banpick_exp.tasks.config import TaskConfig
from banpick_exp.tasks.graders.exact_match import normalised
from banpick_exp.tasks.graders.grader import Grade
from banpick_exp.tasks.graders.marked import Marked, MarkedGrader
from banpick_exp.tasks.problem import Problem

LETTERS = "ABCDEFGHIJ"
OPENERS = (
    r"""(?:[\s*_$(\[{"'`<\u201c\u2018]|\\\(|\\\[|\\(?:boxed|fbox|text|textbf|mathbf|mathrm)\{|"""
    r"(?i:options?|choices?)\s)*"
)
"""What may stand between a mark and its letter."""
BARE = r"(?![\w\u2019'+=^-])"
"""Behind a letter: it is no word, and no formula."""
PRONOUN = r"(?!I[ \t]+(?:am|believe|can|cannot|do|don|guess|have|need|suppose|think|will|would)\b)"
SECOND = r"(?:[\s*_)\]}\"'$.,]*(?:\bor\b|\band\b|[/&])[\s*_(\[{\"'$]*([A-J])(?![\w'\u2019]))?"
"""A second choice of the same statement."""
LETTER = rf"{PRONOUN}([A-J]){BARE}{SECOND}"
IN_BRACKETS = r"[(\[]\s*([A-Ja-j])\s*[)\]]"

STATEMENT = re.compile(
    r"(?i:answers?|options?|choices?)[*_\s]{0,8}(?:(?i:is|are|would\s+be|should\s+be|must\s+be)\b\s{0,8}:?|:|=)"
    rf"{OPENERS}(?:{LETTER}|([a-j])(?=\s*[)\]}}]|[.\s]*\Z))"
    rf"|\\(?:boxed|fbox)\s*\{{{OPENERS}(?:{LETTER}|([a-j])(?=\s*[)}}]))"
)
STANDS_OUT = re.compile(
    rf"\*\*\s*\(?([A-J])[).:]?\s*\*\*|{IN_BRACKETS}|[\"'\u201c\u2018`]([A-J])[\"'\u201d\u2019`]"
    r"|^[ \t]*([A-J])[ \t]*[).:]?[ \t]*$",
    re.MULTILINE,
)


def letter_of(text: str) -> str:
    """What a right answer, or a marked one, names: a letter A to J, or its place counted from 0; else the text."""
    bare = re.sub(r"\\(?:boxed|text|textbf|mathbf|mathrm)\b", "", text).strip(" \t\n()[]{}.:,*\"'`$\u201c\u201d")
    if re.fullmatch(r"[0-9]", bare):
        return LETTERS[int(bare)]
    return bare.upper() if re.fullmatch(r"[A-Ja-j]", bare) else text


def stated(text: str) -> str | None:
    """The last choice that is stated: a letter, `A or B` where it is none of the two, None where nothing is stated."""
    for kind in (STATEMENT, STANDS_OUT):
        last = None
        for match in kind.finditer(text):
            last = match
        if last is not None:
            named = dict.fromkeys(group.upper() for group in last.groups() if group)
            return " or ".join(named)
    return None


class Choice(MarkedGrader):
    """The letter that is stated last."""

    name = "choice"
    version = 1
    from_gold = True

    def normalised(self, answer: str) -> str:
        return letter_of(normalised(answer))

    def graded(self, part: Marked, problem: Problem) -> Grade | None:
        letter = letter_of(part.text) if part.by_task else part.text
        answer = letter if len(letter) == 1 and letter in LETTERS else stated(part.text)
        if answer is None:
            return None
        return Grade(answer=answer, found=True, correct=answer in problem.answers)

    def never_given(self, answer: str, task: TaskConfig) -> str | None:
        if len(answer) == 1 and answer in LETTERS:
            return None
        return (
            "is no letter A to J and no place 0 to 9, and task.grader=choice compares letters: write the letter of the"
            " right choice, or type another task.grader"
        )
