"""The job of a study on a real Slurm: two nodes, a time limit in the middle of the sweep, and the rest after it.

Slurm comes from the system's packages (Debian: `apt-get install slurm-wlm`) and runs from a folder of this test: its
own configuration, key, ports and state. Both nodes are this machine, so no network lies between them.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from banpick_exp.run_folder import RunFolder
from banpick_exp.sweep.study import read_study

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.engine, pytest.mark.timeout(3600)]

ROOT = Path(__file__).resolve().parents[2]
STUDY = "fixed_k_ladder"
REPEATS = 5
"""Long enough to be cut in the middle, short enough to wait for."""
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged")
CONFIGURATION = """\
ClusterName=banpick
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
FirstJobId={first}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=15
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldPidFile={folder}/slurmctld.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
GresTypes=gpu
ReturnToService=2
SlurmdParameters=config_overrides
NodeName=node1 NodeHostname={host} NodeAddr={address} Port={ports[1]} CPUs=2 RealMemory=4000
NodeName=node2 NodeHostname={host} NodeAddr={address} Port={ports[2]} CPUs=2 RealMemory=4000
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def address_of_this_machine() -> str:
    """One that is no loopback: the job refuses a head that no other node could reach."""
    told = subprocess.run(["hostname", "-I"], capture_output=True, text=True).stdout.split()
    found = [address for address in told if address.count(".") == 3]
    if not found:
        pytest.skip("this machine has no address but loopback: no Slurm node could be reached at one")
    return found[0]


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("", 0))
        return [each.getsockname()[1] for each in sockets]


def until(what: str, done: Callable[[], bool], seconds: float, log: Path | None = None) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        told = log.read_text()[-4000:] if log is not None and log.exists() else ""
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s. {told}"
        time.sleep(1)


class Slurm:
    """Its commands, against the daemons of this test."""

    def __init__(self, configuration: Path) -> None:
        self.environment = os.environ | {"SLURM_CONF": str(configuration)}

    def __call__(self, *words: str, cwd: Path | None = None, **more: str) -> str:
        done = subprocess.run(words, env=self.environment | more, cwd=cwd, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{' '.join(words)}: {done.stdout}{done.stderr}"
        return done.stdout

    def job(self, number: str) -> dict[str, str]:
        """What Slurm knows of a job."""
        words = self("scontrol", "show", "job", "-o", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[Slurm]:
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed: apt-get install slurm-wlm")
    if os.geteuid() != 0:
        pytest.skip("slurmd starts jobs for other users, so it runs as root")
    folder = tmp_path / "slurm"
    (folder / "state").mkdir(parents=True)
    configuration = folder / "slurm.conf"
    configuration.write_text(
        CONFIGURATION.format(
            folder=folder,
            host=socket.gethostname(),
            address=address_of_this_machine(),
            ports=free_ports(3),
            first=1000 + os.getpid() % 60_000,  # the job's number is in the name of Ray's folder in /tmp
        )
    )
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(64))
    key.chmod(0o400)
    files = {f"--{name}-file": str(folder / f"munge.{name}") for name in ("log", "pid", "seed", "key")}
    options = [f"{option}={path}" for option, path in files.items()]
    commands = [
        ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *options],
        ["slurmctld", "-D", "-f", str(configuration)],
        *(["slurmd", "-D", "-b", "-N", node, "-f", str(configuration)] for node in ("node1", "node2")),
    ]
    slurm = Slurm(configuration)
    with contextlib.ExitStack() as stack:
        for number, command in enumerate(commands):
            log = stack.enter_context(open(folder / f"{number}-{command[0]}.log", "w"))
            daemon = subprocess.Popen(command, env=slurm.environment, stdout=log, stderr=subprocess.STDOUT)
            stack.callback(_stop, daemon)
            if command[0] == "munged":
                until("munged opens its socket", (folder / "munge.socket").exists, 20, folder / "0-munged.log")
        until("both nodes are idle", lambda: _states(slurm) == ["idle", "idle"], 60, folder / "1-slurmctld.log")
        yield slurm
        for left in _said(slurm, "squeue", "-h", "-o", "%A").split():
            _said(slurm, "scancel", left)
        until("no job is left", lambda: not _said(slurm, "squeue", "-h").strip(), 90)


def _states(slurm: Slurm) -> list[str]:
    return _said(slurm, "sinfo", "-h", "-N", "-o", "%T").split()


def _said(slurm: Slurm, *words: str) -> str:
    """As a command, or nothing where it fails: daemons that have just begun are asked."""
    done = subprocess.run(words, env=slurm.environment, capture_output=True, text=True, timeout=60)
    return done.stdout if done.returncode == 0 else ""


