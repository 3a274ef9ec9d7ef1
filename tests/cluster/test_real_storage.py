"""A disk that fills up and a folder that becomes read-only, really done to a sweep with a real engine. Slow."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from running_sweep import (
    RunningSweep,
    assert_all_ended,
    assert_answered_once,
    assert_not_repeated,
    assert_nothing_left,
    descendants,
    running,
    status,
)

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(3600)]

SWEEP = [
    "policy=fixed_k", "policy.k=choice(2,3,4,5,6,7)", "task.max_problems=10", "task.block_problems=10",
    "task.speed_seconds=1", "cluster.engines=1", "cluster.dead_seconds=20",
]  # fmt: skip
POINTS, PROBLEMS = 7, 30
DISK = "size=48m"


def mount(*words: str | Path) -> None:
    done = subprocess.run(["mount", *map(str, words)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"this machine mounts nothing for us: {done.stderr.strip()}")


def unmount(folder: Path) -> None:
    subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small disk to fill")
    folder = tmp_path / "disk"
    folder.mkdir()
    mount("-t", "tmpfs", "-o", DISK, "none", folder)
    try:
        yield folder
    finally:
        unmount(folder)


@contextlib.contextmanager
def filled(disk: Path) -> Iterator[None]:
    """Not a byte is left while the block runs."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1 << 6):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))
    try:
        yield
    finally:
        ballast.unlink()


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Nothing can be opened for writing below `folder`; what is open stays open, as on a disk that was remounted."""
    mount("--bind", folder, folder)
    mount("-o", "remount,ro,bind", folder)
    try:
        yield
    finally:
        unmount(folder)


def ends_in_words(sweep: RunningSweep, *words: str) -> None:
    below = descendants(sweep.process.pid)
    assert sweep.ends() == 1, sweep.output
    for each in (*words, f"resume={sweep.run.path.name} goes on from here"):
        assert each in sweep.told, sweep.output
    assert "Traceback" not in sweep.output
    assert_all_ended(below)


def test_what_the_disk_refuses_is_computed_when_it_takes_files_again(disk: Path, tmp_path: Path) -> None:
    outputs = disk / "out"
    with running(tmp_path, *SWEEP, outputs=outputs) as sweep:
        sweep.until_points(1)
        run = sweep.run
        with filled(disk):  # the engine writes a block or a record, and cannot
            ends_in_words(sweep, "the output folder is full (No space left on device)", "Free some space")
            code, found = status(run)
            assert code == 1 and found["fine"] is False and found["points"]["done"] >= 1  # type: ignore[index]
    assert_nothing_left(outputs)
    finished = len(run.record_files())
    assert 1 <= finished < POINTS

    with running(tmp_path, *SWEEP, f"resume={run.path.name}", outputs=outputs) as sweep:
        sweep.until_points(finished + 1)
        (engine,) = sweep.engines().values()
        os.kill(engine, signal.SIGSTOP)
        with filled(disk):  # only the driver writes; no sign of life comes, and it sees why
            ends_in_words(sweep, "the output folder is full (No space left on device)")
    assert_nothing_left(outputs)
    again = len(run.record_files())
    assert finished < again < POINTS

    with running(tmp_path, *SWEEP, f"resume={run.path.name}", outputs=outputs) as sweep:
        sweep.until_points(again + 1)
        with read_only(run.path):
            ends_in_words(sweep, "the output folder is read-only (Read-only file system)", "mounted for writing")
            assert status(run)[0] == 1
    assert_not_repeated(run)

    with running(tmp_path, *SWEEP, f"resume={run.path.name}", outputs=outputs) as sweep:
        below = descendants(sweep.process.pid)
        assert sweep.ends() == 0, sweep.output
    assert_answered_once(run, POINTS, PROBLEMS)
    assert_nothing_left(outputs, below)
    assert all(json.loads(line) for line in run.events.read_bytes().splitlines()), "no line is torn"
    assert status(run)[0] == 0
