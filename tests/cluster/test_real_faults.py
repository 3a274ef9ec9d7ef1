"""Faults that are really done to a sweep on Ray and a real engine, each to its end. Slow: an engine start each."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from running_sweep import LIMIT_SECONDS, ROOT, assert_nothing_left, awaited, descendants

from banpick_exp.run_folder import RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1200)]

SWEEP = [
    "policy=fixed_k", "task.max_problems=40", "tracking=none", "cluster.engines=1", "cluster.dead_seconds=6",
]  # fmt: skip
TIMED, POINTS = ["policy.k=choice(2,3,4,5,6,7)", "task.speed_seconds=3"], 7
UNTIMED_TP, FEW_POINTS = ["policy.k=choice(2,4,6)", "engine.tensor_parallel_size=2", "task.speed_seconds=0"], 4
"""Two ranks spin while they wait for each other: with more engines than cores, timing them takes minutes a point, and
answering longer than loading."""


@pytest.fixture
def driver(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    """A sweep under way; `request.param`: the last words of its line."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}
    process = subprocess.Popen(
        [sys.executable, "-m", "banpick_exp", *SWEEP, *getattr(request, "param", TIMED), f"output_dir={tmp_path}"],
        stdout=(tmp_path / "output").open("w"),
        stderr=subprocess.STDOUT,
        text=True,
        cwd=tmp_path,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # below nohup it is ignored, and so by us
    )
    yield process
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
    for pid in list(descendants(process.pid)):  # only what this test began
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.kill()
    process.wait()


def output(folder: Path) -> str:
    return (folder / "output").read_text(errors="replace")


def only_run(folder: Path) -> RunFolder:
    (found,) = (folder / "custom").glob("*/run.json")
    return RunFolder(found.parent)


def engine_at_work(driver: subprocess.Popen[str]) -> int:
    """The pid of the engine once a point is done and it works on another: Ray titles a process by its running call."""

    def found() -> int | None:
        assert driver.poll() is None, "the driver ended first"
        return next((pid for pid, title in descendants(driver.pid).items() if "EngineActor.run_" in title), None)

    return awaited(found)


def first_point_done(driver: subprocess.Popen[str], folder: Path) -> None:
    def found() -> int | None:
        assert driver.poll() is None, output(folder)
        return 1 if "[1/" in output(folder) else None

    awaited(found)


def ends(driver: subprocess.Popen[str], folder: Path, seconds: float) -> int:
    try:
        return driver.wait(seconds)
    except subprocess.TimeoutExpired:
        pytest.fail(f"no end within {seconds} s:\n{output(folder)}")


def test_an_engine_that_is_stopped_is_replaced(driver: subprocess.Popen[str], tmp_path: Path) -> None:
    first_point_done(driver, tmp_path)
    os.kill(engine_at_work(driver), signal.SIGSTOP)
    assert ends(driver, tmp_path, LIMIT_SECONDS) == 0, output(tmp_path)
    told = " ".join(output(tmp_path).split())
    assert "no sign of life for cluster.dead_seconds=6" in told and f"{POINTS} done, 0 invalid, 0 failed" in told
    assert "engine loads 2 for 1 engine slot(s)" in told


@pytest.mark.parametrize("driver", [UNTIMED_TP], indirect=True)
@pytest.mark.parametrize("title", ["VLLM::Worker", "VLLM::EngineCore"])
def test_an_engine_that_loses_a_process_below_it_is_replaced(
    driver: subprocess.Popen[str], tmp_path: Path, title: str
) -> None:
    """vLLM itself would go on waiting for its answer."""
    first_point_done(driver, tmp_path)
    victim = awaited(
        lambda: next((pid for pid, name in descendants(driver.pid).items() if name.startswith(title)), None)
    )
    below = descendants(driver.pid)
    os.kill(victim, signal.SIGKILL)
    assert ends(driver, tmp_path, LIMIT_SECONDS) == 0, output(tmp_path)
    told = " ".join(output(tmp_path).split())
    assert "engine lost" in told and f"{FEW_POINTS} done, 0 invalid, 0 failed" in told
    assert_nothing_left(tmp_path, below)


@pytest.mark.parametrize("process", ["raylet", "gcs_server"])
def test_a_cluster_of_ours_that_dies_ends_the_run_in_words(
    driver: subprocess.Popen[str], tmp_path: Path, process: str
) -> None:
    first_point_done(driver, tmp_path)
    below = descendants(driver.pid)
    (pid,) = [pid for pid, title in below.items() if re.search(rf"/{process} ", title)]
    os.kill(pid, signal.SIGKILL)
    begin = time.monotonic()
    code = ends(driver, tmp_path, 90)
    assert time.monotonic() - begin < 70
    told = " ".join(output(tmp_path).split())
    assert code == 1, told
    assert "goes on from here" in told and process in told
    assert_nothing_left(tmp_path, below)


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_the_run_and_says_how_to_go_on(
    driver: subprocess.Popen[str], tmp_path: Path, sign: signal.Signals
) -> None:
    first_point_done(driver, tmp_path)
    below = descendants(driver.pid)
    open_to_all = [f"{below.get(pid, 'driver')[:60]} {at}" for pid, at in listening({driver.pid, *below})]
    assert open_to_all == [], "Ray listens on loopback alone"
    driver.send_signal(sign)
    begin = time.monotonic()
    assert ends(driver, tmp_path, 60) == 130, output(tmp_path)
    assert time.monotonic() - begin < 30
    told = output(tmp_path)
    assert f"resume={only_run(tmp_path).path.name}" in told and "Traceback" not in told
    assert "Stack trace" not in told and "*** SIG" not in told
    assert_nothing_left(tmp_path, below)


def listening(pids: set[int]) -> Iterator[tuple[int, str]]:
    """(pid, address) of every TCP socket of these processes that listens beyond loopback."""
    sockets = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                sockets[fields[9]] = fields[1]
    for pid in pids:
        with contextlib.suppress(OSError):
            for link in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    inode = os.readlink(link).removeprefix("socket:[").removesuffix("]")
                    address = sockets.get(inode, "0100007F:0")
                    if not address.startswith(("0100007F", "0000000000000000FFFF00000100007F", "0" * 24 + "01000000")):
                        yield pid, address
