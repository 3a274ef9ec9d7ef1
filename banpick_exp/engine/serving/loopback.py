"""vLLM's API server as a child process on loopback: started as a user starts it, with exported policies or without our
plugin, and gone when this process is, whatever ends it.
"""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

from banpick_exp.engine.serving.command import other_plugins, server_command
from banpick_exp.engine.serving.served import DEFAULT, POLICY
from banpick_exp.engine.sockets import socket_folder
from banpick_exp.errors import UserError

NAME = "bench"
"""What requests call the model; `NAME:POLICY` is a policy."""
OURS = ("--default", "--host", "--port", "--served-model-name", "--uds", "--api-key", "--ssl-keyfile", "--root-path")
"""Options of a server that say where it is and how requests name it: this module chooses."""
START_SECONDS = 1800.0
"""A large checkpoint on a slow disk takes many minutes."""
STOP_SECONDS = 30.0
TAIL = 3000
"""Characters of a log that are shown where a server does not come up."""
PR_SET_PDEATHSIG = 1
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Whatever proxy the environment names: the server is here."""

KEPT_ALIVE = {"VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "3600"}
"""Seconds. By vLLM's 5 a server closes the connection of a client that waits its turn just as it asks again."""


class Loopback:
    """One server: a process group with API server, engine core and workers."""

    def __init__(self, what: str, command: Sequence[str], environment: Mapping[str, str], folder: Path) -> None:
        """Starts it. `what`: for people; `folder`: where its log goes. Call from the main thread: the server ends with
        the thread that started it."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.what, self.url, self.log = what, f"http://127.0.0.1:{port}", folder / f"server-{port}.log"
        where = ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", NAME]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [*command, *where],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**environment, **socket_folder(), **KEPT_ALIVE},
                start_new_session=True,  # Ctrl-C is ours to answer
                preexec_fn=_end_with_parent,
            )  # fmt: skip

    def wait(self) -> None:
        """Until it answers. UserError, with its last lines, where it ends before or does not come up."""
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if (code := self._process.poll()) is not None:
                raise UserError(f"{self._lost(f'ended with code {code} before it answered')}")
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self.get("/health", 5) is not None:
                    return
            time.sleep(0.2)
        raise UserError(self._lost(f"does not answer after {START_SECONDS:.0f} s"))

    def check(self) -> None:
        """UserError where it has ended since."""
        if (code := self._process.poll()) is not None:
            raise UserError(self._lost(f"ended with code {code}"))

    def get(self, path: str, seconds: float = 60.0) -> str:
        """The body of an answer. Raises OSError where there is none, or another status than 200."""
        with DIRECT.open(self.url + path, timeout=seconds) as answer:
            return str(answer.read().decode())

    def metrics(self) -> dict[str, float]:
        """`name{labels}` -> value."""
        lines = (line for line in self.get("/metrics").splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    def cpu_seconds(self) -> float:
        """Of all its processes so far: what other programs take does not count here. 0 where there is no /proc."""
        ticks = 0
        for place in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = place.read_text().rpartition(")")[2].split()
                if int(fields[2]) == self._process.pid:  # its process group
                    ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        """In order, then by force; safe to call again."""
        if self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # those of its processes that outlived it
        self._process.wait()

    def _lost(self, how: str) -> str:
        said = self.log.read_text(encoding="utf-8", errors="replace")[-TAIL:].strip()
        return f"{self.what} {how}, so nothing can be measured. The end of its log:\n{said}"


def without_plugin(model: str, options: Sequence[str], settings: Mapping[str, str], folder: Path) -> Loopback:
    """vLLM as it is: no policy, no hook. Other plugins that VLLM_PLUGINS names are loaded by both servers."""
    ours = {"VLLM_PLUGINS": ",".join(other_plugins(os.environ))}
    command = [*server_command(model), *options]
    return Loopback("the server without the plugin", command, _environment({**settings, **ours}), folder)


def with_policies(
    model: str, policies: Sequence[str], options: Sequence[str], settings: Mapping[str, str], folder: Path
) -> Loopback:
    """`python -m banpick_exp serve MODEL NAME=OUT/ ...`, by the process that it becomes."""
    command = [sys.executable, "-m", "banpick_exp", "serve", model, *policies, *options]
    return Loopback("the server with the policies", command, _environment(settings), folder)


def _environment(settings: Mapping[str, str]) -> dict[str, str]:
    """Ours, without policies of a server that a user may have set."""
    rest = {name: value for name, value in os.environ.items() if name not in (POLICY, DEFAULT)}
    return {**rest, **settings}


def _end_with_parent() -> None:
    """In the child, before it becomes the server: SIGTERM once the parent is gone, killed even."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
