"""A policy that was exported and loaded routes as the point of its run did: token for token, table for table."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

from banpick_exp.__main__ import main
from banpick_exp.evaluation.answer import DomainPolicy, answer_problems
from banpick_exp.evaluation.measure import asked_problems
from banpick_exp.evaluation.session import Session
from banpick_exp.models.config import ModelConfig
from banpick_exp.models.inspect import inspect_checkpoint
from banpick_exp.policy import parse_policy
from banpick_exp.policy.exported import Exported, load
from banpick_exp.records import PointRecord, outcomes_of
from banpick_exp.run_folder import RunFolder
from banpick_exp.sweep.plan import plan_sweep
from banpick_exp.sweep.point import Point
from banpick_exp.sweep.rerun import as_typed, rerun_command

if TYPE_CHECKING:
    from banpick_exp.engine.engine import Engine

pytestmark = pytest.mark.engine

SMALL = ["task.domains=[math,code]", "task.max_problems=24", "task.speed_seconds=0.1", "tracking=none"]
CHEAP = ["calibration.score=insertion_kl", "calibration.samples=8"]
READING = ("policy=pick", "policy=ban", "policy=diep")
POLICIES = {
    "pick": ["policy=pick", "policy.mode=boost", "policy.boost=1", "policy.key_experts=4"],
    "merged": ["policy=pick", "policy.mode=range_add", "policy.key_experts=3", "policy.scope=merged"],
    "ban": ["policy=ban", "policy.lambda=0.8"],
    "diep": ["policy=diep"],
    "solved": ["policy=naee", "policy.budget=5.0"],
    "fixed_k": ["policy=fixed_k", "policy.k=4.6"],
    "offset": ["policy=logit_offset"],
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Sent:
    """A point of a run, and what was loaded of its export."""

    point: Point
    record: PointRecord
    run: RunFolder
    exported: Exported
    held: dict[str, str]
    """By domain, the digest of what the engine held as the run set it."""


@pytest.fixture(scope="module")
def sent(tiny_engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Sent]:
    """Every policy measured on the engine of this process, exported, and loaded where nothing of the run is left."""
    from banpick_exp.cluster.actor import EngineActor

    folder = tmp_path_factory.mktemp("outputs")
    offset = folder / "mine.safetensors"
    save_file({"logit_offset": torch.linspace(-1, 1, 4 * 32).reshape(4, 32)}, offset)
    typed = {**POLICIES, "offset": [*POLICIES["offset"], f"policy.path={as_typed(str(offset))}"]}
    run = RunFolder(folder / "every_rule" / "first")
    found = {}
    for name, words in typed.items():
        plan = plan_sweep([*words, *SMALL, *(CHEAP if words[0] in READING else ()), f"output_dir={folder}"])
        stock, point = plan.points
        actor = EngineActor(point, str(run.path), tiny_engine)
        if point.calibration_fingerprint:
            actor.calibrate(point, lambda done, total, of: None)
        for each in (stock, point):
            if not run.record_path(each.fingerprint).exists():
                actor.run_point(each, stock.fingerprint, rerun_command(plan.command, each))
        record = run.read_point(point.fingerprint)
        assert record.status == "done", f"{name}: {record.reason}"
        assert main(["export", str(run.path), point.fingerprint, str(folder / "out" / name)]) == 0
        rule = parse_policy(record.policy_name, record.knobs, point.checkpoint.shape)  # with its knob solved
        policies = Session(tiny_engine, run).policies(point)
        digests = {domain: held(tiny_engine, replace(policy, rule=rule)) for domain, policy in policies.items()}
        found[name] = point, record, digests
    offset.unlink()
    run.calibrations.rename(run.calibrations.with_name("elsewhere"))
    return {
        name: Sent(point=point, record=record, run=run, exported=load(folder / "out" / name), held=digests)
        for name, (point, record, digests) in found.items()
    }


def held(engine: Engine, policy: DomainPolicy) -> str:
    """The digest of all tables that an engine holds under a policy."""
    ((digest, _),) = engine.call(
        "banpick_set_policy", policy.rule.name, json.dumps(policy.params), policy.calibration_key
    )
    return str(digest)


def taken(engine: Engine, exported: Exported) -> dict[str, DomainPolicy]:
    """The exported policy as an engine takes it, its calibrations handed over."""
    found = {}
    for domain in exported.domains:
        key, calibration = exported.calibration_key(domain), exported.calibrations[domain]
        if calibration is not None:
            engine.load_calibration(key, calibration)
        found[domain] = DomainPolicy(rule=exported.rule, calibration_key=key, calibration=calibration)
    return found


@pytest.mark.parametrize("name", POLICIES)
def test_the_same_completions_token_for_token(tiny_engine: Engine, sent: dict[str, Sent], name: str) -> None:
    each = sent[name]
    problems = asked_problems(each.point)
    again = answer_problems(tiny_engine, taken(tiny_engine, each.exported), each.point.task, problems, seed=0)
    recorded = outcomes_of(each.run.outcomes(each.point.fingerprint))
    assert len(recorded) == 48
    assert [outcome for run in again.runs.values() for outcome in run.outcomes] == recorded
    assert {domain: run.counters for domain, run in again.runs.items()} == each.record.engagement.counters


def test_the_answers_are_those_of_a_policy(sent: dict[str, Sent]) -> None:
    """The control: one that routed as stock, or as any other here, would not have passed above."""
    counters = [str(each.record.engagement.counters) for each in sent.values()]
    assert len(set(counters)) == len(counters)
    assert all(each.record.engagement.counters != each.record.engagement.stock_counters for each in sent.values())


@pytest.mark.parametrize("name", POLICIES)
def test_the_same_fingerprint(tiny_engine: Engine, sent: dict[str, Sent], name: str) -> None:
    """Of the table, as the record has it, and of what lies in the engine's memory."""
    each = sent[name]
    built = {domain: each.exported.build(domain) for domain in each.exported.domains}
    assert {domain: policy.digest()[:16] for domain, policy in built.items()} == each.record.engagement.routing_table
    assert {
        domain: held(tiny_engine, policy) for domain, policy in taken(tiny_engine, each.exported).items()
    } == each.held


def test_it_is_for_this_checkpoint(sent: dict[str, Sent]) -> None:
    for each in sent.values():
        each.exported.check(inspect_checkpoint(ModelConfig(name="mine")))


def test_the_solved_value_is_what_goes_out(sent: dict[str, Sent]) -> None:
    each = sent["solved"]
    assert each.record.budget is not None and each.exported.header.solved is not None
    assert each.exported.params["beta"] == each.record.budget.value == each.exported.header.solved.value
    assert "budget" not in each.exported.params and each.exported.header.solved.budget == 5


def test_only_what_the_rule_reads_is_carried(sent: dict[str, Sent]) -> None:
    read = {
        name: {part for domain in each.exported.header.domains.values() if domain.calibration
               for part in domain.calibration.parts}
        for name, each in sent.items()
    }  # fmt: skip
    assert read == {
        "pick": {"influence"},
        "merged": {"influence", "influence_elsewhere"},
        "ban": {"layer_sensitivity", "r_min", "r_max"},
        "diep": {"similarity", "ratio_median"},
        "solved": set(),
        "fixed_k": set(),
        "offset": set(),
    }


def test_a_file_of_the_users_goes_with_it(sent: dict[str, Sent]) -> None:
    exported = sent["offset"].exported
    assert Path(str(exported.params["path"])) == (exported.folder / "logit_offset_path.safetensors").absolute()
    assert exported.header.policy["path"] == "logit_offset_path.safetensors" and exported.one_policy
