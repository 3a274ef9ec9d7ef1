"""The contrast of a checkpoint with one rank of its own: what is routed, what planning says, what counts as engaged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from banpick_exp.errors import UserError
from banpick_exp.evaluation.answer import DomainPolicy, DomainRun
from banpick_exp.evaluation.engagement import check_engagement
from banpick_exp.policy import MoeShape, build_policy, parse_policy
from banpick_exp.policy.build import build_parts
from banpick_exp.records import Counters, Engagement, added_counters
from banpick_exp.sweep.plan import plan_sweep
from banpick_exp.sweep.search.company import has_company
from banpick_exp.sweep.search.strategy import Work
from banpick_kernels import reference

SHAPE = MoeShape(num_layers=2, num_experts=8, top_k=3)
LOGITS = torch.randn(50, 8, generator=torch.Generator().manual_seed(5)) * 2


def plan(folder: Path, *typed: str) -> Any:
    return plan_sweep(["task=tiny", *typed, f"output_dir={folder}", "dry_run=true"])


# ---------------------------------------------------------------- rank_k


@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize("rank", [1, 3, 4, 8])
def test_a_token_keeps_the_expert_of_the_rank_alone(rank: int, renormalize: bool) -> None:
    policy = build_policy("rank_k", {"rank": rank}, num_layers=2, num_experts=8, top_k=3)
    weights, ids, kept = policy.route(LOGITS, 1, renormalize)
    wanted = LOGITS.argsort(dim=1, descending=True, stable=True)[:, rank - 1]
    score = LOGITS.softmax(-1).gather(1, wanted[:, None])[:, 0]
    assert torch.equal(ids[:, 0].long(), wanted) and kept.sum(1).eq(1).all() and kept[:, 0].all()
    torch.testing.assert_close(weights[:, 0], torch.ones(50) if renormalize else score)
    assert weights[:, 1:].eq(0).all()


def test_rank_1_routes_as_one_expert_does() -> None:
    shape: dict[str, Any] = {"num_layers": 2, "num_experts": 8, "top_k": 3}
    both = [build_policy("rank_k", {"rank": 1}, **shape), build_policy("fixed_k", {"k": 1}, **shape)]
    for one, other in zip(*(policy.route(LOGITS, 0) for policy in both), strict=True):
        assert torch.equal(one, other)


def test_ranks_are_those_of_the_router() -> None:
    """With a correction bias it ranks by score plus bias."""
    bias = torch.linspace(0, 1, 8)
    policy = build_policy("rank_k", {"rank": 2}, num_layers=1, num_experts=8, top_k=3)
    assert policy.edits is not None
    routed = reference.route(
        LOGITS, policy.table.layer(0), 3, 1, False, "sigmoid", correction_E=bias, edit=policy.edits[0]
    )
    assert torch.equal(routed[1][:, 0].long(), (LOGITS.sigmoid() + bias).argsort(dim=1, descending=True)[:, 1])


# ---------------------------------------------------------------- scmoe


def test_its_rows_and_what_they_keep_together() -> None:
    rule = parse_policy("scmoe", {"weak_rank": 4}, SHAPE)
    assert [part.label() for part in rule.parts] == ["none", "rank_k rank=4"]
    assert rule.budget(SHAPE) == (4, 4) and rule.max_kept(SHAPE) == 3 and rule.contrast == (0.1, 0.5)
    assert {rule.row_of(sample) for sample in range(5)} == {0} and not rule.needs_calibration()
    assert parse_policy("fixed_k", {"k": 2}).contrast is None


@pytest.mark.parametrize(
    ("name", "knobs", "words"),
    [
        ("scmoe", {"beta": -0.1}, r"policy.beta=-0.1 is outside \[0, 100\].*Use for example 0.5"),
        ("scmoe", {"alpha": 1.5}, r"policy.alpha=1.5 is outside \[0, 1\]"),
        ("scmoe", {"weak_rank": 9}, r"policy.weak_rank=9 is no rank among the 8 experts.*Use 1..8"),
        ("rank_k", {"rank": 0}, r"policy.rank=0 is no rank among the 8 experts.*Use 1..8"),
        ("rank_k", {}, r"policy.rank is missing.*Type for example policy.rank=2"),
    ],
)
def test_knobs_that_cannot_be(name: str, knobs: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        parse_policy(name, knobs, SHAPE)


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["engine.policies_per_batch=1"], r"2 rules at once \(none, rank_k rank=2\).*policies_per_batch=2"),
        (["engine.max_num_seqs=1"], r"engine.max_num_seqs=1 .* Type engine.max_num_seqs=2"),
        (["engine.pipeline_parallel_size=2"], "Type engine.pipeline_parallel_size=1"),
        (["engine.pipeline_parallel_size=2", "engine.policies_per_batch=2"], "Type engine.pipeline_parallel_size=1"),
        (
            ["engine=cuda", "engine.policies_per_batch=2", "engine.compile=false", "engine.model_runner=v2"],
            "Type engine.model_runner=v1",
        ),
    ],
)  # fmt: skip
def test_engines_that_cannot_hold_a_pair_are_refused_while_planning(
    tmp_path: Path, typed: list[str], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        plan(tmp_path, "policy=scmoe", *typed)


def test_it_is_priced_twice(tmp_path: Path) -> None:
    from banpick_exp.sweep.estimate import point_cost, speed_of

    stock, contrast = plan(tmp_path, "policy=scmoe").points
    costs = [point_cost(point, speed_of(point)) for point in (stock, contrast)]
    assert costs[1].answer_seconds == pytest.approx(2 * costs[0].answer_seconds)
    assert costs[1].time_seconds == 0.0, "no speed is measured"


def test_its_rows_are_its_own(tmp_path: Path) -> None:
    """Policies that share a batch have a row each, and it needs two."""
    _, contrast = plan(tmp_path, "policy=scmoe", "task.speed_seconds=0").points
    _, alone = plan(tmp_path, "policy=rank_k", "task.speed_seconds=0").points
    assert not has_company(Work(point=contrast)) and not has_company(Work(point=contrast, kind="block"))
    assert has_company(Work(point=alone))


# ---------------------------------------------------------------- engaged


def counted(tokens: int, kept: int) -> Counters:
    return Counters([tokens] * 2, [tokens * kept] * 2, [[tokens * kept, *[0] * 7]] * 2)


def evidence(strong: Counters, weak: Counters, **changes: Any) -> tuple[Engagement, str | None]:
    policy = DomainPolicy(rule=parse_policy("scmoe", {}, SHAPE), calibration_key="", calibration=None)
    both = replace(added_counters([strong, weak]), tokens=strong.tokens)
    run = DomainRun([], replace(both, **changes), rows=(strong, weak))
    return check_engagement({"math": policy}, {"math": run}, {"math": DomainRun([], strong)}, SHAPE)


def test_what_both_rows_keep_is_kept_for_one_token() -> None:
    found, reason = evidence(counted(100, 3), counted(100, 1))
    assert reason is None
    assert found.measured == {"math": 4.0} and found.implied == {"math": (4.0, 4.0)}
    assert found.measured_by_row == {"math": (3.0, 1.0)}


@pytest.mark.parametrize(
    ("strong", "weak", "changes", "words"),
    [
        (counted(100, 3), counted(90, 1), {}, "did not route the same tokens"),
        (counted(100, 3), counted(100, 3), {}, r"row 1 \(rank_k rank=2\): measured 3.000 experts"),
        (counted(100, 3), counted(100, 1), {"kept": [500, 500]}, "do not add up"),
    ],
)
def test_pairs_that_were_not_routed_as_said(
    strong: Counters, weak: Counters, changes: dict[str, Any], words: str
) -> None:
    reason = evidence(strong, weak, **changes)[1]
    assert reason is not None
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(reason)


def test_the_weak_row_is_built_by_its_own_rule() -> None:
    strong, weak = build_parts(parse_policy("scmoe", {"weak_rank": 5}, SHAPE), SHAPE, None)
    stock = build_policy("none", {}, num_layers=2, num_experts=8, top_k=3)
    assert strong.edits is None and strong.digest() == stock.digest()
    assert weak.edits is not None and weak.max_kept == 1
