"""One driver a run folder: who holds it is named, who is gone gives way, and nothing is left behind."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from banpick_exp import run_lock
from banpick_exp.errors import UserError
from banpick_exp.run_folder import RunFolder
from banpick_exp.run_lock import STALE_SECONDS, held

HOLDING = """
import sys, time
from pathlib import Path
from banpick_exp.run_folder import RunFolder
from banpick_exp.run_lock import held
with held(RunFolder(Path(sys.argv[1]))):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "sweep" / "run")


def another_driver(folder: RunFolder) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(folder.path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def rewritten(folder: RunFolder, **changes: object) -> None:
    folder.lock.write_text(json.dumps(json.loads(folder.lock.read_text()) | changes))


def of_another(folder: RunFolder, silent_seconds: float) -> None:
    """A lock that a driver on another host left."""
    with held(folder):
        rewritten(folder, host="far", token="x")
    aged = time.time() - silent_seconds
    os.utime(folder.lock, (aged, aged))


def test_the_second_driver_is_told_who_is_first(folder: RunFolder) -> None:
    process = another_driver(folder)
    try:
        words = rf"process {process.pid} on \S+, since 20.*kill -INT {process.pid}.*resume=run"
        with pytest.raises(UserError, match=words), held(folder):
            pytest.fail("both would compute")
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)
    with held(folder) as note:
        assert note is None, "it gave the lock back as it ended"
    assert list(folder.path.iterdir()) == []


def test_a_driver_that_was_killed_gives_way(folder: RunFolder) -> None:
    process = another_driver(folder)
    process.kill()
    process.wait(30)
    with held(folder) as note:
        assert note is not None and f"process {process.pid}" in note and "taken over" in note
    assert list(folder.path.iterdir()) == []


def test_a_pid_that_was_given_out_again_holds_nothing(folder: RunFolder) -> None:
    process = another_driver(folder)
    try:
        rewritten(folder, begun="1")
        with held(folder) as note:
            assert note is not None
    finally:
        process.kill()
        process.wait(30)


@pytest.mark.parametrize("changes", [{"host": "far"}, {"processes": "pid:[1]"}])
def test_a_driver_elsewhere_is_known_by_its_signs_of_life(folder: RunFolder, changes: dict[str, str]) -> None:
    with held(folder):
        rewritten(folder, pid=2**22 + 1, token="x", **changes)
    with pytest.raises(UserError, match="process 4194305"), held(folder):
        pytest.fail("a driver elsewhere cannot be looked at")
    silent = time.time() - STALE_SECONDS - 5
    os.utime(folder.lock, (silent, silent))
    with held(folder) as note:
        assert note is not None and re.search(r"last sign of life 18\d s ago", note)


def test_signs_of_life_are_given(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "SIGN_SECONDS", 0.01)
    with held(folder):
        os.utime(folder.lock, (1, 1))
        deadline = time.monotonic() + 20
        while folder.lock.stat().st_mtime < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert folder.lock.stat().st_mtime > 2


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_every_end_gives_the_run_back(folder: RunFolder, error: type[BaseException]) -> None:
    with pytest.raises(error), held(folder):
        raise error
    assert list(folder.path.iterdir()) == []


@pytest.mark.parametrize("locks", [True, False])
def test_of_many_that_find_a_stale_lock_one_at_a_time_takes_it(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, locks: bool
) -> None:
    """Also on a file system that locks nothing."""

    def nothing(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    if not locks:
        monkeypatch.setattr("fcntl.flock", nothing)
        monkeypatch.setattr(run_lock, "SETTLE_SECONDS", 0.3)
    inside: list[int] = []
    together: list[int] = []

    def enter(number: int) -> None:
        try:
            with held(folder):
                inside.append(number)
                time.sleep(0.02)
                together.append(len(inside))
                inside.remove(number)
        except UserError:
            pass

    for _ in range(10):
        of_another(folder, STALE_SECONDS + 60)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(enter, range(8)))
    assert together and set(together) == {1}


def test_what_was_taken_over_is_not_removed_by_who_lost_it(folder: RunFolder) -> None:
    with held(folder):
        rewritten(folder, token="another's")
    assert folder.lock.exists()


def test_a_lock_without_a_name_waits_as_one_from_afar(folder: RunFolder) -> None:
    folder.path.mkdir(parents=True)
    folder.lock.write_text("")
    with pytest.raises(UserError, match="has not written its name yet"), held(folder):
        pytest.fail("it may be taken this moment")
    os.utime(folder.lock, (1, 1))
    with held(folder) as note:
        assert note is not None and "left no name" in note
