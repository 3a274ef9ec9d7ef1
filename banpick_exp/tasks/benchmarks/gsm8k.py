"""GSM8K (Cobbe et al. 2021, arXiv 2110.14168): school sums in words; the answer is a number.

Prompt: lm-eval's gsm8k_cot_llama (Meta's wording) without its eight worked examples, which chat models do without.
The right answer is what follows `####`; the grader looks behind "answer is". Calibration: its train split, with the
steps as the response, without the calculator's notes (`<<48/2=24>>`).
"""

from __future__ import annotations

import re

from banpick_exp.tasks.benchmarks.published import published
from banpick_exp.tasks.benchmarks.source import OurRow, Part, Source, SourceRow

PROMPT = (
    "Given the following problem, reason and give a final answer to the problem.\nProblem: {}\nYour response should end"
    ' with "The final answer is [answer]" where [answer] is the response to the problem.\n'
)


def convert(row: SourceRow, place: int) -> OurRow:
    steps, _, answer = str(row["answer"]).rpartition("####")
    answer = answer.strip().replace(",", "")
    steps = re.sub(r"<<[^>]*>>", "", steps).strip()
    return {
        "prompt": PROMPT.format(row["question"]),
        "answer": answer,
        "response": f"{steps}\nThe final answer is {answer}",
    }


GSM8K = published(
    "gsm8k",
    Source(
        place="openai/gsm8k",
        revision="740312add88f781978c0658806c59bc2815b9866",
        licence="MIT",
        parts=(
            Part(domain="math", split="test", of="test", rows=1319, convert=convert, local="*test*", config="main"),
            Part(
                domain="math",
                split="calibration",
                of="train",
                rows=7473,
                convert=convert,
                local="*train*",
                config="main",
            ),
        ),
    ),
    grader="numeric",
)
