"""One number: where it stands, how it is written, and what is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from banpick_exp.errors import UserError
from banpick_exp.tasks.config import TaskConfig
from banpick_exp.tasks.files import inspect_task
from banpick_exp.tasks.graders.grader import Grade
from banpick_exp.tasks.graders.registry import GRADERS
from banpick_exp.tasks.problem import Problem

TASK = TaskConfig(name="jsonl", domains=("m",), data_files="x", answer_separator=None, grader="numeric")


def graded(completion: str, right: str) -> Grade:
    grader = GRADERS["numeric"]
    return grader.grade(completion, Problem("p", "m", "m", "?", grader.normalised(right)), TASK)


@pytest.mark.parametrize(
    ("completion", "right"),
    [
        ("#### 1234", "1234"), ("#### 1,234", "1234"), ("5 + 5 #### 10", "#### 10"), ("#### $1,234.00", "1,234"),
        ("The answer is $1,234.00.", "1234"), ("The answer is 1,234.", "1234"), ("answer is 12 dollars", "12"),
        ("The answer is 1000 + 234 = 1234.", "1234"), ("The answer is 12. I am 100% sure.", "12"),
        ("Answer: **12**", "12"), ("answer: 12%", "12"), ("The answer is 12.0", "12"), (r"\boxed{1{,}234}", "1234"),
        (r"\boxed{1\,234}", "1234"), ("#### 1\u202f234", "1234"), ("#### -5", "-5"), ("#### \u22125", "-5"),
        ("The answer is \u2212$5", "-5"), ("The answer is -$5", "-5"), ("The answer is 3/4", "0.75"),
        ("The answer is 0.75", "3/4"), ("#### 3\n#### 4", "4"), ("The answer is 3. No, the answer is 4.", "4"),
        ("The answer is 1,234,567", "steps\n#### 1,234,567"), ("<think>#### 3</think>#### 4", "4"), ("#### .5", "0.5"),
        ("The answer is 72 cm^2.", "72"), (r"The answer is $72 \text{ m}^{2}$", "72"), ("The answer is 2^5 = 32", "32"),
    ],
)  # fmt: skip
def test_right_behind_a_mark(completion: str, right: str) -> None:
    grade = graded(completion, right)
    assert grade.correct and grade.found
    assert not graded(completion, "99999").correct


@pytest.mark.parametrize(
    ("completion", "right"), [("so 1234", "1234"), ("1000 + 234 = 1,234 in all", "1234"), ("we pay $5", "5")]
)
def test_the_last_number_of_all_is_graded_and_not_called_found(completion: str, right: str) -> None:
    assert graded(completion, right).correct and not graded(completion, right).found


@pytest.mark.parametrize(
    ("completion", "right"),
    [
        ("8-5", "-5"),
        ("x-5", "-5"),
        ("12 34", "1234"),
        ("1,2345", "12345"),
        ("1234.5", "1234"),
        ("1/0", "1"),
        ("#### 12", "1"),
    ],
)
def test_near_and_wrong(completion: str, right: str) -> None:
    assert not graded(completion, right).correct


@pytest.mark.parametrize(
    "completion",
    [
        "",
        " ",
        "none",
        "#### five",
        "....",
        "I cannot say.",
        "<think> 5",
        "<think>#### 5",
        "x5y"[:1],
        "####",
        "-",
        "The answer is",
    ],
)
def test_nothing_is_found(completion: str) -> None:
    assert graded(completion, "5") == Grade(answer="", found=False, correct=False)


def test_a_right_answer_that_is_no_number_is_refused(tmp_path: Path) -> None:
    task = TASK.model_copy(update={"data_files": f"{tmp_path}/{{domain}}_{{split}}.jsonl"})
    (tmp_path / "m_test.jsonl").write_text('{"prompt": "?", "answer": "Oslo"}\n')
    with pytest.raises(UserError, match=r"'Oslo' as \"answer\", which is no number.*or type another task\.grader"):
        inspect_task(task)


def test_a_loop_of_digits_is_wrong_at_once() -> None:
    assert not graded("9" * 300000, "5").correct
    assert not graded("#### " + "1,000" * 50000, "5").correct
