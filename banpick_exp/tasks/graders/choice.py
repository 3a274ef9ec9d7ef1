r"""One letter of several choices, A to J, as GPQA and MMLU-Pro are answered.

Statements, the last of which wins: `The answer is (B)`, `Answer: B`, `\boxed{B}`, `the correct option is B`; without
any, a letter that stands out: `**B**`, `(B)`, `[B]`, `"B"`, or a line that is the letter alone. In mid-sentence it is
none: A is an article, and I a pronoun. A statement that names two choices is no choice, and a letter that is refused
(`it cannot be (B)`; `The answer is B. No, B is wrong`) is not chosen.
"""

from __future__ import annotations

import re

from banpick_exp.tasks.config import TaskConfig
from banpick_exp.tasks.graders.exact_match import normalised
from banpick_exp.tasks.graders.grader import Grade
from banpick_exp.tasks.graders.marked import Marked, MarkedGrader
from banpick_exp.tasks.graders.signs import legible
from banpick_exp.tasks.problem import Problem

LETTERS = "ABCDEFGHIJ"
FONTS = r"boxed|fbox|mbox|emph|underline|text(?:bf|it|rm|sf|tt)?|math(?:bb|bf|cal|it|rm|sf|tt)"
OPENERS = (
    rf"""(?:[\s*_$(\[{{"'`<\u201c\u2018]|\\\(|\\\[|\\(?:{FONTS})\{{|"""
    r"(?i:options?|choices?)\s){0,60}"
)
"""What may stand between a mark and its letter. So many at most: of ten thousand boxes in one another each would look
through all."""
BARE = r"(?![\w\u0300-\u036f\u2019'+=^-])"
"""Behind a letter: it is no word, and no formula."""
PRONOUN = r"(?!I[ \t]+(?!(?:and|as|because|for|is|or|since|which|with)\b)[a-z])"
SECOND = (
    r"(?:[\s*_)\]}\"'$.,]*(?:\bor\b|\band\b|[/&])[\s*_(\[{\"'$]*([A-J])(?![\w'\u2019])"
    r"|[*_)\]}\"'$]*\s?,\s?[*_(\[{\"'$]*([A-J])(?=[*_)\]}\"'$]*(?:[.,;]|\s*\Z|\n)))?"
)
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
REFUSED_BEFORE = re.compile(
    r"(?:\b(?i:not|cannot|never)|n['\u2019]t)\s+(?i:be\s+)?(?i:(?:the\s+)?(?:options?|choices?|answers?)\s+)?"
    r"[\s*_(\[\"'`\u201c\u2018]*\Z"
)
REFUSED_BEHIND = (
    r"(?<![\w'\u2019]){}[)\]*_\"'`\u201d\u2019}}$]*\s+(?i:is|was)\s+"
    r"(?i:wrong|incorrect|false|not\s+(?:right|correct|the\s+answer))\b"
)
"""A letter that is said to be none: `not (B)`, `(B) is wrong`."""
LOOK_BACK = 40
"""Characters before a letter in which it is refused."""


def letter_of(text: str) -> str:
    """What a right answer, or a marked one, names: a letter A to J, or its place counted from 0; else the text."""
    bare = re.sub(rf"\\(?:{FONTS})\b", "", legible(text)).strip(" \t\n()[]{}.:,*\"'`$\u201c\u201d")
    if re.fullmatch(r"[0-9]", bare):
        return LETTERS[int(bare)]
    return bare.upper() if re.fullmatch(r"[A-Ja-j]", bare) else text


def stated(text: str) -> str | None:
    """The last choice that is stated: a letter, `A or B` where it is none of the two, None where nothing is stated, or
    the letter is refused behind it."""
    last = None
    for match in STATEMENT.finditer(text):
        last = match
    if last is None:
        for match in STANDS_OUT.finditer(text):
            if not REFUSED_BEFORE.search(text[max(0, match.start() - LOOK_BACK) : match.start()]):
                last = match
    if last is None:
        return None
    named = dict.fromkeys(group.upper() for group in last.groups() if group)
    (first, *others) = named
    if not others and re.search(REFUSED_BEHIND.format(first), text[last.start() :]):
        return None
    return " or ".join(named)


class Choice(MarkedGrader):
    """The letter that is stated last."""

    name = "choice"
    version = 2
    """2: a letter that is refused is none, nor are three of a list; full-width letters and other brackets are letters
    and brackets."""
    reads_signs = True
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
