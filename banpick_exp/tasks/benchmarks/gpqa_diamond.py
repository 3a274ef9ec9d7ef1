"""GPQA diamond (Rein et al. 2023, arXiv 2311.12022): 198 questions of science that experts answer and others do
not.

Prompt: OpenAI's simple-evals (QUERY_TEMPLATE_MULTICHOICE). The source has the right choice first; the order here is
drawn from the record's id (`letters.shuffled`). The sub-task is the field. Calibration: the questions of gpqa_main
that are not in diamond (their number follows from what is fetched). The Hub asks for consent first: its authors do
not want the questions shown in public.
"""

from __future__ import annotations

from banpick_exp.tasks.benchmarks.letters import LETTERS, lettered, shuffled
from banpick_exp.tasks.benchmarks.published import published
from banpick_exp.tasks.benchmarks.source import OurRow, Part, Source, SourceRow

PROMPT = (
    "Answer the following multiple choice question. The last line of your response should be of the following format:"
    " 'Answer: $LETTER' (without quotes) where LETTER is one of ABCD. Think step by step before answering.\n\n{}\n\n{}"
)
CHOICES = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")


def convert(row: SourceRow, place: int) -> OurRow:
    choices = [str(row[key]).strip() for key in CHOICES]
    order = shuffled(str(row["Record ID"]), choices)
    return {
        "problem_id": str(row["Record ID"]),
        "task": str(row.get("High-level domain") or "general"),
        "prompt": PROMPT.format(str(row["Question"]).strip(), lettered([choices[n] for n in order], ")")),
        "answer": LETTERS[order.index(0)],
    }


GPQA_DIAMOND = published(
    "gpqa_diamond",
    Source(
        place="Idavidrein/gpqa",
        revision="633f5ee89ab8ad4522a9f850766b73f62147ffdd",
        licence="CC-BY-4.0",
        gated=True,
        parts=(
            Part(
                domain="general", split="test", of="train", rows=198, convert=convert,
                local="*gpqa_diamond*", config="gpqa_diamond",
            ),
            Part(
                domain="general", split="calibration", of="train", rows=None, convert=convert,
                local="*gpqa_main*", config="gpqa_main",
            ),
        ),
    ),
    grader="choice",
)  # fmt: skip
