"""The whole path on real engines: sweep, resume, a corrupt record, a killed engine. Kept to four engine starts.

Each run is the real command in a process of its own, because that is what a user types and Ray starts once a process.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest
from wandb_runs import read_back

from banpick_exp.analysis import headline
from banpick_exp.records import load_points, read_outcomes, read_point
from banpick_exp.report import load_run
from banpick_exp.sweep.plan import plan_sweep

pytestmark = [pytest.mark.engine, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_SECONDS = 240
SMALL = ["task.max_problems=20", "task.throughput_prompts=6", "task.throughput_repeats=1", "calibration.samples=4"]
SWEEP = [
    "policy=pick",
    "policy.mode=choice(boost,range_replace)",
    "policy.boost=2",
    'sweep.reference=[["policy=fixed_k","policy.k=choice(2,4)"]]',
    *SMALL,
]
POINTS = 5  # stock, two of fixed_k, two of Pick


@dataclass
class Done:
    """One finished command: exit code and output."""

    code: int
    output: str


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}
    return subprocess.Popen(
        [sys.executable, "-m", "banpick_exp", *arguments, f"output_dir={folder}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
        env=environment,
    )


def finish(process: subprocess.Popen[str]) -> Done:
    try:
        output, _ = process.communicate(timeout=TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)  # releases the engines
        output, _ = process.communicate(timeout=60)
        pytest.fail(f"no end within {TIMEOUT_SECONDS} s:\n{output}")
    return Done(process.returncode, output)


def command(folder: Path, *arguments: str) -> Done:
    return finish(start(folder, *arguments))


def only_run(folder: Path, sweep: str = "custom") -> Path:
    (run_dir,) = [path.parent for path in (folder / sweep).glob("*/run.json")]
    return run_dir


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    """One sweep from nothing: one engine start, one calibration, five points."""
    folder = tmp_path_factory.mktemp("sweep")
    return folder, command(folder, *SWEEP)


def test_a_sweep_ends_well(swept: tuple[Path, Done]) -> None:
    folder, done = swept
    assert done.code == 0, done.output
    for text in (f"{POINTS} done, 0 invalid, 0 failed", "engine loads 1 for 1 engine slot(s)", "Pareto table"):
        assert text in done.output
    verdict = headline(load_run(only_run(folder))[1])
    assert " ".join(done.output.split()).count(verdict) == 1 and done.output.count("pareto.png") == 1
    assert "Adding directory" not in done.output and "Traceback" not in done.output
    records, set_aside = load_points(only_run(folder) / "points")
    assert set_aside == [] and len(records) == POINTS, "every record is valid by its own schema"
    by_label = {record["label"]: record for record in records}
    stock = by_label["none"]
    for record in records:
        overall = record["metrics"]["overall"]
        assert record["status"] == "done" and overall["n_problems"] == 60
        assert list(record["metrics"]["domains"]) == ["math", "code", "knowledge"]
        assert overall["delta"] == pytest.approx(overall["accuracy"] - stock["metrics"]["overall"]["accuracy"])
        assert overall["accuracy_ci95"][0] <= overall["accuracy"] <= overall["accuracy_ci95"][1]
        assert overall["speedup_spread"][0] <= overall["speedup"] <= overall["speedup_spread"][1]
        outcomes = read_outcomes(only_run(folder) / "points", record["fingerprint"])
        assert outcomes.height == 60 and outcomes["correct"].mean() == pytest.approx(overall["accuracy"])
        assert record["timing"]["swap_seconds"] < 0.05
    assert by_label["fixed_k k=4"]["metrics"]["overall"]["mean_kept"] == 4
    assert stock["metrics"]["overall"]["mean_kept"] == 8 and stock["metrics"]["overall"]["delta"] == 0


def test_a_sweep_leaves_its_table_and_pictures(swept: tuple[Path, Done]) -> None:
    run_dir = only_run(swept[0])
    assert (run_dir / "pareto.png").read_bytes().startswith(b"\x89PNG")
    assert "<html" in (run_dir / "report.html").read_text()[:1000].lower()
    assert pl.read_parquet(run_dir / "points.parquet").height == POINTS * 4  # overall and three domains


def test_a_sweep_is_mirrored_offline(swept: tuple[Path, Done]) -> None:
    run_dir = only_run(swept[0])
    runs = read_back(run_dir)
    records, _ = load_points(run_dir / "points")
    assert set(runs) == {"summary", *(record["label"] for record in records)}
    for record in records:
        accuracy = record["metrics"]["overall"]["accuracy"]
        assert runs[record["label"]]["history"]["acc/overall"] == pytest.approx(accuracy)
    summary = runs["summary"]
    assert summary["summary"]["engine_loads"] == summary["summary"]["engine_slots"] == 1
    calibrations = {record["calibration"] for record in records if record["calibration"]}
    named = {artifact["name"] for artifact in summary["artifacts"]}
    assert {"points", "report", *(f"calibration-{name}" for name in calibrations)} <= named


def test_the_recorded_command_plans_the_same_point(swept: tuple[Path, Done]) -> None:
    records, _ = load_points(only_run(swept[0]) / "points")
    for record in records:
        again = plan_sweep([*shlex.split(record["command"])[3:], "dry_run=true"])
        assert record["fingerprint"] in [point.fingerprint for point in again.points]
        assert len(again.points) <= 2


def test_a_finished_run_is_not_repeated(swept: tuple[Path, Done]) -> None:
    folder, _ = swept
    run_dir = only_run(folder)
    before = {path: path.stat().st_mtime_ns for path in (run_dir / "points").iterdir()}
    spent = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = command(folder, *SWEEP, f"resume={run_dir.name}")
    assert done.code == 0, done.output
    assert "nothing to compute" in done.output and "Starting Ray" not in done.output
    assert "engine loads 0 for 0 engine slot(s)" in done.output
    assert {path: path.stat().st_mtime_ns for path in (run_dir / "points").iterdir()} == before
    # Processor time, so that a busy machine cannot fail this.
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - spent < 15


def test_a_corrupt_record_costs_one_point_and_a_killed_engine_one_load(swept: tuple[Path, Done]) -> None:
    """One resumed run with both: the corrupt record is computed again, on an engine that is killed under it."""
    folder, _ = swept
    run_dir = only_run(folder)
    records, _ = load_points(run_dir / "points")
    chosen = next(record for record in records if record["policy"]["name"] == "fixed_k")
    path = run_dir / "points" / f"{chosen['fingerprint']}.json"
    path.write_text(path.read_text()[:-20])
    kept = {p.name: p.stat().st_mtime_ns for p in (run_dir / "points").glob("*.json") if p != path}
    process = start(folder, *SWEEP, f"resume={run_dir.name}")
    killed = _kill_engine_at_work(process)
    done = finish(process)
    assert done.code == 0, done.output
    assert killed and "engine lost" in done.output, done.output
    assert "set aside" in done.output and f"{POINTS - 1} of {POINTS} points are finished already" in done.output
    assert "engine loads 2 for 1 engine slot(s)" in done.output, "a load that was repeated is counted"
    assert f"{POINTS} done, 0 invalid, 0 failed" in done.output
    assert (run_dir / "points" / f"{path.name}.corrupt").exists()
    assert kept == {p.name: p.stat().st_mtime_ns for p in (run_dir / "points").glob("*.json") if p != path}
    repeated = read_point(path)
    assert repeated["metrics"]["overall"]["accuracy"] == chosen["metrics"]["overall"]["accuracy"]
    assert repeated["metrics"]["overall"]["mean_kept"] == chosen["metrics"]["overall"]["mean_kept"]


def _kill_engine_at_work(driver: subprocess.Popen[str]) -> bool:
    """SIGKILL to the engine of this driver as soon as it works on a point; Ray names a process by its running call."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while driver.poll() is None and time.monotonic() < deadline:
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if b"EngineActor.run_point" in (process / "cmdline").read_bytes() and _descends(process, driver.pid):
                    os.kill(int(process.name), signal.SIGKILL)
                    return True
        time.sleep(0.02)
    return False


