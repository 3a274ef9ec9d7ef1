"""What a policy is calibrated on for a task of lm-eval: a split of the task that is not the one that is asked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from lm_eval_tasks import CAPITALS, CHOICES, GENERATION, LIKELIHOOD, SUMS, keep_to, write_task

from banpick_exp.errors import UserError
from banpick_exp.sweep.plan import plan_sweep
from banpick_exp.tasks.config import TaskConfig
from banpick_exp.tasks.files import inspect_task
from banpick_exp.tasks.harness import calibrating
from banpick_exp.tasks.harness.building import build, said
from banpick_exp.tasks.harness.place import CALIBRATION, problems_path
from banpick_exp.tasks.problem import Problem

pytest.importorskip("lm_eval")

LEARNT = [
    {"country": "Poland", "cities": ["Warsaw", "Gdansk"], "gold": 0},
    {"country": "Greece", "cities": ["Patras", "Athens"], "gold": 1},
    {"country": "Turkey", "cities": ["Izmir", "Ankara", "Konya"], "gold": 1},
]
MORE = [{"question": f"m:{a}+7=", "answer": str(a + 7)} for a in range(1, 7)]
RULE = ["policy=ban_pick", "policy.lambda=0.6", "policy.key_experts=4", "tracking=none", "dry_run=true"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    keep_to(tmp_path, monkeypatch)
    return tmp_path


def task_with(
    folder: Path, text: str, rows: Sequence[Mapping[str, Any]], learnt: Sequence[Mapping[str, Any]], key: str = "train"
) -> Path:
    """A task that has another split, with data of its own."""
    data = folder / "other.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in learnt))
    kind = {"train": "training_split", "val": "validation_split", "dev": "fewshot_split"}[key]
    text = text.replace("{test: DATA}", f"{{test: DATA, {key}: {data}}}")
    return write_task(folder, "task", text.replace("test_split: test", f"test_split: test\n{kind}: {key}"), rows)


def calibrated_on(path: Path) -> list[Problem]:
    task = TaskConfig.model_validate({"name": str(path), "source": "lm_eval", "answer_separator": None})
    (problems,) = inspect_task(task, CALIBRATION).loaded.values()
    return list(problems)


@pytest.mark.parametrize("key", ["train", "val", "dev"])
def test_choices_give_their_right_choice(key: str, folder: Path) -> None:
    path = task_with(folder, CHOICES.replace("num_fewshot: 1", "num_fewshot: 0"), CAPITALS, LEARNT, key)
    built = build(str(path))
    assert built.problems == len(CAPITALS) and built.calibration == f"3 problems of its split {key} to calibrate on"
    assert built.calibration in said("task", built)
    problems = calibrated_on(path)
    assert [(each.prompt, each.response, each.answer) for each in problems] == [
        ("The capital of Poland is", " Warsaw", "Warsaw"),
        ("The capital of Greece is", " Athens", "Athens"),
        ("The capital of Turkey is", " Ankara", "Ankara"),
    ]
    assert not any(each.choices for each in problems), "an engine writes its own answer behind them, too"


def test_examples_that_give_the_answer_away_are_left_out(folder: Path) -> None:
    """One example of a split of three: the two others have it in front, and it has itself or another."""
    path = task_with(folder, CHOICES, CAPITALS, LEARNT[:1])
    built = build(str(path))
    assert "no problem of lm-eval's split train has a text and a right answer" in built.calibration
    path = task_with(folder, CHOICES, CAPITALS, LEARNT)
    build(str(path))
    problems = calibrated_on(path)
    assert problems and all(each.prompt.count(each.prompt.rpartition("\n\n")[2]) == 1 for each in problems)
    assert all(each.prompt.count("The capital of") == 2 for each in problems), "asked as the others are: one example"


def test_a_task_that_writes_gives_its_target(folder: Path) -> None:
    path = task_with(folder, GENERATION, SUMS, MORE)
    build(str(path))
    problems = calibrated_on(path)
    assert [(each.prompt, each.response) for each in problems] == [(r["question"], f" {r['answer']}") for r in MORE]
    assert {each.stop for each in problems} == {("\n", "!")}


def test_a_task_of_one_continuation_gives_it(folder: Path) -> None:
    path = task_with(folder, LIKELIHOOD.replace("doc_to_target:", 'target_delimiter: ""\ndoc_to_target:'), SUMS, MORE)
    build(str(path))
    assert [(each.prompt, each.response) for each in calibrated_on(path)] == [
        (r["question"], r["answer"]) for r in MORE
    ]


def test_what_is_asked_is_never_among_them(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = task_with(folder, GENERATION, SUMS, [*SUMS, *MORE])
    build(str(path))
    assert [each.prompt for each in calibrated_on(path)] == [row["question"] for row in MORE]
    monkeypatch.setattr(calibrating, "MOST", 3)
    path = task_with(folder, GENERATION, SUMS, MORE)
    build(str(path))
    assert [each.problem_id for each in calibrated_on(path)] == ["train-000000", "train-000002", "train-000004"]


def test_a_policy_that_calibrates_is_planned_on_it(folder: Path) -> None:
    path = task_with(folder, GENERATION, SUMS, MORE)
    line = [*RULE, "task=lm_eval", f"task.name={path}", "task.max_tokens=24"]
    assert any("python -m banpick_exp tasks fetch" in note for note in plan_sweep(line).notes), "nothing is made yet"
    build(str(path))
    plan = plan_sweep(line)
    point = plan.points[-1]
    assert point.calibration_files == {"task": str(problems_path(str(path), CALIBRATION))}
    assert point.calibration_overlap == 0
    assert any("calibrated on 6 problems of its split train." in note for note in plan.notes)


def test_without_another_split_it_is_refused_with_what_to_type(folder: Path) -> None:
    path = write_task(folder, "sums", GENERATION, SUMS)
    assert build(str(path)).calibration.startswith("nothing to calibrate on: lm-eval's task has no split but test")
    line = ["task=lm_eval", f"task.name={path}", "task.max_tokens=24"]
    with pytest.raises(UserError, match=r"(?s)nothing to calibrate on.*type calibration\.path=FOLDER"):
        plan_sweep([*RULE, *line])
    with pytest.raises(UserError, match=r"none of split dev.*Type task\.split=test"):
        plan_sweep([*RULE, *line, "task.split=dev"])
    assert plan_sweep(["policy=fixed_k", "policy.k=4", "dry_run=true", *line]).points


def test_a_split_that_is_gone_leaves_no_problems_behind(folder: Path) -> None:
    """The same file name: data of another split lies beside."""
    path = task_with(folder, GENERATION, SUMS, MORE)
    build(str(path))
    kept = problems_path(str(path), CALIBRATION)
    assert kept.is_file()
    (folder / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in SUMS))
    stale = problems_path(str(path), CALIBRATION)
    stale.write_bytes(kept.read_bytes())
    build(str(path))
    assert not stale.exists()
