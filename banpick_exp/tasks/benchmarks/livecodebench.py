"""LiveCodeBench (Jain et al. 2024, arXiv 2403.07974), code generation: what release 6 added (175 problems of
contests from January to April 2025).

Prompt: the authors' generic one (lcb_runner/prompts/code_generation.py at 28fef95), a chat with a system message.
Tests are the public and the private ones; a problem with starter code is a function called with arguments, any
other reads standard input. The private tests are base64, zlib and a pickled text: nothing is unpickled, the one
text is read out of it. Calibration: MBPP+.
"""

from __future__ import annotations

import base64
import json
import pickletools
import zlib
from typing import Any

from banpick_exp.tasks.benchmarks.function_code import AS_CALIBRATION
from banpick_exp.tasks.benchmarks.published import published
from banpick_exp.tasks.benchmarks.source import OurRow, Part, Source, SourceRow

SYSTEM = (
    "You are an expert Python programmer. You will be given a question (problem specification) and will generate a"
    " correct Python program that matches the specification and passes all tests."
)
WITH_STARTER = (
    "You will use the following starter code to write the solution to the problem and enclose your code within"
    " delimiters."
)
WITHOUT_STARTER = (
    "Read the inputs from stdin solve the problem and write the answer to stdout (do not directly test on the sample"
    " inputs). Enclose your code within delimiters as follows. Ensure that when the python program runs, it reads the"
    " inputs, runs the algorithm and writes output to STDOUT."
)
TEXTS = frozenset({"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"})
AROUND = frozenset({"PROTO", "FRAME", "MEMOIZE", "BINPUT", "LONG_BINPUT", "STOP"})
"""What else may stand in a pickle that is one text."""
SECONDS = 6
"""For a test, as lcb_runner has it."""


def text_of_pickle(data: bytes) -> str:
    """The one text that was pickled, without running anything. ValueError for a pickle of anything else."""
    texts = []
    for code, value, _ in pickletools.genops(data):
        if code.name in TEXTS:
            texts.append(str(value))
        elif code.name not in AROUND:
            raise ValueError(f"a pickle with {code.name} is more than a text")
    if len(texts) != 1:
        raise ValueError(f"{len(texts)} texts in place of one")
    return texts[0]


def tests_of(row: SourceRow) -> list[dict[str, Any]]:
    """Public and private: {input, output, testtype} each."""
    private = str(row["private_test_cases"])
    if not private.lstrip().startswith("["):
        private = text_of_pickle(zlib.decompress(base64.b64decode(private)))
    return [*json.loads(row["public_test_cases"]), *json.loads(private)]


def material_of(row: SourceRow) -> dict[str, Any]:
    """What the grader runs."""
    tests = tests_of(row)
    if all(test["testtype"] == "stdin" for test in tests):
        cases = [{"input": test["input"], "output": test["output"]} for test in tests]
        return {"kind": "stdio", "cases": cases, "seconds": SECONDS}
    called = [
        {"input": [json.loads(line) for line in test["input"].split("\n") if line.strip()],
         "output": json.loads(test["output"])}
        for test in tests
    ]  # fmt: skip
    entry = json.loads(row["metadata"])["func_name"]
    return {"kind": "function", "entry_point": entry, "cases": called, "seconds": SECONDS}


def convert(row: SourceRow, place: int) -> OurRow:
    starter = str(row.get("starter_code") or "")
    form, code = (WITH_STARTER, starter) if starter else (WITHOUT_STARTER, "# YOUR CODE HERE")
    question = (
        f"### Question:\n{row['question_content']}\n\n### Format: {form}\n```python\n{code}\n```\n\n"
        "### Answer: (use the provided format with backticks)\n\n"
    )
    return {
        "problem_id": str(row["question_id"]),
        "task": str(row["difficulty"]),
        "prompt": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}],
        "answer": "passes every test",
        "material": material_of(row),
    }


LIVECODEBENCH = published(
    "livecodebench",
    Source(
        place="livecodebench/code_generation_lite",
        revision="0fe84c3912ea0c4d4a78037083943e8f0c4dd505",
        licence="CC (as its card says, without a version)",
        parts=(
            Part(
                domain="code", split="test", of="test", rows=175, convert=convert, local="*test6*", file="test6.jsonl"
            ),
        ),
        borrowed=AS_CALIBRATION,
    ),
    grader="code",
)
