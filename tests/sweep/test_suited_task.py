"""A real model without a task: refused with what suits it, or asked its default by a shipped sweep."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from checkpoint_folder import write_checkpoint

from banpick_exp.errors import UserError
from banpick_exp.models.inspect import EMBEDDED_CHECKPOINT
from banpick_exp.sweep import suited_task
from banpick_exp.sweep.compose import Composer, choices
from banpick_exp.sweep.plan import SweepPlan, plan_sweep
from banpick_exp.sweep.rerun import rerun_command

MODELS = [name for name in choices("model") if name not in ("tiny", "tiny_control")]
OWN = ["policy=fixed_k", "policy.k=1"]
QWEN = "model=qwen3_30b_a3b"


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The tasks that an installation has, to be filled by a test; a stand-in for each is the embedded one's file."""
    names = {"tiny", "jsonl"}
    real = suited_task.choices
    monkeypatch.setattr(suited_task, "choices", lambda group: sorted(names) if group == "task" else real(group))
    return names


def plan(tmp_path: Path, *words: str) -> SweepPlan:
    return plan_sweep([*words, "dry_run=true", f"output_dir={tmp_path / 'out'}"])


def refusal(tmp_path: Path, *words: str) -> str:
    with pytest.raises(UserError) as raised:
        plan(tmp_path, *words)
    return str(raised.value)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_suggests_three_benchmarks(name: str, tmp_path: Path) -> None:
    typed = {"model": name} | ({"model.path": str(write_checkpoint(tmp_path / "m"))} if name == "local" else {})
    suggested = Composer().setting(typed).model.suggested_tasks
    assert len(set(suggested)) == len(suggested) == 3
    assert set(suggested) <= set(choices("task")) - {"tiny", "jsonl", "mathqa", "lm_eval"}


def test_a_line_without_a_task_is_refused_with_three_that_suit(tmp_path: Path, tasks: set[str]) -> None:
    tasks |= {"math500", "aime24", "gpqa_diamond", "mbpp_plus"}
    said = refusal(tmp_path, *OWN, QWEN)
    assert "model=qwen3_30b_a3b and no task" in said and "nothing was started" in said
    assert "Type one that suits it: task=math500, task=aime24, task=gpqa_diamond; or problems of your own" in said
    assert "mbpp_plus" not in said


def test_what_is_not_installed_is_not_offered(tmp_path: Path, tasks: set[str]) -> None:
    for words in ([*OWN, QWEN], ["+sweep=ban_threshold", QWEN]):
        assert "Type problems of your own: task=jsonl" in refusal(tmp_path, *words)
    tasks.add("aime24")
    assert "Type one that suits it: task=aime24; or" in refusal(tmp_path, *OWN, QWEN)


def test_a_folder_of_ones_own_is_refused_too(tmp_path: Path, tasks: set[str]) -> None:
    tasks.add("gsm8k")
    folder = write_checkpoint(tmp_path / "my-moe")
    assert "task=gsm8k" in refusal(tmp_path, *OWN, f"model.path={folder}")
    assert plan(tmp_path, *OWN, f"model.path={folder}", "task=tiny").points


def test_one_trained_like_the_embedded_model_is_asked_the_same(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "mine")
    shutil.copy(EMBEDDED_CHECKPOINT / "tokenizer.json", folder)
    assert plan(tmp_path, *OWN, f"model.path={folder}").points[0].task.name == "tiny"


@pytest.mark.parametrize("words", [["task=tiny"], ["task.name=tiny"], ["sweep.params=['task=tiny']"]])
def test_what_is_typed_is_asked(words: list[str], tmp_path: Path) -> None:
    assert plan(tmp_path, *OWN, QWEN, *words).points[0].task.name == "tiny"


def test_a_shipped_sweep_asks_the_models_default_and_says_so(tmp_path: Path, tasks: set[str]) -> None:
    """The default is one that this installation has: the embedded task here, suggested by name."""
    words = ["+sweep=ban_threshold", QWEN, "model.suggested_tasks=[not_there,tiny]"]
    found = plan(tmp_path, *words)
    assert "no task was typed, so task=tiny is asked, which suits the model: type another to change that" in found.notes
    assert {point.settings["task"] for point in found.points} == {"tiny"}
    again = rerun_command(found.command, found.points[-1]).split()
    assert "task=tiny" in again, "a line without a sweep must name it"
    typed = plan(tmp_path, *words, "task=tiny")
    assert [point.fingerprint for point in typed.points] == [point.fingerprint for point in found.points]
    assert not [note for note in typed.notes if "no task was typed" in note]


def test_models_of_different_defaults_need_a_task(tmp_path: Path, tasks: set[str]) -> None:
    tasks |= {"math500", "gsm8k"}
    said = refusal(tmp_path, "+sweep=ban_threshold", "model=choice(qwen3_30b_a3b,olmoe)")
    assert "task=math500, task=gsm8k" in said
    assert "no task" in refusal(tmp_path, "+sweep=ban_threshold", "model=choice(tiny,qwen3_30b_a3b)")


def test_the_embedded_model_is_asked_its_own(tmp_path: Path) -> None:
    for model in ("tiny", "tiny_control"):
        found = plan(tmp_path, *OWN, f"model={model}")
        assert "task" not in found.points[0].settings and found.points[0].task.name == "tiny"
