"""Exact match: what is found in a completion, and that nothing found is never right."""

from __future__ import annotations

from typing import Any

import pytest

from banpick_exp.config import validated
from banpick_exp.errors import UserError
from banpick_exp.tasks.config import TaskConfig
from banpick_exp.tasks.graders.exact_match import extract_answer
from banpick_exp.tasks.graders.grader import Grade
from banpick_exp.tasks.graders.registry import GRADERS
from banpick_exp.tasks.problem import Problem


def task_of(**settings: Any) -> TaskConfig:
    return TaskConfig(**{"name": "jsonl", "domains": ("math",), "data_files": "x", "answer_separator": None} | settings)


@pytest.mark.parametrize(
    ("settings", "completion", "text", "found"),
    [
        ({}, " 42\n", "42", True),
        ({}, "", "", True),
        ({"answer_separator": ";"}, "1;2; 3 ", "3", True),
        ({"answer_separator": ";"}, "1;", "", True),
        ({"answer_separator": ";"}, "116", "116", False),
        ({"answer_separator": "####"}, "so it is 5", "so it is 5", False),
        ({"answer_pattern": "is (\\d+)"}, "is 3 or is 4", "4", True),
        ({"answer_pattern": "is (\\d*)"}, "is x", "", True),
        ({"answer_pattern": "nomatch (.+)"}, "is 3", "", False),
        ({"answer_pattern": "is (\\d+)", "answer_separator": ";"}, "1;2", "", False),
    ],
)
def test_what_is_found_in_a_completion(settings: dict[str, Any], completion: str, text: str, found: bool) -> None:
    assert extract_answer(completion, task_of(**settings)) == (text, found)


def grade(completion: str, *answers: str, **settings: Any) -> Grade:
    problem = Problem("p", "math", "math", "?", answers[0], answers[1:])
    return GRADERS["exact_match"].grade(completion, problem, task_of(**settings))


def test_any_of_several_answers_is_right() -> None:
    assert grade(" 0.5 ", "1/2", "0.5").correct
    assert not grade("1/3", "1/2", "0.5").correct


def test_not_found_is_told_from_empty_and_never_right() -> None:
    assert grade("x", "1", answer_pattern="a (.+)") == Grade(answer="", found=False, correct=False)
    assert grade("a ;", "1", answer_separator=";") == Grade(answer="", found=True, correct=False)


def test_an_answer_without_steps_needs_no_separator() -> None:
    """So the embedded tasks answer their short problems; it is graded as ever, and recorded as not found."""
    assert grade("116", "116", answer_separator=";") == Grade(answer="116", found=False, correct=True)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"answer_separator": ""}, "Type task.answer_separator=null"),
        ({"domains": ["overall"]}, "task.domains names overall"),
        ({"domains": ["math", "solved", "calibrations"]}, "task.domains names calibrations, solved"),
        ({"domains": [" "]}, "an empty name"),
        ({"domains": []}, "task.domains=[] is empty"),
        ({"answer_separator": "#\u200b#"}, "U+200B ZERO WIDTH SPACE"),
        ({"answer_pattern": "\ufeffis (.+)"}, "U+FEFF"),
        ({"answer_separator": "R\u00e9ponse\u00a0:"}, "can name it by its escape, such as \\u00a0"),
        ({"answer_separator": "\r\n"}, "U+000D"),
        ({"answer_separator": "re\u0301ponse:"}, "Type task.answer_separator='r\u00e9ponse:'"),
        ({"answer_pattern": "re\u0301ponse: (.+)"}, "Type task.answer_pattern='r\u00e9ponse: (.+)'"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        validated(TaskConfig, {"name": "x", "domains": ["math"]} | settings, "task")
    assert words in str(caught.value)


def test_a_name_that_is_none_is_one_mistake() -> None:
    with pytest.raises(UserError) as caught:
        validated(TaskConfig, {"name": "x", "domains": [None]}, "task")
    assert "task.domains.0=null is not a text" in str(caught.value) and "empty" not in str(caught.value)


def test_marks_are_found_in_either_encoding_and_escapes_stay_possible() -> None:
    for accent in ("r\u00e9ponse", "re\u0301ponse"):
        assert extract_answer(f"{accent}: 5", task_of(answer_separator="r\u00e9ponse:")) == ("5", True)
        assert extract_answer(f"{accent}: 5", task_of(answer_pattern="r\u00e9ponse: (.+)")) == ("5", True)
    assert extract_answer("R\u00e9ponse\u00a0: 5", task_of(answer_pattern=r"R\u00e9ponse\u00a0: (.+)")) == ("5", True)
    assert extract_answer("\u200b5", task_of(answer_pattern=r"\u200b(.+)")) == ("5", True)
    assert extract_answer("is 3\u212a", task_of(answer_separator="is")) == ("3\u212a", True), "judged as ever"
