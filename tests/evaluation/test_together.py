"""Policies in one batch are the policies alone: answers, counters, solved knobs and records, on a real engine."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from loaded_backend import LoadedBackend
from rich.console import Console

from banpick_exp.cluster.actor import EngineActor
from banpick_exp.cluster.answers import Together
from banpick_exp.cluster.events import read
from banpick_exp.cluster.plan import RunPlan, plan_run
from banpick_exp.cluster.run import Run
from banpick_exp.engine.engine import Engine
from banpick_exp.errors import UserError
from banpick_exp.evaluation import at_once, together
from banpick_exp.evaluation.answer import DomainPolicy, answer_problems
from banpick_exp.evaluation.controls import tiny_task
from banpick_exp.evaluation.narrowing import Suspicion
from banpick_exp.evaluation.together import answer_together
from banpick_exp.evaluation.trouble import POINT, Trouble
from banpick_exp.models.tiny import DOMAINS
from banpick_exp.policy import parse_policy
from banpick_exp.sweep.point import Point
from banpick_exp.tasks.config import TaskConfig
from banpick_exp.tasks.load import load_problems

pytestmark = pytest.mark.engine

RULES: list[tuple[str, dict[str, Any]]] = [
    ("fixed_k", {"k": 2}),
    ("none", {}),
    ("top_p", {"p": 0.6}),
    ("fixed_k", {"k": 5}),
    ("mask", {"experts": {0: [0, 1], 2: [5]}}),
]
"""Whole k alone: with a fraction, the last bits of logits decide, and they follow the batch."""
REFERENCE = ['sweep.reference=[["policy=fixed_k","policy.k=choice(3,5)"]]']
UNTIMED = ["task.max_problems=8", "task.speed_seconds=0", "tracking=none", "cluster=inline"]


def policies_of(name: str, params: dict[str, Any]) -> dict[str, DomainPolicy]:
    policy = DomainPolicy(rule=parse_policy(name, params), calibration_key="", calibration=None)
    return dict.fromkeys(DOMAINS, policy)


@pytest.mark.parametrize("sampled", [{}, {"temperature": 0.8, "samples": 2}], ids=["greedy", "sampled"])
def test_answers_and_counters_are_those_of_each_alone(tiny_engine: Engine, sampled: dict[str, Any]) -> None:
    task = TaskConfig(**{**tiny_task(*DOMAINS).model_dump(), **sampled})
    problems = load_problems(task, task.split, 6)
    asked = [policies_of(*rule) for rule in RULES]
    runs_P, swap = answer_together(tiny_engine, asked, task, problems, seed=3)
    assert swap > 0 and len(runs_P) == len(RULES)
    for policies, found in zip(asked, runs_P, strict=True):
        alone = answer_problems(tiny_engine, policies, task, problems, seed=3).runs
        assert found == alone, policies["math"].rule.label()
    assert runs_P[0] != runs_P[1], "k=2 answers as stock does: nothing is shown"


# ------------------------------------------------------------ whole runs


def swept(folder: Path, engine: Engine, *typed: str) -> tuple[RunPlan, LoadedBackend]:
    plan = plan_run([*typed, *UNTIMED, f"output_dir={folder}"])
    plan.folder.write_manifest(plan.sweep.manifest())
    backend, output = LoadedBackend(engine), io.StringIO()
    assert Run(plan, Console(file=output, width=200), backend).run() == 0, output.getvalue()
    return plan, backend


def results(plan: RunPlan) -> dict[str, Any]:
    """By fingerprint, all that a record says of answers and routing: nothing of how long it took."""
    records, left_out = plan.folder.load_points()
    assert left_out == []
    found = {}
    for record in records:
        told = record.model_dump(include={"label", "status", "metrics", "engagement", "policy", "budget"})
        found[record.fingerprint] = told, plan.folder.outcomes(record.fingerprint).rows()
    return found


def measured(plan: RunPlan) -> list[str]:
    """What was found out about sharing."""
    notes = (str(event.fields["text"]) for event in read(plan.folder).events if event.kind == "note")
    return [note for note in notes if "take a policy" in note]


@pytest.mark.parametrize(
    "typed",
    [
        ["policy=fixed_k", "policy.k=choice(1,2,3,5,6)", "search.ladder=none"],
        ["policy=top_p", "policy.budget=choice(3,4,5)", *REFERENCE, "search.ladder=none"],
        ["policy=fixed_k", "policy.k=choice(1,2,5)", "search=racing", "search.blocks=[0.5,1.0]"],
    ],
    ids=["points", "budgets", "a race"],
)
def test_a_run_whose_policies_share_batches_is_the_run(
    tiny_engine: Engine, tmp_path: Path, typed: Sequence[str], no_pages: None
) -> None:
    runs = [
        swept(tmp_path / how, tiny_engine, *typed, f"engine.policies_per_batch={how}")[0] for how in ("1", "3", "auto")
    ]
    alone, three, chosen = map(results, runs)
    assert alone == three == chosen and len(alone) == len(runs[0].sweep.points)
    assert not measured(runs[0]) and not measured(runs[1])
    assert measured(runs[2]), "it was measured, and is told"


def test_where_it_does_not_pay_no_policy_shares_a_batch_again(
    tiny_engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_pages: None
) -> None:
    monkeypatch.setattr(together, "GAIN", 0.0)
    asked = count_calls(monkeypatch)
    typed = ["policy=fixed_k", "policy.k=range(1,6.5,0.25)", "search.ladder=none", "engine.max_num_seqs=250"]
    plan, _ = swept(tmp_path, tiny_engine, *typed)
    (note,) = measured(plan)
    assert note.startswith("24 problem(s) take a policy") and "each policy has the engine to itself" in note
    assert asked == [16]  # of 22: one was asked alone to compare with, five when that was known


def count_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many policies each batch held."""
    asked: list[int] = []

    def counting(engine: Engine, policies: Sequence[Any], *rest: Any, **named: Any) -> Any:
        asked.append(len(policies))
        return answer_together(engine, policies, *rest, **named)

    monkeypatch.setattr(at_once, "answer_together", counting)
    return asked


