"""Solving a knob for a budget: the search on curves that are known, planning with an open knob, and the real engine."""

from __future__ import annotations

import io
import json
import math
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from checkpoint_folder import write_checkpoint
from rich.console import Console
from synthetic_run import DOMAINS, SyntheticRun

from banpick_exp.errors import UserError
from banpick_exp.evaluation.answer import Answered, DomainPolicy, DomainRun
from banpick_exp.evaluation.budget.root_search import MAX_PROBES, UnreachableBudget, solve
from banpick_exp.evaluation.budget.solve import AtBudget, answer_at_budget
from banpick_exp.policy import POLICIES, MoeShape
from banpick_exp.policy.budget import SAMPLE_PROBLEMS, label_of, policy_of, with_knob
from banpick_exp.policy.rule import BudgetKnob
from banpick_exp.records import CorruptRecord, Counters
from banpick_exp.report.equal_budget import equal_budget_sentence
from banpick_exp.report.maps import maps_of
from banpick_exp.report.page.page import page_html
from banpick_exp.report.run import read_run
from banpick_exp.report.terminal import print_pareto
from banpick_exp.report.tracking.wandb import point_metrics
from banpick_exp.run_folder import RunFolder
from banpick_exp.sweep.compose import Composer
from banpick_exp.sweep.plan import SweepPlan, plan_sweep
from banpick_exp.sweep.point import Point
from banpick_exp.sweep.rerun import rerun_command
from banpick_exp.tasks.problem import Problem

if TYPE_CHECKING:
    from banpick_exp.engine.engine import Engine

UNIT = BudgetKnob("beta", 0.0, 1.0)
SHAPE = MoeShape(num_layers=4, num_experts=32, top_k=8)


# ---------------------------------------------------------------- the search

SMOOTH: dict[str, Callable[[float], float]] = {
    "falling line": lambda x: 8 - 7 * x,
    "rising line": lambda x: 1 + 7 * x,
    "hyperbola, as naee falls": lambda x: 1 + 7 * (1 - x) / (1 + 4 * x),
    "late rise, as top_p": lambda x: 1 + 7 * x**3,
    "saturated at both ends": lambda x: 1 + 7 / (1 + math.exp(-25 * (x - 0.4))),
}


@pytest.mark.parametrize("target", [2.0, 3.0, 4.5, 5.0, 6.0, 7.5])
@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_curves_take_at_most_eight_probes_both_ends_included(name: str, target: float) -> None:
    found = solve(SMOOTH[name], UNIT, target)
    assert abs(found.measured - target) <= 0.05 and found.gap is None
    assert found.measured == SMOOTH[name](found.value)
    assert len(found.probes) <= 8 and found.probes[:2] == ((0.0, SMOOTH[name](0.0)), (1.0, SMOOTH[name](1.0)))
    assert solve(SMOOTH[name], UNIT, target) == found, "deterministic"


@pytest.mark.parametrize("steepness", [50, 500, 5000])
@pytest.mark.parametrize("middle", [0.003, 0.3, 0.9])
def test_steep_curves_are_found_too(steepness: float, middle: float) -> None:
    def curve(x: float) -> float:
        return 8 - 7 / (1 + math.exp(max(-700, min(700, -steepness * (x - middle)))))

    found = solve(curve, UNIT, 5.0, tolerance=0.5)
    assert len(found.probes) <= MAX_PROBES
    assert abs(found.measured - 5) <= 0.5 or (found.gap is not None and steepness == 5000)


def test_a_logarithmic_knob_is_searched_where_it_matters() -> None:
    def curve(x: float) -> float:
        return 1 + 7 / (1 + (x / 1e-5) ** 2)

    knob = BudgetKnob("threshold", 1e-9, 1.0, log=True)
    found = solve(curve, knob, 5.0)
    assert abs(found.measured - 5) <= 0.05 and len(found.probes) <= 8
    assert solve(curve, BudgetKnob("threshold", 1e-9, 1.0), 5.0).gap is not None


