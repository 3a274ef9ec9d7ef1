"""`stop` and `retry`: a run ended in order from outside, and its failures let be computed again."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from synthetic_run import SyntheticRun, ladder

from banpick_exp.cluster import stop_request
from banpick_exp.cluster.commands import retry, status, stop
from banpick_exp.cluster.events import JSON, Events, point_fields, read
from banpick_exp.errors import UserError
from banpick_exp.manifest import Manifest
from banpick_exp.run_folder import RunFolder
from banpick_exp.run_lock import driver_of, held

ROOT = Path(__file__).resolve().parents[2]
COMMAND = "python -m banpick_exp policy=pick"


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run with stock, a rung, and two points that failed, and the events that tell so."""
    folder = RunFolder(tmp_path / "pick" / "run1")
    folder.write_manifest(Manifest(sweep="pick", command=f"{COMMAND} run=run1"))
    synthetic = ladder(SyntheticRun(problems=6), ks=(4,))
    synthetic.add("pick", {"boost": 1}, status="failed", reason="its engine died 2 times")
    synthetic.add("pick", {"boost": 2}, status="failed", reason="out of memory")
    synthetic.write(folder.path)
    events = Events(folder)
    fields: dict[str, JSON] = {"command": COMMAND, "host": socket.gethostname(), "pid": 1, "cluster": "ray"}
    events.write("run_begun", points=5, expected=5.0, **fields)
    for record in synthetic.records:
        events.write("point_done", **point_fields(record))
    events.write("run_ended", code=1, seconds=9.0, left=1)
    return folder


@pytest.fixture
def driver(folder: RunFolder) -> Iterator[Callable[[], None]]:
    """A driver in a thread that polls for the request, as a sweep does; what it is given runs when it was asked."""
    threads: list[threading.Thread] = []
    begun = threading.Event()

    def drive() -> None:
        with held(folder):
            events = Events(folder)
            fields: dict[str, JSON] = {
                "command": COMMAND,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "cluster": "ray",
            }
            events.write("run_begun", points=3, expected=3.0, **fields)
            events.write("block_begun", engine="e", point="a", label="a", block=0, of=2)
            begun.set()
            deadline = time.monotonic() + 30
            while (request := stop_request.asked(folder)) is None:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            events.write("stop_asked", by=request.by)
            events.write("block_done", engine="e", point="a", label="a", block=0, of=2, seconds=1.0)
            events.write("run_ended", code=1, seconds=1.0, left=3)
            stop_request.withdraw(folder)

    def start() -> None:
        threads.append(threading.Thread(target=drive))
        threads[0].start()
        assert begun.wait(10)

    yield start
    for thread in threads:
        thread.join()


# ------------------------------------------------------------ stop


def test_stop_asks_and_waits(folder: RunFolder, driver: Callable[[], None], capsys: pytest.CaptureFixture[str]) -> None:
    driver()
    assert stop.run([str(folder.path), "--wait"]) == 0
    first, second, third = capsys.readouterr().out.splitlines()
    assert first == (
        f"pick/run1: process {os.getpid()} on {socket.gethostname()} was asked to stop after what runs now: 1 block(s)."
    )
    assert second == "pick/run1: ended after 1 s, 3 points are left." or second.startswith("pick/run1: ended after 0 s")
    assert third == f"To go on: {COMMAND} 'resume=\"{folder.path}\"'"
    (asked,) = [event for event in read(folder).events if event.kind == "stop_asked"]
    assert str(asked.fields["by"]).endswith(f"@{socket.gethostname()}")
    assert not folder.stop_request.exists() and driver_of(folder) is None


