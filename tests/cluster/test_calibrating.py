"""What the driver hands out of a calibration, told from files alone; no engine, and nothing is measured."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from measured_arrays import measured, scored

from banpick_exp.cluster.calibrating import ASKED_AT_MOST, Calibrating, Step, engines_of_use
from banpick_exp.cluster.deadline import FACTOR, Deadlines
from banpick_exp.cluster.jobs import Job, Jobs
from banpick_exp.evaluation.calibrated import artifact_of, division_of
from banpick_exp.evaluation.calibration import arrays
from banpick_exp.evaluation.calibration.scores import SCORES
from banpick_exp.sweep.plan import plan_sweep
from banpick_exp.sweep.point import Point
from banpick_exp.sweep.search.cuts import block_layers
from banpick_exp.sweep.search.strategy import Work

TOLD = {"changes": 1.0, "layer_tokens": 2.0, "out_of_reach": 0.0, "itself": 0.0, "seconds": 0.5}
TYPED = ["policy=pick", "policy.mode=boost", "policy.boost=1", "task.domains=[math,code]", "tracking=none"]
DIVIDED = [*TYPED, "calibration.block_layers=2"]


def points_of(folder: Path, *typed: str) -> list[Point]:
    return list(plan_sweep([*typed, f"output_dir={folder}", "dry_run=true"]).points[1:])


class Disk:
    """Does what engines do to the disk."""

    def __init__(self, folder: Path) -> None:
        self.calibrations = folder / "calibrations"
        self.calibrations.mkdir()

    def do(self, point: Point, step: Step) -> None:
        artifact, fingerprint = artifact_of(point, self.calibrations)
        layers, experts = point.checkpoint.shape.num_layers, point.checkpoint.shape.num_experts
        if step.block is not None:
            part = step.block.stage.part
            rows = np.zeros((step.block.end - step.block.first, 1))
            division_of(point, self.calibrations, part, 2).blocks.add(step.block, {"rows": rows}, TOLD)
            return
        made = {domain: measured(layers, experts) for domain in point.task.domains}
        if step.parts in ((), None):
            header = {"model": {"name": "m", "identity": "i"}, "settings": {}}
            arrays.save_artifact(artifact, fingerprint, made, header)
            division_of(point, self.calibrations, None, 2).clear()
        for name in point.calibration_parts if step.parts is None else step.parts:
            assert name in SCORES
            found = scored(np.zeros((layers, experts)), name)
            division_of(point, self.calibrations, name, 2).clear()
            arrays.save_scores(artifact, name, dict.fromkeys(made, found), {})


def words(steps: Sequence[Step]) -> list[str]:
    return ["add up" if step.block is None else step.block.words() for step in steps]


def test_a_short_calibration_is_one_call_and_a_long_one_divides(tmp_path: Path) -> None:
    (short,) = points_of(tmp_path, *TYPED)
    assert Calibrating(short, tmp_path).begin() == [Step()] and Step().call(short) == ("calibrate", short)
    assert engines_of_use([short], tmp_path) == 1
    (long,) = points_of(tmp_path, *TYPED, "calibration.samples=60000", "calibration.gain_samples=60000")
    widths = [block_layers(long, None), block_layers(long, "gain_boost")]
    assert all(width is not None and 1 <= width < 4 for width in widths), widths
    (typed,) = points_of(tmp_path, *DIVIDED)
    assert block_layers(typed, None) == 2 and engines_of_use([typed], tmp_path) == 4


def test_a_block_has_a_deadline_for_the_most_that_it_can_hold(tmp_path: Path) -> None:
    """A race may leave everything in one range of layers: its engine must not be taken for one that hangs."""
    (point,) = points_of(tmp_path, *DIVIDED, "calibration.gain_samples=60000")
    disk = Disk(tmp_path)
    disk.do(point, Step(parts=()))
    artifact, fingerprint = artifact_of(point, disk.calibrations)
    many = measured(4, 16, right_marks=np.zeros((60000, 3), dtype=np.int32))
    shutil.rmtree(artifact)
    header = {"model": {"name": "m", "identity": "i"}, "settings": {}}
    arrays.save_artifact(artifact, fingerprint, {"math": many}, header)
    division = division_of(point, disk.calibrations, "gain_boost", 2)
    first, *_ = Calibrating(point, disk.calibrations).begin()
    assert first.block is not None and first.seconds is not None
    assert division.most_changes(first.block) == first.changes, "the first round is spread evenly"
    later = replace(first.block, stage=replace(first.block.stage, number=1))
    assert division.most_changes(later) == 2 * division.changes(later), "half of the experts, all in half of the layers"
    assert Deadlines(600).limit_of(first.seconds) == max(600, FACTOR * first.seconds)
    assert Deadlines(600).limit_of(1.0) == 600 and Step().seconds is None


def test_stages_follow_each_other_in_each_domain(tmp_path: Path) -> None:
    (point,) = points_of(tmp_path, *DIVIDED)
    disk = Disk(tmp_path)
    calibrating = Calibrating(point, disk.calibrations)
    math, code = calibrating.begin()
    assert words([math, code]) == ["answers math, layers 0 to 3", "answers code, layers 0 to 3"]
    disk.do(point, math)
    layers = calibrating.finished(math, 1.0)
    assert calibrating.to_come() == 4, "of each domain two ranges of layers"
    assert words(layers) == ["limits math, layers 0 to 1", "limits math, layers 2 to 3"], "code is not waited for"
    disk.do(point, layers[0])
    assert calibrating.finished(layers[0], 1.0) == []
    disk.do(point, code)
    more = calibrating.finished(code, 1.0)
    for step in [layers[1], *more]:
        disk.do(point, step)
    assert calibrating.finished(layers[1], 1.0) == [] == calibrating.finished(more[0], 1.0)
    (added,) = calibrating.finished(more[1], 1.0)
    assert calibrating.to_come() == 4, "the scores"
    assert added == Step(parts=()) and calibrating.done == calibrating.planned > 0
    disk.do(point, added)
    scores = calibrating.finished(added, 0.5)
    assert all(step.block and step.block.stage.part == "gain_boost" for step in scores) and not calibrating.over
    while scores:
        step = scores.pop(0)
        disk.do(point, step)
        scores += calibrating.finished(step, 0.0)
    assert calibrating.over and calibrating.seconds == 6.5 and calibrating.to_come() == 0
    assert Calibrating(point, disk.calibrations).begin() == [Step()], "it is there: one call that says so"
    assert engines_of_use([point], disk.calibrations) == 0


def test_what_another_driver_measured_is_not_asked_for(tmp_path: Path) -> None:
    (point,) = points_of(tmp_path, *DIVIDED)
    disk = Disk(tmp_path)
    one, other = (Calibrating(point, disk.calibrations) for _ in range(2))
    math, code = one.begin()
    disk.do(point, math)
    assert words(other.begin()) == ["limits math, layers 0 to 1", "limits math, layers 2 to 3", *words([code])]
    disk.do(point, Step(parts=()))
    assert words(one.finished(code, 0.0)) == [] and words(one.finished(math, 0.0)) == ["add up"]


def test_a_block_that_is_never_seen_is_left_to_one_engine(tmp_path: Path) -> None:
    """Its file is lost again and again: the call that adds up measures it itself."""
    (point,) = points_of(tmp_path, *DIVIDED[:3], *DIVIDED[4:], "task.domains=[math]")
    disk = Disk(tmp_path)
    calibrating = Calibrating(point, disk.calibrations)
    asked = calibrating.begin()
    for _ in range(ASKED_AT_MOST):
        assert words(asked) == ["answers math, layers 0 to 3"]
        asked = calibrating.finished(asked[0], 0.0)
    assert asked == [Step(parts=())]


# ---------------------------------------------------------------- in the queue


def take(jobs: Jobs) -> Job:
    job = jobs.take()
    assert job is not None
    return job


def test_points_wait_for_their_calibration_and_others_do_not(tmp_path: Path) -> None:
    stock, pick = plan_sweep([*DIVIDED, f"output_dir={tmp_path}", "dry_run=true"]).points
    disk = Disk(tmp_path)
    jobs = Jobs(disk.calibrations)
    jobs.add([Work(point=pick), Work(point=stock)])
    kinds, seconds = list[str](), None
    while seconds is None:
        job = take(jobs)
        kinds.append(job.kind)
        if job.step is not None:
            disk.do(pick, job.step)
            seconds = jobs.calibrated(job, 1.0)
    assert kinds == ["calibrate"] * len(kinds) and seconds == len(kinds)
    assert [take(jobs).point.label, take(jobs).point.label] == [pick.label, stock.label] and jobs.take() is None


def test_a_point_that_reads_none_goes_on_beside_it(tmp_path: Path) -> None:
    stock, pick = plan_sweep([*DIVIDED, f"output_dir={tmp_path}", "dry_run=true"]).points
    jobs = Jobs(Disk(tmp_path).calibrations)
    jobs.add([Work(point=pick), Work(point=stock)])
    assert [take(jobs).kind, take(jobs).kind] == ["calibrate", "calibrate"], "answers of two domains"
    assert take(jobs).point is stock and jobs.take() is None and len(jobs) == 1


def test_scores_of_one_artifact_come_one_after_the_other(tmp_path: Path) -> None:
    scores = "calibration.score=choice(gain_boost,insertion_kl)"
    gain, kl = points_of(tmp_path, *DIVIDED, scores)
    disk = Disk(tmp_path)
    jobs = Jobs(disk.calibrations)
    jobs.add([Work(point=gain), Work(point=kl)])
    order = []
    while job := jobs.take():
        if job.step is None:
            order.append(job.point.label)
            continue
        if job.step.block is None:
            order.append(str(job.step.parts))
        disk.do(job.point, job.step)
        queued, most = len(jobs), jobs.to_come()
        jobs.calibrated(job, 1.0)
        assert len(jobs) - queued <= most, "engines are kept for what may come"
    assert jobs.to_come() == 0
    assert order == ["()", "('gain_boost',)", "('insertion_kl',)", gain.label, kl.label]


def test_what_cannot_be_calibrated_is_dropped_and_asked_for_again(tmp_path: Path) -> None:
    (point,) = points_of(tmp_path, *DIVIDED)
    disk = Disk(tmp_path)
    jobs = Jobs(disk.calibrations)
    jobs.add([Work(point=point)])
    failed, late = take(jobs), take(jobs)
    assert [job.point for job in jobs.uncalibrated(failed)] == [point] and len(jobs) == 0
    jobs.again(late)
    assert len(jobs) == 0, "nobody reads it any more"
    jobs.add([Work(point=point)])
    assert jobs.calibrated(late, 1.0) is None and jobs.uncalibrated(late) == [], "of the attempt before"
    assert words([job.step for job in (take(jobs), take(jobs)) if job.step]) == [
        "answers math, layers 0 to 3",
        "answers code, layers 0 to 3",
    ]


@pytest.mark.parametrize("damage", ["{", json.dumps({"schema_version": 3})])
def test_a_damaged_artifact_is_for_an_engine_to_complain_of(tmp_path: Path, damage: str) -> None:
    (point,) = points_of(tmp_path, *DIVIDED)
    disk = Disk(tmp_path)
    disk.do(point, Step(parts=()))
    (artifact_of(point, disk.calibrations)[0] / "calibration.json").write_text(damage)
    assert Calibrating(point, disk.calibrations).begin() == [Step(parts=("gain_boost",))]
