"""`search=optuna`: which points are drawn, what the study is told, and that a killed run repeats nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from optuna.trial import FrozenTrial

from banpick_exp.cluster.record_of import record_of
from banpick_exp.errors import UserError
from banpick_exp.records import Metrics, PointMetrics, PointRecord, Status
from banpick_exp.run_folder import RunFolder
from banpick_exp.sweep.config import OptunaSearch
from banpick_exp.sweep.plan import SweepPlan, plan_sweep
from banpick_exp.sweep.point import Point
from banpick_exp.sweep.search.optuna import Sampling, open_study
from banpick_exp.sweep.search.strategy import Work

TYPED = ["policy=ban", "policy.lambda=interval(0.2,1.5)", "policy.k_min=choice(2,3)"]
SEARCH = OptunaSearch(trials=12, startup=4)
Records = dict[str, PointRecord]


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> SweepPlan:
    folder = tmp_path_factory.mktemp("plan")
    return plan_sweep([*TYPED, "search=optuna", f"output_dir={folder}", "dry_run=true"])


def sampling(plan: SweepPlan, folder: Path, records: Records, slots: int = 1) -> Sampling:
    return Sampling(plan.points, plan.spaces, plan.maker, records, SEARCH, RunFolder(folder), slots)


def measured(point: Point, status: Status = "done") -> PointRecord:
    """A record of the point; a smooth front of lambda."""
    knobs = point.rule.canonical()
    kept = float(str(knobs.get("lambda", 2.0))) * 3 + float(str(knobs.get("k_min", 2)))
    accuracy = 1 - 1 / (1 + kept)
    overall = Metrics(
        accuracy=accuracy,
        accuracy_ci95=(accuracy, accuracy),
        delta=0.0,
        delta_ci95=(0.0, 0.0),
        n_problems=1,
        tokens_per_second=1.0,
        speedup=2 - kept / 10,
        speedup_spread=(1.0, 2.0),
        mean_kept=kept,
        mean_kept_by_layer=(kept,),
        truncated_fraction=0.0,
    )
    return record_of(point, "typed", status=status, reason=None, metrics=PointMetrics(overall=overall, domains={}))


def trials(plan: SweepPlan, folder: Path) -> list[FrozenTrial]:
    """What the study on disk holds."""
    return open_study(RunFolder(folder).journal, plan.spaces, SEARCH).trials


def play(search: Sampling, works: list[Work], records: Records, limit: int = 1000) -> list[str]:
    """Answers work as it comes, at most `limit`; returns the labels in order and leaves in `works` what is not done."""
    done: list[str] = []
    while works and len(done) < limit:
        work = works.pop(0)
        record = measured(work.point)
        records[record.fingerprint] = record
        done.append(work.point.label)
        most = search.to_come()
        more = search.finished(work, record)
        assert len(more) <= most, "engines are kept for what may come"
        works += more
    return done


def test_the_given_points_come_first_then_as_many_trials_as_asked_for(plan: SweepPlan, tmp_path: Path) -> None:
    records: Records = {}
    search = sampling(plan, tmp_path, records)
    labels = play(search, search.begin(), records)
    assert labels[0] == "none" and len(labels) == len(set(labels)) == 1 + SEARCH.trials
    assert all(label.startswith("ban lambda=") for label in labels[1:])
    assert {label.split("k_min=")[1] for label in labels[1:]} == {"2", "3"}
    assert search.points_left() == 0


def test_the_study_is_told_what_the_records_say(plan: SweepPlan, tmp_path: Path) -> None:
    records: Records = {}
    search = sampling(plan, tmp_path, records)
    play(search, search.begin(), records)
    told = trials(plan, tmp_path)
    assert len(told) == SEARCH.trials
    for trial in told:
        overall = records[trial.user_attrs["fingerprint"]].measured.overall
        assert trial.values == [overall.accuracy, overall.mean_kept, overall.speedup]
    for line in RunFolder(tmp_path).journal.read_text().splitlines():
        json.loads(line)


def test_a_killed_run_goes_on_and_repeats_nothing(plan: SweepPlan, tmp_path: Path) -> None:
    records: Records = {}
    first = sampling(plan, tmp_path, records, slots=2)
    at_work = first.begin()
    before = play(first, at_work, records, limit=6)
    asked = {work.point.fingerprint: work.point for work in at_work}  # two trials, when the driver died
    assert len(asked) == 2
    lost, written = sorted(asked)
    records[written] = measured(asked[written])  # the actor lived to write this one, and nobody told the study
    again = sampling(plan, tmp_path, records, slots=2)
    works = again.begin()
    assert lost in {work.point.fingerprint for work in works}
    after = play(again, works, records)
    assert not set(before) & set(after)
    assert len(before) + 1 + len(after) == 1 + SEARCH.trials
    assert all(trial.state.is_finished() for trial in trials(plan, tmp_path))
    over = sampling(plan, tmp_path, records)
    assert over.begin() == [] and over.points_left() == 0


def test_a_seed_draws_the_same_trials(plan: SweepPlan, tmp_path: Path) -> None:
    runs = []
    for name in ("a", "b"):
        records: Records = {}
        search = sampling(plan, tmp_path / name, records)
        runs.append(play(search, search.begin(), records))
    assert runs[0] == runs[1]


def test_a_failed_or_invalid_point_is_told_as_such(plan: SweepPlan, tmp_path: Path) -> None:
    search = sampling(plan, tmp_path, {})
    (stock,) = search.begin()
    (trial,) = search.finished(stock, measured(stock.point))
    search.finished(trial, measured(trial.point, status="invalid"))
    assert trials(plan, tmp_path)[0].state.name == "FAIL"


def test_engines_side_by_side_never_try_the_same_point(plan: SweepPlan, tmp_path: Path) -> None:
    small = plan_sweep(
        ["policy=fixed_k", "policy.k=range(1,4)", "search=optuna", f"output_dir={tmp_path}", "dry_run=true"]
    )
    records: Records = {}
    search = Sampling(small.points, small.spaces, small.maker, records, SEARCH, RunFolder(tmp_path), 3)
    labels = play(search, search.begin(), records)
    assert sorted(labels) == ["fixed_k k=1", "fixed_k k=2", "fixed_k k=3", "none"], (
        "three points, then the space is out"
    )


def test_another_space_is_refused(plan: SweepPlan, tmp_path: Path) -> None:
    sampling(plan, tmp_path, {})
    other = plan_sweep([*TYPED[:2], "search=optuna", f"output_dir={tmp_path}", "dry_run=true"])
    with pytest.raises(UserError, match="Leave resume out"):
        sampling(other, tmp_path, {})


def test_blocks_of_a_sweep_are_sampled_together(plan: SweepPlan, tmp_path: Path) -> None:
    blocks = """sweep.params=["policy=choice(naee)","policy.beta=interval(0.05,0.6)"]"""
    found = plan_sweep(["+sweep=ban_threshold", blocks, "search=optuna", f"output_dir={tmp_path}", "dry_run=true"])
    both = (*found.spaces, *plan.spaces)
    records: Records = {}
    search = Sampling([], both, plan.maker, records, SEARCH, RunFolder(tmp_path), 1)
    names = {label.split()[0] for label in play(search, search.begin(), records)}
    assert names == {"ban", "naee"}
