"""Sampled answers on the real engine: several a problem, repeatable, and paired between policies by their seeds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from banpick_exp.analysis import average_at_n, repeat_spread, verdicts
from banpick_exp.analysis.pairing import answers_of, pair
from banpick_exp.cluster.actor import EngineActor
from banpick_exp.evaluation.answer import DomainPolicy, answer_problems, ask, sample_seed
from banpick_exp.evaluation.controls import tiny_shape, tiny_task
from banpick_exp.evaluation.metrics import point_metrics
from banpick_exp.evaluation.speed import Timed
from banpick_exp.policy import parse_policy
from banpick_exp.records import outcomes_frame
from banpick_exp.run_folder import RunFolder
from banpick_exp.sweep.plan import plan_sweep
from banpick_exp.sweep.rerun import rerun_command
from banpick_exp.tasks.config import TaskConfig
from banpick_exp.tasks.load import load_problems
from banpick_exp.tasks.problem import Problem

pytestmark = pytest.mark.engine

if TYPE_CHECKING:
    from banpick_exp.engine.engine import Engine

PROBLEMS, SAMPLES = 24, 4


@pytest.fixture(scope="module")
def problems() -> list[Problem]:
    return load_problems(tiny_task("math"), "test", PROBLEMS)["math"]


def task(samples: int = SAMPLES, temperature: float = 2.0, **more: Any) -> TaskConfig:
    return tiny_task("math").model_copy(update={"samples": samples, "temperature": temperature, **more})


def texts(answers: list[Any]) -> list[list[str]]:
    return [[answer.text for answer in samples] for samples in answers]


def test_samples_differ_and_the_same_seeds_draw_the_same(tiny_engine: Engine, problems: list[Problem]) -> None:
    tiny_engine.set_policy("none", {})
    first = texts(ask(tiny_engine, problems, task(), seed=3))
    assert [len(samples) for samples in first] == [SAMPLES] * PROBLEMS
    assert sum(len(set(samples)) > 1 for samples in first) > PROBLEMS / 2, "hot enough to differ"
    assert texts(ask(tiny_engine, problems, task(), seed=3)) == first
    assert texts(ask(tiny_engine, problems, task(), seed=4)) != first
    alone = texts(ask(tiny_engine, problems[5:6], task(samples=2), seed=3))
    assert alone == [first[5][:2]], "a seed is of the problem and sample, whatever is asked beside it"
    colder = texts(ask(tiny_engine, problems, task(top_p=0.01), seed=3))
    greedy = texts(ask(tiny_engine, problems, task(samples=1, temperature=0.0)))
    agree = sum(set(samples) == set(one) for samples, one in zip(colder, greedy, strict=True))
    assert agree >= PROBLEMS - 2, "next to no mass is greedy decoding, but for ties"


def test_policies_are_paired_by_seed(tiny_engine: Engine, problems: list[Problem]) -> None:
    """fixed_k 8 is stock: with the same seeds it must draw the same answers; another seed must not."""
    asked, domains = task(), {"math": problems}

    def run(name: str, seed: int, **knobs: Any) -> Any:
        rule = parse_policy(name, knobs, tiny_shape())
        chosen = {"math": DomainPolicy(rule=rule, calibration_key="", calibration=None)}
        return answer_problems(tiny_engine, chosen, asked, domains, seed=seed).runs

    stock, same, fewer = run("none", 0), run("fixed_k", 0, k=8), run("fixed_k", 0, k=6)
    outcomes = stock["math"].outcomes
    assert same["math"].outcomes == outcomes != run("none", 1)["math"].outcomes
    assert [o.sample for o in outcomes] == list(range(SAMPLES)) * PROBLEMS
    assert [o.problem_id for o in outcomes[::SAMPLES]] == [p.problem_id for p in problems]
    found, frame = point_metrics(fewer, stock, Timed()).overall, outcomes_frame(fewer["math"].outcomes)
    assert found.n_problems == PROBLEMS and found.accuracy * PROBLEMS * SAMPLES % 1 == pytest.approx(0)
    row = average_at_n(frame).row(0, named=True)
    assert found.accuracy_ci95 == (row["lo"], row["hi"]) and row["samples"] == SAMPLES
    pairs = pair(answers_of(frame), answers_of(outcomes_frame(outcomes)))
    assert pairs.n == PROBLEMS and pairs.samples == (SAMPLES, SAMPLES)


def test_a_repeat_answers_the_same_problems(tiny_engine: Engine, problems: list[Problem]) -> None:
    """In calls of half the problems and in another order; put back in order, nearly all answers are the same."""
    tiny_engine.set_policy("none", {})
    calls: list[int] = []
    inner = tiny_engine.generate_ids

    def counted(prompts: Any, **options: Any) -> Any:
        calls.append(len(prompts))
        return inner(prompts, **options)

    tiny_engine.generate_ids = counted  # type: ignore[method-assign]
    try:
        greedy = [ask(tiny_engine, problems, task(1, 0.0), repeat=repeat) for repeat in (0, 1, 2)]
        sampled = [ask(tiny_engine, problems, task(), repeat=repeat) for repeat in (0, 1)]
    finally:
        del tiny_engine.generate_ids
    half, quarter = PROBLEMS // 2, PROBLEMS // 4
    assert calls == [PROBLEMS, *[half] * 2, *[quarter] * 4, PROBLEMS * SAMPLES, *[half * SAMPLES] * 2]
    for one, *others in (greedy, sampled):
        prompts = [answers[0].prompt_token_ids for answers in one]
        for other in others:
            assert [answers[0].prompt_token_ids for answers in other] == prompts, "put back into problem order"
            same = sum(a == b for a, b in zip(texts(one), texts(other), strict=True))
            assert same >= 0.75 * PROBLEMS, "other batches round differently, and no more than that"


def test_points_are_recorded_with_repeat_and_samples(tiny_engine: Engine, tmp_path: Path) -> None:
    """Stock and fixed_k, twice: each repeat is held against its own stock, untimed, and pairs in the analysis."""
    settings = ["task.max_problems=6", "task.samples=2", "task.temperature=2", "task.speed_seconds=0.1"]
    plan = plan_sweep(["policy=fixed_k", "policy.k=4", "repeats=2", *settings, f"output_dir={tmp_path}"])
    folder = RunFolder(tmp_path / "run")
    actor = EngineActor(plan.points[0], str(folder.path), tiny_engine)
    stock = {point.repeat: point.fingerprint for point in plan.points if point.rule.name == "none"}
    for point in plan.points:
        actor.run_point(point, stock[point.repeat], rerun_command(plan.command, point))
    records, set_aside = folder.load_points()
    assert len(records) == 4 and not set_aside
    outcomes = folder.all_outcomes(records)
    for record in records:
        overall, frame = record.measured.overall, outcomes[record.fingerprint]
        assert (overall.speedup is None) == (record.repeat == 1) == ("repeat=1" in (record.command or ""))
        assert overall.n_problems == 18 and frame.height == 36 and set(frame["sample"]) == {0, 1}
    found = verdicts(records, outcomes, against=("stock",))
    assert set(found["reference_fingerprint"]) == {stock[0]}
    spread = repeat_spread(records, outcomes).filter(domain="overall")
    assert spread["repeats"].to_list() == [2, 2] and spread["settings"][0].to_list() == ["repeat=0", "repeat=1"]


def test_seeds_are_distinct_and_fixed() -> None:
    one, other = Problem("p1", "math", "add", "1+1=", "2"), Problem("p1", "code", "add", "1+1=", "2")
    seeds = {sample_seed(s, p, n) for s in (0, 1) for p in (one, other) for n in range(4)}
    assert len(seeds) == 16 and all(0 <= seed < 2**48 for seed in seeds)
    assert sample_seed(0, one, 0) == 154264227483456
