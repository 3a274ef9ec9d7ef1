"""Problems that break a real engine, in whole runs: found, set aside, and left out on both sides of every comparison.

The engine is one that runs already, so that a test takes seconds: its death is an error that nothing catches but the
slot. `test_real_poison.py` kills processes.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from loaded_backend import LoadedBackend, LoadedSlot
from rich.console import Console

from banpick_exp.cluster import faults, fleet
from banpick_exp.cluster.backends.base import Call, EngineLost
from banpick_exp.cluster.backends.inline import InlineCall
from banpick_exp.cluster.events import read
from banpick_exp.cluster.plan import RunPlan, plan_run
from banpick_exp.cluster.run import Run
from banpick_exp.engine.config import EngineConfig
from banpick_exp.engine.engine import Engine
from banpick_exp.evaluation.trouble import Trouble, set_aside
from banpick_exp.policy import parse_policy
from banpick_exp.records import PointRecord
from banpick_exp.report.run import read_run
from banpick_exp.report.terminal import print_pareto
from banpick_exp.tasks.load import load_problems
from banpick_exp.tasks.problem import Problem

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("no_pages")]

LADDER = [
    "policy=fixed_k", "policy.k=choice(2,6)", "task.max_problems=20", "task.speed_seconds=0", "tracking=none",
    "engine.policies_per_batch=1",  # so that a call is a block
]  # fmt: skip
IN_BLOCKS = [*LADDER, "task.block_problems=20"]
Broken = Callable[[str], bool]
"""Whether a policy, by its name and knobs, breaks on the problems that break engines."""


class Died(BaseException):
    """The process is gone: nothing in it could catch that."""


class MortalCall(InlineCall):
    died = False

    def run(self) -> None:
        try:
            super().run()
        except Died:
            self.died = True

    def result(self) -> Any:
        if self.died:
            raise EngineLost("ActorDiedError: killed")
        return super().result()


class MortalSlot(LoadedSlot):
    def __init__(self, *arguments: Any, starts: Counter[str]) -> None:
        super().__init__(*arguments)
        self._starts = starts

    def start(self, point: Any, run_dir: str) -> InlineCall:
        self._starts[self.name] += 1
        return super().start(point, run_dir)

    def call(self, method: str, *arguments: Any) -> InlineCall:
        return MortalCall(super().call(method, *arguments)._work)


class MortalBackend(LoadedBackend):
    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.starts = Counter[str]()

    def reserve(self, names: Sequence[str], engine: EngineConfig) -> list[LoadedSlot]:
        return [MortalSlot(name, self._engine, self.done, self._limit, starts=self.starts) for name in names]

    def wait(self, calls: Sequence[Call], seconds: float) -> list[Call]:
        return super().wait(calls, seconds)


@dataclass
class Poison:
    """Breaks the engine on some problems, and counts what it answered."""

    engine: Engine
    ids: dict[tuple[int, ...], str] = field(default_factory=dict)
    """Prompts that break engines."""
    breaks: Broken = lambda policy: True
    policy: str = ""
    answered: Counter[tuple[str, tuple[int, ...]]] = field(default_factory=Counter)
    """(policy, prompt), of what was kept: not of probes, and not of what an engine took with it."""
    landed: Counter[tuple[str, tuple[int, ...]]] = field(default_factory=Counter)
    """Came back, and would be gone with the engine."""
    deaths: int = 0

    def keep(self) -> None:
        self.answered += self.landed
        self.landed.clear()

    def on(self, *problems: Problem) -> None:
        ids = self.engine.tokenize([problem.prompt for problem in problems])
        self.ids = {tuple(each): problem.problem_id for each, problem in zip(ids, problems, strict=True)}


@pytest.fixture
def poison(tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Poison]:
    planted = Poison(tiny_engine)
    run, set_policy = Engine._run, Engine.set_policy

    def dying(engine: Engine, prompts: Sequence[Sequence[int]], sampling: Any, salt: str, *rest: Any) -> Any:
        if planted.breaks(planted.policy) and any(tuple(ids) in planted.ids for ids in prompts):
            planted.deaths += 1
            planted.landed.clear()
            raise Died
        found = run(engine, prompts, sampling, salt, *rest)
        if not salt:
            planted.landed.update((planted.policy, tuple(ids)) for ids in prompts)
        return found

    def setting(engine: Engine, name: str, params: Any, key: str = "") -> float:
        planted.policy = f"{name} {parse_policy(name, params).canonical()}"
        return set_policy(engine, name, params, key)

    def keeping(trouble: Trouble, rules: Any, runs: Any) -> None:
        keep_piece(trouble, rules, runs)
        planted.keep()

    def over(trouble: Trouble) -> None:
        planted.keep()
        trouble_over(trouble)

    keep_piece, trouble_over = Trouble.keep_piece, Trouble.over
    monkeypatch.setattr(Trouble, "over", over)
    monkeypatch.setattr(Trouble, "keep_piece", keeping)
    monkeypatch.setattr(Engine, "_run", dying)
    monkeypatch.setattr(Engine, "set_policy", setting)
    monkeypatch.setattr(faults, "FIRST_REST", 0.0)
    monkeypatch.setattr(fleet, "POLL_SECONDS", 0.01)
    yield planted


def planned(folder: Any, *typed: str) -> RunPlan:
    plan = plan_run([*typed, "cluster=inline", f"output_dir={folder}"])
    plan.folder.write_manifest(plan.sweep.manifest())
    return plan


def run(plan: RunPlan, engine: Engine) -> tuple[int, str, int]:
    """(exit code, what was printed, engines started)."""
    output, backend = io.StringIO(), MortalBackend(engine)
    code = Run(plan, Console(file=output, width=200), backend).run()
    return code, output.getvalue(), sum(backend.starts.values())


def problems_of(plan: RunPlan) -> dict[str, list[Problem]]:
    task = plan.sweep.points[0].task
    return load_problems(task, task.split, task.max_problems)


def records_of(plan: RunPlan) -> dict[str, PointRecord]:
    records, left_out = plan.folder.load_points()
    assert left_out == [], "each record agrees with its outcomes"
    return {record.label: record for record in records}


def ids_of(plan: RunPlan, record: PointRecord) -> set[tuple[str, str]]:
    return set(plan.folder.outcomes(record.fingerprint).select("domain", "problem_id").rows())


def assert_each_answered_once(plan: RunPlan, planted: Poison) -> None:
    """Under stock and each rung, by the engine's own count; some prompts stand in several problems."""
    problems = [each for items in problems_of(plan).values() for each in items]
    planted.keep()
    ids = planted.engine.tokenize([each.prompt for each in problems])
    wanted = Counter(tuple(each) for each in ids if tuple(each) not in planted.ids)
    for policy in {policy for policy, _ in planted.answered}:
        assert Counter({each: n for (name, each), n in planted.answered.items() if name == policy}) == wanted, policy


