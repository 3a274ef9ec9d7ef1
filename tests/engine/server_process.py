"""vLLM's API server as a user starts it, on loopback, with exported policies; what it wrote is in the error."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

START_SECONDS = 240.0
BLOCK = 32
"""Tokens that the prefix cache keeps together."""
SMALL = (
    "--enforce-eager", "--max-model-len", "128", "--max-num-seqs", "16", "--num-gpu-blocks-override", "64",
    "--block-size", str(BLOCK),
    "--chat-template", "{% for m in messages %}{{ m.content }}{% endfor %}",
    "--served-model-name", "tiny", "--host", "127.0.0.1", "--distributed-executor-backend", "uni",
)  # fmt: skip
CPU = {
    "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1",
}  # fmt: skip


class Server:
    """One process group: API server, engine core."""

    def __init__(self, folder: Path, port: int, words: tuple[str, ...], settings: Mapping[str, str]) -> None:
        """`words`: what stands behind `serve tiny`. `settings`: of the environment, over this process's."""
        self.log, self.port = folder / f"server-{time.monotonic_ns()}.log", port
        command = [sys.executable, "-m", "banpick_exp", "serve", "tiny", *words, *SMALL, "--port", str(port)]
        # An engine in this process has set what vLLM reads from the environment.
        rest = {name: value for name, value in os.environ.items() if not name.startswith(("VLLM_", "BANPICK_"))}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env={**rest, **CPU, **settings}, start_new_session=True
            )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait(self) -> None:
        """Until it answers. RuntimeError, with its last lines, where it ends before."""
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with {self.process.returncode}:\n{self.said()[-4000:]}")
            try:
                if httpx.get(f"{self.url}/health", timeout=5).status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.2)
        self.kill()
        raise RuntimeError(f"the server does not answer:\n{self.said()[-4000:]}")

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def kill(self) -> None:
        """At once, as a machine that is lost; also those of its processes that outlived it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """In order."""
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(30)
        self.kill()

    # ------------------------------------------------------------ requests without the client

    def post(self, path: str, body: Any, token: str | None = None) -> httpx.Response:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return httpx.post(f"{self.url}{path}", json=body, headers=headers, timeout=60)

    def metrics(self) -> dict[str, float]:
        """`name{labels}` -> value."""
        lines = httpx.get(f"{self.url}/metrics", timeout=60).text.splitlines()
        pairs = [line.rpartition(" ") for line in lines if line and not line.startswith("#")]
        return {name: float(value) for name, _, value in pairs}
