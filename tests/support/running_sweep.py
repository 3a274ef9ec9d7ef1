"""A whole sweep in a process of its own, for tests that do something to it: start it, wait, see what it left."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from banpick_exp.cluster.events import Event, read
from banpick_exp.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[2]
LIMIT_SECONDS = 900
"""What one step of a sweep may take on a slow machine that others use too."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RunningSweep:
    """The driver of a sweep."""

    process: subprocess.Popen[bytes]
    outputs: Path
    """Its output_dir."""
    printed: Path
    """What it prints goes there."""

    @property
    def output(self) -> str:
        return self.printed.read_text(errors="replace")

    @property
    def told(self) -> str:
        """The same as one line: a terminal's width breaks sentences."""
        return " ".join(self.output.split())

    @property
    def run(self) -> RunFolder:
        (found,) = self.outputs.glob("*/*/run.json")
        return RunFolder(found.parent)

    def events(self, kind: str) -> list[Event]:
        return events(self.run, kind) if list(self.outputs.glob("*/*/run.json")) else []

    def until(self, found: Callable[[], T | None], seconds: float = LIMIT_SECONDS) -> T:
        """What `found` returns, once it is something, of a driver that is still at work."""

        def look() -> T | None:
            if (what := found()) is not None:
                return what
            assert self.process.poll() is None, f"the driver ended first:\n{self.output}"
            return None

        return awaited(look, seconds)

    def until_points(self, count: int) -> None:
        """Until so many points are done."""
        self.until(lambda: True if len(self.events("point_done")) >= count else None)

    def engines(self) -> dict[str, int]:
        """Slot -> pid of each engine that was loaded and not lost since."""
        living: dict[str, int] = {}
        for event in read(self.run).events:
            if event.kind == "engine_ready":
                living[str(event.fields["engine"])] = int(str(event.fields["pid"]))
            elif event.kind == "engine_lost":
                living.pop(str(event.fields["engine"]), None)
        return living

    def ends(self, seconds: float = LIMIT_SECONDS) -> int:
        """Its exit code."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"no end within {seconds} s:\n{self.output}") from None


@contextlib.contextmanager
def running(
    folder: Path,
    *typed: str,
    outputs: Path | None = None,
    within: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Iterator[RunningSweep]:
    """A sweep of these words, ended with all below it when the block ends.

    `within`: a command that runs the sweep's; `environment`: more of it.
    """
    outputs = outputs or folder / "out"
    printed = folder / f"printed-{len(list(folder.glob('printed-*')))}"
    line = [*within, sys.executable, "-m", "banpick_exp", *typed, "tracking=none", f"output_dir={outputs}"]
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}
    paths["RAY_worker_register_timeout_seconds"] = "600"  # as Ray is told on machines where everything takes long
    with printed.open("wb") as file:
        process = subprocess.Popen(
            line, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=folder,
            env={**os.environ, **paths, **(environment or {})},
        )  # fmt: skip
    try:
        yield RunningSweep(process, outputs, printed)
    finally:
        ours = descendants(process.pid)
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
        for pid, title in ours.items():  # only what this test began
            if processes().get(pid, (0, ""))[1] == title:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        process.kill()
        process.wait()


def awaited(found: Callable[[], T | None], seconds: float = LIMIT_SECONDS) -> T:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if (what := found()) is not None:
            return what
        time.sleep(0.1)
    raise AssertionError(f"what was waited for did not come within {seconds} s")


def processes() -> dict[int, tuple[int, str]]:
    """(parent, title) of every process."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            head, _, tail = (entry / "stat").read_text().rpartition(")")
            state, parent = tail.split()[:2]
            title = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if state not in "ZX":
                found[int(entry.name)] = int(parent), title or head
    return found


def descendants(pid: int) -> dict[int, str]:
    """pid -> title of every process below one."""
    known, found = processes(), dict[int, str]()
    for child in known:
        parent = child
        while parent in known and parent != pid:
            parent = known[parent][0]
        if parent == pid and child != pid:
            found[child] = known[child][1]
    return found


def events(run: RunFolder, kind: str) -> list[Event]:
    return [event for event in read(run).events if event.kind == kind]


def assert_nothing_left(folder: Path, pids: Mapping[int, str] | None = None) -> None:
    """No process of these, no lock, no temporary file."""
    assert_all_ended(pids or {})
    assert not [path for path in folder.rglob(".*") if path.suffix == ".tmp"] and not list(folder.rglob("driver.lock"))


def assert_all_ended(pids: Mapping[int, str], seconds: float = 60) -> None:
    """None of these processes is there, or will be in a moment."""
    end = time.monotonic() + seconds
    left = dict(pids)
    while left and time.monotonic() < end:
        now = processes()
        left = {pid: title for pid, title in left.items() if now.get(pid, (0, ""))[1] == title}
        time.sleep(0.5)
    assert not left


def assert_answered_once(run: RunFolder, points: int, problems: int) -> None:
    """Every point is whole, every problem of each was answered once, and nothing that was finished was done again."""
    read_back = run.read_points()
    assert read_back.left_out == []
    assert Counter(record.status for record in read_back.records) == {"done": points}
    for record in read_back.records:
        outcomes = read_back.outcomes[record.fingerprint]
        answered = Counter(outcomes.select("domain", "problem_id").rows())
        assert len(answered) == problems and set(answered.values()) == {1}, record.label
    assert_not_repeated(run)


def assert_not_repeated(run: RunFolder) -> None:
    """No block and no point ended twice, unless its file was set aside in between."""
    ended: Counter[tuple[str, ...]] = Counter()
    for event in read(run).events:
        name = str(event.fields.get("point"))
        if event.kind == "block_done":
            ended["block", name, str(event.fields["block"])] += 1
        elif event.kind == "point_done" and event.fields["status"] == "done":
            ended["point", name] += 1
        elif event.kind == "point_aside":
            ended.pop(("point", name), None)
    assert [each for each, count in ended.items() if count > 1] == []


def status(run: RunFolder) -> tuple[int, dict[str, object]]:
    """What `status --json` says of a run, with its exit code."""
    done = subprocess.run(
        [sys.executable, "-m", "banpick_exp", "status", str(run.path), "--json"],
        capture_output=True, cwd=ROOT, timeout=LIMIT_SECONDS, check=False,
    )  # fmt: skip
    return done.returncode, json.loads(done.stdout)