def test_stop_twice_asks_once(folder: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    with held(folder):
        assert stop.run([str(folder.path)]) == 0
        before = folder.stop_request.read_bytes()
        assert stop.run([str(folder.path)]) == 0
        assert folder.stop_request.read_bytes() == before
    told = capsys.readouterr().out
    assert "what runs now: nothing." in told and f"already.\nLook: python -m banpick_exp status {folder.path}\n" in told


def test_stop_refuses_where_nobody_is_at_work(folder: RunFolder) -> None:
    with pytest.raises(UserError, match=r"computed by nobody at the moment \(stopped\).*To go on with it, type python"):
        stop.run([str(folder.path)])
    assert not folder.stop_request.exists()


def test_a_request_is_meant_for_one_driver(folder: RunFolder) -> None:
    with held(folder):
        first = driver_of(folder)
        assert first is not None
        request = stop_request.ask(folder, first)
        assert stop_request.asked(folder) == request
    assert folder.stop_request.exists() and stop_request.asked(folder) is None
    with held(folder):
        assert stop_request.asked(folder) is None, "the next driver was not asked"
    folder.stop_request.write_text("{")
    assert stop_request.asked(folder) is None


def test_a_driver_that_dies_while_it_is_waited_for(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = threading.Event()

    def drive() -> None:
        with held(folder):
            fields: dict[str, JSON] = {
                "command": COMMAND,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "cluster": "ray",
            }
            Events(folder).write("run_begun", points=3, expected=3.0, **fields)
            begun.set()
            while not folder.stop_request.exists():
                time.sleep(0.02)

    thread = threading.Thread(target=drive)
    thread.start()
    assert begun.wait(10)
    assert stop.run([str(folder.path), "--wait"]) == 1
    thread.join()
    assert "its driver is gone without a word. To go on: python" in capsys.readouterr().out


# ------------------------------------------------------------ retry


def test_retry_sets_the_failed_ones_aside(folder: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name: path.read_bytes() for path in folder.points.iterdir()}
    assert status.run([str(folder.path)]) == 1
    capsys.readouterr()
    assert retry.run([str(folder.path)]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told == [
        "pick/run1: 2 failed point(s) count as not run now:",
        *sorted(["  pick boost=1: its engine died 2 times", "  pick boost=2: out of memory"], key=told.index),
        f"To compute them: {COMMAND} 'resume=\"{folder.path}\"'",
    ]
    records, left_out = folder.load_points()
    assert {record.status for record in records} == {"done"} and left_out == []
    after = {path.name.removesuffix(".corrupt"): path.read_bytes() for path in folder.points.iterdir()}
    assert after == before and len(folder.aside_files()) == 2
    assert not folder.lock.exists()
    assert status.run([str(folder.path), "--json"]) == 1, "its last driver ended with an error"
    found = json.loads(capsys.readouterr().out)
    assert found["points"] == {"done": 2, "invalid": 0, "dropped": 0, "failed": 0, "left": 3, "total": 5}
    assert found["failed"] == []
    assert retry.run([str(folder.path)]) == 0
    assert "no point failed, nothing was set aside" in capsys.readouterr().out


def test_retry_refuses_while_a_driver_holds_the_run(folder: RunFolder) -> None:
    before = sorted(folder.path.rglob("*"))
    with held(folder), pytest.raises(UserError, match=r"nothing was set aside\. Wait until it ends, or type"):
        retry.run([str(folder.path)])
    assert sorted(folder.path.rglob("*")) == before


# ------------------------------------------------------------ a real sweep


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.engine
def test_a_real_sweep_is_stopped_and_gone_on_with(tmp_path: Path) -> None:
    """Typed as a person would: begin, look, stop, look, and the command that stop printed."""

    def typed(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "banpick_exp", *words]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)

    output = f"output_dir={tmp_path}"
    words = ["policy=fixed_k", "policy.k=choice(2,3,4)", "task.max_problems=100", "task.speed_seconds=0"]
    words += ["task.block_problems=20", "tracking=none", "cluster=inline", output]
    log = tmp_path / "sweep.log"
    with log.open("w") as file:
        sweep = subprocess.Popen([sys.executable, "-m", "banpick_exp", *words], cwd=ROOT, stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + 300
        while not any(b'"block_done"' in path.read_bytes() for path in tmp_path.glob("*/*/events.jsonl")):
            assert time.monotonic() < deadline and sweep.poll() is None, log.read_text()
            time.sleep(0.1)
        asked = typed("stop", output, "--wait")
        assert asked.returncode == 0, asked.stdout + asked.stderr
        assert sweep.wait(120) in (0, 1)
    finally:
        sweep.kill()
        sweep.wait()
    stopped = json.loads(typed("status", output, "--json").stdout)
    assert stopped["phase"] == "stopped" and stopped["points"]["left"] > 0 and stopped["blocks"] > 0, log.read_text()
    resume = shlex.split(asked.stdout.splitlines()[-1].removeprefix("To go on: "))
    again = typed(*resume[3:])
    assert again.returncode == 0, again.stdout + again.stderr
    ended = json.loads(typed("status", output, "--json").stdout)
    assert (ended["phase"], ended["points"]["left"], ended["points"]["done"]) == ("ended", 0, 4)
    folder = RunFolder(Path(ended["folder"]))
    answered = [tuple(e.fields[k] for k in ("point", "block")) for e in read(folder).events if e.kind == "block_done"]
    assert len(answered) == len(set(answered)), "no block is answered twice"
