"""The questions of a run: those that were asked, or none."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from test_flips_section import HOSTILE, a_run, html_of

from banpick_exp.records import TaskUsed
from banpick_exp.report import asked
from banpick_exp.report.asked import questions_of
from banpick_exp.tasks.config import TaskConfig
from banpick_exp.tasks.files import inspect_task


def used(folder: Path, **settings: Any) -> TaskUsed:
    """A task as a record has it, with its files in the folder."""
    (folder / "math_test.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n{"prompt": "1+2=", "answer": "3"}\n')
    task = TaskConfig(
        name="jsonl", domains=("math",), data_files=f"{folder}/{{domain}}_{{split}}.jsonl", answer_separator=None
    )
    return TaskUsed.model_validate(task.model_dump(mode="json") | {"identity": inspect_task(task).identity} | settings)


def test_questions_are_those_of_the_files_that_were_asked(tmp_path: Path) -> None:
    assert questions_of(used(tmp_path)) == {
        ("math", "math-test-000000"): "1+1=", ("math", "math-test-000001"): "1+2=",
    }  # fmt: skip


def test_of_other_files_or_none_there_are_no_questions(tmp_path: Path) -> None:
    task = used(tmp_path, max_tokens=7)
    (tmp_path / "math_test.jsonl").write_text('{"prompt": "1+1=", "answer": "3"}\n')
    assert questions_of(task) == {}
    assert questions_of(used(tmp_path, data_files=f"{tmp_path}/gone_{{domain}}_{{split}}.jsonl")) == {}
    assert questions_of(TaskUsed.model_validate({"name": "nothing known", "split": "test"})) == {}


def test_a_report_runs_no_grader_of_the_runs_maker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "grader_of_theirs.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert questions_of(used(tmp_path, grader="grader_of_theirs:judge")) == {}
    assert "grader_of_theirs" not in sys.modules


def test_a_flip_shows_its_question_as_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = a_run(tmp_path)
    assert "The questions are not shown: the files of the task are not here" in html_of(run)
    some = {
        (str(d), str(i)): HOSTILE for f in run.outcomes.values() for d, i in f.select("domain", "problem_id").rows()
    }
    monkeypatch.setattr("banpick_exp.report.page.flips.questions_of", lambda _: some)
    html = html_of(run)
    assert html.count("<h5>asked</h5><pre>") == html.count('<details class="flip">') > 0
    assert "<img" not in html and "The questions are not shown" not in html
    assert asked.questions_of is questions_of
