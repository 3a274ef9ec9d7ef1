"""Whatever a file of problems holds, it is problems that can be asked and graded, or a refusal that names the file."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from fuzzing import JSON, TEXTS, examples, in_time
from hypothesis import given
from hypothesis import strategies as st

from banpick_exp.errors import UserError
from banpick_exp.tasks.benchmarks.jsonl import JSONL
from banpick_exp.tasks.config import TaskConfig
from banpick_exp.tasks.graders.registry import GRADERS
from banpick_exp.tasks.problem import Problem
from banpick_exp.tasks.reading import read_problems

pytestmark = pytest.mark.slow

TASK = TaskConfig(name="jsonl", domains=("math",))
FIELDS = ["prompt", "answer", "id", "problem_id", "task", "question"]
ANSWERS = TEXTS | st.integers() | st.floats() | st.lists(TEXTS | st.integers(), max_size=3)
ROWS = st.fixed_dictionaries(
    {"prompt": TEXTS | st.just("1+1="), "answer": ANSWERS},
    optional={"id": TEXTS | st.integers(0, 3), "task": TEXTS, "more": JSON},
)
ODD_ROWS = st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=6)


def read(data: bytes, name: str = "math_test.jsonl") -> tuple[Problem, ...]:
    """The problems, or none where the refusal names the file."""
    with in_time():
        try:
            found = read_problems(data, Path(name), JSONL, TASK, domain="math", split="test")
        except UserError as error:
            assert name in str(error) and "Traceback" not in str(error)
            return ()
    check(found)
    return found


def check(found: tuple[Problem, ...]) -> None:
    """What every problem promises to whoever asks and grades it."""
    assert found and len({problem.problem_id for problem in found}) == len(found)
    grader = GRADERS[JSONL.grader]
    for problem in found:
        assert type(problem.prompt) is str and problem.prompt.strip() and problem.prompt.encode()
        for answer in problem.answers:
            assert type(answer) is str and answer and answer == answer.strip()
            assert grader.grade(f"steps;{answer}", problem, TASK).correct, "a right answer can be given"
        assert not grader.grade("", problem, TASK).correct and not grader.grade("steps;", problem, TASK).correct


@examples(150)
@given(rows=st.lists(ROWS, min_size=1, max_size=4), ascii_only=st.booleans(), end=st.sampled_from(["\n", "\r\n", "\r"]))
def test_rows_are_asked_as_they_are_written_or_refused(rows: list[dict[str, Any]], ascii_only: bool, end: str) -> None:
    text = end.join(json.dumps(row, ensure_ascii=ascii_only) for row in rows)
    found = read(text.encode("utf-8", "surrogatepass"))
    for problem, row in zip(found, rows, strict=False):
        assert problem.prompt == row["prompt"]
        given = row["answer"] if isinstance(row["answer"], list) else [row["answer"]]
        written = given[0] if isinstance(given[0], str) else json.dumps(given[0])
        assert problem.answer == GRADERS[JSONL.grader].normalised(written)


@examples(150)
@given(
    rows=st.lists(ROWS | ODD_ROWS | JSON, max_size=4),
    cut=st.integers(0, 40),
    swap=st.binary(max_size=4),
    at=st.integers(0, 200),
)
def test_a_damaged_file_is_refused_in_words(rows: list[Any], cut: int, swap: bytes, at: int) -> None:
    data = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode("utf-8", "surrogatepass")
    read(
        data[: at % (len(data) + 1)] + swap + data[at % (len(data) + 1) + len(swap) : len(data) - cut % (len(data) + 1)]
    )


@examples(100)
@given(
    header=st.lists(st.sampled_from(FIELDS) | TEXTS, max_size=4),
    cells=st.lists(st.lists(TEXTS, max_size=4), max_size=4),
    comma=st.sampled_from([",", "\t", ";"]),
    name=st.sampled_from(["math_test.csv", "math_test.tsv"]),
)
def test_any_table_of_texts(header: list[str], cells: list[list[str]], comma: str, name: str) -> None:
    text = "\n".join(comma.join(row) for row in [["prompt", "answer", *header], *cells])
    read(text.encode("utf-8", "surrogatepass"), name)


PARQUET = st.sampled_from(
    [pl.String, pl.Int64, pl.Float64, pl.Boolean, pl.Date, pl.List(pl.String), pl.List(pl.Int8), pl.Binary]
)


@examples(60)
@given(prompt=PARQUET, answer=PARQUET, null=st.booleans(), name=st.sampled_from(FIELDS), cut=st.integers(0, 400))
def test_any_parquet(prompt: Any, answer: Any, null: bool, name: str, cut: int) -> None:
    values: dict[Any, list[Any]] = {
        pl.String: ["a", "b"], pl.Int64: [1, 2], pl.Float64: [0.5, 1e30], pl.Boolean: [True, False], pl.Date: [1, 2],
        pl.Binary: [b"a", b"\xff"],
    }  # fmt: skip

    def column(kind: Any) -> pl.Series:
        plain = values.get(kind, [[], [1]] if kind == pl.List(pl.Int8) else [["a", "b"], [""]])
        return pl.Series([None, plain[1]] if null else plain, dtype=kind, strict=False)

    buffer = io.BytesIO()
    pl.DataFrame({"prompt": column(prompt), "answer": column(answer), f"{name}_": column(answer)}).write_parquet(buffer)
    data = buffer.getvalue()
    read(data, "math_test.parquet")
    read(data[: len(data) - cut], "math_test.parquet")
