"""MathQA (Amini et al. 2019): sums in words with five choices. Ban&Pick calibrates mathematics on about 1,000 of them.

Prompt: ours, asked as the benchmarks that are calibrated on it are (`boxed`); the letter is the answer, which
math-verify and the choice grader both read. The rationales of the source are not used as responses: they are scraped
text, often cut. Problems that stand there twice, with another answer or the same, are left out by the fetch. The commit
is of the Hub's own conversion to Parquet; the original needs a script that is run.
"""

from __future__ import annotations

import re

from banpick_exp.tasks.benchmarks.boxed import ASKED
from banpick_exp.tasks.benchmarks.letters import LETTERS, lettered
from banpick_exp.tasks.benchmarks.published import published
from banpick_exp.tasks.benchmarks.source import OurRow, Part, Source, SourceRow

CHOICE = re.compile(r"(?:^|,)\s*['\"]?\s*([a-e])\s*\)\s*")
ENOUGH = 4000
LETTER_ASKED = " Give the letter of the right choice."
AS_CALIBRATION = (("calibration", "mathqa/math_calibration.jsonl"),)
"""For the `borrowed` of a benchmark without a train split of its own."""


def choices_of(text: str) -> list[str]:
    """`a ) 38 , b ) 27.675 , ...` as a list. Places that are out of order are part of a choice."""
    marks: list[re.Match[str]] = []
    for match in CHOICE.finditer(text.strip("[]' ")):
        if len(marks) < 5 and match.group(1) == "abcde"[len(marks)]:
            marks.append(match)
    bare = text.strip("[]' ")
    ends = [mark.start() for mark in marks[1:]] + [len(bare)]
    return [bare[mark.end() : end].strip(" ,'") for mark, end in zip(marks, ends, strict=True)]


def convert(row: SourceRow, place: int) -> OurRow | None:
    choices = choices_of(str(row["options"]))
    letter = str(row["correct"]).strip().upper()
    if letter not in LETTERS[: len(choices)]:
        return None
    return {
        "task": str(row.get("category") or "math"),
        "prompt": f"{str(row['Problem']).strip()}\n\n{lettered(choices, ')')}{ASKED}{LETTER_ASKED}",
        "answer": letter,
    }


MATHQA = published(
    "mathqa",
    Source(
        place="allenai/math_qa",
        revision="795ca7da22406a2d62cc8874d0f2b427386b68db",
        licence="Apache-2.0",
        parts=(
            Part(
                domain="math", split="calibration", of="train", rows=29837, convert=convert, local="*train*",
                file="default/math_qa-train.parquet", most=ENOUGH,
            ),
            Part(
                domain="math", split="test", of="test", rows=2985, convert=convert, local="*test*",
                file="default/math_qa-test.parquet",
            ),
        ),
    ),
    grader="choice",
)  # fmt: skip
