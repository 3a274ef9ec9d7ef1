"""The process in which W&B is called: whatever hangs there, the driver waits no longer than it wants, and ends it.

W&B's client waits for its service, `wandb-core`, without a limit: in most calls, and once more when its process exits.
A thread that hangs so cannot be ended, and would take the driver's exit with it. It also changes `os.environ` under the
feet of engines that start meanwhile. A process of ours has none of that.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from banpick_exp.report.tracking.environment import of_no_run

PROGRAM = "banpick_exp.report.tracking.mirror"
KILL_SECONDS = 5.0
"""A killed process is gone at once, unless a dead file system holds it; then we go on without its end."""


class Trouble(Exception):
    """Something was not mirrored; the text says why, in a few words."""


class Refused(Trouble):
    """W&B said no to this call; the next one may do."""


class Gone(Trouble):
    """The process ended."""


class MirrorProcess:
    """Calls W&B in order, one call at a time: `send`, then `answer` until there is one."""

    def __init__(self, folder: Path, timeout_seconds: float) -> None:
        """Starts it. `folder`: where W&B puts copies; `timeout_seconds`: for handing over one call."""
        self._ours, theirs = socket.socketpair()
        # The process reads at any time; one that is stopped must not hold us in `send` when a call is larger than the
        # socket's buffer.
        whole, part = divmod(max(timeout_seconds, 0.001), 1)
        self._ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(whole), int(part * 1e6)))
        self._connection = Connection(os.dup(self._ours.fileno()))
        self._words = tempfile.TemporaryFile()  # noqa: SIM115 (for as long as the process)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", PROGRAM, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._words,
                env=_environment(folder),
                start_new_session=True,  # Ctrl-C is for the driver, which then ends this
            )
        self._service: dict[int, str] = {}

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, call: str, arguments: Mapping[str, Any]) -> None:
        """Hand over one call of `mirror.Mirror`. Raises Gone where nobody takes it, Refused where it cannot be sent."""
        try:
            self._connection.send((call, dict(arguments)))
        except BlockingIOError:
            raise Gone("the process that calls W&B takes no call") from None
        except OSError as error:
            raise Gone(self._last_words(error)) from None
        except Exception as error:  # what cannot be handed over costs this call, not the mirror
            raise Refused(f"{type(error).__name__}: {error}") from None

    def answer(self, seconds: float) -> tuple[Any] | None:
        """What the call returned, in a tuple; None where it still runs after `seconds`.

        Raises: Refused where W&B raised an error, Gone where the process has ended.
        """
        try:
            if not self._connection.poll(seconds):
                return None
            done, value = self._connection.recv()
        except (OSError, EOFError) as error:
            raise Gone(self._last_words(error)) from None
        self._service |= children(self.pid)
        if not done:
            raise Refused(value)
        return (value,)

    def close(self, seconds: float) -> None:
        """Let it end: W&B closes its runs, for `seconds` at most; then it is killed."""
        with contextlib.suppress(OSError):  # it has ended already
            self._ours.shutdown(socket.SHUT_WR)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=seconds)
        self.kill()

    def kill(self) -> None:
        """End it and W&B's service, which ends by itself only where it is not stopped."""
        kill_processes(self._service | children(self.pid))
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=KILL_SECONDS)

    def _last_words(self, error: Exception) -> str:
        self._words.seek(0)
        lines = self._words.read().decode(errors="replace").split("\n")
        said = next((line.strip() for line in reversed(lines) if line.strip()), str(error) or type(error).__name__)
        return f"the process that calls W&B has ended: {said}"


def children(pid: int) -> dict[int, str]:
    """Pid and start (ticks since the machine's) of each process that `pid` has started; none where /proc is not."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        if (stat := _stat(int(entry.name))) is not None and int(stat[1]) == pid:
            found[int(entry.name)] = stat[19]
    return found


def kill_processes(processes: Mapping[int, str]) -> None:
    """SIGKILL each that is still the one it was: a pid is given out again."""
    for pid, begun in processes.items():
        if (stat := _stat(pid)) is not None and stat[19] == begun:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/<pid>/stat from the third on (state, parent ...); None of a process that is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    return None


def _environment(folder: Path) -> dict[str, str]:
    """Ours, but no run's, and with our own modules to be found."""
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    # W&B copies artifacts to the user's home, and an offline run then points there: keep the run folder whole.
    return of_no_run(os.environ) | {"PYTHONPATH": paths, "WANDB_DATA_DIR": str(folder.resolve())}
