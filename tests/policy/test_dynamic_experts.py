"""Samples spread over several k, and fixed_k above the checkpoint's own K: what planning says, and what is routed."""

from __future__ import annotations

import doctest
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from banpick_exp.errors import UserError
from banpick_exp.models.routing import Routing
from banpick_exp.policy import Calibration, MoeShape, Policy, build_policy, parse_policy
from banpick_exp.policy.bases.several import SeveralRows
from banpick_exp.policy.build import build_parts, routing_digest
from banpick_exp.policy.rule import short
from banpick_exp.policy.rules import dynamic_experts
from banpick_exp.report.question import _value, _words
from banpick_exp.sweep.plan import plan_sweep
from banpick_exp.sweep.rerun import rerun_command
from banpick_exp.sweep.sensible_rules import rules_for
from banpick_kernels import reference
from banpick_kernels.insertion import MAX_SLOTS
from banpick_kernels.numpy_router import NumpyRouter
from banpick_kernels.table import RouterTable

SHAPE = MoeShape(num_layers=2, num_experts=16, top_k=4)
LOGITS = torch.randn(60, 16, generator=torch.Generator().manual_seed(3)) * 2
SAMPLED = ("task.samples=4", "task.temperature=0.8")


def fixed(k: int) -> Policy:
    return build_policy("fixed_k", {"k": k}, num_layers=2, num_experts=16, top_k=4)


def plan(folder: Path, *typed: str) -> Any:
    return plan_sweep([*typed, f"output_dir={folder}", "dry_run=true", "task.speed_seconds=0"])


# ---------------------------------------------------------------- fixed_k above K


@pytest.mark.parametrize("kind", ["plain", "bfloat16", "ties"])
@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize("k", [5, 9, 16])
def test_above_k_a_token_keeps_its_first_k_experts(k: int, renormalize: bool, kind: str) -> None:
    logits = LOGITS.round() if kind == "ties" else LOGITS.bfloat16() if kind == "bfloat16" else LOGITS
    weights, ids, kept = fixed(k).route(logits, 1, renormalize)
    wanted = logits.float().argsort(dim=1, descending=True, stable=True)[:, :k]
    scores = logits.float().softmax(-1).gather(1, wanted)
    assert torch.equal(ids.long(), wanted) and kept.all() and ids.shape == (60, k)
    assert weights.allclose(scores / scores.sum(1, keepdim=True) if renormalize else scores, atol=1e-6)
    found = NumpyRouter(fixed(k).table.layer(1)).route(logits, 4, k, renormalize)
    assert (found.ids_TS == ids.numpy()).all() and found.kept_TS.all()
    assert torch.from_numpy(found.weights_TS).allclose(weights, atol=1e-6)


def test_a_wider_router_leaves_the_rest_empty_whatever_a_router_made_of_ties() -> None:
    """Slots for 9 beside a k of 6, as in a batch of several; a base selection that took other equals than ours."""
    logits = LOGITS.round()
    table, scores = fixed(6).table.layer(0), reference.router_scores(logits)
    last_of_equals = logits.flip(1).argsort(dim=1, descending=True, stable=True)[:, :4]
    _, ids, kept = reference.edit_selection(logits, scores, 15 - last_of_equals, table, 9, True)
    assert kept.sum(dim=1).unique().tolist() == [6]
    assert torch.equal(ids[kept].view(60, 6), fixed(6).route(logits, 0)[1])


def test_above_k_by_a_router_that_corrects_or_sees_few_groups() -> None:
    """The first k by what the router ranks by, weighed and ordered by score."""
    scores = reference.router_scores(LOGITS, "sigmoid")
    corrected = scores + torch.linspace(0, 0.8, 16)
    for ranking, k in ((corrected, 7), (reference.within_groups(corrected, 4, 2, corrected=True), 7)):
        base = reference.select_top_k(ranking, 4)
        _, ids, kept = reference.edit_selection(
            LOGITS, scores, base, fixed(k).table.layer(0), k, True, ranking_TE=ranking
        )
        wanted = ranking.argsort(dim=1, descending=True, stable=True)[:, :k]
        assert kept.all() and torch.equal(ids.long().sort(1).values, wanted.sort(1).values)


def test_what_is_implied_above_k() -> None:
    policy = fixed(9)
    assert policy.budget == (9, 9) and policy.max_kept == policy.slots == 9 and policy.pull() is None
    assert policy.key_experts is None and policy.rule.label() == "fixed_k k=9" and policy.rule.is_reference
    assert policy.digest() != fixed(10).digest()
    assert fixed(4).digest() == build_policy("none", {}, num_layers=2, num_experts=16, top_k=4).digest()
    wide = MoeShape(num_layers=2, num_experts=128, top_k=8)
    assert parse_policy("fixed_k", {"k": MAX_SLOTS}, wide).max_kept(wide) == MAX_SLOTS
    with pytest.raises(UserError, match=r"policy.k=33 exceeds the 32 experts"):
        parse_policy("fixed_k", {"k": 33}, wide)


