"""Engines that need an environment, a width or a precision of their own run as scripts in a process of their own.

A script takes the path of the JSON it writes. Each runs once per test session, however many tests read its findings,
and two run side by side: a test file names its script in `OWN_PROCESS`, so the next one can start ahead of its turn.
Where pytest-xdist runs two test files side by side, no script starts ahead: conftest.py gives the files of one script
to one worker, and the other worker has work of its own.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SCRIPT_SECONDS = 500
SIDE_BY_SIDE = 2


@dataclass
class Run:
    """One script in its process. Its folder holds what it writes."""

    folder: tempfile.TemporaryDirectory[str]
    process: subprocess.Popen[bytes]


@dataclass
class Runs:
    """Scripts of this test session: waiting, in the order they are wanted, and started."""

    waiting: list[str] = field(default_factory=list)
    started: dict[str, Run] = field(default_factory=dict)

    def want(self, first: str, others: set[str]) -> None:
        queue = dict.fromkeys([first, *self.waiting, *sorted(others)])
        self.waiting = [script for script in queue if script not in self.started]
        self.start_some()

    def start_some(self) -> None:
        busy = sum(run.process.poll() is None for run in self.started.values())
        for script in self.waiting[: max(0, SIDE_BY_SIDE - busy)]:
            self.waiting.remove(script)
            self.started[script] = start(script)

    def stop(self) -> None:
        for run in self.started.values():
            if run.process.poll() is None:
                run.process.kill()
                run.process.wait()
            run.folder.cleanup()


RUNS = Runs()
atexit.register(RUNS.stop)


def start(script: str) -> Run:
    folder = tempfile.TemporaryDirectory()
    path = os.pathsep.join(str(p) for p in (ROOT, ROOT / "kernels"))
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment.pop("VLLM_PLUGINS", None)
    command = [sys.executable, str(HERE / script), str(Path(folder.name) / "findings.json")]
    with open(Path(folder.name) / "log.txt", "wb") as log:
        process = subprocess.Popen(command, env=environment, cwd=folder.name, stdout=log, stderr=log)
    return Run(folder, process)


def findings(script: str, request: pytest.FixtureRequest) -> dict[str, Any]:
    """What `script` (a file beside this one) found. Raises AssertionError with its last output when it fails."""
    ahead = [] if "PYTEST_XDIST_WORKER" in os.environ else request.session.items
    modules = (getattr(item, "module", None) for item in ahead)
    RUNS.want(script, {getattr(module, "OWN_PROCESS", script) for module in modules})
    return _result(script)


@functools.cache
def _result(script: str) -> dict[str, Any]:
    deadline = time.monotonic() + SCRIPT_SECONDS
    while script not in RUNS.started or RUNS.started[script].process.poll() is None:
        assert time.monotonic() < deadline, f"{script} has not ended after {SCRIPT_SECONDS} seconds"
        time.sleep(0.2)
        RUNS.start_some()
    RUNS.start_some()
    run = RUNS.started[script]
    result = Path(run.folder.name) / "findings.json"
    output = (Path(run.folder.name) / "log.txt").read_text(encoding="utf-8", errors="replace")[-6000:]
    assert run.process.returncode == 0 and result.exists(), f"{script} ended with {run.process.returncode}:\n{output}"
    found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return found
