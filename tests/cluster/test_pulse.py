"""Signs of life: real processes that are stopped, killed, or go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from banpick_exp.cluster.pulse import BEAT_SECONDS, Pulse, Watch, read_pulse
from banpick_exp.run_folder import RunFolder

ENGINE = """
import subprocess, sys, time
from pathlib import Path
from banpick_exp.cluster.pulse import beating
from banpick_exp.run_folder import RunFolder
if len(sys.argv) > 2:
    # argv[0] is how vLLM titles the processes it stands on
    below = subprocess.Popen(["VLLM::Worker_TP1", "300"], executable="/bin/sleep")
    print(below.pid, flush=True)
with beating(RunFolder(Path(sys.argv[1])), "engine-0"):
    print("beats", flush=True)
    sys.stdin.read()
"""
DEAD_SECONDS = 5.0


@contextmanager
def engine(folder: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], int | None]]:
    """A process that gives signs of life, and the one below it where there are `arguments`."""
    process = subprocess.Popen(
        [sys.executable, "-c", ENGINE, str(folder), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdin is not None
    below = int(process.stdout.readline()) if arguments else None
    assert process.stdout.readline() == "beats\n"
    try:
        yield process, below
    finally:
        for pid in [process.pid, *([] if below is None else [below])]:
            try:
                os.kill(pid, signal.SIGCONT)
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        process.communicate()


def awaited(found: Callable[[], str | None], seconds: float) -> str | None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if (answer := found()) is not None:
            return answer
        time.sleep(0.1)
    return None


def test_an_engine_that_counts_is_alive_and_one_that_is_stopped_is_not(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    watch = Watch(folder, DEAD_SECONDS)
    with engine(tmp_path) as (process, _):
        watch.begin("engine-0")
        assert awaited(lambda: watch.lost("engine-0"), 2 * DEAD_SECONDS) is None
        process.send_signal(signal.SIGSTOP)
        begin = time.monotonic()
        reason = awaited(lambda: watch.lost("engine-0"), 4 * DEAD_SECONDS)
        assert reason is not None and "no sign of life for cluster.dead_seconds=5" in reason
        # Its last sign was given up to a beat before it was stopped.
        assert DEAD_SECONDS - 2 * BEAT_SECONDS < time.monotonic() - begin < 2 * DEAD_SECONDS
        watch.begin("engine-0")
        assert watch.lost("engine-0") is None, "another engine in its place has its own time"


def test_an_engine_whose_process_below_dies_is_lost_at_once(tmp_path: Path) -> None:
    watch = Watch(RunFolder(tmp_path), 60)
    with engine(tmp_path, "with one below") as (_, below):
        assert below is not None
        watch.begin("engine-0")
        assert awaited(lambda: watch.lost("engine-0"), 3) is None
        os.kill(below, signal.SIGKILL)
        reason = awaited(lambda: watch.lost("engine-0"), 10)
        assert reason == f"processes of it died: VLLM::Worker_TP1 ({below})"


def test_an_engine_whose_process_below_is_stopped_is_lost_in_time(tmp_path: Path) -> None:
    watch = Watch(RunFolder(tmp_path), DEAD_SECONDS)
    with engine(tmp_path, "with one below") as (_, below):
        assert below is not None
        watch.begin("engine-0")
        os.kill(below, signal.SIGSTOP)
        assert awaited(lambda: watch.lost("engine-0"), DEAD_SECONDS / 2) is None, "it may have been a moment"
        reason = awaited(lambda: watch.lost("engine-0"), 2 * DEAD_SECONDS)
        assert reason == f"processes of it are stopped: VLLM::Worker_TP1 ({below})"


def test_a_pulse_that_is_no_pulse_is_none(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    path = folder.pulse_path("engine-0")
    path.parent.mkdir()
    for text in ("", "[]", "{}", '{"beat": 1', '{"beat": 1, "ended": [], "stopped": [], "more": 2}'):
        path.write_text(text)
        assert read_pulse(folder, "engine-0") is None
    assert Pulse(beat=1, host="h", pid=2, began=0.0).ended == ()
