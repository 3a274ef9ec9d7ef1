"""The whole path on real engines: sweep, resume, a corrupt record, a killed engine. Kept to three engine starts.

Each run is the real command in a process of its own, because that is what a user types and Ray starts once a process.
"""

from __future__ import annotations

import contextlib
import io
import os
import resource
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from loaded_backend import LoadedBackend
from rich.console import Console
from wandb_runs import read_back

from banpick_exp.cluster.plan import plan_run
from banpick_exp.cluster.run import Run
from banpick_exp.disk import read_table
from banpick_exp.report.run import read_run
from banpick_exp.run_folder import RunFolder
from banpick_exp.sweep.plan import plan_sweep

if TYPE_CHECKING:
    from banpick_exp.engine.engine import Engine

pytestmark = [pytest.mark.engine, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_SECONDS = 240
SMALL = ["task.max_problems=20", "task.speed_seconds=0.1", "calibration.samples=4", "calibration.score=insertion_kl"]
"""By a score without a sign: on so few problems no gain is sure, and nothing would be reinforced."""
SWEEP = [
    "policy=pick",
    "policy.mode=choice(boost,range_replace)",
    "policy.boost=2",
    'sweep.reference=[["policy=fixed_k","policy.k=choice(2,4)"]]',
    *SMALL,
    "cluster.engines=1",
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


def only_run(folder: Path, sweep: str = "custom") -> RunFolder:
    (run_dir,) = [path.parent for path in (folder / sweep).glob("*/run.json")]
    return RunFolder(run_dir)


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
    run = only_run(folder)
    verdict = read_run(run).headline
    assert " ".join(done.output.split()).count(verdict) == 1 and done.output.count("pareto.png") == 1
    assert "Adding directory" not in done.output and "Traceback" not in done.output
    records, set_aside = run.load_points()
    assert set_aside == [] and len(records) == POINTS, "every record is valid by its own schema"
    by_label = {record.label: record for record in records}
    stock = by_label["none"].measured.overall
    for record in records:
        overall = record.measured.overall
        assert record.status == "done" and overall.n_problems == 60
        assert list(record.measured.domains) == ["math", "code", "knowledge"]
        assert overall.delta == pytest.approx(overall.accuracy - stock.accuracy)
        low, high = overall.accuracy_ci95
        assert low <= overall.accuracy <= high
        assert overall.speedup is not None and overall.speedup_ci95 is not None
        assert overall.speedup_ci95[0] <= overall.speedup <= overall.speedup_ci95[1]
        outcomes = run.outcomes(record.fingerprint)
        assert outcomes.height == 60 and outcomes["correct"].mean() == pytest.approx(overall.accuracy)
        assert record.timing.swap_seconds < 2, "a swap, not a reload"
    assert by_label["fixed_k k=4"].mean_kept == 4
    assert stock.mean_kept == 8 and stock.delta == 0


def test_a_sweep_leaves_its_table_and_pictures(swept: tuple[Path, Done]) -> None:
    run = only_run(swept[0])
    assert run.figure_path("pareto").read_bytes().startswith(b"\x89PNG")
    assert "<html" in run.report.read_text()[:1000].lower()
    assert read_table(run.table_path("points")).height == POINTS * 4  # overall and three domains


def test_a_sweep_is_mirrored_offline(swept: tuple[Path, Done]) -> None:
    run = only_run(swept[0])
    runs = read_back(run.path)
    records, _ = run.load_points()
    assert set(runs) == {"summary", *(record.label for record in records)}
    for record in records:
        accuracy = record.measured.overall.accuracy
        assert runs[record.label]["summary"]["acc/overall"] == pytest.approx(accuracy)
        assert runs[record.label]["summary"]["status"] == record.status
    summary = runs["summary"]
    assert summary["summary"]["engine_loads"] == summary["summary"]["engine_slots"] == 1
    calibrations = {record.calibration for record in records if record.calibration}
    kinds = [artifact["type"] for artifact in summary["artifacts"] if artifact["type"] != "run_table"]
    assert sorted(kinds) == sorted(["points", "report", *["calibration"] * len(calibrations)])
    assert all(any(name in artifact["name"] for artifact in summary["artifacts"]) for name in calibrations)


def test_the_recorded_command_plans_the_same_point(swept: tuple[Path, Done]) -> None:
    records, _ = only_run(swept[0]).load_points()
    for record in records:
        assert record.command is not None
        again = plan_sweep([*shlex.split(record.command)[3:], "dry_run=true"])
        assert record.fingerprint in [point.fingerprint for point in again.points]
        assert len(again.points) <= 2


def test_a_finished_run_is_not_repeated(swept: tuple[Path, Done]) -> None:
    folder, _ = swept
    run = only_run(folder)
    before = {path: path.stat().st_mtime_ns for path in run.points.iterdir()}
    spent = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = command(folder, *SWEEP, f"resume={run.path.name}")
    assert done.code == 0, done.output
    assert "nothing to compute" in done.output and "Starting Ray" not in done.output
    assert "engine loads 0 for 0 engine slot(s)" in done.output
    assert {path: path.stat().st_mtime_ns for path in run.points.iterdir()} == before
    # Processor time, so that a busy machine cannot fail this.
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - spent < 15


def test_a_corrupt_record_costs_one_point_and_a_killed_engine_one_load(swept: tuple[Path, Done]) -> None:
    """One resumed run with both: the corrupt record is computed again, on an engine that is killed under it."""
    folder, _ = swept
    run = only_run(folder)
    records, _ = run.load_points()
    chosen = next(record for record in records if record.policy_name == "fixed_k")
    path = run.record_path(chosen.fingerprint)
    path.write_text(path.read_text()[:-20])
    kept = {p.name: p.stat().st_mtime_ns for p in run.record_files() if p != path}
    process = start(folder, *SWEEP, f"resume={run.path.name}")
    killed = _kill_engine_at_work(process)
    done = finish(process)
    assert done.code == 0, done.output
    assert killed and "engine lost" in done.output, done.output
    assert "set aside" in done.output and f"{POINTS - 1} of {POINTS} points are finished already" in done.output
    assert "engine loads 2 for 1 engine slot(s)" in done.output, "a load that was repeated is counted"
    assert f"{POINTS} done, 0 invalid, 0 failed" in done.output
    assert path.with_name(f"{path.name}.corrupt").exists()
    assert kept == {p.name: p.stat().st_mtime_ns for p in run.record_files() if p != path}
    repeated = run.read_point(chosen.fingerprint)
    assert repeated.measured.overall.accuracy == chosen.measured.overall.accuracy
    assert repeated.mean_kept == chosen.mean_kept


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


def test_a_policy_that_does_nothing_is_invalid(swept: tuple[Path, Done], tiny_engine: Engine, tmp_path: Path) -> None:
    """boost=0 keeps as many experts as stock, so the budget alone would call it done. With the sweep's calibration, on
    an engine that is loaded already: how a point ends is the same wherever its engine is."""
    first, _ = only_run(swept[0]).load_points()
    boosted = next(record for record in first if record.knobs.get("mode") == "boost")
    assert boosted.calibration is not None
    artifact = only_run(swept[0]).calibrations / boosted.calibration
    typed = ["policy=pick", "policy.mode=boost", "policy.boost=choice(0,2)", f"calibration.path={artifact}"]
    plan = plan_run([*typed, *SMALL, "tracking=none", "cluster=inline", f"output_dir={tmp_path}"])
    plan.folder.write_manifest(plan.sweep.manifest())
    output = io.StringIO()
    code = Run(plan, Console(file=output, width=250), LoadedBackend(tiny_engine)).run()
    assert code == 1, output.getvalue()
    assert "2 done, 1 invalid, 0 failed" in output.getvalue()
    assert "boost=0 adds nothing" in output.getvalue()
    run = only_run(tmp_path)
    records, _ = run.load_points()
    by_label = {record.label: record for record in records}
    invalid, again = by_label["pick boost=0 key_experts=4"], by_label[boosted.label]
    assert invalid.status == "invalid" and "did not engage" in (invalid.reason or "")
    assert invalid.measured.overall.delta == 0
    assert again.calibration == boosted.calibration and not run.calibrations.exists()
    for fact in ("key_experts", "routing_table", "implied", "measured"):
        assert getattr(again.engagement, fact) == getattr(boosted.engagement, fact), "the same experts were boosted"
    assert not run.mirror.exists()


def test_engines_that_do_not_fit_are_refused_at_once(tmp_path: Path) -> None:
    done = command(tmp_path, "policy=none", "engine.cpus=4000", "tracking=none")
    assert done.code == 2, done.output
    assert "do not fit this machine" in " ".join(done.output.split()) and "Traceback" not in done.output
