"""`grade`: a finished run graded again from its completions; the run stays as it was, the copy reads like any other."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import polars as pl
import pytest
from synthetic_run import DOMAINS, SyntheticRun

from banpick_exp.cluster.commands.grade import run as grade
from banpick_exp.errors import UserError
from banpick_exp.manifest import Manifest
from banpick_exp.report.run import require_run
from banpick_exp.run_folder import RunFolder
from banpick_exp.tasks.config import TaskConfig
from banpick_exp.tasks.files import inspect_task
from banpick_exp.tasks.sandbox.available import available
from banpick_exp.tasks.sandbox.sandbox import Sandbox

EACH = 12


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """Stock and a policy: what is wrong in math is right but for how it is written, elsewhere it is wrong."""
    made = SyntheticRun(problems=EACH)
    made.add("none")
    made.add("top_p", {"p": 0.8}, kept=4, shift={"math": -0.25, "code": -0.25})
    for domain in DOMAINS:
        rows = [i for i, each in enumerate(made.domains) if each == domain]
        lines = [json.dumps({"id": f"p{i:05d}", "prompt": f"{i}?", "answer": str(i)}) for i in rows]
        (tmp_path / f"{domain}_test.jsonl").write_text("\n".join(lines) + "\n")
    task = TaskConfig(
        name="mine", domains=DOMAINS, data_files=f"{tmp_path}/{{domain}}_{{split}}.jsonl", answer_separator=None
    )
    identity = inspect_task(task).identity
    for index, (record, outcomes) in enumerate(list(made.points)):
        made.change(record, task={**task.model_dump(mode="json"), "identity": identity})
        assert outcomes is not None
        made.points[index] = (
            made.points[index][0],
            [
                dataclasses.replace(each, completion=text, answer=text, gold=str(i))
                for i, each in enumerate(outcomes)
                for text in [str(i) if each.correct else rf"\boxed{{{i}.0}}" if each.domain == "math" else "?"]
            ],
        )
    folder = tmp_path / "sweep" / "run"
    RunFolder(folder).write_manifest(Manifest(sweep="sweep", tasks={identity: "mine"}, command="python -m banpick_exp"))
    return made.write(folder)


RIGHT, WRONG = "def double(x):\n    return 2 * x", "def double(x):\n    while True: pass"


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A run whose completions are programs, right in the first half of each domain; all counted as wrong till now."""
    made = SyntheticRun(problems=2, accuracy=0.0)
    made.add("none")
    test = {"kind": "call", "entry_point": "double", "test": "assert double(2) == 4", "seconds": 1}
    for domain in DOMAINS:
        rows = [i for i, each in enumerate(made.domains) if each == domain]
        lines = [json.dumps({"id": f"p{i:05d}", "prompt": f"{i}?", "answer": "none", "material": test}) for i in rows]
        (tmp_path / f"{domain}_test.jsonl").write_text("\n".join(lines) + "\n")
    files = f"{tmp_path}/{{domain}}_{{split}}.jsonl"
    # Permitted when it ran: that is no permission to whoever grades it again.
    task = TaskConfig(name="mine", domains=DOMAINS, data_files=files, answer_separator=None, allow_code=True)
    ((record, outcomes),) = made.points
    assert outcomes is not None
    identity = inspect_task(task).identity
    made.change(record, task={**task.model_dump(mode="json"), "identity": identity})
    seen: dict[str, int] = {}
    answers = []
    for each in outcomes:
        seen[each.domain] = seen.get(each.domain, 0) + 1
        text = f"Here it is:\n```python\n{RIGHT if seen[each.domain] == 1 else WRONG}\n```"
        answers.append(dataclasses.replace(each, completion=text, answer=text, gold="none"))
    made.points[0] = (made.points[0][0], answers)
    folder = tmp_path / "sweep" / "run"
    RunFolder(folder).write_manifest(Manifest(sweep="sweep", tasks={identity: "mine"}, command="python -m banpick_exp"))
    return made.write(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_is_graded_again_and_stays_as_it_was(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(finished)
    assert grade([str(finished), "task.grader=math_verify"]) == 0
    said = capsys.readouterr().out
    assert "answer(s) right now, 0 wrong now" in said and "right is '" in said and "Nothing was written" in said
    assert contents(finished) == before and not (finished.parent / "run-math_verify").exists()


def test_the_copy_reads_like_any_other(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(finished)
    assert grade([str(finished), "task.grader=math_verify", "--write"]) == 0
    capsys.readouterr()
    assert contents(finished) == before
    old, new = require_run(str(finished)), require_run(str(finished.parent / "run-math_verify"))
    assert not new.left_out and len(new.records) == len(old.records) == 2
    by_label = {record.label: record for record in old.records}
    for record in new.records:
        was = by_label[record.label]
        assert record.measured.domains["math"].accuracy == 1.0 > was.measured.domains["math"].accuracy
        assert record.measured.domains["code"].accuracy == was.measured.domains["code"].accuracy
        assert record.measured.domains["math"].delta == 0 and record.mean_kept == was.mean_kept
        assert record.fingerprint != was.fingerprint and record.task.plain()["grader"] == "math_verify"
        assert "math-verify" in record.versions and record.task.identity != was.task.identity
        assert str(record.command).endswith("task.grader=math_verify")
    assert new.verdicts.height > 0, "paired with stock and the ladder as ever"
    with pytest.raises(UserError, match="is there already, and a graded run is never written over"):
        grade([str(finished), "task.grader=math_verify", "--write"])


def test_by_the_same_grader_nothing_flips(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert grade([str(finished), "task.grader=exact_match"]) == 0
    assert capsys.readouterr().out.count("(0 answer(s) right now, 0 wrong now)") == 2


def test_another_mark(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert grade([str(finished), r"task.answer_pattern=boxed\{(\d+)"]) == 0
    said = capsys.readouterr().out
    assert "right now" in said and "'' , right is" not in said and "wrong now, '0' -> ''" in said


def test_programs_are_run_where_that_is_permitted(programs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not isinstance(found := available(), Sandbox):
        pytest.skip(found)
    assert grade([str(programs), "task.grader=code", "task.allow_code=true", "--write", "--all"]) == 0
    said = capsys.readouterr().out
    assert "0.0 % -> 50.0 %" in said and f"({len(DOMAINS)} answer(s) right now, 0 wrong now)" in said
    (new,) = (run := require_run(str(programs.parent / "run-code"))).records
    outcomes = run.outcomes[new.fingerprint]
    assert outcomes.group_by("domain").agg(pl.col("correct").sum())["correct"].to_list() == [1] * len(DOMAINS)
    assert outcomes["found"].all() and "grader_timeout" not in outcomes.columns, "an endless loop is a wrong answer"
    assert new.task.plain()["grader"] == "code"


def test_programs_are_not_run_because_they_were_once(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sandbox, "run", lambda *_, **__: pytest.fail("nothing is run"))
    before = contents(programs)
    for words in ([], ["task.allow_code=false"]):
        with pytest.raises(UserError, match=r"would execute model-written code.*Type task\.allow_code=true to permit"):
            grade([str(programs), "task.grader=code", *words])
    assert contents(programs) == before


def test_without_the_files_the_kept_answers_do(
    finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = finished.parent.parent / "math_test.jsonl"
    path.write_text(path.read_text() + "\n")
    assert grade([str(finished), "task.grader=numeric"]) == 0
    assert "right answers are those kept with the outcomes, because of the files: their content has changed" in (
        capsys.readouterr().out
    )
    with pytest.raises(UserError, match=r"has the right answer '.*' is no letter"):
        grade([str(finished), "task.grader=choice"])
    (finished.parent.parent / "own_rules.py").write_text("def judged(completion, answers, row): return True\n")
    monkeypatch.syspath_prepend(str(finished.parent.parent))
    with pytest.raises(UserError, match=r"own_rules:judged needs more of them than their right answers"):
        grade([str(finished), "task.grader=own_rules:judged"])


def test_files_that_were_moved_are_typed(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (finished.parent.parent / "moved").mkdir()
    for domain in DOMAINS:
        shutil.move(finished.parent.parent / f"{domain}_test.jsonl", finished.parent.parent / "moved")
    moved = f"task.data_files={finished.parent.parent}/moved/{{domain}}_{{split}}.jsonl"
    assert grade([str(finished), "task.grader=numeric", moved]) == 0
    assert "note:" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "grade takes one RUN and what to grade it with"),
        (["task.grader=mathverify"], r"is no grader.*Did you mean math_verify"),
        (["task.grader=choice"], "which is no letter"),
        (["task.temperature=1"], r"task.temperature=1: a run is graded again from the answers it has"),
        (["task.grader=numeric", "more"], "grade takes one RUN"),
    ],
)
def test_what_cannot_be_graded_so(words: list[str], message: str, finished: Path) -> None:
    before = contents(finished)
    with pytest.raises(UserError, match=message):
        grade([str(finished), *words])
    assert contents(finished) == before


@pytest.mark.parametrize(
    ("words", "near"),
    [
        (["{run}x", "task.grader=numeric"], "Did you mean {run}"),
        (["{run}", "task.grdaer=numeric"], "Did you mean task.grader"),
        (["{run}", "--wirte", "task.grader=numeric"], "Did you mean --write"),
        (["{run}", "task.grader=numerc"], "Did you mean numeric"),
    ],
)
def test_a_word_that_is_nearly_right_is_named(words: list[str], near: str, finished: Path) -> None:
    with pytest.raises(UserError, match=re.escape(near.format(run=finished))):
        grade([word.format(run=finished) for word in words])


def test_a_run_that_cannot_be_opened_is_named(finished: Path) -> None:
    path = RunFolder(finished).record_files()[0]
    path.unlink()
    path.symlink_to(finished / "unmounted" / path.name)
    with pytest.raises(UserError, match=rf"{path.name} cannot be opened .*Mount the disk"):
        grade([str(finished), "task.grader=numeric"])
