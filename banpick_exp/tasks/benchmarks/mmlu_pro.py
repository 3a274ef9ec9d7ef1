"""MMLU-Pro (Wang et al. 2024, arXiv 2406.01574): 12,032 questions of 14 fields with up to ten choices.

Prompt: the authors' own instruction and form (as lm-eval's mmlu_pro has them) without the five worked examples. The
sub-task is the field. Calibration: its validation split of 70 questions, with their worked answers as the response.
"""

from __future__ import annotations

from banpick_exp.tasks.benchmarks.letters import lettered
from banpick_exp.tasks.benchmarks.published import published
from banpick_exp.tasks.benchmarks.source import OurRow, Part, Source, SourceRow

PROMPT = (
    "The following are multiple choice questions (with answers) about {}. Think step by step and then finish your"
    ' answer with "the answer is (X)" where X is the correct letter choice.\n\nQuestion:\n{}\nOptions:\n{}\nAnswer:'
    " Let's think step by step."
)
WORKED = "A: Let's think step by step."


def convert(row: SourceRow, place: int) -> OurRow:
    worked = str(row.get("cot_content") or "").removeprefix(WORKED).strip()
    return {
        "problem_id": str(row["question_id"]),
        "task": str(row["category"]),
        "prompt": PROMPT.format(row["category"], row["question"], lettered([str(o) for o in row["options"]], ".")),
        "answer": str(row["answer"]),
        "response": worked or None,
    }


MMLU_PRO = published(
    "mmlu_pro",
    Source(
        place="TIGER-Lab/MMLU-Pro",
        revision="b189ec765aa7ed75c8acfea42df31fdae71f97be",
        licence="MIT",
        parts=(
            Part(domain="general", split="test", of="test", rows=12032, convert=convert, local="*test*"),
            Part(
                domain="general", split="calibration", of="validation", rows=70, convert=convert, local="*validation*"
            ),
        ),
    ),
    grader="choice",
)
