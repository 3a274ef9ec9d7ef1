"""AIME 2024 and 2025: the 30 problems of both papers of a year; every answer is a whole number from 0 to 999.

Prompt: `boxed`. 2024 names its answers with three digits (`025`), which say nothing more. Calibration: MathQA.
"""

from __future__ import annotations

from banpick_exp.tasks.benchmarks.boxed import boxed
from banpick_exp.tasks.benchmarks.mathqa import AS_CALIBRATION
from banpick_exp.tasks.benchmarks.published import published
from banpick_exp.tasks.benchmarks.source import OurRow, Part, Source, SourceRow


def convert(row: SourceRow, place: int) -> OurRow:
    return {
        "problem_id": str(row["id"]),
        "prompt": boxed(str(row["problem"])),
        "answer": str(int(row["answer"])),
        "response": row.get("solution") or None,
    }


AIME24 = published(
    "aime24",
    Source(
        place="HuggingFaceH4/aime_2024",
        revision="2fe88a2f1091d5048c0f36abc874fb997b3dd99a",
        licence="none stated",
        parts=(Part(domain="math", split="test", of="train", rows=30, convert=convert, local="*train*"),),
        borrowed=AS_CALIBRATION,
    ),
    grader="math_verify",
)
AIME25 = published(
    "aime25",
    Source(
        place="math-ai/aime25",
        revision="563bb8404243c5f09de6ec262f2db674fe5bce9b",
        licence="Apache-2.0",
        parts=(Part(domain="math", split="test", of="test", rows=30, convert=convert, local="*test*"),),
        borrowed=AS_CALIBRATION,
    ),
    grader="math_verify",
)