def test_known_ends_are_not_probed() -> None:
    found = solve(lambda x: 8 - 7 * x, UNIT, 5.0, known={0.0: 8.0, 1.0: 1.0})
    assert all(0 < value < 1 for value, _ in found.probes)


@pytest.mark.parametrize("target", [1.5, 6.5])
def test_a_target_out_of_reach_says_what_is_within(target: float) -> None:
    with pytest.raises(UnreachableBudget, match=rf"budget={target:g} is out of reach.*2\.000 to 6\.000"):
        solve(lambda x: 6 - 4 * x, UNIT, target)


@pytest.mark.parametrize(("target", "end"), [(1.5, 1.0), (6.5, 0.0)])
def test_the_nearer_end_of_one_out_of_reach_on_request(target: float, end: float) -> None:
    found = solve(lambda x: 6 - 4 * x, UNIT, target, nearest=True)
    assert (found.value, found.measured, len(found.probes)) == (end, 6 - 4 * end, 2)
    assert found.gap is not None and f"the target {target:g} is out of reach" in found.gap
    assert solve(lambda x: 6 - 4 * x, UNIT, 5.0, nearest=True) == solve(lambda x: 6 - 4 * x, UNIT, 5.0)


def test_a_flat_knob_reaches_one_budget_only() -> None:
    assert solve(lambda _: 4.0, UNIT, 4.0).measured == 4.0
    with pytest.raises(UnreachableBudget, match=r"4\.000 to 4\.000"):
        solve(lambda _: 4.0, UNIT, 5.0)


def test_a_jump_ends_at_its_nearer_side_and_says_so() -> None:
    found = solve(lambda x: 4.6 if x < 0.3 else 3.0, UNIT, 4.0)
    assert found.measured == 4.6 and found.value < 0.3 and len(found.probes) <= MAX_PROBES
    assert found.gap is not None and "falls into a gap" in found.gap and "leads to 3.000" in found.gap


@pytest.mark.parametrize(("target", "value", "gap"), [(4.6, 4, False), (5.0, 4, True), (5.3, 5, True), (8.0, 8, False)])
def test_a_whole_knob_is_searched_in_whole_steps(target: float, value: float, gap: bool) -> None:
    asked: list[float] = []

    def kept(k: float) -> float:
        asked.append(k)
        return min(8.0, k + 0.6)

    found = solve(kept, BudgetKnob("k", 1, 8, whole=True), target)
    assert (found.value, found.gap is not None) == (value, gap)
    assert all(k == int(k) for k in asked) and len(asked) == len(set(asked)) <= 5


# ---------------------------------------------------------------- planning


@pytest.fixture
def plan(tmp_path: Path) -> Any:
    def planned(*arguments: str) -> SweepPlan:
        return plan_sweep([*arguments, f"output_dir={tmp_path}", "dry_run=true"])

    return planned


def test_a_budget_leaves_the_knob_open(plan: Any) -> None:
    found = plan("policy=naee", "policy.budget=choice(5,5.0,6)")
    assert [point.label for point in found.points] == ["none", "naee budget=5", "naee budget=6"]
    point = found.points[1]
    assert point.budget == 5.0 and point.knob_fingerprint == point.fingerprint
    assert policy_of(point.rule, point.budget) == {"name": "naee", "k_min": 2, "budget": 5.0}
    moved = with_knob(point.rule, 0.125)
    assert moved.canonical() == {"name": "naee", "beta": 0.125, "k_min": 2}
    assert policy_of(moved, 5.0) == policy_of(point.rule, 5.0) and label_of(moved, 5.0) == point.label
    assert plan("policy=naee", "policy.beta=0.125").points[1].budget is None


