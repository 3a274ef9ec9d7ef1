"""Problems that ask for likelihoods are priced by what is read: every choice with its context, and nothing written."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from lm_eval_tasks import CHOICES, GENERATION, SUMS, keep_to, write_task
from rich.console import Console
from tokenizers import Tokenizer

from banpick_exp.cluster.deadline import Deadlines
from banpick_exp.cluster.plan import plan_run
from banpick_exp.policy.budget import EXPECTED_PROBES, SAMPLE_PROBLEMS
from banpick_exp.sweep.dry_run import print_plan
from banpick_exp.sweep.estimate import BLOCK_SECONDS, answer_tokens, block_problems, point_tokens, speed_of
from banpick_exp.sweep.plan import SweepPlan, plan_sweep
from banpick_exp.tasks.harness.building import build
from banpick_exp.tasks.lengths import CHARACTERS, MEASURED, reading_of
from banpick_exp.tasks.problem import Problem

pytest.importorskip("lm_eval")

ROWS = [
    {"country": f"Nowhere {'and ' * (number % 7)}{number}", "cities": [f"City {each}" for each in "abcd"], "gold": 0}
    for number in range(100)
]
LINE = ["policy=fixed_k", "policy.k=4", "tracking=none", "dry_run=true"]


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """100 problems of four choices."""
    keep_to(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)  # what sweeps took on this machine, in outputs/, is no part of it
    path = write_task(tmp_path, "places", CHOICES, ROWS)
    build(str(path))
    return f"task.name={path}"


def planned(*typed: str, max_tokens: int = 24) -> SweepPlan:
    return plan_sweep([*LINE, "task=lm_eval", f"task.max_tokens={max_tokens}", *typed])


def tokens_of(plan: SweepPlan) -> int:
    """What the embedded model's tokenizer makes of every text that is read."""
    point = plan.points[0]
    tokenizer = Tokenizer.from_file(str(Path(point.checkpoint.location) / "tokenizer.json"))
    (path,) = point.data_files.values()
    rows = [json.loads(line) for line in Path(path).read_text().splitlines()]
    return sum(len(tokenizer.encode(context + text).ids) for row in rows for context, text in row["choices"])


def test_they_cost_what_is_read_at_the_pace_of_a_prefill(task: str) -> None:
    plan = planned(task)
    read = tokens_of(plan)
    assert read > 20_000, "400 texts of some sixty characters"
    (kind,) = plan.estimate(1).kinds
    assert (kind.generated, kind.max_generated, kind.prompted) == (0, 0, 0)
    assert kind.read == pytest.approx(len(plan.points) * read, rel=0.05)
    assert kind.answer_seconds == pytest.approx(kind.read / kind.speed.prefill)
    point = plan.points[0]
    assert point_tokens(point) == answer_tokens(point) == pytest.approx(read, rel=0.05)
    expected = Deadlines(1).expected_seconds("point", point, None)
    assert expected == pytest.approx(2 * answer_tokens(point) / kind.speed.prefill + point.task.speed_seconds)


def test_no_setting_of_written_answers_changes_it(task: str) -> None:
    (one,), (other,) = (planned(task, max_tokens=most).estimate(1).kinds for most in (1, 90))
    assert one.read == other.read > 0 and one.wall_seconds == other.wall_seconds


def test_half_of_the_problems_is_about_half_of_the_work(task: str) -> None:
    (whole,), (half,) = (planned(task, *more).estimate(1).kinds for more in ([], ["task.max_problems=50"]))
    assert half.read == pytest.approx(whole.read / 2, rel=0.1)


def test_on_gpus_too(task: str) -> None:
    """A 30B model, whose tokenizer is not here: four characters a token."""
    line = ["model=qwen3_30b_a3b", "engine=cuda", task, "task.chat_template=false"]
    plan = planned(*line)
    (kind,) = plan.estimate(1).kinds
    point = plan.points[0]
    characters = sum(len(text) for row in rows_of(plan) for text in row)
    assert answer_tokens(point) == round(characters / CHARACTERS)
    assert kind.roofline is not None and kind.answer_seconds == pytest.approx(kind.read / kind.roofline.prefill)


def rows_of(plan: SweepPlan) -> list[list[str]]:
    (path,) = plan.points[0].data_files.values()
    return [["".join(each) for each in json.loads(line)["choices"]] for line in Path(path).read_text().splitlines()]


def test_a_knob_is_solved_by_reading(task: str) -> None:
    plan = plan_sweep(
        ["policy=naee", "policy.budget=4", "search.ladder=none", *LINE[2:], "task=lm_eval", task, "task.max_tokens=9"]
    )
    point = plan.points[-1]
    assert point.budget == 4
    (kind,) = plan.estimate(1).kinds
    read = answer_tokens(point)
    probes = EXPECTED_PROBES * read * min(SAMPLE_PROBLEMS, 100) / 100
    assert kind.generated == 0 and kind.read == pytest.approx(len(plan.points) * read + probes, rel=0.01)
    assert point_tokens(point) > 2 * read + probes, "at most"


def test_a_block_is_what_is_read_in_minutes(task: str) -> None:
    point = planned(task, "engine.max_num_seqs=4").points[0]
    of_a_problem = answer_tokens(point) / 100 / speed_of(point).prefill
    assert block_problems(point) == pytest.approx(BLOCK_SECONDS / of_a_problem, abs=1)


def test_it_is_said_in_the_plan(task: str) -> None:
    plan = plan_run([*LINE, "task=lm_eval", task, "task.max_tokens=9"])
    out = io.StringIO()
    print_plan(plan.sweep, plan.estimate, Console(file=out, width=1000))
    read = f"{2 * answer_tokens(plan.sweep.points[0]):,}"
    assert f"0 tokens to generate, 0 of prompts (assumed lengths), {read} of choices to read" in out.getvalue()
    assert f"for 0 tokens (at most 0 tokens) and {read} read of choices" in out.getvalue()


def test_what_is_written_costs_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_to(tmp_path, monkeypatch)
    path = write_task(tmp_path, "sums", GENERATION, SUMS)
    build(str(path))
    plan = planned(f"task.name={path}")
    (kind,) = plan.estimate(1).kinds
    assert kind.read == 0 and kind.max_generated == len(plan.points) * len(SUMS) * 24
    assert all(not point.reading for point in plan.points)


def test_problems_of_both_kinds(tmp_path: Path) -> None:
    """Without a tokenizer, and of many texts with one: a sample of them tells the length of all."""
    problems = [
        *(Problem(f"w{n}", "d", "d", "How many?", "1") for n in range(3)),
        *(Problem(f"c{n}", "d", "d", "One", "1", choices=(("One", " a"), ("One", " four"))) for n in range(MEASURED)),
    ]
    found = reading_of(problems, tmp_path)
    assert found is not None and (found.problems, found.tokens) == (MEASURED, round(MEASURED * 13 / CHARACTERS))
    assert reading_of(problems[:3], tmp_path) is None