# ---------------------------------------------------------------- the rule


def test_the_worked_example() -> None:
    result = doctest.testmod(dynamic_experts)
    assert result.attempted >= 4 and not result.failed


@pytest.mark.parametrize(
    ("num_experts", "top_k", "ks"),
    [(64, 8, range(4, 12)), (8, 2, [1, 2]), (4, 4, [2, 3, 4]), (16, 1, [1, 2]), (60, 4, range(2, 6))],
)
def test_the_usual_spread(num_experts: int, top_k: int, ks: Any) -> None:
    shape = MoeShape(num_layers=1, num_experts=num_experts, top_k=top_k)
    usual = dynamic_experts.DynamicExperts.derived_knobs(shape)
    assert usual == {"ks": list(ks)}
    parse_policy("dynamic_experts", usual, shape)


@pytest.mark.parametrize(
    ("ks", "words"),
    [
        (4, "policy.ks=4 is no list of numbers of experts"),
        ("4,6", "policy.ks='4,6' is no list"),
        ([4], r"policy.ks=\[4\] names fewer than two"),
        ([4, 4.5], r"policy.ks=\[4, 4.5\] holds 4.5, which is no whole number"),
        ([4, True], "holds True, which is no whole number"),
        ([4, 6, 4], "names 4 twice"),
        ([0, 6], "holds 0: a token of this checkpoint keeps 1 to 16 experts. Use numbers from 1 to 16"),
        ([4, 17], "holds 17: a token"),
    ],
)
def test_lists_that_mean_nothing(ks: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        parse_policy("dynamic_experts", {"ks": ks}, SHAPE)


def test_it_is_its_parts() -> None:
    rule = parse_policy("dynamic_experts", {"ks": [6, 2, 4]}, SHAPE)
    assert rule.label() == "dynamic_experts ks=2,4,6" and rule.canonical() == {
        "name": "dynamic_experts",
        "ks": [2, 4, 6],
    }
    assert [part.canonical() for part in rule.parts] == [{"name": "fixed_k", "k": k} for k in (6, 4, 2)]
    assert [rule.row_of(sample) for sample in range(5)] == [0, 1, 2, 0, 1]
    assert rule.budget(SHAPE) == (2, 6) and rule.max_kept(SHAPE) == 6 and not rule.needs_calibration()
    parts = build_parts(rule, SHAPE, None)
    assert [part.digest() for part in parts] == [fixed(k).digest() for k in (6, 4, 2)]
    other = build_parts(parse_policy("dynamic_experts", {"ks": [2, 4, 5]}, SHAPE), SHAPE, None)
    assert routing_digest(parts) != routing_digest(other)
    assert routing_digest(parts[:1]) == fixed(6).digest()[:16], "as every record of one row has it"


def test_no_router_takes_it_for_one_table() -> None:
    words = r"policy=dynamic_experts is a policy of several rows: .*\(fixed_k k=6, fixed_k k=2\)"
    with pytest.raises(UserError, match=words):
        build_policy("dynamic_experts", {"ks": [2, 6]}, num_layers=2, num_experts=16, top_k=4)
    rule = parse_policy("dynamic_experts", {"ks": [2, 6]}, SHAPE)
    with pytest.raises(UserError, match=words):
        rule.fill(RouterTable.neutral(2, 16, 4), SHAPE, None)


class Contrast(SeveralRows):
    """Two rows of which one reads a calibration: what another rule of several rows leans on."""

    name = "contrast_of_two"

    @property
    def parts(self) -> Any:
        return parse_policy("none", {}), parse_policy("ban", {"lambda": 1, "k_min": 2})


def test_parts_that_read_a_calibration() -> None:
    calibration = Calibration.of({"layer_sensitivity": [0, 1], "r_min": 0.5, "r_max": 0.9})
    rule = Contrast()
    assert rule.needs_calibration() and rule.budget(SHAPE) == (2, 4)
    stock, ban = build_parts(rule, SHAPE, calibration)
    assert stock.budget == (4, 4) and ban.table.ban.all() and not stock.table.ban.any()


# ---------------------------------------------------------------- planning


def test_a_sweep_of_it(tmp_path: Path) -> None:
    points = plan(tmp_path, "policy=dynamic_experts", "policy.ks=choice([4,6],[2,9,10])", *SAMPLED).points
    assert [point.label for point in points] == ["none", "dynamic_experts ks=4,6", "dynamic_experts ks=2,9,10"]
    usual = plan(tmp_path, "policy=dynamic_experts", "task.samples=8", "task.temperature=0.6").points[-1]
    assert usual.rule.canonical()["ks"] == [4, 5, 6, 7, 8, 9, 10, 11], "of the embedded model, top_k 8"


def test_each_point_of_the_shipped_sweep_can_be_typed_again(tmp_path: Path) -> None:
    planned = plan(tmp_path, "+sweep=dynamic_experts")
    assert [point.label for point in planned.points][-1] == "dynamic_experts ks=4..11"
    for point in planned.points:
        words = shlex.split(rerun_command(planned.command, point))[3:]
        again = plan_sweep([*words, "search.ladder=none", f"output_dir={tmp_path}", "dry_run=true"])
        assert again.points[-1].fingerprint == point.fingerprint
        assert (again.points[-1].task.samples, again.points[-1].task.choose) == (8, "majority")


def test_lists_in_labels_and_at_the_axes_of_figures() -> None:
    assert [short(each) for each in ([4, 5, 6], (4, 5), [4, 6, 8], [3])] == ["4..6", "4,5", "4,6,8", "3"]
    settings = [{"ks": [4, 5, 6]}, {"ks": [2, 10]}]
    assert _words(_value(settings[0], "ks"), "ks", settings) == "4..6"
    assert _words(_value(settings[1], "ks"), "ks", settings) == "2,10"


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (
            (),
            r"2 numbers of experts \(4,9\), and task.samples=1 leaves 1 .* Type task.samples=2 task.temperature=0.6",
        ),
        (("task.samples=4", "task.temperature=0.5", "policy.ks=[1,2,3,4,5]"), r"\(1..5\), and task.samples=4 leaves 1"),
        (
            (*SAMPLED, "engine.policies_per_batch=1"),
            r"2 rules at once \(fixed_k k=9, fixed_k k=4\), and engine.policies_per_batch=1 has this engine hold one"
            r" policy.*Type engine.policies_per_batch=2\.",
        ),
        (
            (*SAMPLED, "engine.policies_per_batch=2", "policy.ks=[1,2,3]"),
            "engine.policies_per_batch=2 has this engine hold 2 policies",
        ),
        (
            (*SAMPLED, "engine.compile=true"),
            r"keeps 9 experts a token, and a compiled engine has slots for top_k=8 and engine.extra_slots=0 more"
            r".*Type engine.extra_slots=1, or engine.compile=false",
        ),
        ((*SAMPLED, "policy.budget=5"), "policy.budget=5 means nothing to policy=dynamic_experts"),
    ],
)
def test_what_cannot_run_is_refused_with_what_to_type(tmp_path: Path, typed: tuple[str, ...], words: str) -> None:
    ks = () if any(each.startswith("policy.ks") for each in typed) else ("policy.ks=[4,9]",)
    with pytest.raises(UserError, match=words):
        plan(tmp_path, "policy=dynamic_experts", *ks, *typed)


