"""No verifier runs what a model wrote: what may be evaluated, and those of reasoning-gym that evaluate, attacked."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from banpick_exp.tasks.config import TaskConfig
from banpick_exp.tasks.graders.evaluated import FUNCTIONS, MADE_BY_SYMPY, NotEvaluated, checked, guarded_eval
from banpick_exp.tasks.graders.reasoning_gym import ReasoningGym
from banpick_exp.tasks.problem import Problem

reasoning_gym = pytest.importorskip("reasoning_gym")
RUNS = "__import__('os').system('touch {mark}')"
ATTACKS = [
    RUNS,
    "[" + RUNS + "]",
    "1 + " + RUNS,
    "[x for x in (1,)]",
    "(lambda: 1)()",
    "().__class__.__base__.__subclasses__()",
    "sympify(\"__import__('os').system('touch {mark}')\")",
    "S(\"__import__('os').system('touch {mark}')\")",
    'f"{{' + RUNS + '}}"',
    "{{1: 2}}[1]",
]


@pytest.mark.parametrize("text", ATTACKS)
def test_more_than_arithmetic_is_not_evaluated(text: str, tmp_path: Path) -> None:
    text = text.format(mark=tmp_path / "mark")
    with pytest.raises(NotEvaluated):
        guarded_eval(text)
    with pytest.raises(NotEvaluated):
        checked(text, {"x"}, FUNCTIONS | MADE_BY_SYMPY)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(("text", "value"), [("[1, 2]", [1, 2]), ("['a', '-b']", ["a", "-b"]), ("-2**3 + (4 % 3)", -7)])
def test_arithmetic_is(text: str, value: object) -> None:
    assert guarded_eval(text) == value


@pytest.mark.parametrize("dataset", ["countdown", "puzzle24", "simple_integration", "intermediate_integration",
                                     "polynomial_multiplication", "n_queens", "spiral_matrix", "binary_matrix",
                                     "string_insertion"])  # fmt: skip
def test_verifiers_that_evaluate_judge_answers_and_run_none(dataset: str, tmp_path: Path) -> None:
    entry = reasoning_gym.create_dataset(dataset, size=1, seed=3)[0]
    mark = tmp_path / "mark"
    for attack in ATTACKS:
        assert not grade(dataset, entry, attack.format(mark=mark))
    assert not mark.exists()
    right = entry["answer"] or entry["metadata"].get("solution")
    if dataset == "puzzle24":  # its answer is said in words
        numbers = entry["metadata"]["numbers"]
        right = next(_twenty_four(numbers))
    assert grade(dataset, entry, str(right))


def _twenty_four(numbers: list[int]) -> Iterator[str]:
    for a, b, c, d in itertools.permutations(numbers):
        for f, g, h in itertools.product("+-*/", repeat=3):
            for text in (f"(({a}{f}{b}){g}{c}){h}{d}", f"({a}{f}{b}){g}({c}{h}{d})"):
                with contextlib.suppress(ZeroDivisionError):
                    if guarded_eval(text) == 24:
                        yield text


def test_an_answer_that_never_ends_is_ended() -> None:
    entry = reasoning_gym.create_dataset("countdown", size=1, seed=3)[0]
    assert not grade("countdown", entry, "9**9**9**9**9")


def grade(dataset: str, entry: object, answer: str) -> bool:
    material = json.dumps({"dataset": dataset, "entry": entry})
    problem = Problem(problem_id="1", domain="d", task="t", prompt="p", answer="", material=material)
    task = TaskConfig(name="t", domains=("d",))
    return ReasoningGym().grade(f"<answer>{answer}</answer>", problem, task).correct
