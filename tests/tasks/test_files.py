"""Files of problems: which they are, that the bytes hashed are the bytes asked, and that a path is a name."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from banpick_exp.errors import UserError
from banpick_exp.tasks.config import TaskConfig
from banpick_exp.tasks.files import inspect_task
from banpick_exp.tasks.load import load_problems

LINE = '{"prompt": "1+1=", "answer": "2"}\n'


def task_of(folder: Path, *domains: str, name: str = "jsonl", **settings: Any) -> TaskConfig:
    files = f"{folder}/{{domain}}_{{split}}.jsonl"
    return TaskConfig(
        name=name, domains=domains or ("math",), data_files=files, **{"answer_separator": None} | settings
    )


def write_problems(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_text('{"prompt": "1+1=", "answer": "2"}\n\n{"prompt": "1+2=", "answer": "3"}\n')


def test_local_problems_are_counted_and_hashed(tmp_path: Path) -> None:
    write_problems(tmp_path, "a_test.jsonl", "b_test.jsonl")
    task = task_of(tmp_path, "a", "b", name="my own")
    before = inspect_task(task)
    assert before.problems == {"a": 2, "b": 2}
    (tmp_path / "a_test.jsonl").write_text('{"prompt": "1+1=", "answer": "3"}\n')
    assert inspect_task(task).identity != before.identity


def test_the_identity_of_files_is_what_it_was() -> None:
    """Golden: every result of an earlier version is known by these."""
    embedded = TaskConfig(name="tiny", domains=("math", "code", "knowledge"))
    assert inspect_task(embedded).identity == "98b75f00c7420dde"
    assert inspect_task(embedded, "calibration").identity == "61510f0425aeb4bf"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{domain}.jsonl", "has no {split}"),
        ("{split}.jsonl", "has no {domain}"),
        ("{domain}_{split}_{size}.jsonl", "'size'"),
        ("{domain}_{split}_{}.jsonl", "asks for ''"),
        ("{domain.x}_{split}.jsonl", "'domain.x'"),
        ("{domain:d}_{split}.jsonl", "stand as they are"),
        ("{domain!r}_{split}.jsonl", "stand as they are"),
        ("{domain}_{split.jsonl", "no path template"),
        ("{domain}_{split}.jsonl", "there is no file"),
        ("{domain}_{split}" + "x" * 300, "cannot be read"),
        ("{domain}_{split}\0", "there is no file"),
        ("folder_{domain}_{split}.jsonl", "is no plain file"),
        ("empty_{domain}_{split}.jsonl", "is empty"),
        ("wrong_{domain}_{split}.jsonl", 'line 1 has no "prompt"'),
    ],
)
def test_data_files_that_cannot_be_read_are_refused(tmp_path: Path, template: str, words: str) -> None:
    for domain in "ab":
        (tmp_path / f"empty_{domain}_test.jsonl").write_text("\n")
        (tmp_path / f"wrong_{domain}_test.jsonl").write_text('{"question": 1}\n')
        (tmp_path / f"folder_{domain}_test.jsonl").mkdir()
    with pytest.raises(UserError) as caught:
        inspect_task(TaskConfig(name="x", domains=("a", "b"), data_files=f"{tmp_path}/{template}"))
    assert words in str(caught.value)


def test_a_domain_of_a_typo_is_told_which_there_are(tmp_path: Path) -> None:
    for name in ("math_test.jsonl", "code_test.jsonl", "math_dev.jsonl", "_test.jsonl", "notes.txt"):
        (tmp_path / name).write_text('{"prompt": "1+1=", "answer": "2"}\n')

    def refusal(template: str) -> str:
        with pytest.raises(UserError) as caught:
            inspect_task(TaskConfig(name="jsonl", domains=("mth",), data_files=template))
        return str(caught.value)

    message = refusal(f"{tmp_path}/{{domain}}_{{split}}.jsonl")
    assert "Did you mean task.domains=[math]? Of split test there are files for code, math. Put it" in message
    for template in ("{domain}/{split}.jsonl", "{domain}_{domain}_{split}.jsonl", "absent/{domain}_{split}.jsonl"):
        assert "there are files" not in refusal(f"{tmp_path}/{template}")


def test_an_unknown_home_is_no_traceback() -> None:
    with pytest.raises(UserError, match="cannot be looked up"):
        inspect_task(TaskConfig(name="x", domains=("a",), data_files="~nobody_here/{domain}_{split}.jsonl"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read_is_said(tmp_path: Path) -> None:
    write_problems(tmp_path, "math_test.jsonl")
    (tmp_path / "math_test.jsonl").chmod(0)
    with pytest.raises(UserError, match="cannot be read"):
        inspect_task(task_of(tmp_path))


@pytest.mark.parametrize("name", ["p [1]", "q::x", "a*b", "what?", "[ab]", "{{x}}", "hf:", "ü é", "it's"])
def test_a_path_is_a_name(tmp_path: Path, name: str) -> None:
    """Case A9: a folder `a*b` is that folder, and its neighbour `aXb` is not read."""
    (tmp_path / "aXb").mkdir()
    write_problems(tmp_path / "aXb", "math_test.jsonl")
    folder = tmp_path / name.format()
    folder.mkdir()
    (folder / "math_test.jsonl").write_text(LINE)
    assert len(load_problems(task_of(tmp_path / name), "test")["math"]) == 1


def test_a_file_replaced_within_its_time_stamp_is_asked_as_it_is(tmp_path: Path) -> None:
    """Case A7: cp -p, rsync -t and tar keep the time; so does this."""
    path, task, seen = tmp_path / "math_test.jsonl", task_of(tmp_path), {}
    for answer in ("11", "22"):
        path.write_text(f'{{"prompt": "1+1=", "answer": "{answer}"}}\n')
        os.utime(path, (1_700_000_000, 1_700_000_000))
        seen[inspect_task(task).identity] = load_problems(task, "test")["math"][0].answer
    assert list(seen.values()) == ["11", "22"]


def test_a_few_repeats_are_said_and_do_not_change_what_is_asked(tmp_path: Path) -> None:
    lines = [f'{{"prompt": "{n}", "answer": "2"}}\n' for n in range(40)]
    (tmp_path / "a_test.jsonl").write_text("".join([*lines, lines[3]]))
    (tmp_path / "b_test.jsonl").write_text("".join(line.replace('"prompt": "', '"prompt": "b') for line in lines))
    found = inspect_task(task_of(tmp_path, "a", "b"))
    (note,) = found.notes
    assert "1 of 41 problems" in note and "a_test.jsonl" in note and "a-test-000040" in note and "too narrow" in note
    assert found.problems == {"a": 41, "b": 40}
    (tmp_path / "a_test.jsonl").write_text("".join(lines))
    assert inspect_task(task_of(tmp_path, "a", "b")).notes == ()
    (tmp_path / "b_test.jsonl").write_text("".join(lines[:5]))
    (note,) = inspect_task(task_of(tmp_path, "a", "b")).notes
    assert "5 of 5 problems" in note and "asked in domain a too" in note


def test_only_answers_beyond_ascii_are_known_anew(tmp_path: Path) -> None:
    """They are compared in NFC now: results from before must not be taken for today's; no others changed."""
    path, task = tmp_path / "math_test.jsonl", task_of(tmp_path)
    for answer, kept in (("2", True), ("K", True), ("\u00e9", False), ("e\u0301", False)):
        path.write_text(f'{{"prompt": "é", "answer": "{answer}"}}\n')
        data = path.read_bytes()
        before = hashlib.sha256(f"math\0{len(data)}\0".encode() + data).hexdigest()[:16]
        assert (inspect_task(task).identity == before) == kept
    path.write_text(LINE)
    marks: list[dict[str, Any]] = [{"answer_separator": "é"}, {"answer_pattern": "é (.+)"}]
    for mark in marks:
        assert inspect_task(task_of(tmp_path, **mark)).identity != inspect_task(task).identity, "they are found in NFC"


