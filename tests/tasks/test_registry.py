"""Benchmarks by name. A newcomer adds one with a file, a line, a yaml and a test: this is that test, on a toy."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from banpick_exp.config import validated
from banpick_exp.errors import UserError
from banpick_exp.sweep.compose import choices, conf_dir
from banpick_exp.tasks.benchmarks.benchmark import Benchmark
from banpick_exp.tasks.config import TaskConfig
from banpick_exp.tasks.files import inspect_task
from banpick_exp.tasks.graders.registry import GRADERS
from banpick_exp.tasks.load import load_problems
from banpick_exp.tasks.registry import BENCHMARKS, benchmark_of, grader_of

TOY_YAML = """
name: capitals
domains: [europe]
max_tokens: 8
answer_separator: null
"""
"""What conf/task/capitals.yaml would hold."""


def capitals(folder: Path) -> Benchmark:
    """What benchmarks/capitals.py would hold: where its files lie, and how it asks."""
    return Benchmark(
        name="capitals",
        files=lambda task, split: {domain: folder / f"{domain}.{split}.jsonl" for domain in task.domains},
        prompt_key="country",
        answer_key="capital",
        ask="The capital of {} is".format,
        version=1,
    )


def test_a_newcomer_adds_a_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BENCHMARKS, "capitals", capitals(tmp_path))
    task = validated(TaskConfig, yaml.safe_load(TOY_YAML), "task")
    with pytest.raises(UserError, match=r"there is no file .*europe\.test\.jsonl"):
        inspect_task(task)
    (tmp_path / "europe.test.jsonl").write_text('{"country": "Norway", "capital": ["Oslo", "oslo"]}\n')
    problem = load_problems(task, "test")["europe"][0]
    assert problem.prompt == "The capital of Norway is" and problem.answers == ("Oslo", "oslo")
    assert grader_of(task).grade(" Oslo\n", problem, task).correct
    (tmp_path / "europe.test.jsonl").write_text('{"country": "Norway", "answer": "Oslo"}\n')
    with pytest.raises(UserError, match='line 1 has no "capital"'):
        inspect_task(task)


def test_how_a_benchmark_asks_is_part_of_its_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "europe.test.jsonl").write_text('{"country": "Norway", "capital": "Oslo"}\n')
    task, toy = validated(TaskConfig, yaml.safe_load(TOY_YAML), "task"), capitals(tmp_path)
    seen = set()
    for version in (0, 1, 2):
        changed = Benchmark(
            name=toy.name, files=toy.files, prompt_key="country", answer_key="capital", ask=toy.ask, version=version
        )
        monkeypatch.setitem(BENCHMARKS, "capitals", changed)
        seen.add(inspect_task(task).identity)
    assert len(seen) == 3


def test_every_task_file_names_a_benchmark_and_every_benchmark_has_one() -> None:
    files = {name: yaml.safe_load((conf_dir() / "task" / f"{name}.yaml").read_text()) for name in choices("task")}
    named = {name: settings.get("source") or settings["name"] for name, settings in files.items()}
    assert named == {**{name: name for name in BENCHMARKS}, "lm_eval": "lm_eval", "ifeval": "lm_eval"}
    assert {name for name, benchmark in BENCHMARKS.items() if name != benchmark.name} == set()
    assert {benchmark.grader for benchmark in BENCHMARKS.values()} <= set(GRADERS)


def test_a_name_of_ones_own_goes_with_files_of_ones_own(tmp_path: Path) -> None:
    mine = TaskConfig(name="mine", domains=("math",), data_files=f"{tmp_path}/{{domain}}_{{split}}.jsonl")
    assert benchmark_of(mine).name == "jsonl"
    (tmp_path / "math_test.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n')
    tiny = mine.model_copy(update={"name": "tiny"})
    assert inspect_task(tiny).problems == {"math": 1}, "typed files win over the benchmark's own"
    with pytest.raises(UserError, match=r"task\.name=tinny is no benchmark.* Did you mean tiny\?"):
        benchmark_of(TaskConfig(name="tinny", domains=("math",)))
    with pytest.raises(UserError, match=r"task=jsonl has no data of its own"):
        inspect_task(TaskConfig(name="jsonl", domains=("math",)))
