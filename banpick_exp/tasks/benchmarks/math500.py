"""MATH-500: the 500 problems of MATH (Hendrycks et al. 2021) that OpenAI held out (Lightman et al. 2023).

Prompt: `boxed`. The sub-task is the subject. Calibration: MathQA, as the paper does for mathematics.
"""

from __future__ import annotations

from banpick_exp.tasks.benchmarks.boxed import boxed
from banpick_exp.tasks.benchmarks.mathqa import AS_CALIBRATION
from banpick_exp.tasks.benchmarks.published import published
from banpick_exp.tasks.benchmarks.source import OurRow, Part, Source, SourceRow


def convert(row: SourceRow, place: int) -> OurRow:
    return {
        "problem_id": str(row["unique_id"]),
        "task": str(row["subject"]),
        "prompt": boxed(str(row["problem"])),
        "answer": str(row["answer"]),
        "response": row.get("solution"),
    }


MATH500 = published(
    "math500",
    Source(
        place="HuggingFaceH4/MATH-500",
        revision="6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
        licence="none stated (MATH: MIT)",
        parts=(Part(domain="math", split="test", of="test", rows=500, convert=convert, local="*test*"),),
        borrowed=AS_CALIBRATION,
    ),
    grader="math_verify",
)
