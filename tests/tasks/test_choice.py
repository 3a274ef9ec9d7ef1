"""Letters: what states a choice, what only looks like one, and how a right answer is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from banpick_exp.errors import UserError
from banpick_exp.tasks.config import TaskConfig
from banpick_exp.tasks.files import inspect_task
from banpick_exp.tasks.graders.grader import Grade
from banpick_exp.tasks.graders.registry import GRADERS
from banpick_exp.tasks.problem import Problem

TASK = TaskConfig(name="jsonl", domains=("m",), data_files="x", answer_separator=None, grader="choice")


def graded(completion: str, right: str = "B", task: TaskConfig = TASK) -> Grade:
    grader = GRADERS["choice"]
    return grader.grade(completion, Problem("p", "m", "m", "?", grader.normalised(right)), task)


STATED = [
    "The answer is (B).", "Answer: B", "answer is B", "**Answer: B**", "**Answer:** B", "Answer: **B) 42**",
    "Final Answer: B", "final answer is option B", "The correct option is B.", "the correct choice is: **B**",
    "**B**", "(B)", "[B]", '"B"', "\u201cB\u201d", "The answer is 'B'", "Answer: [B]", "B", "B.", "B)", " B \n",
    r"\boxed{B}", r"\boxed{\text{B}}", r"\boxed{\text{(B)}}", r"$\boxed{B}$", r"The answer is $\mathbf{B}$",
    "Answer: (b)", "answer: b", r"\boxed{b}", "The best answer is\n\n(B)", "Answer\n\nB",
    "The answer is (A). Wait, the answer is (B).", r"\boxed{A}, no, \boxed{B}", "Answer: C\nAnswer: B",
    "The answer is (B), because (A) is wrong and (C) too", "The answer is B because A is a trap.",
    "I think the answer is A.</think>The answer is B.", "<think>Answer: A</think>\nB",
]  # fmt: skip
NOT_STATED = [
    "", "  ", "I cannot answer this question.", "I'm sorry, I can't help.", "A cat sat on a mat.", "I think so.",
    "It may be B, who knows", "The answer is Both", "The answer is a matter of taste", "The answer is not B",
    "The answer is I think unclear", "Answer: none of these", "Answer: B-tree", "The answer is B+ tree",
    "Answers: see above",    "the answer is 'Be'", r"\boxed{B=3}", r"\boxed{7}", "<think>The answer is B",
    "Answer: A</think><think>Answer: B",
]  # fmt: skip


@pytest.mark.parametrize("completion", STATED)
def test_what_states_a_choice(completion: str) -> None:
    assert graded(completion) == Grade(answer="B", found=True, correct=True)
    assert not graded(completion, "D").correct


@pytest.mark.parametrize("completion", NOT_STATED)
def test_what_states_none(completion: str) -> None:
    assert graded(completion) == Grade(answer="", found=False, correct=False)


@pytest.mark.parametrize(
    "completion", ["The answer is A or B", "The answer is (A) or (B).", "Answer: A and B", "Answer: B/C"]
)
def test_two_choices_are_none(completion: str) -> None:
    assert graded(completion).found and not graded(completion).correct and not graded(completion, "A").correct


@pytest.mark.parametrize("right", ["B", "b", "(B)", "1", " B. ", r"\text{B}"])
def test_how_a_right_answer_may_be_written(right: str) -> None:
    assert graded("Answer: B", right).correct and not graded("Answer: C", right).correct


def test_the_task_s_own_mark_wins() -> None:
    marked = TASK.model_copy(update={"answer_separator": ";"})
    assert graded("Answer: A; b", task=marked).correct
    assert graded("Answer: A; so the answer is (B)", task=marked).correct


def test_a_right_answer_that_is_no_letter_is_refused(tmp_path: Path) -> None:
    task = TASK.model_copy(update={"data_files": f"{tmp_path}/{{domain}}_{{split}}.jsonl"})
    (tmp_path / "m_test.jsonl").write_text('{"prompt": "?", "answer": "Oslo"}\n')
    with pytest.raises(
        UserError, match=r"'Oslo' as \"answer\", which is no letter A to J.*or type another task\.grader"
    ):
        inspect_task(task)
    (tmp_path / "m_test.jsonl").write_text('{"prompt": "?", "answer": 9}\n')
    assert inspect_task(task).loaded["m"][0].answer == "J"


def test_a_long_text_takes_no_time() -> None:
    for text in (
        "the answer is " * 20000,
        "(" * 200000,
        "answer" + " " * 200000,
        "**" * 100000,
        "Answer: " + "$" * 100000,
    ):
        assert not graded(text).correct
