"""A grader by dotted path: found without being imported, said in the plan, and part of the fingerprint."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from banpick_exp.errors import UserError
from banpick_exp.tasks.config import TaskConfig
from banpick_exp.tasks.files import inspect_task
from banpick_exp.tasks.graders.own import OwnGrader, own_grader
from banpick_exp.tasks.problem import Problem
from banpick_exp.tasks.registry import grader_of

SOURCE = """
def judged(completion, answers, row):
    seen.append((completion, answers, row))
    return row["material"]["least"] <= float(completion)
seen = []
def score(completion, answers, row):
    return 0.6 if completion in answers else 0.4
def broken(completion, answers, row):
    return 1 / 0
def silent(completion, answers, row):
    pass
def leaves(completion, answers, row):
    raise SystemExit(3)
def nan(completion, answers, row):
    return float("nan")
def percent(completion, answers, row):
    return 70
"""
SHAPES = {
    "two": ("c, a", False),
    "four": ("c, a, r, more", False),
    "keyword": ("c, a, r, *, more", False),
    "none": ("", False),
    "default": ("c, a, r, more=1, *, other=2", True),
    "star": ("*given", True),
    "one_and_star": ("c, *given", True),
}


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's, in a file of its own name: imports are for ever."""
    name = f"grader_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    own_grader.cache_clear()
    return name


def task_of(grader: str, **more: object) -> TaskConfig:
    return TaskConfig.model_validate(
        {"name": "jsonl", "domains": ["m"], "data_files": "x", "answer_separator": None, "grader": grader} | more
    )


PROBLEM = Problem("p", "m", "m", "?", "7", ("8",), material='{"least": 3}')


def test_it_judges(module: str) -> None:
    grader = grader_of(task_of(f"{module}:judged"))
    task = task_of(f"{module}:judged")
    assert grader.grade("4", PROBLEM, task).correct and not grader.grade("2", PROBLEM, task).correct
    row = {"problem_id": "p", "domain": "m", "task": "m", "prompt": "?", "material": {"least": 3}}
    assert sys.modules[module].seen == [("4", ["7", "8"], row), ("2", ["7", "8"], row)]
    score = grader_of(task_of(f"{module}:score"))
    assert score.grade("8", PROBLEM, task).correct and not score.grade("9", PROBLEM, task).correct


def test_planning_does_not_import_it_and_says_which_it_is(module: str, tmp_path: Path) -> None:
    (tmp_path / "m_test.jsonl").write_text('{"prompt": "?", "answer": "7"}\n')
    files = inspect_task(task_of(f"{module}:judged", data_files=f"{tmp_path}/{{domain}}_{{split}}.jsonl"))
    assert module not in sys.modules
    assert any(f"{module}.py" in note and "your own function" in note for note in files.notes)


def test_its_source_is_part_of_what_it_is(module: str, tmp_path: Path) -> None:
    before = OwnGrader(f"{module}:judged").identity()
    assert before == OwnGrader(f"{module}:judged").identity() != OwnGrader(f"{module}:score").identity()
    (tmp_path / f"{module}.py").write_text(SOURCE + "\n")
    assert OwnGrader(f"{module}:judged").identity() != before


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no_such_module_here:f", "there is no module 'no_such_module_here'"),
        ("no.such.module:f", "there is no module 'no.such.module'"),
        (":f", "there is no module ''"),
        ("{module}:absent", r"defines no 'absent'.*It has judged, score, broken, silent"),
        ("{module}:", "defines no ''"),
        ("{module}.py:judged", r"with dots and without \.py: task\.grader={module}:judged"),
        ("./{module}:judged", r"task\.grader={module}:judged"),
        ("{module}.judged", r"Did you mean task\.grader={module}:judged\?"),
        ("math:sqrt", "is no file of Python source"),
        ("mathverify", r"is no grader.*Did you mean math_verify\?.*or a function of your own as my_module:my_function"),
    ],
)
def test_what_is_no_grader(path: str, message: str, module: str) -> None:
    with pytest.raises(UserError, match=message.format(module=module)):
        grader_of(task_of(path.format(module=module)))


@pytest.mark.parametrize("name", SHAPES)
def test_a_function_that_cannot_be_called_is_known_before(name: str, module: str, tmp_path: Path) -> None:
    takes, whole = SHAPES[name]
    (tmp_path / f"{module}.py").write_text(f"def f({takes}):\n    return True\n")
    if whole:
        assert grader_of(task_of(f"{module}:f")).grade("4", PROBLEM, task_of(f"{module}:f")).correct
    else:
        with pytest.raises(UserError, match=r"line 1: f\(.*cannot be called with completion, answers and row"):
            grader_of(task_of(f"{module}:f"))


@pytest.mark.parametrize(("name", "message"), [("broken", "ZeroDivisionError"), ("silent", "returned None"),
                                               ("leaves", "SystemExit: 3"), ("nan", "returned nan"),
                                               ("percent", "returned 70")])  # fmt: skip
def test_an_error_in_it_is_no_wrong_answer(name: str, message: str, module: str) -> None:
    task = task_of(f"{module}:{name}")
    with pytest.raises(UserError, match=rf"asked about problem p of m.*{message}"):
        grader_of(task).grade("4", PROBLEM, task)


def test_a_source_that_may_not_be_read_is_said(module: str, tmp_path: Path) -> None:
    path = tmp_path / f"{module}.py"
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("root reads everything")
    with pytest.raises(UserError, match=r"cannot be read \(Permission denied\).*Make it readable"):
        grader_of(task_of(f"{module}:judged"))
