"""A sweep over several hosts: network namespaces on one bridge, each with an address and a host name of its own.

The head and the driver are on one, without a core for engines; the engine is on another. Ray asks for a token. All
hosts see one file system, as those of a cluster do. Needs root and `ip`; nothing leaves the namespaces.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from banpick_exp.run_folder import RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.engine, pytest.mark.timeout(1800)]

ROOT = Path(__file__).resolve().parents[2]
RAY = Path(sys.executable).parent / "ray"
PORT = 6380
SECONDS = 600
"""What a thing may take that takes one minute on a machine with nothing else to do."""
CUT_SECONDS = 5
SWEEP = ["policy=fixed_k", "policy.k=choice(2,3,5,6)", "task.speed_seconds=1", "tracking=none"]
POINTS = 5


def until(what: str, done: Callable[[], Any], seconds: float = SECONDS) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := done()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.2)
    return found


@dataclass
class Host:
    """A network namespace, and what was started in it."""

    name: str
    address: str
    namespace: str
    folder: Path
    """Of its logs."""
    environment: dict[str, str]
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, log: str, *command: str | Path, **more: str) -> subprocess.Popen[bytes]:
        """Run a command here; stdout and stderr go to a file of `folder`."""
        inside = ["unshare", "--uts", "sh", "-c", f'hostname {self.name} && exec "$@"', "sh", *command]
        with open(self.folder / log, "ab") as file:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.namespace, *inside],
                env=self.environment | more,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        self.started.append(process)
        return process

    def start_ray(self, *role: str) -> None:
        words = [f"--node-ip-address={self.address}", f"--temp-dir={self.temp_dir}", "--disable-usage-stats", "--block"]
        # Ray gives a node half a minute to come up. One that was up and is lost stays so: a test has done it.
        several_times = 'for _ in {1..5}; do "$@"; ! grep -q "Ray runtime started" ray.log || exit; done'
        self.start("ray.log", "bash", "-c", several_times, "start-ray", RAY, "start", *role, *words)

    @property
    def temp_dir(self) -> Path:
        return Path(tempfile.gettempdir()) / f"r-{self.namespace}"

    def told(self, log: str = "ray.log") -> str:
        path = self.folder / log
        return path.read_text(errors="replace") if path.exists() else ""

    def pids(self) -> list[int]:
        """Every process in the namespace: of this test, since the namespace is."""
        found = subprocess.run(["ip", "netns", "pids", self.namespace], capture_output=True, text=True)
        return [int(word) for word in found.stdout.split()]

    def pids_of(self, program: str) -> list[int]:
        def runs(pid: int) -> bool:
            with contextlib.suppress(OSError):
                return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].endswith(f"/{program}".encode())
            return False

        return [pid for pid in self.pids() if runs(pid)]

    def close(self) -> None:
        deadline = time.monotonic() + 20
        while (pids := self.pids()) and time.monotonic() < deadline:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.2)
        for process in self.started:
            process.wait(20)
        shutil.rmtree(self.temp_dir, ignore_errors=True)


@dataclass(frozen=True)
class Cluster:
    """A head and the hosts on its bridge; a driver starts on the head."""

    head: Host
    first: Host
    second: Host
    """Not yet of the cluster."""

    @property
    def address(self) -> str:
        return f"{self.head.address}:{PORT}"

    def drive(self, output_dir: Path, *words: str, **more: str) -> subprocess.Popen[bytes]:
        where = ["cluster=standing", f"cluster.address={self.address}", "cluster.engines=1", f"output_dir={output_dir}"]
        command = [sys.executable, "-m", "banpick_exp", *SWEEP, *where, *words]
        return self.head.start(f"{output_dir.name}.log", *command, **more)

    def join(self, host: Host) -> None:
        """Ray's node of a host with one core, in the cluster."""
        host.start_ray(f"--address={self.address}", "--num-cpus=1")
        until(f"{host.name} joins: {host.told()[-2000:]}", lambda: "Ray runtime started" in host.told())

    def link(self, host: Host, state: str) -> None:
        ip("-n", self.head.namespace, "link", "set", host.name, state)


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"


