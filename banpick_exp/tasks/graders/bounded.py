"""A process beside the engine that answers a line of JSON with one, and that the kernel ends where that takes too long.

What a model wrote can keep `re` or sympy busy for days, or make them eat all memory, and nothing can stop them from
inside: an engine would stand still in mid-sweep. No pickle, and no environment: what looks at a model's text needs none
of our keys. Processor time is what counts, and that of one question alone: a busy machine changes no grade.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WALL_FACTOR, WALL_SECONDS = 10, 60
"""A question without an answer after so many times its processor time and so much more is given up: its process is
stopped, and none of the text's doing."""


class TooSlow(Exception):
    """A question was ended at its limit."""


class BoundedProcess:
    """The process, started when it is first needed and again after each end."""

    def __init__(
        self,
        script: str,
        *options: str,
        arguments: Sequence[str] = (),
        ends: Sequence[int] = (-signal.SIGPROF, -signal.SIGKILL),
        start_seconds: float = 0,
    ) -> None:
        """`script`: a file beside this one; `options`: Python's; `ends`: exit codes that are the question's doing;
        `start_seconds`: how much longer the first question to a process may wait, for what it imports."""
        self._command = [sys.executable, "-I", *options, str(Path(__file__).with_name(script)), *arguments]
        self._ends = ends
        self._start_seconds = start_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()
        self._one_at_a_time = threading.Lock()
        atexit.register(self.close)

    def ask(self, question: list[Any], seconds: float) -> Any:
        """The answer to a question; TooSlow where it takes more than `seconds` of processor time, or all memory.

        Raises RuntimeError where the process ends by itself.
        """
        line = json.dumps([*question, seconds]).encode() + b"\n"
        with self._one_at_a_time:
            for _ in range(2):  # one that had idled away is noticed only when it is asked
                wall = seconds * WALL_FACTOR + WALL_SECONDS + (self._start_seconds if self._process is None else 0)
                answer = self._asked(self._running(), line, wall)
                if answer:
                    return json.loads(answer)
                code = self.close()
                if code in self._ends:
                    raise TooSlow
            raise RuntimeError(f"{' '.join(self._command[-2:])} ended with {code}")

    def _running(self) -> subprocess.Popen[bytes]:
        if self._owner != os.getpid():  # forked: the process is the other's
            self._process, self._owner = None, os.getpid()
        if self._process is None:
            self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={})
        return self._process

    @staticmethod
    def _asked(process: subprocess.Popen[bytes], line: bytes, wall_seconds: float) -> bytes:
        """The line that comes back; empty where the process ended, or was killed for want of one."""
        assert process.stdin is not None and process.stdout is not None
        too_late = threading.Timer(wall_seconds, process.kill)
        too_late.daemon = True
        too_late.start()
        try:
            process.stdin.write(line)
            process.stdin.flush()
            return process.stdout.readline()
        except BrokenPipeError:
            return b""
        finally:
            too_late.cancel()

    def close(self) -> int | None:
        """End the process. Returns its exit code, a signal's as a negative number; None where there was none."""
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return None
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        try:
            code = process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        process.stdout.close()
        return code