def _stop(daemon: subprocess.Popen[bytes]) -> None:
    daemon.terminate()
    try:
        daemon.wait(timeout=20)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def submitted(slurm: Slurm, folder: Path) -> tuple[str, RunFolder]:
    """The number of a job that runs the tiny size on both nodes from `folder`, and its run."""
    options = ["--nodes=2", "--gpus-per-node=0", "--cpus-per-task=1", "--time=60"]
    words = [f"repeats={REPEATS}", "task.max_problems=null", "task.speed_seconds=0", "tracking=none"]
    number = slurm(
        *("sbatch", "--parsable", *options, str(ROOT / "sweeps" / STUDY / "job.sbatch"), "scale=tiny", *words),
        cwd=folder,
        BANPICK_PYTHON=sys.executable,
        PYTHONPATH=f"{ROOT}:{ROOT / 'kernels'}",
    ).strip()
    return number, RunFolder(folder / "outputs" / f"{STUDY}_tiny" / f"slurm-{number}")


def recorded(slurm: Slurm, number: str, run: RunFolder, log: Path) -> int:
    """Points on the disk so far, of a job that has not failed."""
    assert slurm.job(number)["JobState"] != "FAILED", log.read_text()[-4000:]
    return len(run.record_files())


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]


def token_of(folder: Path, number: str) -> str:
    """The token of a running job; on no command line of this machine, and for its user alone."""
    path = folder / f"outputs/slurm-{number}/ray-token"
    token = path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600 and len(token) == 64
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # one that has just ended
            assert token.encode() not in line.read_bytes()
    return token


def test_a_study_completes_on_two_nodes_although_its_time_limit_comes_in_the_middle(
    slurm: Slurm, tmp_path: Path
) -> None:
    number, run = submitted(slurm, tmp_path)
    log = tmp_path / f"banpick-{STUDY.replace('_', '-')}-{number}.log"
    until("three points are recorded", lambda: recorded(slurm, number, run, log) >= 3, 900, log)
    tokens = [token_of(tmp_path, number)]
    minutes = 1 + int(slurm("squeue", "-h", "-o", "%M", "-j", number).split(":")[-2])
    slurm("scontrol", "update", f"JobId={number}", f"TimeLimit={minutes + 1}")  # less than the warning's 180 s are left
    until("the job is queued again", lambda: slurm.job(number)["Restarts"] == "1", 400, log)
    first = {path: path.read_bytes() for path in run.record_files()}
    points = read_study(STUDY).points.tiny * REPEATS
    assert 3 <= len(first) < points, "the limit came too late to show anything"
    assert not (tmp_path / f"outputs/slurm-{number}/ray-token").exists()

    slurm("scontrol", "update", f"JobId={number}", "TimeLimit=60")
    until("it goes on", lambda: recorded(slurm, number, run, log) > len(first), 600, log)
    tokens.append(token_of(tmp_path, number))
    until("the job has ended", lambda: slurm.job(number)["JobState"] in ("COMPLETED", "FAILED"), 1200, log)
    job = slurm.job(number)
    assert (job["JobState"], job["ExitCode"], job["NumNodes"]) == ("COMPLETED", "0:0", "2"), log.read_text()[-4000:]
    told = log.read_text()
    assert "goes on when Slurm starts it again" in told
    assert f"resume=slurm-{number}" in told and "its lock is taken over" not in told, "the driver did not end in order"
    assert len(run.record_files()) == points
    assert {path: path.read_bytes() for path in first} == first, "a finished point was computed again"
    assert [path.name for path in run.path.parent.iterdir()] == [run.path.name]
    assert run.report.is_file()
    assert tokens[0] != tokens[1] and not (tmp_path / f"outputs/slurm-{number}/ray-token").exists()
    kept = [path.read_bytes() for folder in (tmp_path, Path(f"/tmp/ray-{number}")) for path in files_below(folder)]
    assert not [text for text in kept for token in tokens if token.encode() in text]
    for node in ("node1", "node2"):
        assert (tmp_path / f"outputs/slurm-{number}/ray-{node}.log").stat().st_size > 0
    shutil.rmtree(f"/tmp/ray-{number}", ignore_errors=True)


def test_a_job_that_is_cancelled_is_not_queued_again(slurm: Slurm, tmp_path: Path) -> None:
    number, run = submitted(slurm, tmp_path)
    until("a point is recorded", lambda: len(run.record_files()) >= 1, 900)
    slurm("scancel", number)
    until("the job has left the queue", lambda: not slurm("squeue", "-h").strip(), 90)
    job = slurm.job(number)
    assert (job["JobState"], job["Restarts"]) == ("CANCELLED", "0")
    shutil.rmtree(f"/tmp/ray-{number}", ignore_errors=True)
