"""MBPP+ (EvalPlus, arXiv 2305.01210): 378 small functions of MBPP with some 35 times the tests.

Prompt: `function_code`, with the text and the first of MBPP's own tests in a docstring, which is how EvalPlus shows
MBPP. The tests are plain asserts behind the solution. Calibration: HumanEval.
"""

from __future__ import annotations

from banpick_exp.tasks.benchmarks.function_code import asked, in_a_block
from banpick_exp.tasks.benchmarks.published import published
from banpick_exp.tasks.benchmarks.source import OurRow, Part, Source, SourceRow


def convert(row: SourceRow, place: int) -> OurRow:
    shown = next(iter(row["test_list"]), "")
    return {
        "problem_id": f"Mbpp/{row['task_id']}",
        "prompt": asked(f'"""\n{str(row["prompt"]).strip()}\n{str(shown).strip()}\n"""'),
        "answer": str(row["code"]).strip(),
        "response": in_a_block(str(row["code"])),
        "material": {"kind": "call", "prefix": "", "test": str(row["test"]), "entry_point": None},
    }


MBPP_PLUS = published(
    "mbpp_plus",
    Source(
        place="evalplus/mbppplus",
        revision="b2d74c91837c3f2a20c1299ae98133cbe7cfa077",
        licence="Apache-2.0",
        parts=(Part(domain="code", split="test", of="test", rows=378, convert=convert, local="*test*"),),
        borrowed=(("calibration", "humaneval/code_test.jsonl"),),
    ),
    grader="code",
)