@pytest.mark.parametrize("typed", [LADDER, IN_BLOCKS], ids=["whole", "blocks"])
def test_a_problem_that_breaks_engines_is_set_aside_and_its_point_goes_on(
    typed: list[str], poison: Poison, tmp_path: Any
) -> None:
    plan = planned(tmp_path, *typed)
    problem = problems_of(plan)["code"][11]
    poison.on(problem)
    code, output, starts = run(plan, poison.engine)
    assert code == 0, output
    assert poison.deaths == 3 and starts == 4, "found under stock; nobody else is asked it"
    key = ("code", problem.problem_id)
    for record in records_of(plan).values():
        assert record.status == "done" and key not in ids_of(plan, record) and len(ids_of(plan, record)) == 59
        (failed,) = record.failed_problems
        assert (failed.domain, failed.problem_id) == key and "ActorDiedError: killed" in failed.reason
        assert [m.n_problems for m in record.measured.all().values()] == [59, 20, 19, 20]
    assert_each_answered_once(plan, poison)
    found = read_run(plan.folder)
    raised = found.raised.filter(found.raised["guard"] == "failed_problems")
    assert raised["label"].to_list() == ["none"] and f"code {problem.problem_id}" in raised["detail"][0]
    assert found.guards.filter(found.guards["guard"] == "failed_problems").height == 3, "the others say it in guards"
    assert "guard failed_problems" in output and "1 problem(s) are set aside" in " ".join(output.split())
    assert not list(plan.folder.path.rglob("*.piece.json")) and not list(plan.folder.path.rglob("flight.json"))
    notes = [str(event.fields["text"]) for event in read(plan.folder).events if event.kind == "note"]
    assert any("set aside in none" in note for note in notes)


def test_a_run_without_such_problems_leaves_no_trace_of_them(poison: Poison, tmp_path: Any) -> None:
    plan = planned(tmp_path, *LADDER)
    assert run(plan, poison.engine)[0] == 0
    assert not plan.folder.problems_aside.parent.exists()
    assert all("failed_problems" not in record.plain() for record in records_of(plan).values())
    assert_each_answered_once(plan, poison)


def test_two_in_one_block(poison: Poison, tmp_path: Any) -> None:
    plan = planned(tmp_path, *LADDER, "task.block_problems=60")
    problems = problems_of(plan)
    poison.on(problems["math"][3], problems["knowledge"][9])
    code, output, starts = run(plan, poison.engine)
    assert code == 0, output
    assert poison.deaths == 5 and starts == 6
    assert {len(record.failed_problems) for record in records_of(plan).values()} == {2}
    assert_each_answered_once(plan, poison)


