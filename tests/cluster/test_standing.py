"""A real standing cluster with tokens, the real engine, drivers that die: the engine stays, is taken over, ends.

Long: an engine load each. `ray start` runs on loopback with a folder and a port of its own.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

from banpick_exp.cluster.events import Event, read
from banpick_exp.cluster.pulse import descendants
from banpick_exp.run_folder import RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(3000)]
ROOT = Path(__file__).resolve().parents[2]
SWEEP = ["policy=fixed_k", "policy.k=choice(2,3,5,6)", "task.max_problems=200", "task.speed_seconds=1",
         "tracking=none", "cluster=standing", "cluster.engines=1", "engine.cpus=1"]  # fmt: skip
POINTS = 5
LIMIT_SECONDS = 600
T = TypeVar("T")
LEFT = """
import json, os, ray
from ray.util.placement_group import placement_group_table
ray.init(address=os.environ["STANDS_AT"], namespace="banpick", log_to_driver=False, logging_level="ERROR")
groups = [group["name"] for group in placement_group_table().values() if group["state"] != "REMOVED"]
print(json.dumps([groups, ray.util.list_named_actors(), ray.available_resources().get("CPU")]))
"""
"""Groups, named actors and free cores of the cluster."""


@dataclass(frozen=True)
class StandingCluster:
    address: str
    environment: Mapping[str, str]

    def left(self) -> str:
        environment = {**self.environment, "STANDS_AT": self.address}
        return subprocess.run(
            [sys.executable, "-c", LEFT],
            env=environment,
            check=True,
            capture_output=True,
            text=True,
            timeout=LIMIT_SECONDS,
        ).stdout.strip()


EMPTY = "[[], [], 2.0]"


@pytest.fixture(scope="module")
def cluster() -> Iterator[StandingCluster]:
    folder = Path(tempfile.mkdtemp(prefix="bp-", dir="/tmp"))  # short: sockets lie below it
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("RAY_")},
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")]),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # else Ray takes the machine's outer address for 127.0.0.1
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
    }
    head = begin(folder, port, environment)
    try:
        yield StandingCluster(f"127.0.0.1:{port}", environment)
    finally:
        end(head)
        shutil.rmtree(folder, ignore_errors=True)


def begin(folder: Path, port: int, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """`ray start`, which gives itself half a minute and may not get there on a busy machine."""
    ray, said = str(Path(sys.executable).with_name("ray")), folder / "head.txt"
    for _ in range(4):
        head = subprocess.Popen(
            [ray, "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}", "--num-cpus=2",
             "--include-dashboard=false", "--disable-usage-stats", f"--temp-dir={folder}"],
            env=dict(environment), stdout=said.open("w"), stderr=subprocess.STDOUT,
        )  # fmt: skip
        while head.poll() is None:
            if "Ray runtime started" in said.read_text():
                return head
            time.sleep(0.2)
    raise AssertionError(said.read_text())


def end(head: subprocess.Popen[bytes]) -> None:
    ours = [head.pid, *descendants(head.pid)]
    head.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        head.wait(60)
    for pid in ours:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    head.wait()


class Driver:
    """One driver of a sweep."""

    def __init__(self, cluster: StandingCluster, folder: Path, *more: str) -> None:
        self.folder, self.begun = folder, time.time()
        self._log = folder / f"driver-{time.monotonic_ns()}.txt"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "banpick_exp", *SWEEP, f"cluster.address={cluster.address}", *more,
             f"output_dir={folder}"],
            env=dict(cluster.environment), cwd=folder, stdout=self._log.open("w"), stderr=subprocess.STDOUT,
        )  # fmt: skip

    @property
    def output(self) -> str:
        return " ".join(self._log.read_text(errors="replace").split())

    def event(self, kind: str, count: int = 1) -> Event:
        """The `count`th of its own events of a kind, once it is there."""

        def found() -> Event | None:
            own = [e for e in events(self.folder) if e.kind == kind and e.time.timestamp() >= self.begun - 0.01]
            assert len(own) >= count or self.process.poll() is None, self.output
            return own[count - 1] if len(own) >= count else None

        return awaited(found)

    def ends(self, sign: signal.Signals | None = None) -> int:
        if sign is not None:
            self.process.send_signal(sign)
        return self.process.wait(LIMIT_SECONDS)


def events(folder: Path) -> list[Event]:
    return [event for path in folder.glob("custom/*/run.json") for event in read(RunFolder(path.parent)).events]


def awaited(what: Callable[[], T | None], seconds: float = LIMIT_SECONDS) -> T:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if (found := what()) is not None:
            return found
        time.sleep(0.05)
    raise AssertionError("what was waited for did not come")


def lives(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def answers(folder: Path) -> dict[str, list[tuple[str, str | None, bool]]]:
    """What each point answered, by its label; every problem once."""
    (path,) = folder.glob("custom/*/run.json")
    points = RunFolder(path.parent).read_points()
    assert not points.left_out
    found = {}
    for record in points.records:
        assert record.status == "done"
        rows = points.outcomes[record.fingerprint].select("problem_id", "answer", "correct").rows()
        assert len({row[0] for row in rows}) == len(rows)
        found[record.label] = sorted(rows)
    return found


def test_a_driver_that_is_killed_leaves_its_engine_to_the_next(cluster: StandingCluster, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    folder.mkdir()
    first = Driver(cluster, folder, "cluster.idle_seconds=200")
    engine = int(str(first.event("engine_ready").fields["pid"]))
    first.event("point_done", 2)
    first.event("point_begun", 3)
    first.ends(signal.SIGKILL)
    (run,) = [path.parent.name for path in folder.glob("custom/*/run.json")]
    done = len(list(folder.glob("custom/*/points/*.json")))
    assert 2 <= done < POINTS

    second = Driver(cluster, folder, "cluster.idle_seconds=5", f"resume={run}")
    ready, begun, point = second.event("engine_ready"), second.event("run_begun"), second.event("point_done")
    assert ready.fields["pid"] == engine and ready.fields["seconds"] == 0
    print(
        f"typed to run: {begun.time.timestamp() - second.begun:.2f} s; run to engine:"
        f" {(ready.time - begun.time).total_seconds():.2f} s; engine to record:"
        f" {(point.time - ready.time).total_seconds():.2f} s; idle before: {ready.fields['host']}"
    )
    second.ends(signal.SIGKILL)
    assert "engine taken over from an earlier driver" in second.output or lives(engine)
    awaited(lambda: None if lives(engine) else True)
    awaited(lambda: True if cluster.left() == EMPTY else None, 100)
    (log,) = folder.glob("custom/*/logs/*.log")
    assert "no driver for" in log.read_text() and "cluster.idle_seconds=5" in log.read_text()

    third = Driver(cluster, folder, f"resume={run}")
    assert third.ends() == 0, third.output
    assert "engine loads 1 for 1 engine slot(s)" in third.output and f"{POINTS} done, 0 invalid" in third.output
    assert cluster.left() == EMPTY, "an end in order gives all back at once"

    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    other = Driver(cluster, undisturbed)
    assert other.ends() == 0, other.output
    assert answers(folder) == answers(undisturbed)


def test_a_signal_leaves_the_engine_and_says_so_unless_it_is_told_not_to(
    cluster: StandingCluster, tmp_path: Path
) -> None:
    first = Driver(cluster, tmp_path, "cluster.idle_seconds=200")
    engine = int(str(first.event("engine_ready").fields["pid"]))
    first.event("point_done")
    assert first.ends(signal.SIGTERM) == 130
    (run,) = [path.parent.name for path in tmp_path.glob("custom/*/run.json")]
    assert "1 engine(s) stay loaded on the cluster for cluster.idle_seconds=200" in first.output
    assert f"resume={run}" in first.output and lives(engine)

    second = Driver(cluster, tmp_path, "cluster.idle_seconds=0", f"resume={run}")
    assert second.event("engine_ready").fields["pid"] == engine
    assert second.ends(signal.SIGINT) == 130
    assert "stay loaded" not in second.output
    awaited(lambda: None if lives(engine) else True, 60)
    awaited(lambda: True if cluster.left() == EMPTY else None, 60)


@pytest.mark.parametrize("mode", ["none", "another"])
def test_a_cluster_with_tokens_is_not_joined_without_its_own(
    cluster: StandingCluster, tmp_path: Path, mode: str
) -> None:
    environment = {key: value for key, value in cluster.environment.items() if not key.startswith("RAY_AUTH")}
    environment["HOME"] = str(tmp_path)  # a token in the home folder would be found by itself
    if mode == "another":
        wrong = tmp_path / "wrong"
        wrong.write_text(secrets.token_hex(32))
        environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(wrong)}
    driver = Driver(StandingCluster(cluster.address, environment), tmp_path)
    assert driver.ends() == 2, driver.output
    said = "wants a token and none was given" if mode == "none" else "refuses the token that was given"
    assert said in driver.output and "RAY_AUTH_TOKEN_PATH" in driver.output and "Traceback" not in driver.output
