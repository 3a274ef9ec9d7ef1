"""W&B's processes stopped and killed in the middle of a run, for real: the run goes on, ends in time and says so."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from wandb_runs import read_back

from banpick_exp.report.tracking.process import children

pytestmark = pytest.mark.slow

LIMIT = 12.0
"""Seconds: W&B's own start takes several of them on two busy cores."""
BEGIN = """
import json, os, signal, sys, time
from pathlib import Path
from synthetic_run import SyntheticRun, ladder
from banpick_exp.report.tracking.config import TrackingConfig
from banpick_exp.report.tracking.place import SUMMARY, mirrored_runs
from banpick_exp.report.tracking.process import children
from banpick_exp.report.tracking.wandb import Tracker
from banpick_exp.run_folder import RunFolder

LIMIT = float(sys.argv[2])
folder = RunFolder(Path(sys.argv[1]))
records = ladder(SyntheticRun(problems=4), ks=(2, 4)).records

def begun():
    tracker = Tracker(TrackingConfig(timeout_seconds=LIMIT), at_once=True)
    tracker.start(folder, {"sweep": "x"})
    (mirror,) = children(os.getpid())
    (service,) = children(mirror)
    return tracker, mirror, service

def mirrored():
    return len(set(mirrored_runs(folder)) - {SUMMARY})

def log_all(tracker):
    begin = time.monotonic()
    for record in records:
        tracker.log_point(record)
    return time.monotonic() - begin

def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)

def finish(tracker, **told):
    begin = time.monotonic()
    failures = tracker.finish({"headline": "No gain"})
    told |= {"failures": failures, "finish_seconds": time.monotonic() - begin, "mirrored": mirrored()}
    print(json.dumps(told), flush=True)

tracker, mirror, service = begun()
tracker.log_point(records[0])
wait_for(lambda: mirrored() == 1)
"""
POINTS = {"none", "fixed_k k=2", "fixed_k k=4"}


MARK = "BANPICK_TEST_MARK"
"""A variable that all processes of one test inherit: others on this machine call W&B too."""


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], set[int]]]:
    """Says which processes that this test started are there."""
    mark = uuid.uuid4().hex
    monkeypatch.setenv(MARK, mark)

    def found() -> set[int]:
        pids = set()
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if f"{MARK}={mark}".encode() in (entry / "environ").read_bytes():
                    pids.add(int(entry.name))
        return pids

    yield found
    for pid in found():
        os.kill(pid, signal.SIGKILL)


def environment() -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "NETRC"))}
    return clean | {"PYTHONPATH": os.pathsep.join(sys.path)}


