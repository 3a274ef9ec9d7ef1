"""What a run's engines did is remembered beside the runs, and the next price and ETA are told by it. Clocks are fed."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from rich.console import Console

from banpick_exp.cluster.events import KINDS, Event
from banpick_exp.cluster.paces import paces_of
from banpick_exp.cluster.plan import RunPlan, plan_run
from banpick_exp.cluster.state import fold
from banpick_exp.report.run import Run
from banpick_exp.run_folder import RunFolder
from banpick_exp.sweep import past
from banpick_exp.sweep.dry_run import print_plan
from banpick_exp.sweep.past import KEPT, MOST, Pace, Past, asked, read_past, remember

BEGIN = datetime(2026, 11, 27, 10, 0, tzinfo=UTC)
LADDER = ["policy=fixed_k", "policy.k=choice(4,6)", "task.max_problems=100", "cluster=inline", "tracking=none"]
PICK = ["policy=pick", "task.max_problems=100", "cluster=inline", "tracking=none"]


def planned(folder: Path, *typed: str) -> RunPlan:
    return plan_run([*typed, f"output_dir={folder}"])


def pace(**parts: Any) -> Pace:
    fields: dict[str, Any] = {"host": "h", "engine": "e", "devices": 2}
    return Pace(**fields | parts)


def here(plan: RunPlan, **parts: Any) -> Pace:
    """Of the first engine of a plan, on this machine."""
    kind = plan.estimate.kinds[0]
    return pace(host=past.socket.gethostname(), engine=kind.point.engine_fingerprint, devices=kind.devices, **parts)


# ------------------------------------------------------------ the file


def test_the_median_of_the_last_runs_counts(tmp_path: Path) -> None:
    point = planned(tmp_path, *LADDER).sweep.points[0]
    for seconds in (900.0, 30.0, 40.0, 50.0, 35.0, 45.0):
        remember(tmp_path / "past.json", pace(engine=point.engine_fingerprint, load_seconds=seconds))
    found = read_past(tmp_path / "past.json")
    assert len(found.paces) == KEPT and found.paces[0].load_seconds == 30.0
    assert found.of(point, 2, "h") == pace(engine=point.engine_fingerprint, load_seconds=40.0)
    assert found.of(point, 2, "another") is None and found.of(point, 4, "h") is None


def test_the_file_stays_small(tmp_path: Path) -> None:
    known = Past(paces=tuple(pace(engine=f"e{number}", load_seconds=1.0) for number in range(MOST)))
    assert [each.engine for each in known.with_run(pace(engine="new")).paces][:: MOST - 1] == ["e1", "new"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"paces": [{"host": 1}]}', b'{"schema_version": 99}', b"\xff"])
def test_a_damaged_file_is_as_if_there_were_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "past.json").write_bytes(content)
    plan = planned(tmp_path, *LADDER)
    assert plan.sweep.past == Past() and not plan.estimate.by_past
    remember(plan.folder.past, pace(load_seconds=1.0))
    assert read_past(plan.folder.past).paces == (pace(load_seconds=1.0),)


def test_a_folder_that_takes_nothing_costs_the_memory_alone(tmp_path: Path) -> None:
    remember(tmp_path / "missing" / "past.json", pace(load_seconds=1.0))
    assert not (tmp_path / "missing").exists()


# ------------------------------------------------------------ the price


def test_the_price_is_told_by_it(tmp_path: Path) -> None:
    before = planned(tmp_path, *LADDER)
    (kind,) = before.estimate.kinds
    length = {asked(kind.point): 12.0}
    remember(before.folder.past, here(before, load_seconds=111.0, generate=7.0, clock=3.0, lengths=length))
    plan = planned(tmp_path, *LADDER)
    (kind,) = plan.estimate.kinds
    answers = sum(sum(cast("int", n) for n in p.problems.values()) * p.task.samples for p in plan.sweep.points)
    assert kind.load_seconds == 111.0 and kind.generated == pytest.approx(12.0 * answers)
    assert kind.answer_seconds == pytest.approx(12.0 * answers / 7.0)
    assert kind.time_seconds == pytest.approx(3 * before.estimate.time_seconds)
    assert plan.sweep.points == before.sweep.points, "no fingerprint, and no block, is another"
    out = io.StringIO()
    print_plan(plan.sweep, plan.estimate, Console(file=out, width=400))
    assert "by what the same engines did on this machine before" in out.getvalue()
    assert "load 111 s, decode 7 tokens/s with prompts and grading" in out.getvalue()


def test_a_calibration_that_is_there_costs_nothing(tmp_path: Path) -> None:
    plan = planned(tmp_path, *PICK)
    point = plan.sweep.points[-1]
    assert plan.estimate.calibration_seconds > 0
    folder = plan.folder.calibrations / str(point.calibration_fingerprint)
    folder.mkdir(parents=True)
    (folder / "calibration.json").write_text("{}")
    without_score = planned(tmp_path, *PICK).estimate.calibration_seconds
    assert 0 < without_score < plan.estimate.calibration_seconds
    for part in point.calibration_parts:
        (folder / f"score_{part}.safetensors").write_bytes(b"")
    assert planned(tmp_path, *PICK).estimate.calibration_seconds == 0


# ------------------------------------------------------------ from the events and records of a run


def event(second: float, kind: str, **fields: Any) -> Event:
    assert fields.keys() <= KINDS[kind].keys()
    return Event(BEGIN + timedelta(seconds=second), kind, {name: fields.get(name) for name in KINDS[kind]})


def test_what_a_run_did_is_what_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loaded in 40 s, calibrated in 50, 60 s of a point of which the clock had 20: 40 s for its tokens."""
    plan = planned(tmp_path, *PICK)
    name, point = f"engine-{plan.sweep.points[0].engine_fingerprint}-run-0", plan.sweep.points[-1]
    fields = {"calibration": point.calibration_fingerprint, "engine": name}
    happened = [
        event(0, "run_begun"),
        event(0, "engine_starting", engine=name), event(40, "engine_ready", engine=name, seconds=38.0),
        event(40, "calibration_begun", **fields), event(90, "calibration_done", **fields),
        event(90, "point_begun", engine=name, point=point.fingerprint),
        event(150, "point_done", point=point.fingerprint),
        event(160, "run_ended"),
    ]  # fmt: skip
    monkeypatch.setattr("banpick_exp.cluster.paces.read", lambda folder: type("R", (), {"events": happened}))
    from synthetic_run import SyntheticRun

    synthetic = SyntheticRun(problems=10)
    record = synthetic.add("pick", {"boost": 1})
    wanted = point.task.speed_seconds
    record = synthetic.change(record, fingerprint=point.fingerprint, timing={"throughput_seconds": 20.0})
    run = Run(folder=RunFolder(tmp_path / "r"), records=synthetic.records, outcomes=synthetic.outcomes)
    (found,) = paces_of(plan, run)
    tokens = int(synthetic.outcomes[point.fingerprint]["tokens"].sum())
    assert found.load_seconds == 40.0 and found.generate == pytest.approx(tokens / 40)
    assert found.clock == pytest.approx(20 / wanted) and found.lengths == {asked(point): pytest.approx(tokens / 30)}
    assert found.prefill == pytest.approx(plan.estimate.calibration_seconds * plan.estimate.kinds[0].speed.prefill / 50)


