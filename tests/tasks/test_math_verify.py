r"""math-verify as a grader: hard answers, what it judges otherwise than people would, and what it must not cost."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from banpick_exp.errors import UserError
from banpick_exp.tasks.config import TaskConfig
from banpick_exp.tasks.graders import math_process, math_verify
from banpick_exp.tasks.graders.grader import Grade
from banpick_exp.tasks.graders.math_process import last_boxed, plain
from banpick_exp.tasks.graders.registry import GRADERS
from banpick_exp.tasks.problem import Problem

TASK = TaskConfig(name="jsonl", domains=("math",), data_files="x", answer_separator=None)


@pytest.fixture(autouse=True)
def _counted_anew() -> Iterator[None]:
    math_verify._counted.clear()
    yield
    math_verify._counted.clear()


def graded(completion: str, *right: str, task: TaskConfig = TASK) -> Grade:
    return GRADERS["math_verify"].grade(completion, Problem("p", "math", "math", "?", right[0], right[1:]), task)


RIGHT = [
    # nested and several boxes
    (r"so \boxed{\frac{\sqrt{3}}{2}}.", r"\frac{\sqrt 3}{2}"),
    (r"\boxed{\boxed{5}}", "5"),
    (r"first \boxed{3}, no: \boxed{4}", "4"),
    (r"\boxed{\left\{\frac{1}{2}, 3\right\}}", r"\{3, 0.5\}"),
    (r"\fbox{12}", "12"),
    (r"\boxed {12}", r"\boxed{12}"),
    # fractions, roots, powers
    (r"\boxed{\frac12}", "0.5"),
    (r"\boxed{1/2}", r"\dfrac{1}{2}"),
    (r"\boxed{3\frac{1}{2}}", r"\frac72"),
    (r"\boxed{-\frac{1}{2}}", r"\frac{-1}{2}"),
    (r"\boxed{2\sqrt{2}}", r"\sqrt{8}"),
    (r"\boxed{(x+1)^2}", "x^2+2x+1"),
    (r"\boxed{10^6}", "1000000"),
    # units, currency, degrees
    (r"\boxed{5\text{ cm}}", "5"),
    (r"\boxed{5 \mathrm{m}}", "5"),
    (r"\boxed{\$5.00}", "5"),
    (r"\boxed{10^\circ}", "10"),
    (r"\boxed{\frac{1}{2}\text{ hours}}", "0.5"),
    # percent
    (r"\boxed{50\%}", "50"),
    (r"\boxed{50\%}", "0.5"),
    (r"\boxed{0.5}", r"50\%"),
    (r"\boxed{50%}", r"50\%"),
    # thousands separators
    (r"\boxed{1,234,567}", "1234567"),
    (r"\boxed{1{,}234}", "1234"),
    (r"\boxed{1\,234}", "1,234"),
    (r"\boxed{1\!234}", "1234"),
    # Unicode minus, full stops
    ("\\boxed{\u22125}", "-5"),
    ("The answer is \u22125.", "-5"),
    (r"\boxed{42.}", "42"),
    (r"\boxed{42}", "42."),
    # text behind the answer, and LaTeX text
    (r"\boxed{7} is the number of ways. I hope it is correct.", "7"),
    ("The answer is 42, since 40 + 2 is.", "42"),
    (r"The final answer is $\frac{3}{4}$. I hope it is correct.", "0.75"),
    (r"\boxed{\text{Evelyn}}", "Evelyn"),
    (r"\boxed{\textbf{(B)}}", "B"),
    # intervals, sets, tuples, matrices
    (r"\boxed{[1,2)}", "[1, 2)"),
    (r"\boxed{(0,9)\cup(9,36)}", r"(0,9) \cup (9,36)"),
    (r"\boxed{(-\infty, 3]}", r"(-\infty,3]"),
    (r"\boxed{2, 1}", "1,2"),
    (r"\boxed{(3, \pi/2)}", r"\left(3,\frac{\pi}{2}\right)"),
    (r"\boxed{\begin{pmatrix}1\\2\end{pmatrix}}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
    (r"\boxed{x=5}", "5"),
    # a thought that ended
    (r"<think> \boxed{4} </think> \boxed{5}", "5"),
    (r"it was in the prompt \boxed{4} </think> so 5", "5"),
]
WRONG = [
    (r"\boxed{3} or \boxed{4}", "3"),
    (r"\boxed{5000\%}", r"50\%"),
    (r"\boxed{5}", r"500\%"[:3] + "1"),
    (r"\boxed{[1,2]}", "[1,2)"),
    (r"\boxed{[1,2]}", "(1,2)"),
    (r"\boxed{2,3}", "3"),
    (r"\boxed{\text{even}}", "odd"),
    (r"\boxed{1.41}", r"\sqrt{2}"),
    (r"\boxed{-5}", "5"),
    (r"\boxed{1/3}", "3"),
    (r"\boxed{}", "5"),
    (r"\boxed{ }", "5"),
]
NOTHING = [
    "", "   ", "I cannot help with that.", "I am sorry, but this has no solution that I could give.",
    r"<think> \boxed{5}", "<think> the answer is 5", r"\boxed{4} <think> \boxed{5}", "</think><think> 5 </ think>",
    r"\boxed{5", "</think>", r"\boxed", "...",
]  # fmt: skip
KNOWN = [
    (r"\boxed{x \le 3}", r"(-\infty,3]", False),
    (r"\boxed{3.14159}", r"\pi", False),
    (r"\boxed{1 000}", "1000", False),
    (r"\boxed{0.333}", "1/3", False),
    (r"\boxed{0.333333}", "1/3", True),
    (r"\boxed{1,2}", "(1,2)", True),
    (r"\boxed{\{6\}}", "6", True),
    (r"\boxed{\{100,101\}}", "101,100", False),
    (r"\boxed{\{100,101\}}", "101, 100", True),
    (r"\boxed{\{100,101\}}", r"\{101,100\}", True),
    (r"\boxed{10}", "10_7", True),
    (r"\boxed{1/3}", "10:30", True),
    (r"\boxed{YES}", r"\text{yes}", True),
]
"""What math-verify 0.9.0 says where people may say otherwise: docs/grading.md tells it. A version that says something
else is another grader, and its fingerprints are new."""


@pytest.mark.parametrize(("completion", "right"), RIGHT)
def test_right_answers_in_other_words(completion: str, right: str) -> None:
    assert graded(completion, right).correct


@pytest.mark.parametrize(("completion", "right"), WRONG)
def test_wrong_answers_that_are_near(completion: str, right: str) -> None:
    assert not graded(completion, right).correct


@pytest.mark.parametrize("completion", NOTHING)
def test_nothing_is_found_and_nothing_is_right(completion: str) -> None:
    assert not graded(completion, "5").found and not graded(completion, "5").correct


@pytest.mark.parametrize(("completion", "right", "verdict"), KNOWN)
def test_what_is_known_to_be_judged_otherwise(completion: str, right: str, verdict: bool) -> None:
    assert graded(completion, right).correct == verdict


def test_a_number_without_a_mark_is_graded_and_not_called_found() -> None:
    assert graded("so it is 42", "42") == Grade(answer="42", found=False, correct=True)
    assert graded("The answer is 42.", "42") == Grade(answer="42", found=True, correct=True)
    assert graded(r"\boxed{\frac12}", "0.5", "7") == Grade(answer=r"\frac12", found=True, correct=True)
    assert graded(r"\boxed{7}", "0.5", "7").correct, "any of several"


def test_the_task_s_own_mark_wins() -> None:
    marked = TASK.model_copy(update={"answer_pattern": "ANSWER: (.+)"})
    assert graded("\\boxed{4} ANSWER: \\frac{10}{2}", "5", task=marked).correct
    assert graded("\\boxed{5}", "5", task=marked) == Grade(answer="", found=False, correct=False)
    separated = TASK.model_copy(update={"answer_separator": "####"})
    assert graded("4 + 1 #### 10/2", "5", task=separated) == Grade(answer="10/2", found=True, correct=True)


def test_where_the_answer_is_looked_for() -> None:
    assert last_boxed(r"\boxed{a{b}c} \boxed{x\}y} \boxed{z") == r"x\}y"
    assert last_boxed(r"\\boxed{1} {\boxed{2}\\} \boxed{3{") == "2"
    assert plain(r" $1\,000\%$. ") == ("1000", True) and plain(r"\text{\boxed{Eve.}}") == (r"\text{Eve}", False)


@pytest.mark.parametrize(
    "bomb", [r"\boxed{9^{9^{9^{9}}}}", r"\boxed{10000000!}", rf"\boxed{{{'(' * 3000}x{')' * 3000}}}"]
)
def test_what_would_never_end_costs_one_answer(bomb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert graded(r"\boxed{2/4}", "0.5").correct
    monkeypatch.setattr(math_verify, "LIMIT_SECONDS", 0.5)
    assert graded(bomb, "5") == Grade(answer="", found=False, correct=False, grader_timeout=True)
    monkeypatch.undo()
    assert graded(r"\boxed{2/4}", "0.5").correct, "the next one has a process of its own"


def test_a_process_that_dies_costs_one_answer() -> None:
    assert graded(r"\boxed{2/4}", "0.5").correct
    process = math_verify._judge._process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert graded(r"\boxed{3/4}", "0.75").grader_timeout
    assert graded(r"\boxed{3/4}", "0.75").correct


def test_one_process_judges_all_answers_of_an_engine_that_holds_much_memory() -> None:
    """Each answer had a start of its own, a second of sympy, wherever who asks had ever held a gigabyte."""
    much = bytearray(b"x") * (1024 * math_process.LARGEST_KIB + 2**26)
    math_verify._judge.close()
    assert graded(r"\boxed{2/4}", "0.5").correct
    del much
    process = math_verify._judge._process
    assert process is not None
    assert graded(r"\boxed{3/4}", "0.75").correct
    assert math_verify._judge._process is process and process.poll() is None


def test_ended_again_and_again_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(math_verify, "MOST_LATE", 0)
    monkeypatch.setattr(math_verify, "LIMIT_SECONDS", 0.5)
    with pytest.raises(UserError, match=r"math_verify was stopped after 0\.5 s .* 1 of 1 answers.*answer_pattern="):
        graded(r"\boxed{10000000!}", "5")


def test_it_needs_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    assert GRADERS["math_verify"].refused(TASK) is None
    monkeypatch.setattr(math_verify.importlib.util, "find_spec", lambda name: None)
    assert "pip install 'math-verify[antlr4-9-3]'" in str(GRADERS["math_verify"].refused(TASK))


def test_its_library_is_part_of_what_it_is() -> None:
    name, version, made_of = GRADERS["math_verify"].identity()
    assert (name, version, set(made_of)) == ("math_verify", 2, {"math-verify", "latex2sympy2_extended", "sympy"})