def test_points_of_one_engine_hold_as_many_policies(tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"differs between points of one engine: .*16 \(fixed_k k=4\).* Type engine.policies_per_batch=16 on",
    ):
        plan(
            tmp_path,
            'sweep.blocks=[["policy=dynamic_experts","policy.ks=[4,9]","engine.policies_per_batch=2"],["policy=fixed_k","policy.k=4"]]',
            *SAMPLED,
        )


def test_fixed_k_above_top_k_is_a_point(tmp_path: Path) -> None:
    points = plan(tmp_path, "policy=fixed_k", "policy.k=choice(4,10)", "search.ladder=none").points
    assert [point.label for point in points] == ["none", "fixed_k k=4", "fixed_k k=10"]
    with pytest.raises(UserError, match="keeps 10 experts a token, and a compiled engine has slots for top_k=8"):
        plan(tmp_path, "policy=fixed_k", "policy.k=10", "engine.compile=true")


def test_what_inspect_advises() -> None:
    routing = Routing(
        scoring="softmax", renormalises=True, groups=1, groups_seen=1, corrected=False, scaling=1.0, shared_experts=0
    )
    found = {gpu: {each.rule: each for each in rules_for(SHAPE, routing, gpu=gpu)} for gpu in (False, True)}
    advised = [found[gpu]["dynamic_experts"] for gpu in (False, True)]
    assert all(each.state == "sensible" and each.needs == "nothing" and not each.eager for each in advised)
    assert advised[0].remark == "answers each problem several times: type task.samples=4 task.temperature=0.6"
    assert advised[1].remark.endswith("engine.policies_per_batch=4 engine.extra_slots=1")
