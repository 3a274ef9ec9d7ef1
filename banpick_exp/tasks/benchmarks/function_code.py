"""Python functions to write, judged by tests (grader `code`): how EvalPlus asks a chat model for them.

Instruction and form: EvalPlus (codegen.py and provider/utility.py, v0.3.1). EvalPlus also begins the model's answer
for it, which a chat that thinks has no place for; so do we not.
"""

from __future__ import annotations

ASKED = "Please provide a self-contained Python script that solves the following problem in a markdown code block:"
AS_CALIBRATION = (("calibration", "mbpp_plus/code_test.jsonl"),)
"""For the `borrowed` of benchmarks of code that have no train split: MBPP+ has whole solutions."""


def asked(problem: str) -> str:
    """The prompt of a problem."""
    return f"{ASKED}\n```\n{problem.strip()}\n```\n"


def in_a_block(code: str) -> str:
    """A whole right answer."""
    return f"```python\n{code.strip()}\n```"