def plug_in(host: Host, head: Host) -> None:
    """A cable from a host to the bridge, which is the head's."""
    ip("-n", host.namespace, "link", "set", "lo", "up")
    device = "bridge"
    if host is head:
        ip("-n", host.namespace, "link", "add", device, "type", "bridge")
    else:
        device = "eth0"
        far_end = ["peer", "name", host.name, "netns", head.namespace]
        ip("-n", host.namespace, "link", "add", device, "type", "veth", *far_end)
        ip("-n", head.namespace, "link", "set", host.name, "master", "bridge", "up")
    ip("-n", host.namespace, "address", "add", f"{host.address}/24", "dev", device)
    ip("-n", host.namespace, "link", "set", device, "up")


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Host]]:
    """Three, joined by a bridge on the first; there is no way out of them."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces are made by root")
    if shutil.which("ip") is None:
        pytest.skip("ip is not installed: apt-get install iproute2")
    token = tmp_path_factory.mktemp("token") / "token"
    token.touch(0o600)
    token.write_text(secrets.token_hex(32))
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")]),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
    }
    found: list[Host] = []
    with contextlib.ExitStack() as stack:
        for number, name in enumerate(("head", "first", "second"), 1):
            namespace = f"banpick-{os.getpid()}-{number}"
            made = subprocess.run(["ip", "netns", "add", namespace], capture_output=True, text=True)
            if made.returncode != 0:
                pytest.skip(f"no network namespace can be made here: {made.stderr.strip()}")
            stack.callback(subprocess.run, ["ip", "netns", "del", namespace])
            host = Host(name, f"10.77.0.{number}", namespace, tmp_path_factory.mktemp(name), environment)
            stack.callback(host.close)
            found.append(host)
            plug_in(host, found[0])
        yield found


@pytest.fixture(scope="module")
def cluster(hosts: list[Host]) -> Cluster:
    cluster = Cluster(*hosts)
    cluster.head.start_ray("--head", f"--port={PORT}", "--include-dashboard=false", "--num-cpus=0")
    until("the head is up", lambda: "Ray runtime started" in cluster.head.told())
    cluster.join(cluster.first)
    return cluster


def only_run(output_dir: Path) -> RunFolder | None:
    found = list((output_dir / "custom").glob("*/run.json"))
    return RunFolder(found[0].parent) if found else None


def status(output_dir: Path) -> dict[str, Any]:
    """What `status --json` says from here, a machine that sees the folder and is in no namespace."""
    run = only_run(output_dir)
    assert run is not None
    command = [sys.executable, "-m", "banpick_exp", "status", str(run.path), "--json"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    told: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (0 if told["fine"] else 1), done.stderr
    return told


def recorded(output_dir: Path) -> int:
    run = only_run(output_dir)
    return 0 if run is None else len(run.record_files())


def assert_whole(cluster: Cluster, driver: subprocess.Popen[bytes], output_dir: Path, on: Host) -> None:
    """It ended well, with every record, and its engine was last on a host that is not the driver's."""
    log = f"{output_dir.name}.log"
    try:
        code = driver.wait(SECONDS)
    except subprocess.TimeoutExpired:
        pytest.fail(f"no end: {cluster.head.told(log)[-4000:]}")
    assert code == 0, cluster.head.told(log)[-4000:]
    run = only_run(output_dir)
    assert run is not None
    records, left_out = run.load_points()
    assert [record.status for record in records] == ["done"] * POINTS and not left_out
    told = status(output_dir)
    assert (told["phase"], told["points"]["done"], told["points"]["left"]) == ("ended", POINTS, 0)
    assert [engine["host"] for engine in told["engines"]] == [on.name]
    assert run.report.is_file()
    assert not list(run.path.rglob("driver.lock")) and not list(run.path.rglob(".*.tmp"))


def in_mid_sweep(driver: subprocess.Popen[bytes], output_dir: Path, cluster: Cluster) -> None:
    def some() -> bool:
        assert driver.poll() is None, cluster.head.told(f"{output_dir.name}.log")[-4000:]
        return recorded(output_dir) >= 2

    until("two points are recorded", some)
    assert recorded(output_dir) < POINTS, "too late to show anything"


def test_a_driver_without_the_token_is_refused_in_words(cluster: Cluster, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.touch(0o600)
    other.write_text(secrets.token_hex(32))
    output_dir = tmp_path / "refused"
    driver = cluster.drive(output_dir, RAY_AUTH_TOKEN_PATH=str(other))
    told = lambda: " ".join(cluster.head.told("refused.log").split())  # noqa: E731
    assert driver.wait(SECONDS) == 2, told()
    assert all(word in told() for word in (cluster.address, "no engine was started", "RAY_AUTH_TOKEN_PATH"))
    assert "Traceback" not in told()
    assert other.read_text() not in told()


def test_the_engine_works_on_another_host_than_its_driver(cluster: Cluster, tmp_path: Path) -> None:
    output_dir = tmp_path / "whole"
    driver = cluster.drive(output_dir)
    until("the run begins", lambda: only_run(output_dir) and status(output_dir)["driver"])
    assert status(output_dir)["driver"]["host"] == cluster.head.name
    assert_whole(cluster, driver, output_dir, cluster.first)
    run = only_run(output_dir)
    assert run is not None
    assert '"engine_waits"' not in run.events.read_text(), "its place was there from the beginning"


def test_a_link_that_is_cut_for_five_seconds_costs_nothing(cluster: Cluster, tmp_path: Path) -> None:
    output_dir = tmp_path / "cut"
    driver = cluster.drive(output_dir)
    in_mid_sweep(driver, output_dir, cluster)
    cluster.link(cluster.first, "down")
    time.sleep(CUT_SECONDS)
    assert driver.poll() is None
    cluster.link(cluster.first, "up")
    assert_whole(cluster, driver, output_dir, cluster.first)
    assert "engine loads 1 for 1 engine slot(s)" in " ".join(cluster.head.told("cut.log").split())


def test_a_host_that_is_lost_is_replaced_by_one_that_joins(cluster: Cluster, tmp_path: Path) -> None:
    """The last: its cluster is another afterwards."""
    output_dir = tmp_path / "moved"
    driver = cluster.drive(output_dir)
    in_mid_sweep(driver, output_dir, cluster)
    (raylet,) = cluster.first.pids_of("raylet")
    os.kill(raylet, signal.SIGKILL)
    run = only_run(output_dir)
    assert run is not None
    before = {path: path.read_bytes() for path in run.record_files()}
    until("the run waits for a host", lambda: status(output_dir)["engines"][0]["phase"] == "waiting")
    assert "no room for it" in status(output_dir)["engines"][0]["reason"]
    cluster.join(cluster.second)
    assert_whole(cluster, driver, output_dir, cluster.second)
    assert {path: path.read_bytes() for path in before} == before, "a finished point was computed again"
