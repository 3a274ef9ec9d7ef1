"""`bench sweep`: a whole run of a real driver on engines that answer by themselves, and what it says of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from banpick_exp.cluster.bench_sweep import COLUMNS, WANTED, Bench, bench_sweep, dry_run, resume, run_all
from banpick_exp.cluster.commands import bench
from banpick_exp.errors import UserError
from banpick_exp.report.tracking.place import mirrored_runs
from banpick_exp.run_folder import RunFolder


def small(folder: Path, **changed: object) -> Bench:
    settings = {"points": 12, "engines": 3, "answer_seconds": 0.0, "report": False, "folder": str(folder)}
    return Bench(**(settings | changed))  # type: ignore[arg-type]


def run_of(folder: Path) -> RunFolder:
    (manifest,) = folder.glob("*/*/run.json")
    return RunFolder(manifest.parent)


def test_a_run_is_whole_and_is_found_whole_again(tmp_path: Path) -> None:
    """Records are real ones: read and counted as those of an engine are."""
    figures = run_all(small(tmp_path))
    run = run_of(tmp_path)
    found = run.read_points()
    assert found.left_out == [] and {record.status for record in found.records} == {"done"}
    assert len(found.records) == 13, "12 of the space, and stock"
    assert all(record.measured.overall.n_problems == 60 for record in found.records)
    assert len({record.measured.overall.accuracy for record in found.records}) > 1
    assert figures["driver_ms_a_point"] > 0 and figures["slots_ms_a_point"] > 0 and figures["driver_mb"] > 50
    before = {path: path.stat().st_mtime_ns for path in run.points.iterdir()}
    assert resume(small(tmp_path))["resume_seconds"] > 0
    assert {path: path.stat().st_mtime_ns for path in run.points.iterdir()} == before, "nothing was computed again"
    assert not run.report.exists()


def test_waiting_for_engines_is_not_the_drivers_time(tmp_path: Path) -> None:
    figures = run_all(small(tmp_path, answer_seconds=0.2, engines=2))
    assert figures["slots_ms_a_point"] > 80, "13 points of 0.2 s on two engines"
    assert figures["driver_ms_a_point"] < 80


def test_the_end_is_measured_where_it_is_asked_for(tmp_path: Path) -> None:
    figures = run_all(small(tmp_path, report=True))
    assert figures["end_seconds"] > 0 and figures["end_mb"] >= figures["driver_mb"]
    assert run_of(tmp_path).report.is_file()


def test_what_wandb_adds_is_measured_apart(tmp_path: Path) -> None:
    figures = run_all(small(tmp_path, report=True, wandb=True))
    assert 0 < 13 * figures["mirror_ms_a_point"] < 1e3 * figures["end_seconds"]
    assert len(mirrored_runs(run_of(tmp_path))) == 13 + 1 and figures["driver_ms_a_point"] > 0


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    figures = dry_run(small(tmp_path))
    assert figures["planned_points"] == 13 and figures["plan_seconds"] <= figures["dry_run_seconds"]
    assert [path.name for path in tmp_path.iterdir()] == ["driver.log"]
    assert "13 points" in (tmp_path / "driver.log").read_text()


def test_the_command_prints_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "bench.jsonl"
    typed = ["sweep", "--points", "3", "--engines", "2", "--no-report", "--output", str(output)]
    assert bench.run(typed) == 0
    out, err = capsys.readouterr()
    row = json.loads(out)
    assert row["planned_points"] == 4 and row["engines"] == 2 and output.read_text() == out
    assert set(WANTED) <= set(row) and "end_seconds" not in row
    assert all(key in err for key, _ in COLUMNS if key in row)


def test_what_makes_no_sense_is_refused() -> None:
    for typed in (["--points", "0"], ["--engines", "0"], ["--answer-seconds", "-1"], ["--points", "100,30000"]):
        with pytest.raises(UserError, match=typed[0]):
            bench.run(["sweep", *typed, "--dry-run"])


def test_a_dry_run_of_the_command_says_what_would_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.run(["sweep", "--points", "100,10000", "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("sweep: 100, 10,000 points on 64 engines that answer by themselves")


@pytest.mark.slow
def test_a_point_costs_the_same_among_many() -> None:
    """By the time of its own process: other tests may run beside it. What looks at every point for each costs six times
    as much; twice is allowed for. A driver that keeps whole records takes 500 MB more at 10,000."""
    few, many = bench_sweep([100, 600], 64, 0.0, report=False, output=None, say=lambda text: None)
    assert many["driver_cpu_ms_a_point"] < 2 * few["driver_cpu_ms_a_point"] + 0.5
    assert many["driver_cpu_ms_a_point"] < WANTED["driver_ms_a_point"]
    assert many["resume_cpu_seconds"] < WANTED["resume_seconds"] / 2 and many["driver_mb"] < WANTED["driver_mb"]