def test_what_breaks_engines_is_asked_without_company(
    tiny_engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of four points had an engine die under it: it is asked in pieces, the others share a batch."""
    asked = count_calls(monkeypatch)
    plan = plan_run(
        ["policy=fixed_k", "policy.k=choice(1,2,3,5)", *UNTIMED, "search.ladder=none", "engine.policies_per_batch=8",
         f"output_dir={tmp_path}"]
    )  # fmt: skip
    stock, *points = plan.sweep.points
    suspect = Trouble.of(plan.folder, points[1].fingerprint, POINT)
    suspect.write_suspicion(Suspicion(deaths=1, suspects=()))
    actor = EngineActor(points[0], str(plan.folder.path), tiny_engine)
    calls = [(point, stock.fingerprint, "typed", None) for point in points]
    found = actor.run_together("run_point", calls)
    assert asked == [3] and found.pays is None and set(found.answers) == {point.fingerprint for point in points}
    assert all(plan.folder.read_point(point.fingerprint).status == "done" for point in points)


def test_what_was_answered_in_blocks_is_only_added_up(
    tiny_engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_pages: None
) -> None:
    asked = count_calls(monkeypatch)
    typed = ["policy=fixed_k", "policy.k=choice(1,2,5)", "search=racing", "search.blocks=[0.5,1.0]"]
    _, backend = swept(tmp_path, tiny_engine, *typed, "engine.policies_per_batch=8")
    assert Counter(how for how, *_ in backend.done) == {"block": 8, "point": 4}, "stock and three others, two blocks"
    assert asked == [3, 3]  # a block each; the third call has the answers


@pytest.mark.parametrize(
    ("error", "made"),
    [(ValueError("the second of them"), [0]), (UserError("budget=9 is out of reach"), [0, 2])],
    ids=["whose fault it is nobody knows", "its own fault"],
)
def test_a_call_that_raises_leaves_what_may_raise_too_to_be_made_alone(
    tiny_engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, made: list[int]
) -> None:
    points, found = raised_in_the_second(tiny_engine, tmp_path, monkeypatch, error)
    assert list(found().answers) == [points[number].fingerprint for number in made]


def test_an_error_after_which_an_engine_is_replaced_ends_the_call(
    tiny_engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Swallowed, it would leave an engine that cannot be trusted to the next call."""
    _, found = raised_in_the_second(tiny_engine, tmp_path, monkeypatch, MemoryError("of a batch"))
    with pytest.raises(MemoryError):
        found()


def raised_in_the_second(
    engine: Engine, folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> tuple[Sequence[Point], Callable[[], Together]]:
    """Three points and the call of them all, in which the second raises."""
    plan = plan_run(
        ["policy=fixed_k", "policy.k=choice(1,2,5)", *UNTIMED, "search.ladder=none", "engine.policies_per_batch=8",
         f"output_dir={folder}"]
    )  # fmt: skip
    stock, *points = plan.sweep.points
    whole = EngineActor.run_point

    def raising(actor: EngineActor, point: Point, *rest: Any) -> Any:
        if point is points[1]:
            raise error
        return whole(actor, point, *rest)

    monkeypatch.setattr(EngineActor, "run_point", raising)
    actor = EngineActor(points[0], str(plan.folder.path), engine)
    calls = [(point, stock.fingerprint, "typed", None) for point in points]
    return points, lambda: actor.run_together("run_point", calls)
