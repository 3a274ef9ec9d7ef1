"""A process watched from outside: what it writes, and its end, which comes at a limit if not before."""

from __future__ import annotations

import contextlib
import os
import selectors
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from banpick_exp.tasks.sandbox.limits import Limits

START_SECONDS = 120.0
"""Until the sandbox stands; its own time has not begun."""
LAST_SECONDS = 10.0
"""After the end, for what is still in the pipes."""
CHUNK = 2**16

Pipe = Literal["stdout", "stderr", "results"]


@dataclass(slots=True)
class Ended:
    """A process that is no more."""

    code: int = 0
    """Its exit code, a signal's as a negative number."""
    cut: Literal["timeout", "output", "start"] | None = None
    """At which limit it was ended from outside."""
    written: dict[Pipe, bytearray] = field(
        default_factory=lambda: {"stdout": bytearray(), "stderr": bytearray(), "results": bytearray()}
    )


def watched(
    command: Sequence[str], environment: Mapping[str, str], stdin: int, job: int, limits: Limits, ready: bytes
) -> Ended:
    """Runs a command, to which the descriptors of its job and of the results are given as its last two words.

    `stdin`, `job`: files, from their beginning. `ready`: with this the results begin where the sandbox stands. Raises
    OSError where it does not start.
    """
    ended = Ended()
    read_end, write_end = os.pipe()
    try:
        process = subprocess.Popen(
            [*command, str(job), str(write_end)],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(environment),
            cwd="/",
            pass_fds=(job, write_end),
            start_new_session=True,
        )
    except BaseException:
        os.close(read_end)
        raise
    finally:
        os.close(write_end)
    assert process.stdout is not None and process.stderr is not None
    pidfd = os.pidfd_open(process.pid)
    try:
        with process.stdout, process.stderr, os.fdopen(read_end, "rb") as results, selectors.DefaultSelector() as wait:
            pipes: tuple[tuple[int, Pipe], ...] = (
                (process.stdout.fileno(), "stdout"),
                (process.stderr.fileno(), "stderr"),
                (results.fileno(), "results"),
            )
            for number, name in pipes:
                os.set_blocking(number, False)
                wait.register(number, selectors.EVENT_READ, name)
            wait.register(pidfd, selectors.EVENT_READ, None)
            ended.cut = _followed(wait, ended, limits, ready)
            process.kill()
            _drained(wait, ended, limits)
    finally:
        process.kill()
        code = process.wait()
        os.close(pidfd)
    ended.code = code if code <= 128 else 128 - code  # bubblewrap tells a signal as a shell does
    return ended


def _followed(
    wait: selectors.BaseSelector, ended: Ended, limits: Limits, ready: bytes
) -> Literal["timeout", "output", "start"] | None:
    """Until the process ends (None), or has to."""
    begun = False
    until = time.monotonic() + START_SECONDS
    while True:
        if not begun and ended.written["results"].startswith(ready):
            begun, until = True, time.monotonic() + limits.wall_seconds
        left = until - time.monotonic()
        if left <= 0:
            return "timeout" if begun else "start"
        for key, _ in wait.select(left):
            if key.data is None:
                return None
            _read(wait, key, ended)
        if _too_much(ended, limits):
            return "output"


def _read(wait: selectors.BaseSelector, key: selectors.SelectorKey, ended: Ended) -> None:
    assert isinstance(key.fileobj, int)
    try:
        data = os.read(key.fileobj, CHUNK)
    except BlockingIOError:
        return
    if data:
        ended.written[key.data] += data
    else:
        wait.unregister(key.fileobj)


def _drained(wait: selectors.BaseSelector, ended: Ended, limits: Limits) -> None:
    """What was written before the end. All who could write are gone when the pipes say so."""
    until = time.monotonic() + LAST_SECONDS
    with contextlib.suppress(KeyError):
        wait.unregister(next(key.fileobj for key in wait.get_map().values() if key.data is None))
    while wait.get_map() and (left := until - time.monotonic()) > 0:
        for key, _ in wait.select(left):
            _read(wait, key, ended)
        if _too_much(ended, limits):
            ended.cut = ended.cut or "output"
            return


def _too_much(ended: Ended, limits: Limits) -> bool:
    return sum(map(len, ended.written.values())) > limits.output_bytes
