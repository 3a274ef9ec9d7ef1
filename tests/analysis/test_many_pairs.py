"""What is computed for thousands of points at once is what a pair at a time gives, bit by bit."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import polars as pl
import pytest
from many_points import many_points
from synthetic_run import SyntheticRun, ladder

from banpick_exp.analysis import (
    front,
    guards,
    hypervolume_gain,
    pareto_front,
    points_frame,
    replays,
    subtasks,
    verdicts,
)
from banpick_exp.analysis.hypervolume import _steps, _weights
from banpick_exp.analysis.intervals import BootstrapMean, bootstrap_intervals
from banpick_exp.analysis.pairing import OutcomesOnce, all_answers, answers_of
from banpick_exp.records import PointRecord


@pytest.fixture(scope="module")
def run() -> SyntheticRun:
    return many_points(150)


def test_the_front_by_blocks_is_the_front(run: SyntheticRun, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = points_frame(run.records)
    whole = pareto_front(frame, run.outcomes)
    assert 0 < whole["sure"].sum() < whole["on_front"].sum() < whole.height
    for block in (1, 7, 64):
        monkeypatch.setattr(front, "BLOCK", block)
        assert pareto_front(frame, run.outcomes).equals(whole)


def test_the_front_of_mixed_layouts_by_blocks_is_the_front(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every second point answered other problems: those are held against each other by their own intervals."""
    one, other = many_points(40, seed=1), many_points(40, seed=2)
    points = [point for pair in zip(one.points, other.points, strict=True) for point in pair]
    outcomes: dict[str, pl.DataFrame] = {}
    rows = []
    for number, (record, _) in enumerate(points):
        name = f"{record.fingerprint}-{number % 2}"
        rows.append(record.model_copy(update={"fingerprint": name}))
        frame = (one if number % 2 == 0 else other).outcomes.get(record.fingerprint)
        if frame is not None:
            outcomes[name] = frame if number % 2 == 0 else frame.with_columns(pl.col("problem_id") + "x")
    frame = points_frame(rows)
    whole = pareto_front(frame, outcomes)
    monkeypatch.setattr(front, "BLOCK", 9)
    assert pareto_front(frame, outcomes).equals(whole)


def test_the_leaders_of_a_range_are_those_of_a_walk_down_it() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        n = int(rng.integers(2, 30))
        accuracy, place = rng.integers(0, 6, n) / 5, rng.integers(0, 8, n).astype(float)
        among = rng.random(n) < 0.7
        among[rng.integers(n)] = True
        ends = float(place.min()) - 0.5, float(place.max()) + 0.5
        expected, best = np.zeros(n), None
        order = sorted(np.flatnonzero(among).tolist(), key=lambda i: -place[i])
        for row, following in zip(order, [*order[1:], None], strict=True):
            best = row if best is None or accuracy[row] > accuracy[best] else best
            until = ends[0] if following is None else place[following]
            expected[best] += (place[row] - until) / (ends[1] - ends[0])
        assert np.array_equal(_weights(accuracy, *_steps(place, among, ends)), expected)


def test_remembered_answers_change_nothing(run: SyntheticRun) -> None:
    plain, once = run.outcomes, OutcomesOnce(run.outcomes)
    assert set(once) == set(plain) and len(once) == len(plain)
    done = [record for record in run.records if record.status == "done"]
    found = all_answers(done, once)
    assert len({id(answers.layout) for answers in found.values()}) == 1
    for record in done:
        alone = answers_of(plain[record.fingerprint])
        assert all(np.array_equal(alone.sums[key], found[record.fingerprint].sums[key]) for key in alone.sums)
    for work in (verdicts, guards, subtasks):
        assert work(run.records, once).equals(work(run.records, plain))
        assert work(run.records, once).equals(work(run.records, plain)), "a second time, from memory"
    frame = points_frame(run.records)
    assert hypervolume_gain(frame, once, "speedup") == hypervolume_gain(frame, plain, "speedup")


def test_layouts_that_take_turns_are_each_met_once() -> None:
    one, other = ladder(SyntheticRun(problems=5)), ladder(SyntheticRun(problems=7))
    frames = {f"{n}-{key}": frame for n, r in enumerate((one, other)) for key, frame in r.outcomes.items()}
    names = [
        name for pair in zip(*(sorted(n for n in frames if n[0] == d) for d in "01"), strict=True) for name in pair
    ]
    once = OutcomesOnce(frames)
    assert len({id(once.answers(name).layout) for name in names}) == 2


def test_remembered_intervals_are_the_bootstraps() -> None:
    for counts in ({-1: 3, 0: 50, 1: 7}, {1: 7, -1: 3, 0: 50}, {0: 60, 1: 0}, {-2: 1, 0: 5, 3: 4}):
        alone = BootstrapMean(counts)
        for _ in range(2):
            assert bootstrap_intervals(counts, 0.95, 0.999) == [alone.interval(0.95), alone.interval(0.999)]
    with pytest.raises(ValueError, match="no values"):
        bootstrap_intervals({0: 0}, 0.95)


def expected_alike(one: PointRecord, other: PointRecord) -> bool:
    """The rule of `replays`, a pair at a time."""
    if replays._model(one) != replays._model(other):
        return False
    ours, theirs = one.engagement.routing_table, other.engagement.routing_table
    if one.policy == other.policy:
        return not (ours and theirs) or ours == theirs
    if ours and ours == theirs:
        return True
    k, other_k = replays._uniform_k(one), replays._uniform_k(other)
    return k is not None and k == other_k


def test_twins_of_a_group_are_those_of_every_pair() -> None:
    run = SyntheticRun(problems=4)
    run.add("none")
    tables: list[dict[str, Any]] = [{}, {"math": "a"}, {"math": "b"}]
    for number, (table, boost, model) in enumerate(itertools.product(tables, (1, 1.0, 2), ("tiny", "control"))):
        record = run.add("pick", {"boost": boost}, model=model, engagement={"routing_table": table})
        run.change(record, fingerprint=f"{number:04d}")
    for k in (8, 4):
        run.add("fixed_k", {"k": k}, kept=k)
    run.add("ban", {"lambda": 0.5}, kept=4.0, engagement={"implied": {"math": [4.0, 8.0], "code": [4.0, 8.0]}})
    group = run.records
    routes = replays._Routes(group)
    some = 0
    for index, record in enumerate(group):
        pairs = [i for i, other in enumerate(group) if i != index and not expected_alike(record, other)]
        assert routes.twins(index).tolist() == pairs, record.label
        some += len(group) - 1 - len(pairs)
    assert some > 10, "pairs of both kinds are there"


def test_a_thousand_equal_points_are_judged_in_no_time() -> None:
    """Each is held against all others: 1,000 points that answer alike are half a million pairs."""
    run = SyntheticRun(problems=20)
    first = run.add("pick", {"boost": 0})
    outcomes = run.outcomes[first.fingerprint]
    plain = first.plain()
    records = [
        PointRecord.model_validate(
            json.loads(json.dumps(plain | {"fingerprint": f"{n:05d}", "policy": {"name": "pick", "boost": n}}))
        )
        for n in range(1000)
    ]
    found = list(replays.replay_findings(records, {record.fingerprint: outcomes for record in records}))
    assert len(found) == 1000 and all(each.value == 999 and each.level == "warning" for each in found)
    assert "and 996 more although the policies differ" in found[0].detail
