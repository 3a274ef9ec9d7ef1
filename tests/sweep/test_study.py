"""`study=NAME` on the line: what it stands for, what wins over it, and every way to type it wrongly."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest

from banpick_exp.errors import UserError
from banpick_exp.sweep.help import help_page
from banpick_exp.sweep.plan import plan_sweep
from banpick_exp.sweep.study import Study, beside, expanded, read_study, studies

LADDER = read_study("fixed_k_ladder")
NOW = datetime(2026, 1, 31, 9, 30)


def test_a_line_without_a_study_is_handed_back() -> None:
    line = ["+sweep=ban_pick", "model=tiny", "study"]
    assert expanded(line) == line


def test_the_word_stands_for_the_studys_settings() -> None:
    line = expanded(["study=fixed_k_ladder"])
    assert line[:3] == [*LADDER.arguments, "model=qwen3_30b_a3b"]
    assert set(LADDER.full) < set(line) and line[-1] == "sweep.name=fixed_k_ladder"


def test_the_tiny_size_asks_the_same_of_the_embedded_model() -> None:
    line = expanded(["study=fixed_k_ladder", "scale=tiny"])
    assert line == [*LADDER.arguments, "model=tiny", *LADDER.tiny, "sweep.name=fixed_k_ladder_tiny"]


@pytest.mark.parametrize("line", [["study=fixed_k_ladder", "seed=3"], ["seed=3", "study=fixed_k_ladder"]])
def test_what_is_typed_wins_wherever_it_stands(line: list[str]) -> None:
    typed = [*line, "policy.k=choice(4,6)", "task.max_tokens=64"]
    words = expanded(typed)
    assert [word for word in words if word.startswith("policy.k=")] == ["policy.k=choice(4,6)"]
    assert [word for word in words if word.startswith("task.max_tokens=")] == ["task.max_tokens=64"]
    assert "seed=3" in words and "policy=fixed_k" in words


def test_another_task_takes_all_of_the_studys_task_with_it() -> None:
    words = expanded(["study=fixed_k_ladder", "task=tiny"])
    assert [word for word in words if word.startswith("task")] == ["task=tiny"]
    assert "model=qwen3_30b_a3b" in words


def test_settings_beside_settings() -> None:
    assert beside(["task=jsonl", "task.split=dev", "seed=1"], ["task=tiny", "seed=2"]) == ["task=tiny", "seed=2"]
    assert beside(["+sweep=ban_pick", "sweep.name=a"], ["sweep.name=b"]) == ["+sweep=ban_pick", "sweep.name=b"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            ["study=fixed_k_lader"],
            ["study=fixed_k_lader is unknown", "Did you mean study=fixed_k_ladder?", "pick_auto"],
        ),
        (["study=nothing_like_it"], ["is unknown", f"Studies: {', '.join(studies())}."]),
        (["study=../sweeps/pick_auto"], ["is unknown"]),
        (["study=choice(pick_auto,iso_budget)"], ["names no single study", "once for each"]),
        (["study=pick_auto", "study=iso_budget"], ["study=pick_auto and study=iso_budget are both typed"]),
        (["scale=tiny"], ["scale=tiny", "none is named", "Type study=NAME"]),
        (["study=pick_auto", "scale=tny"], ["scale=tny is unknown", "Did you mean scale=tiny?", "qwen3_30b_a3b"]),
        (["study=pick_auto", "seed=1", "seed=2"], ["seed is typed twice"]),
        (["study=pick_auto", "modle=tiny"], ["modle is no setting", "Did you mean model"]),
        (["studdy=pick_auto"], ["studdy is no setting", "Did you mean study"]),
        (["study"], ["study has no value", "Did you mean study=VALUE?"]),
    ],
)
def test_a_mistake_is_said_before_anything_starts(line: list[str], words: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        plan_sweep([*line, "dry_run=true", f"output_dir={tmp_path}"])
    for word in words:
        assert word in str(raised.value)


@pytest.mark.parametrize("word", ["resume=x", "study=pick_auto", "output_dir=/x", "no setting"])
def test_a_study_holds_no_word_of_whoever_runs_it(word: str) -> None:
    values = LADDER.model_dump() | {"arguments": (word,)}
    with pytest.raises(ValueError, match="cannot stand in a study"):
        Study.model_validate(values)


def test_the_help_page_lists_every_study_with_its_question() -> None:
    page = help_page()
    assert all(f"  {name:<24}{read_study(name).purpose}" in page for name in studies())


# ---------------------------------------------------------------- run=NAME


def planned(tmp_path: Path, *more: str) -> tuple[str, bool]:
    """The name of the run's folder, and whether the run was begun before."""
    words = ["policy=fixed_k", "policy.k=4", "dry_run=true", f"output_dir={tmp_path}", *more]
    plan = plan_sweep(words, now=NOW)
    return plan.folder.path.name, plan.resume


def test_a_named_run_is_begun_and_then_gone_on_with(tmp_path: Path) -> None:
    assert planned(tmp_path) == ("20260131-093000", False)
    assert planned(tmp_path, "run=slurm-4711") == ("slurm-4711", False)
    plan = plan_sweep(["policy=fixed_k", "policy.k=4", f"output_dir={tmp_path}", "run=slurm-4711"], now=NOW)
    plan.folder.path.mkdir(parents=True)
    assert planned(tmp_path, "run=slurm-4711") == ("slurm-4711", False)  # killed before it wrote anything
    plan.folder.write_manifest(plan.manifest())
    assert planned(tmp_path, "run=slurm-4711") == ("slurm-4711", True)
    assert planned(tmp_path, "run=slurm-4711", "resume=slurm-4711") == ("slurm-4711", True)  # as a stopped run advises


def test_a_named_run_of_other_settings_is_refused(tmp_path: Path) -> None:
    plan = plan_sweep(["policy=fixed_k", "policy.k=4", f"output_dir={tmp_path}", "run=mine"], now=NOW)
    plan.folder.write_manifest(plan.manifest())
    with pytest.raises(UserError, match="max_tokens"):
        planned(tmp_path, "run=mine", "task.max_tokens=8")


@pytest.mark.parametrize("name", ["007", "2026", "1_0"])
def test_a_run_named_like_a_number_keeps_its_name(name: str, tmp_path: Path) -> None:
    assert planned(tmp_path, f"run={name}") == (name, False)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run=a", "resume=b"], "both name the run's folder"),
        (["run=../x"], "run=../x is not made of letters"),
        (["run=.hidden"], "run=.hidden is not made of letters"),
    ],
)
def test_a_run_has_one_plain_name(words: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        planned(tmp_path, *words)
    assert message in str(raised.value)