def test_a_budget_of_a_whole_knob_is_that_knob(plan: Any) -> None:
    by_budget = plan("policy=fixed_k", "policy.budget=choice(3,5)").points
    by_k = plan("policy=fixed_k", "policy.k=choice(3,5)").points
    assert [(p.fingerprint, p.label, p.budget) for p in by_budget] == [(p.fingerprint, p.label, None) for p in by_k]


def test_a_fractional_budget_of_fixed_k_is_that_k(plan: Any) -> None:
    by_budget = plan("policy=fixed_k", "policy.budget=choice(4,4.6)").points
    by_k = plan("policy=fixed_k", "policy.k=range(4,5,0.6)").points
    assert [p.label for p in by_budget] == ["none", "fixed_k k=4", "fixed_k k=4.6"]
    assert [(p.fingerprint, p.label, p.budget) for p in by_budget] == [(p.fingerprint, p.label, None) for p in by_k]
    whole = plan("policy=fixed_k", "policy.k=4").points[-1]
    assert by_budget[1].fingerprint == whole.fingerprint != by_budget[2].fingerprint
    again = plan(*shlex.split(rerun_command("python -m banpick_exp policy=fixed_k", by_budget[2]))[3:])
    assert again.points[-1].fingerprint == by_budget[2].fingerprint


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("policy=naee policy.budget=5 policy.beta=0.5", "policy.beta=0.5 both say how many experts policy=naee keeps"),
        ("policy=ban policy.budget=5 policy.lambda=1", "the budget is met by solving lambda"),
        ("policy=none policy.budget=5", "no knob that decides how many experts stay"),
        ("policy=mask policy.experts={0:[1]} policy.budget=5", "choose one of fixed_k,"),
        ("policy=naee policy.budget=8.5", "outside [2, 8]"),
        ("policy=diep policy.budget=2", "the floor of policy=diep on this checkpoint"),
        ("policy=naee policy.budget=5 policy.beta=median", "policy.beta=median both say how many experts policy=naee"),
        ("policy=ban policy.budget=2.5", "outside [3, 8]: policy=ban keeps between k_min=3 and top_k=8"),
        ("policy=expert_sample policy.budget=4.5", "the budgets within reach are 1, 2, 3, 4, 5, 6, 7, 8"),
        ("policy=fixed_k policy.budget=9", "outside [1, 8]: policy=fixed_k keeps between 1 and top_k=8 experts"),
        ("policy=fixed_k policy.budget=0.5", "outside [1, 8]"),
        ("policy=naee policy.budget=many", "not a number of experts"),
        ("+sweep=ban_threshold policy.budget=5", "both say how many experts policy=ban keeps"),
    ],
)
def test_budgets_that_cannot_be_planned(plan: Any, typed: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        plan(*typed.split())
    assert words in str(caught.value)


@pytest.mark.parametrize("name", sorted(name for name, rule in POLICIES.items() if rule.budget_knob is not None))
def test_a_rerun_plans_the_same_point(plan: Any, name: str) -> None:
    extra = ["policy.k_min=1"] if "k_min" in POLICIES[name].model_fields else []
    found = plan(f"policy={name}", "policy.budget=choice(5,6)", *extra)
    point, other = (p for p in found.points if p.rule.name == name)
    assert point.fingerprint != other.fingerprint
    again = plan(*shlex.split(rerun_command(found.command, point))[3:])
    assert point.fingerprint in [p.fingerprint for p in again.points]


@pytest.mark.parametrize("name", sorted(name for name, rule in POLICIES.items() if rule.budget_knob is not None))
def test_the_ends_of_every_knob_are_values_it_takes(name: str) -> None:
    rule = POLICIES[name]
    assert rule.budget_knob is not None
    knob = rule.budget_knob.within(SHAPE)
    for value in (knob.low, knob.high):
        typed = {"policy": name, f"policy.{knob.name}": int(value) if knob.whole else value}
        found, budget = Composer().policy(typed, SHAPE)
        assert budget is None and found.canonical()[knob.name] == value


def test_the_shipped_sweep_has_every_rule_at_every_budget(plan: Any) -> None:
    points = plan("+sweep=iso_budget").points
    with_knob_of_their_own = {name for name, rule in POLICIES.items() if rule.budget_knob is not None}
    assert {p.rule.name for p in points} == with_knob_of_their_own | {"none"}
    for name in with_knob_of_their_own - {"fixed_k"}:
        own = [p for p in points if p.rule.name == name]
        budgets = {p.budget or p.rule.budget(p.checkpoint.shape)[0] for p in own if not as_published(p)}
        assert budgets == {3, 4, 5, 6}
    assert len({p.engine_fingerprint for p in points}) == 1 and len({p.calibration_fingerprint for p in points}) == 2


def as_published(point: Point) -> bool:
    """Whether the point is a rule at its authors' own setting, whatever budget that comes to."""
    return point.label in ("naee beta=median k_min=2", "diep beta=1 alpha=1 k_min=2")


def test_the_shipped_sweep_has_each_rule_at_every_floor_that_leaves_it_room(plan: Any) -> None:
    found = plan("+sweep=iso_budget")
    assert sum(as_published(point) for point in found.points) == 2
    assert len(found.points) <= 80 and not [note for note in found.notes if "left out" in note]
    floors: dict[str, set[tuple[int, float]]] = {}
    for point in found.points:
        if point.budget is not None:
            floor, top_k = point.rule.budget(point.checkpoint.shape)
            assert floor < point.budget < top_k, "it could only be the floor, or stock"
            floors.setdefault(point.rule.name, set()).add((int(floor), point.budget))
    both = {(1, 3), (1, 4), (1, 5), (1, 6), (2, 3), (2, 4), (2, 5)}
    published = {(3, 4), (3, 5)}
    assert floors == {
        **dict.fromkeys(("naee", "diep", "top_p", "modes", "adapmoe"), both),
        **dict.fromkeys(("ban", "ban_pick"), both | published),
    }


def test_the_shipped_sweep_leaves_out_what_a_smaller_top_k_has_no_room_for(plan: Any, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "small", num_experts_per_tok=4)
    found = plan("+sweep=iso_budget", "task=tiny", f"model.path={folder}")
    solved = [point for point in found.points if point.budget is not None]
    assert {point.budget for point in solved} >= {1.5, 2, 2.5, 3}
    assert all(point.rule.budget(point.checkpoint.shape)[0] < point.budget < 4 for point in solved)
    assert any("left out, because this checkpoint has no room for it" in note for note in found.notes)


def test_repeats_share_the_knob_of_the_point(plan: Any) -> None:
    points = [p for p in plan("policy=naee", "policy.budget=5", "repeats=2").points if p.budget]
    assert len({p.fingerprint for p in points}) == 2
    assert {p.knob_fingerprint for p in points} == {points[0].fingerprint}


# ---------------------------------------------------------------- probe, run, confirm, correct


class Machine:
    """Counts as an engine whose budget is `kept(beta)` on a sample, and `bias` more on all problems."""

    def __init__(self, kept: Callable[[float], float], bias: float = 0.0) -> None:
        self.kept, self.bias, self.beta, self.probes = kept, bias, math.nan, 0

    def set_policy(self, name: str, params: Any, calibration_key: str = "") -> float:
        self.beta = params["beta"]
        return 0.0

    def generate(self, prompts: list[str], **settings: Any) -> None:
        assert len(prompts) == SAMPLE_PROBLEMS and settings["salt"]
        self.probes += 1

    def counters(self, *, reset: bool, bias: float = 0.0) -> Counters:
        kept = self.kept(self.beta) + bias
        return Counters([1000] * 4, [round(1000 * kept)] * 4, [])

    def answer(self, policies: Any) -> Answered:
        policies["math"].activate(self)
        run = DomainRun([], self.counters(reset=True, bias=self.bias))
        return Answered(policies=policies, runs={"math": run}, swap_seconds=0.0)


@pytest.fixture
def met(plan: Any, tmp_path: Path) -> Callable[[Machine], AtBudget]:
    (point,) = [p for p in plan("policy=naee", "policy.budget=5", "task.domains=[math]").points if p.budget]
    policies = {"math": DomainPolicy(rule=point.rule, calibration_key="", calibration=None)}
    problems = {"math": [Problem(str(i), "math", "math", f"m:{i}=", "1") for i in range(200)]}

    def run(machine: Any) -> AtBudget:
        return answer_at_budget(machine, point, policies, problems, tmp_path / "solved", machine.answer)

    return run


def falling(beta: float) -> float:
    return 8 - 7 * beta**0.5


def test_a_sample_that_tells_the_truth_is_confirmed(met: Any, tmp_path: Path) -> None:
    found = met(Machine(falling, bias=0.02))
    assert found.reason is None and not found.account.corrected and not found.account.cached
    assert abs(found.account.measured - 5) <= 0.05 and found.account.sample_problems == SAMPLE_PROBLEMS
    assert found.answered.policies["math"].rule.canonical()["beta"] == found.account.value
    machine = Machine(falling, bias=0.02)
    again = met(machine)
    assert machine.probes == 0 and again.account == found.account.model_copy(update={"cached": True})


def test_another_budget_of_the_rule_asks_no_question_twice(plan: Any, tmp_path: Path) -> None:
    points = [p for p in plan("policy=naee", "policy.budget=choice(4,5)", "task.domains=[math]").points if p.budget]
    problems = {"math": [Problem(str(i), "math", "math", f"m:{i}=", "1") for i in range(200)]}
    probed: dict[str, dict[float, float]] = {}
    machine: Any = Machine(falling)
    accounts = []
    for point in points:
        policies = {"math": DomainPolicy(rule=point.rule, calibration_key="", calibration=None)}
        found = answer_at_budget(machine, point, policies, problems, tmp_path, machine.answer, probed)
        accounts.append(found.account)
    asked = [value for account in accounts for value, _ in account.probes]
    assert len(asked) > len(set(asked)) == machine.probes, "the end beta=1 is asked for once"
    assert [set(found) for found in probed.values()] == [set(asked)]


@pytest.mark.parametrize("bias", [0.3, -0.3])
def test_a_sample_that_misleads_is_corrected_once(met: Any, bias: float) -> None:
    found = met(Machine(falling, bias))
    assert found.reason is None and found.account.corrected
    assert abs(found.account.measured - 5) <= 0.05 and found.account.target == 5
    assert met(Machine(falling, bias)).account.cached, "the corrected knob was kept, with what the sample says there"


def test_a_budget_that_is_not_met_is_a_reason(met: Any, tmp_path: Path) -> None:
    found = met(Machine(lambda beta: 6.0 if beta < 0.4 else 3.0))
    assert found.reason is not None and "budget=5 is not met: 6.000" in found.reason and "gap" in found.reason
    assert not list(tmp_path.glob("solved/*")), "a knob that missed is not kept"
    with pytest.raises(UnreachableBudget, match=r"beta from 0 to 1 .* budgets of 5\.500 to 8\.000"):
        met(Machine(lambda beta: 8 - 2.5 * beta))


@pytest.mark.parametrize("spoiled", ["{}", "{", '{"value": NaN}'])
def test_what_was_kept_is_checked_when_read(met: Any, tmp_path: Path, spoiled: str) -> None:
    before = met(Machine(falling))
    (path,) = tmp_path.glob("solved/*.json")
    whole = path.read_text()
    path.write_text(spoiled)
    assert met(Machine(falling)).account == before.account and path.read_text() == whole
    path.write_text(json.dumps(json.loads(whole) | {"target": 6.0}))
    assert met(Machine(falling)).account == before.account


# ---------------------------------------------------------------- reported


def test_the_report_says_what_was_solved_and_who_wins_where(tmp_path: Path) -> None:
    run = SyntheticRun(seed=3)
    run.add("none")
    for k in (3, 5):
        run.add("fixed_k", {"k": k}, kept=k)
    for budget in (3, 5):
        for name, knob, shift in (("naee", "beta", 0.0), ("top_p", "p", 0.25 if budget == 3 else 0.0)):
            record = run.add(
                name, {knob: 0.3 + budget / 100}, kept=budget + 0.01, churn=0.01, shift=dict.fromkeys(DOMAINS, shift)
            )
            account = {
                "target": float(budget), "knob": knob, "value": 0.3 + budget / 100, "measured": budget + 0.01,
                "probes": [[0.5, 3.4], [0.31, 4.98]], "sample_problems": 192, "cached": False, "corrected": False,
            }  # fmt: skip
            record = run.change(record, label=f"{name} budget={budget}", budget=account)
    folder = RunFolder(run.write(tmp_path / "iso_budget" / "run"))
    _, set_aside = folder.load_points()
    assert not set_aside
    found = read_run(folder)
    frame = found.frame
    naee = frame.filter((frame["label"] == "naee budget=5") & (frame["domain"] == "overall")).row(0, named=True)
    assert naee["budget_target"] == 5 and naee["solved_knob"] == "beta=0.35"
    sentence = equal_budget_sentence(found.verdicts)
    assert sentence.startswith(
        "2 rules at equal measured budgets, 4 comparisons with fixed_k: 1 beat it (top_p budget=3 +"
    )
    assert sentence.endswith("0 lose to it, 3 tie: no difference shown, which is not the same as none.")

    output = io.StringIO()
    print_pareto(found, Console(width=240, file=output))
    printed = output.getvalue()
    assert "Against fixed_k at equal budget" in printed and "naee budget=5 beta=0.35" in printed and sentence in printed
    page = page_html([found], [maps_of(found)])
    assert "Knobs solved for a budget" in page and "beta = 0.35" in page and "0.31: 4.98" in page and "+0.010" in page
    assert record.asked_policy() == {"name": "top_p", "budget": 5.0}, "for what must agree between dev and test"
    assert point_metrics(record)["budget/probes"] == 2

    broken = folder.record_path(record.fingerprint)
    broken.write_text(json.dumps(json.loads(broken.read_text()) | {"budget": {"target": 5.0}}))
    with pytest.raises(CorruptRecord, match=r"the record lacks budget\.knob"):
        folder.read_point(record.fingerprint)


# ---------------------------------------------------------------- on the engine


@pytest.mark.engine
def test_the_engine_meets_a_budget(tiny_engine: Engine, tmp_path: Path) -> None:
    from banpick_exp.cluster.actor import EngineActor

    small = ["task.max_problems=150", "task.speed_seconds=0.1", "task.domains=[math]"]
    found = plan_sweep(["policy=naee", "policy.budget=5.0", *small, f"output_dir={tmp_path}"])
    stock, point = found.points
    folder = RunFolder(tmp_path / "iso_budget" / "run")
    actor = EngineActor(point, str(folder.path), tiny_engine)

    first = actor.run_point(point, stock.fingerprint, rerun_command(found.command, point))
    spent = first.budget
    assert spent is not None
    assert first.status == "done" and first == folder.read_point(point.fingerprint)
    assert abs(first.mean_kept - 5) <= 0.05
    assert spent.measured == first.mean_kept and not spent.cached
    assert first.policy == {"name": "naee", "beta": spent.value, "k_min": 2}
    assert 0 < len(spent.probes) < 8 and spent.value in [value for value, _ in spent.probes]
    assert first.label == "naee budget=5" and "policy.budget=5.0" in (first.command or "")

    second = actor.run_point(point, stock.fingerprint, rerun_command(found.command, point))
    assert second.budget is not None and abs(second.budget.measured - 5) <= 0.05
    assert second.budget == spent.model_copy(update={"cached": True, "measured": second.budget.measured})
    assert second.policy == first.policy
