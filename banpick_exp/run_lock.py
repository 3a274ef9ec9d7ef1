"""One driver a run folder: two would compute the same points twice and write over each other's tables.

The lock is a file of the run, `driver.lock`, that names its holder. A holder that can no longer be there gives way: on
this machine where its process is gone, on another where it gave no sign of life for STALE_SECONDS (a process there
cannot be looked at). Reading commands need no lock. Imports nothing heavy.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from banpick_exp.disk import FILE_MODE, create_folder, opener, write_atomically
from banpick_exp.errors import CannotWrite, UserError
from banpick_exp.run_folder import RunFolder

SIGN_SECONDS = 15.0
"""Between two signs of life, which are the modification times of the file."""
STALE_SECONDS = 180.0
"""A shared file system may show a sign of life a minute late."""
SETTLE_SECONDS = 2.0
"""Longer than from looking at a lock to replacing it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Holder:
    """Who computes a run."""

    host: str
    processes: str
    """Among which the pid counts: containers of one host name each have their own, and so have two machines of one."""
    pid: int
    begun: str
    """The process's own start, in ticks since the machine's: a pid is given out again."""
    since: str
    """UTC, ISO 8601."""
    token: str
    """Tells two locks of one process apart."""


@contextlib.contextmanager
def held(folder: RunFolder) -> Iterator[str | None]:
    """Holds the run while the block runs. Yields a note where a holder that is gone was replaced.

    Raises UserError where another driver computes the run, CannotWrite where the folder takes no lock.
    """
    own = _own()
    try:
        create_folder(folder.path)
        note = _take(folder, own)
    except CannotWrite:
        raise
    except OSError as error:
        raise CannotWrite.of(error, folder.lock) from None
    ended = threading.Event()
    signs = threading.Thread(target=_give_signs, args=(folder.lock, own, ended), name="run lock", daemon=True)
    signs.start()
    try:
        yield note
    finally:
        ended.set()
        signs.join()
        if _read(folder.lock) == own:  # it was taken over from a driver that was stopped for long
            with contextlib.suppress(OSError):  # read-only by now: who comes next sees that this process is gone
                folder.lock.unlink(missing_ok=True)


def driver_of(folder: RunFolder) -> Holder | None:
    """Who computes the run at this moment; None where nobody does, as far as can be told without writing there.

    Of a driver on another machine that went without a word, for STALE_SECONDS still that one, by this machine's clock.
    """
    holder = _read(folder.lock)
    try:
        silent = time.time() - folder.lock.stat().st_mtime
    except OSError:
        return None
    return None if holder is None or _gone(holder, silent) else holder


def sign_of_life(folder: RunFolder) -> tuple[str, float] | None:
    """Changes as long as a run's driver lives; None where there is none, or its process on this machine is gone."""
    holder = _read(folder.lock)
    if holder is None:
        return None
    here = _own()
    try:
        if (holder.host, holder.processes) != (here.host, here.processes):
            return holder.token, folder.lock.stat().st_mtime
    except OSError:
        return None
    return (holder.token, time.monotonic()) if _begun(holder.pid) == holder.begun else None


def _take(folder: RunFolder, own: Holder) -> str | None:
    """Writes the lock, or takes it over; returns a note in that case."""
    while True:
        with contextlib.suppress(FileExistsError):
            _create(folder.lock, own)
            return None
        with contextlib.suppress(FileNotFoundError):  # given back meanwhile
            note = _take_over(folder, own)
            if note is not None:
                return note


def _create(path: Path, own: Holder) -> None:
    try:
        with open(path, "x", opener=opener) as file:
            file.write(_text(own))
    except FileExistsError:
        raise
    except OSError:  # a full disk takes the name and no more
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        raise


def _take_over(folder: RunFolder, own: Holder) -> str | None:
    """A note once the lock of a holder that is gone is ours; None where the lock changed hands meanwhile.

    The old file itself is locked meanwhile: of two that find it stale, one replaces it, and the other sees that. Where
    the file system locks nothing, both may replace it, and the last one has it.
    """
    path = folder.lock
    with open(path) as file:
        alone = _locked(file)
        if os.fstat(file.fileno()).st_ino != os.stat(path).st_ino:
            return None
        holder, silent = _read(path), _silent_seconds(path)
        if not _gone(holder, silent):
            raise UserError(_refusal(folder, holder))
        write_atomically(path, _text(own).encode())
    if not alone:
        time.sleep(SETTLE_SECONDS)
        if _read(path) != own:
            return None
    who = "a driver that left no name" if holder is None else f"process {holder.pid} on {holder.host}"
    return f"{who} held this run and is gone (last sign of life {silent:.0f} s ago): its lock is taken over"


def _locked(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:
        return False
    return True


def _gone(holder: Holder | None, silent: float) -> bool:
    """Whether nobody can be at work; None is a file that is being written this moment, or was cut."""
    here = _own()
    if holder is not None and (holder.host, holder.processes) == (here.host, here.processes):
        return _begun(holder.pid) != holder.begun
    return silent > STALE_SECONDS


def _refusal(folder: RunFolder, holder: Holder | None) -> str:
    name = folder.path.name
    if holder is None:
        who, stop = "another driver, which has not written its name yet,", "Wait until it ends"
    else:
        who = f"process {holder.pid} on {holder.host}, since {holder.since},"
        stop = f"Wait until it ends, or stop it (on {holder.host}: kill -INT {holder.pid})"
    return (
        f"{folder.path} is computed by {who} so this command would do the same points again beside it. {stop}, then"
        f" type the same command with resume={name}. A driver that is gone gives way by itself, one on another machine"
        f" {STALE_SECONDS:.0f} s after its last sign of life."
    )


def _silent_seconds(path: Path) -> float:
    """Since the last sign of life, by the clock of the file system: those of two machines differ."""
    now = path.with_name(f".{path.name}.{uuid.uuid4().hex}.now")
    now.touch(FILE_MODE)
    try:
        return now.stat().st_mtime - path.stat().st_mtime
    finally:
        now.unlink()


def _give_signs(path: Path, own: Holder, ended: threading.Event) -> None:
    while not ended.wait(SIGN_SECONDS):
        with contextlib.suppress(OSError):  # a full or absent disk is told by what writes results
            if _read(path) != own:
                return
            os.utime(path)


def _own() -> Holder:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return Holder(
        host=socket.gethostname(),
        processes=f"{boot} {os.readlink('/proc/self/ns/pid')}",
        pid=os.getpid(),
        begun=_begun(os.getpid()),
        since=datetime.now(UTC).isoformat(timespec="seconds"),
        token=uuid.uuid4().hex,
    )


def _begun(pid: int) -> str:
    """When a process began, in ticks; empty where there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    state, *rest = stat[stat.rindex(")") + 2 :].split()  # the name before may hold anything
    return "" if state in "ZX" else rest[18]


def _read(path: Path) -> Holder | None:
    """None where there is no lock, or one that does not say whose."""
    try:
        return Holder(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _text(holder: Holder) -> str:
    return json.dumps(asdict(holder), indent=1) + "\n"
