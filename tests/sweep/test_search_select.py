"""`search=select`: what is planned of both stages, what dev chooses, and what is asked when."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from synthetic_run import SyntheticRun, changed

from banpick_exp.analysis import selection as by_hand
from banpick_exp.errors import UserError
from banpick_exp.manifest import Candidate
from banpick_exp.records import PointRecord
from banpick_exp.sweep.dry_run import search_line
from banpick_exp.sweep.estimate import point_tokens
from banpick_exp.sweep.plan import SweepPlan, plan_sweep
from banpick_exp.sweep.point import Point
from banpick_exp.sweep.search import selection
from banpick_exp.sweep.search.selection import Selection, Stages, picks

SPACE = [
    "policy=pick", "policy.mode=boost", "policy.boost=choice(0.25,0.5,1)", "policy.key_experts=choice(2,4)",
    'sweep.reference=[["policy=fixed_k","policy.k=choice(4,6)"]]', "search=select",
]  # fmt: skip
BY = "search.by=policy.key_experts"
Plan = Callable[..., SweepPlan]


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    def planned(*arguments: str) -> SweepPlan:
        return plan_sweep([*arguments, f"output_dir={tmp_path}", "dry_run=true"], now=datetime(2026, 1, 31, 9, 30))

    return planned


def stages_of(plan: SweepPlan) -> Stages:
    assert plan.stages is not None
    return plan.stages


def scored(fingerprint: str, accuracy: float, *, policy: str = "pick", split: str = "dev", **more: Any) -> PointRecord:
    """A record with this accuracy."""
    knobs = {"k": 4} if policy == "fixed_k" else {}
    record = SyntheticRun(problems=3).add(policy, knobs, split=split, **more)
    metrics = None
    if record.metrics is not None:
        metrics = record.metrics.model_dump()
        metrics["overall"]["accuracy"] = accuracy
    return changed(record, fingerprint=fingerprint, metrics=metrics)


def answered(point: Point, accuracy: float, **more: Any) -> PointRecord:
    return scored(point.fingerprint, accuracy, policy=point.rule.name, split=point.task.split, **more)


# ---------------------------------------------------------------- what dev chooses


def candidates(*groups: str) -> list[Candidate]:
    return [Candidate(group=g, label=f"c{i}", dev=f"dev{i}", test=f"test{i}") for i, g in enumerate(groups)]


STOCK = scored("stock", 0.70, policy="none")


def chosen(scores: list[float], stock: float = 0.70, groups: str = "aaaa") -> list[str | None]:
    records = [scored("stock", stock, policy="none"), *(scored(f"dev{i}", s) for i, s in enumerate(scores))]
    found = picks(candidates(*groups[: len(scores)]), records)
    return [None if pick.chosen is None else pick.chosen.label for pick in found]


@pytest.mark.parametrize(
    ("scores", "stock", "groups", "expected"),
    [
        ([0.72, 0.75, 0.71], 0.70, "aaa", ["c1"]),
        ([0.72, 0.75, 0.75], 0.70, "aaa", ["c1"]),
        ([0.70, 0.69], 0.70, "aa", [None]),
        ([0.60, 0.75, 0.71, 0.69], 0.70, "abab", ["c2", "c1"]),
        ([0.60, 0.75, 0.70, 0.76], 0.70, "abab", [None, "c3"]),
    ],
    ids=["the best", "of equal ones the earlier", "a tie is stock's", "one a group", "stock in one group"],
)
def test_dev_chooses_the_most_accurate_and_stock_before_it(
    scores: list[float], stock: float, groups: str, expected: list[str | None]
) -> None:
    assert chosen(scores, stock, groups) == expected


def test_only_a_point_that_is_done_on_dev_is_chosen() -> None:
    records = [
        STOCK,
        scored("dev0", 0.95, status="invalid", reason="did not engage"),
        scored("dev1", 0.99, status="failed", reason="died"),
        scored("dev2", 0.71),
        scored("dev3", 0.99, split="test"),
    ]
    (pick,) = picks(candidates(*"aaaaa"), records)
    assert pick.chosen is not None and pick.chosen.label == "c2"
    assert (pick.candidates, pick.finished, pick.best_accuracy, pick.stock_accuracy) == (5, 1, 0.71, 0.70)
    (pick,) = picks(candidates("a"), [STOCK])
    assert pick.chosen is None and pick.best is None
    (pick,) = picks(candidates("a"), [scored("dev0", 0.9), scored("stock", 0.1, policy="none", split="test")])
    assert pick.chosen is None and pick.best is not None, "without stock on dev nobody can say that it is better"


def test_the_splits_are_those_of_choosing_by_hand() -> None:
    assert selection.DEV == by_hand.DEV


# ---------------------------------------------------------------- what is planned


def test_both_stages_are_planned_and_told_apart(plan: Plan) -> None:
    found = plan(*SPACE, BY)
    boosts = [f"pick boost={b} key_experts={n}" for b in ("0.25", "0.5", "1") for n in (2, 4)]
    labels = [point.label for point in found.points]
    assert labels == [
        "none", "fixed_k k=4", "fixed_k k=6", "none task.split=dev", *(f"{label} task.split=dev" for label in boosts)
    ]  # fmt: skip
    assert {p.task.split for p in found.points[3:]} == {"dev"} and {p.task.split for p in found.points[:3]} == {"test"}
    assert all(point.task.speed_seconds == 0 for point in found.points[3:]), "dev is not timed"
    assert all(point.task.speed_seconds > 0 for point in found.points[:3])
    listed = found.manifest().candidates
    assert [each.label for each in listed] == boosts
    assert [each.group for each in listed] == ["key_experts=2", "key_experts=4"] * 3
    assert [each.dev for each in listed] == [point.fingerprint for point in found.points[4:]]
    stages = stages_of(found)
    grid = plan(*[text for text in SPACE if text != "search=select"])
    assert [each.test for each in listed] == [point.fingerprint for point in grid.points[3:]], "ordinary points"
    assert [stages.twins[each.test].label for each in listed] == boosts
    for each in listed:
        point = next(point for point in found.points if point.fingerprint == each.dev)
        assert stages.twins[each.test].rule == point.rule
    assert len(found.by_engine()) == 1 and len(found.calibrations()) == 1


def test_a_dry_run_prices_both_stages(plan: Plan) -> None:
    for typed, groups in ((SPACE, 1), ([*SPACE, BY], 2)):
        found = plan(*typed)
        asked = sum(map(point_tokens, found.points))
        one_more = point_tokens(found.points[0])
        cost = found.estimate(1)
        assert cost.max_generated_tokens == asked + groups * one_more
        words = search_line(found)
        assert "dev chooses one of 6 candidates" in words and "test beside the 3 references" in words
        on_dev = sum(point_tokens(point) for point in found.points if point.task.split == "dev")
        assert f"at most {on_dev:,} tokens." in words and f"{asked - on_dev + groups * one_more:,}" in words
    assert "for each policy.key_experts (key_experts=2, key_experts=4)" in words


def test_a_shipped_sweep_brings_its_search_and_another_can_be_typed(plan: Plan) -> None:
    found = plan("+sweep=pick_auto")
    scopes = ["scope=own", "scope=merged"]
    groups = [each.group for each in found.manifest().candidates]
    assert sorted(groups) == sorted(scopes * 5) and found.search.name == "select"
    assert [point.rule.name for point in found.points] == ["none", *["fixed_k"] * 7, "none", *["pick"] * 10]
    first, *_, last = [each.label for each in found.manifest().candidates if each.group == "scope=own"]
    assert "boost=0.25" in first and "range_add" in last, "the gentler first"
    grid = plan("+sweep=pick_auto", "search=grid")
    assert grid.stages is None and len(grid.points) == 8 + 10
    with pytest.raises(UserError, match=r"search\.by=policy\.scope is idle under search=grid"):
        plan("+sweep=pick_auto", "search=grid", "search.by=policy.scope")
    assert len(stages_of(plan("+sweep=pick_auto", "search.by=null")).groups) == 1


def test_groups_by_rule(plan: Plan) -> None:
    blocks = 'sweep.blocks=[["policy=fixed_k","policy.k=5"],["policy=top_p","policy.p=0.7"],["policy=pick"]]'
    found = stages_of(plan(blocks, "search=select", "search.by=policy"))
    assert found.groups == ("policy=top_p", "policy=pick")
    assert [point.label for point in found.references] == ["none", "fixed_k k=5"]
    assert [point.rule.name for point in found.dev] == ["none", "top_p", "pick"], "fixed_k is a reference: not chosen"


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["task.split=dev"], "Leave task.split out"),
        (["engine.max_num_seqs=choice(64,128)"], "differ in engine.max_num_seqs"),
        (["repeats=2"], "differ in repeat"),
        (["search.by=policy.scop"], "search.by=policy.scop is no knob of pick boost=0.25"),
        (["search.by=engine.max_num_seqs"], "is no knob of a policy"),
        (["search.by=boost"], "Type search.by=policy.KNOB"),
        (["search.trials=3"], "search.trials=3 is idle under search=select"),
    ],
)
def test_what_dev_cannot_choose_from_is_refused(plan: Plan, typed: list[str], words: str) -> None:
    with pytest.raises(UserError) as caught:
        plan(*SPACE, *typed)
    assert words in str(caught.value)


def test_nothing_to_choose_from_and_one_file_for_both_splits_are_refused(plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to choose from"):
        plan("policy=fixed_k", "policy.k=4", "search=select")
    for split in ("dev", "test", "calibration"):
        (tmp_path / f"math_{split}.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n')
    mine = [f"task.data_files='{tmp_path}/{{domain}}_{{split}}.jsonl'", "task=jsonl", "task.domains=[math]"]
    mine += ["task.max_tokens=24", "task.chat_template=false"]
    with pytest.raises(UserError, match="byte for byte"):
        plan("policy=top_p", "policy.p=0.7", "search=select", *mine)
    (tmp_path / "math_dev.jsonl").write_text('{"prompt": "1+2=", "answer": "3"}\n')
    assert len(plan("policy=top_p", "policy.p=0.7", "search=select", *mine).points) == 3


# ---------------------------------------------------------------- what is asked when


class Driver:
    """Answers what the search hands out, in order, with given accuracies on dev by label; test points get 0.5."""

    def __init__(self, stages: Stages, dev: dict[str, float], records: dict[str, PointRecord] | None = None) -> None:
        self.records = dict(records or {})
        self.notes: list[str] = []
        self.search = Selection(stages, self.records, self.notes.append)
        self.asked: list[str] = []
        self._dev = dev

    def run(self, limit: int = 1000) -> Driver:
        works = self.search.begin()
        while works and len(self.asked) < limit:
            work, *works = works
            label = work.point.label
            record = answered(work.point, self._dev.get(label.removesuffix(" task.split=dev"), 0.5))
            self.asked.append(label)
            self.records[record.fingerprint] = record
            most = self.search.to_come()
            more = self.search.finished(work, record)
            assert len(more) <= most, "engines are kept for what may come"
            works += more
        assert works or self.search.to_come() == 0
        return self


def test_the_second_stage_asks_what_dev_chose_and_resume_repeats_nothing(plan: Plan) -> None:
    stages = stages_of(plan(*SPACE, BY))
    best = {"pick boost=0.5 key_experts=2": 0.8, "pick boost=1 key_experts=2": 0.8, "pick boost=1 key_experts=4": 0.6}
    dev = {"none": 0.5, **best}
    whole = Driver(stages, dev).run()
    assert whole.asked[:10] == [point.label for point in stages.points]
    chosen = ["pick boost=0.5 key_experts=2", "pick boost=1 key_experts=4"]
    assert whole.asked[10:] == chosen
    assert whole.notes == [f"dev chose (key_experts={n}): {label}" for n, label in zip((2, 4), chosen, strict=True)]
    assert whole.search.points_left() == 0 and whole.search.progress() == (12, 12)
    for limit in range(12):
        first = Driver(stages, dev).run(limit)
        assert first.search.points_left() >= 1
        again = Driver(stages, dev, first.records).run()
        assert first.asked + again.asked == whole.asked
    assert Driver(stages, dev, whole.records).run().asked == []


def test_nothing_is_asked_on_test_where_stock_is_best_on_dev(plan: Plan) -> None:
    stages = stages_of(plan(*SPACE))
    driver = Driver(stages, {"none": 0.9}).run()
    assert driver.asked == [point.label for point in stages.points]
    assert driver.notes == ["dev chose (all): stock"] and driver.search.points_left() == 0