def test_a_run_that_did_nothing_leaves_nothing(tmp_path: Path) -> None:
    plan = planned(tmp_path, *LADDER)
    assert paces_of(plan, Run(folder=plan.folder, records=(), outcomes={})) == []


# ------------------------------------------------------------ the time to come


def test_the_eta_before_the_first_point_is_the_pasts() -> None:
    engine, work = {"engine": "e"}, {"point": "p", "label": "none"}
    begun = event(0, "run_begun", points=4, expected=4.0, estimated_seconds=120.0)
    events = [begun, event(1, "engine_starting", **engine, point="p")]
    at = BEGIN + timedelta(seconds=50)
    assert fold(events, now=at).eta_seconds == 70.0
    assert fold(events, now=BEGIN + timedelta(seconds=130)).eta_seconds is None, "used up: nobody can say"
    events += [event(20, "engine_ready", **engine), event(30, "point_begun", **engine, **work)]
    assert fold(events, now=at).eta_seconds == 70.0
    events += [event(40, "progress", done=1.0, expected=4.0)]
    assert fold(events, now=at).eta_seconds == 70.0, "the pace of this run, 10 s a point, says 20 s: the later counts"
    slow = [*events[:-1], event(90, "progress", done=1.0, expected=4.0)]
    assert fold(slow, now=BEGIN + timedelta(seconds=90)).eta_seconds == 180.0
    over = event(50, "progress", done=4.0, expected=4.0)
    assert fold([*events, over], now=at).eta_seconds == 0.0, "nothing is left"
    calibrating = event(50, "calibration_begun", engine="e", calibration="c", label="pick")
    assert fold([*events, calibrating], now=at).eta_seconds == 70.0
    unknown = event(0, "run_begun", points=4, expected=4.0)
    assert fold([unknown, *events[1:4]], now=at).eta_seconds is None
    assert fold([unknown, *events[1:]], now=at).eta_seconds == 20.0, "10 s a point"
    assert fold([unknown, *events[1:], calibrating], now=at).eta_seconds is None, "of which a pace says nothing"