def driver(script: str, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", BEGIN + script, str(folder), str(LIMIT)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment())


def run(script: str, folder: Path, code: int = 0) -> tuple[dict[str, Any], str]:
    """What the driver printed as JSON, and its standard error."""
    process = driver(script, folder)
    out, said = process.communicate(timeout=10 * LIMIT)
    assert process.returncode == code, said
    return json.loads(out) if out else {}, said


def assert_whole(folder: Path) -> None:
    """Each point once, closed, with its numbers; nothing that was begun and not closed."""
    runs = read_back(folder)
    assert set(runs) == POINTS | {"summary"}
    assert len(list((folder / "wandb").glob("offline-run-*"))) == len(runs)
    assert {each["exit_code"] for each in runs.values()} == {0}
    assert all("acc/overall" in runs[label]["summary"] for label in POINTS)
    assert runs["summary"]["summary"]["headline"] == "No gain"


def test_stopped_service_costs_a_run_its_limit_and_nothing_else(tmp_path: Path, left: Callable[[], set[int]]) -> None:
    """It hung for as long as anyone watched (7 minutes), in the run and at its exit."""
    folder = tmp_path / "sweep" / "run"
    told, said = run("os.kill(service, signal.SIGSTOP)\nfinish(tracker, log_seconds=log_all(tracker))", folder)
    assert told["log_seconds"] < 1 and told["finish_seconds"] < 3 * LIMIT
    assert told["failures"] == [] and told["mirrored"] == len(POINTS)
    first, last = said.splitlines()
    assert f"has not answered for {LIMIT:g} s" in first and "tracking.timeout_seconds" in first
    assert last == "W&B: what was missing is mirrored."
    assert_whole(folder)
    assert left() == set()


def test_a_service_that_goes_on_before_the_end_makes_up_for_all(tmp_path: Path, left: Callable[[], set[int]]) -> None:
    script = """
os.kill(service, signal.SIGSTOP)
log_seconds = log_all(tracker)
time.sleep(LIMIT + 2)
hung = mirrored()
os.kill(service, signal.SIGCONT)
wait_for(lambda: mirrored() == len(records))
finish(tracker, log_seconds=log_seconds, hung=hung, same=list(children(os.getpid())) == [mirror])
"""
    folder = tmp_path / "sweep" / "run"
    told, said = run(script, folder)
    assert told["log_seconds"] < 1 and told["hung"] == 1 and told["same"]
    assert told["failures"] == [] and told["finish_seconds"] < LIMIT
    assert said.count("has not answered") == 1
    assert_whole(folder)
    assert left() == set()


@pytest.mark.parametrize("killed", ["service", "mirror"])
def test_a_killed_process_is_replaced_at_the_end(killed: str, tmp_path: Path, left: Callable[[], set[int]]) -> None:
    folder = tmp_path / "sweep" / "run"
    told, said = run(f"os.kill({killed}, signal.SIGKILL)\nfinish(tracker, log_seconds=log_all(tracker))", folder)
    assert told["log_seconds"] < 1 and told["finish_seconds"] < 3 * LIMIT
    assert told["failures"] == [] and told["mirrored"] == len(POINTS)
    if killed == "mirror":
        assert said.count("nothing more is mirrored for now") == said.count("what was missing is mirrored") == 1
    else:
        assert said == ""  # two calls were refused, and made good
    assert_whole(folder)
    assert left() == set()


def test_what_cannot_be_made_up_for_is_said_and_a_resumed_run_mirrors_it(
    tmp_path: Path, left: Callable[[], set[int]]
) -> None:
    script = """
os.kill(service, signal.SIGKILL)
os.environ["WANDB_HTTP_TIMEOUT"] = "soon"  # W&B does not start with it
log_all(tracker)
finish(tracker)
assert tracker.finish({}) != []
del os.environ["WANDB_HTTP_TIMEOUT"]
resumed, _, _ = begun()
log_all(resumed)
assert resumed.finish({"headline": "No gain"}) == []
"""
    folder = tmp_path / "sweep" / "run"
    told, said = run(script, folder)
    (failure,) = told["failures"]
    assert failure.startswith("2 point(s) and the summary are not mirrored (") and "timeout" in failure
    assert failure.endswith("the same command with resume=run mirrors what is missing")
    assert told["mirrored"] == 1 and said == ""  # who called `finish` says it
    assert_whole(folder)
    assert left() == set()


def test_points_that_wait_for_the_end_are_made_up_for_too(tmp_path: Path, left: Callable[[], set[int]]) -> None:
    """Offline all points come at the end: there a service that is stopped costs its limit, once."""
    script = """
from banpick_exp.report.run import read_run
from banpick_exp.report.tracking.found import FoundOut
ladder(SyntheticRun(problems=4), ks=(2, 4)).write(folder.path)
tracker.finish({})
tracker = Tracker(TrackingConfig(timeout_seconds=LIMIT))
tracker.start(folder, {"sweep": "x"})
(mirror,) = children(os.getpid())
(service,) = children(mirror)
os.kill(service, signal.SIGSTOP)
begin = time.monotonic()
failures = tracker.finish({"headline": "No gain"}, found=FoundOut(read_run(folder)))
print(json.dumps({"failures": failures, "seconds": time.monotonic() - begin, "mirrored": mirrored()}))
"""
    folder = tmp_path / "sweep" / "run"
    told, said = run(script, folder)
    assert told["failures"] == [] and told["seconds"] < 3 * LIMIT and told["mirrored"] == len(POINTS)
    assert said.count("has not answered") == said.count("what was missing is mirrored") == 1
    runs = read_back(folder)
    assert set(runs) == POINTS | {"summary"}
    assert all(runs[label]["summary"]["verdict"] == "reference" for label in POINTS - {"none"})
    assert len(list((folder / "wandb").glob("offline-run-*"))) == len(runs) + 1, "two summaries"
    assert left() == set()


def test_a_driver_that_ends_early_does_not_wait_for_a_stopped_service(
    tmp_path: Path, left: Callable[[], set[int]]
) -> None:
    begin = time.monotonic()
    run("os.kill(service, signal.SIGSTOP)\nlog_all(tracker)\nsys.exit(3)", tmp_path / "sweep" / "run", code=3)
    assert time.monotonic() - begin < 3 * LIMIT
    assert left() == set()


def test_nothing_outlives_a_killed_driver(tmp_path: Path, left: Callable[[], set[int]]) -> None:
    process = driver("os.kill(service, signal.SIGSTOP)\nlog_all(tracker)\nprint(flush=True)\ntime.sleep(60)", tmp_path)
    assert process.stdout is not None and process.stdout.readline() == "\n"
    assert len(left()) == 3, "the driver, what calls W&B, and its service"
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 30
    while left() and time.monotonic() < deadline:
        time.sleep(0.5)
    assert left() == set()


def test_a_start_that_hangs_ends_within_the_limit(tmp_path: Path, left: Callable[[], set[int]]) -> None:
    """A server that takes connections and never answers."""
    code = (
        "import sys; from pathlib import Path; from banpick_exp.report.tracking.config import TrackingConfig\n"
        "from banpick_exp.report.tracking.wandb import Tracker; from banpick_exp.run_folder import RunFolder\n"
        "from banpick_exp.errors import UserError\n"
        f"tracker = Tracker(TrackingConfig(mode='online', timeout_seconds={LIMIT}))\n"
        "try: tracker.start(RunFolder(Path(sys.argv[1])), {})\n"
        "except UserError as error: print(error)"
    )
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        begin = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True,
            timeout=5 * LIMIT, env=environment() | {"WANDB_BASE_URL": address, "WANDB_API_KEY": "k" * 40},
        )  # fmt: skip
    assert time.monotonic() - begin < 2 * LIMIT
    assert "W&B cannot start (" in done.stdout and "tracking=none" in done.stdout and done.stderr == ""
    assert left() == set()


def test_children_are_those_of_one_process() -> None:
    with subprocess.Popen(["sleep", "30"]) as child:
        assert child.pid in children(os.getpid()) and children(child.pid) == {}
        child.kill()
