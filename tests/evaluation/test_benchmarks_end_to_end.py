"""HumanEval and reasoning-gym, from their packages through an engine to the record, without a network.

The model is the embedded one, made longer: it knows neither, so scores are near 0. That a planted right answer counts
is shown with the same problems and grader: the right completions and a wrong one.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from banpick_exp.cluster.commands import tasks as tasks_command
from banpick_exp.models.inspect import EMBEDDED_CHECKPOINT
from banpick_exp.run_folder import RunFolder
from banpick_exp.tasks.load import load_problems
from banpick_exp.tasks.registry import grader_of

POSITIONS = 1024
"""HumanEval's first prompts have some 500 characters, which are its tokens."""
SECONDS = 300
PROBLEMS = 3


@pytest.fixture
def longer(tmp_path: Path) -> Path:
    """The embedded model for longer texts: its positions are rotated, so none has weights of its own."""
    folder = tmp_path / "longer"
    shutil.copytree(EMBEDDED_CHECKPOINT, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": POSITIONS}))
    return folder


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "typed", "fetched"),
    [
        ("humaneval", ["task.allow_code=true"], []),
        ("reasoning_gym", ["task.domains=[chain_sum,leg_counting]"], ["--domains", "chain_sum,leg_counting"]),
    ],
)
def test_a_benchmark_of_a_package(
    name: str, typed: list[str], fetched: list[str], longer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BANPICK_DATA", str(tmp_path / "data"))
    assert tasks_command.run(["fetch", name, *fetched]) == 0
    words = [f"model.path={longer}", f"task={name}", *typed, "policy=fixed_k", "policy.k=4", "cluster=inline"]
    words += ["task.chat_template=false", "task.max_tokens=16", f"task.max_problems={PROBLEMS}", "engine=tiny"]
    words += [f"engine.max_model_len={POSITIONS}", "task.speed_seconds=0.1", "tracking=none", "task.allow_zero=true"]
    command = [sys.executable, "-m", "banpick_exp", *words, f"output_dir={tmp_path}"]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=SECONDS, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout
    (manifest,) = (tmp_path / "custom").glob("*/run.json")
    records, set_aside = RunFolder(manifest.parent).load_points()
    assert set_aside == [] and [record.status for record in records] == ["done", "done"], done.stdout

    task = tasks_command.task_of(name).model_copy(update={"chat_template": False})
    update = {word.split("=")[0].removeprefix("task."): True for word in typed if word.endswith("=true")}
    task = task.model_copy(update=update if name == "humaneval" else {"domains": ("chain_sum", "leg_counting")})
    for record in records:
        outcomes = RunFolder(manifest.parent).outcomes(record.fingerprint)
        assert outcomes["correct"].sum() < len(outcomes), "the embedded model knows neither"
    for problems in load_problems(task, "test", PROBLEMS).values():
        right = [problem.response or f"<answer>{problem.answer}</answer>" for problem in problems]
        grades = grader_of(task).grade_all([*zip(right, problems, strict=True), ("nothing", problems[0])], task)
        assert [grade.correct for grade in grades] == [True] * len(problems) + [False]