def test_with_more_than_may_fail_the_point_fails_and_others_go_on(poison: Poison, tmp_path: Any) -> None:
    plan = planned(tmp_path, *IN_BLOCKS, "task.max_failed_problems=1")
    problems = problems_of(plan)
    poison.on(problems["math"][3], problems["knowledge"][9])
    poison.breaks = lambda policy: "'k': 2" in policy
    code, output, _ = run(plan, poison.engine)
    assert code == 1
    records = records_of(plan)
    failed = records.pop("fixed_k k=2")
    assert failed.status == "failed" and failed.reason is not None
    assert "2 problem(s) broke every engine" in failed.reason and "task.max_failed_problems=1" in failed.reason
    for record in records.values():
        assert record.status == "done" and not record.failed_problems and len(ids_of(plan, record)) == 60
    more = planned(tmp_path, *IN_BLOCKS, "task.max_failed_problems=2", f"resume={plan.folder.path}")
    poison.deaths = 0
    code, output, _ = run(more, poison.engine)
    assert code == 0, output
    assert poison.deaths == 1, "the block of the first is kept, the other is known: asked last and alone"
    assert len(records_of(more)["fixed_k k=2"].failed_problems) == 2


def test_where_stock_fails_of_them_so_do_the_others_without_an_engine(poison: Poison, tmp_path: Any) -> None:
    plan = planned(tmp_path, *LADDER, "task.max_failed_problems=0")
    poison.on(problems_of(plan)["math"][3])
    code, _, starts = run(plan, poison.engine)
    assert code == 1 and poison.deaths == 3 and starts == 4
    assert all(
        record.status == "failed" and "task.max_failed_problems=0" in (record.reason or "")
        for record in records_of(plan).values()
    )


def test_one_that_breaks_some_policies_is_left_out_of_their_pairs_alone(poison: Poison, tmp_path: Any) -> None:
    plan = planned(tmp_path, *LADDER)
    problem = problems_of(plan)["math"][3]
    poison.on(problem)
    poison.breaks = lambda policy: "fixed_k" in policy
    code, output, _ = run(plan, poison.engine)
    assert code == 0, output
    assert poison.deaths == 3 + 1, "the second rung asks it last and alone"
    records = records_of(plan)
    stock = records.pop("none")
    assert len(ids_of(plan, stock)) == 60 and not stock.failed_problems
    right = {row["problem_id"]: row["correct"] for row in plan.folder.outcomes(stock.fingerprint).iter_rows(named=True)}
    for record in records.values():
        outcomes = plan.folder.outcomes(record.fingerprint)
        assert outcomes.height == record.measured.overall.n_problems == 59
        told = {row["problem_id"]: row["correct"] for row in outcomes.iter_rows(named=True)}
        delta = sum(told[name] - right[name] for name in told) / 59
        assert record.measured.overall.delta == pytest.approx(delta)
    stream = io.StringIO()
    print_pareto(read_run(plan.folder), Console(file=stream, width=200))
    assert "guard failed_problems" in stream.getvalue()


def test_a_race_goes_on_without_it(poison: Poison, tmp_path: Any) -> None:
    plan = planned(tmp_path, *LADDER, "search=racing", "search.blocks=[0.5,1]")
    poison.on(problems_of(plan)["math"][3])
    code, output, _ = run(plan, poison.engine)
    assert code == 0, output
    records = records_of(plan)
    assert all(record.status in ("done", "dropped") for record in records.values())
    assert [len(record.failed_problems) for record in records.values() if record.status == "done"].count(1) >= 1
    assert records["none"].measured.overall.n_problems == 59


@pytest.mark.parametrize("blocks", [[], ["task.block_problems=20"]], ids=["whole", "blocks"])
def test_a_knob_is_solved_without_it(blocks: list[str], poison: Poison, tmp_path: Any) -> None:
    typed = ["policy=top_p", "policy.budget=5", "task.max_problems=20", "task.speed_seconds=0", "tracking=none"]
    plan = planned(tmp_path, *typed, *blocks)
    poison.on(problems_of(plan)["math"][3])
    poison.breaks = lambda policy: "top_p" in policy
    code, output, _ = run(plan, poison.engine)
    assert code == 0, output
    record = records_of(plan)["top_p budget=5"]
    assert record.status == "done" and len(record.failed_problems) == 1 and poison.deaths == 3
    assert record.measured.overall.n_problems == record.budget.sample_problems == 59  # type: ignore[union-attr]
    assert record.mean_kept == pytest.approx(5, abs=0.1)


def test_samples_of_a_problem_are_set_aside_together(poison: Poison, tmp_path: Any) -> None:
    plan = planned(tmp_path, *LADDER, "task.samples=2", "task.temperature=0.7")
    poison.on(problems_of(plan)["math"][3])
    code, output, _ = run(plan, poison.engine)
    assert code == 0, output
    for record in records_of(plan).values():
        assert plan.folder.outcomes(record.fingerprint).height == 2 * 59 and record.measured.overall.n_problems == 59


def test_an_engine_that_dies_before_it_asks_accuses_no_problem(
    poison: Poison, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(tmp_path, *LADDER)

    def dying(engine: Engine, name: str, params: Any, key: str = "") -> float:
        raise Died

    monkeypatch.setattr(Engine, "set_policy", dying)
    code, _, _ = run(plan, poison.engine)
    assert code == 1 and set_aside(plan.folder) == []
    reason = records_of(plan)["none"].reason or ""
    assert f"its engine died {faults.ATTEMPTS} times" in reason