def _descends(process: Path, ancestor: int) -> bool:
    pid = int(process.name)
    while pid > 1:
        if pid == ancestor:
            return True
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return False


def test_a_policy_that_does_nothing_is_invalid(swept: tuple[Path, Done], tmp_path: Path) -> None:
    """boost=0 keeps as many experts as stock, so the budget alone would call it done. With the sweep's calibration."""
    first, _ = load_points(only_run(swept[0]) / "points")
    boosted = next(record for record in first if record["policy"].get("mode") == "boost")
    artifact = swept[0] / "calibrations" / boosted["calibration"]
    typed = ["policy=pick", "policy.mode=boost", "policy.boost=choice(0,2)", f"calibration.path={artifact}"]
    done = command(tmp_path, *typed, *SMALL, "tracking=none")
    assert done.code == 1, done.output
    assert "2 done, 1 invalid, 0 failed" in done.output and "boost=0 adds nothing" in done.output
    records, _ = load_points(only_run(tmp_path) / "points")
    by_label = {record["label"]: record for record in records}
    invalid, again = by_label["pick boost=0 key_experts=4"], by_label[boosted["label"]]
    assert invalid["status"] == "invalid" and "did not engage" in invalid["reason"]
    assert invalid["metrics"]["overall"]["delta"] == 0
    assert again["calibration"] == boosted["calibration"] and not (tmp_path / "calibrations").exists()
    assert again["engagement"] == boosted["engagement"], "the same experts were boosted"
    assert not (only_run(tmp_path) / "wandb").exists()


def test_engines_that_do_not_fit_are_refused_at_once(tmp_path: Path) -> None:
    done = command(tmp_path, "policy=none", "engine.cpus=4000", "tracking=none")
    assert done.code == 2, done.output
    assert "do not fit the cluster" in done.output and "Traceback" not in done.output