def test_a_file_that_is_not_there_for_what_nobody_sees_is_told_why(tmp_path: Path) -> None:
    write_problems(tmp_path, "math_test.jsonl")
    with pytest.raises(UserError, match=r"holds U\+200B ZERO WIDTH SPACE, which nobody sees: type '.*math\\u200b_test"):
        inspect_task(task_of(tmp_path, "math\u200b"))


def test_problems_that_changed_since_the_plan_are_not_asked(tmp_path: Path) -> None:
    path, task = tmp_path / "math_test.jsonl", task_of(tmp_path)
    path.write_text(LINE)
    planned = inspect_task(task).identity
    assert load_problems(task, "test", identity=planned)["math"][0].answer == "2"
    path.write_text(LINE.replace('"2"', '"3"'))
    with pytest.raises(UserError, match=r"has changed since the sweep was planned"):
        load_problems(task, "test", identity=planned)


def test_the_limit_keeps_file_order(tmp_path: Path) -> None:
    write_problems(tmp_path, "math_test.jsonl")
    assert [problem.prompt for problem in load_problems(task_of(tmp_path), "test", 1)["math"]] == ["1+1="]
    assert len(load_problems(task_of(tmp_path), "test", 5)["math"]) == 2
    assert load_problems(task_of(tmp_path), "test")["math"][1].problem_id == "math-test-000001"


def test_embedded_tasks_offer_their_own_names() -> None:
    with pytest.raises(UserError, match=r"task\.domains=maths .*Did you mean math\?"):
        inspect_task(TaskConfig(name="tiny", domains=("maths",)))
    with pytest.raises(UserError, match=r"task\.split=train .*calibration, dev, test"):
        inspect_task(TaskConfig(name="tiny", domains=("math",), split="train"))


def test_reading_problems_writes_nothing_and_loads_nothing_heavy(tmp_path: Path) -> None:
    """Case A12: a home that cannot be written is no hindrance, because nothing is written there."""
    write_problems(tmp_path, "math_test.jsonl")
    (tmp_path / "home").mkdir()
    code = f"""
import sys
from banpick_exp.tasks.config import TaskConfig
from banpick_exp.tasks.load import load_problems
load_problems(TaskConfig(name="tiny", domains=("math",)), "test")
files = {str(tmp_path)!r} + "/{{domain}}_{{split}}.jsonl"
load_problems(TaskConfig(name="jsonl", domains=("math",), data_files=files), "test")
print(sorted(set(sys.modules) & {{"datasets", "polars", "torch", "transformers", "pyarrow", "tokenizers"}}))
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "XDG_"))}
    found = subprocess.run(
        [sys.executable, "-B", "-c", code],
        env=environment | {"HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout == "[]\n"
    assert not list((tmp_path / "home").iterdir())
