"""What a sandbox is: it runs one program, from outside, and says what became of it."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import random
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from banpick_exp.tasks.sandbox.harness import OUT_OF_MEMORY
from banpick_exp.tasks.sandbox.interpreter import ENVIRONMENT
from banpick_exp.tasks.sandbox.jail import READY
from banpick_exp.tasks.sandbox.limits import Limits
from banpick_exp.tasks.sandbox.outcome import TAIL, Outcome, Status
from banpick_exp.tasks.sandbox.process import Ended, watched
from banpick_exp.tasks.sandbox.seccomp import AUDIT_ARCH

FIRST_UID, UIDS = 64_000, 1_000
"""Users that root becomes, one a program: below 65534, which every container has, and nobody's on most machines."""
SIGXCPU = 24
JAIL = "banpick_exp.tasks.sandbox.jail"
SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class SandboxFailed(RuntimeError):
    """The sandbox itself did not come up, whatever the program."""


class Sandbox(ABC):
    """A way to run a program that can do no harm."""

    name: str

    @abstractmethod
    def missing(self) -> str | None:
        """What it lacks on this machine, as far as can be seen without trying; None where nothing."""

    @abstractmethod
    def command(self, limits: Limits) -> list[str]:
        """What starts the jail (`jail`), but for its two descriptors."""

    @abstractmethod
    def given_up(self) -> dict[str, Any]:
        """What the jail is told of this sandbox: parent, folder, package, packages, landlock."""

    @abstractmethod
    def processes(self, limits: Limits) -> int:
        """RLIMIT_NPROC for so many threads, as it is counted there."""

    def run(self, work: Mapping[str, Any], *, stdin: bytes = b"", limits: Limits | None = None) -> Outcome:
        """Runs a program (`harness` says what `work` has). Raises SandboxFailed where it was not even begun."""
        limits = limits or Limits()
        job = {
            "work": dict(work),
            "uid": FIRST_UID + random.SystemRandom().randrange(UIDS) if os.geteuid() == 0 else None,
            "limits": {
                "seconds": limits.seconds,
                "memory_mb": limits.memory_mb,
                "scratch_bytes": limits.scratch_bytes,
                "files": limits.files,
                "processes": self.processes(limits),
            },
            **self.given_up(),
        }
        # Files in memory that nobody can write to: no pipe to fill, and nothing on the disk.
        with _sealed(stdin) as given, _sealed(json.dumps(job).encode()) as told:
            ready = f"{READY}\n".encode()
            try:
                ended = watched(self.command(limits), ENVIRONMENT, given.fileno(), told.fileno(), limits, ready)
            except OSError as error:
                raise SandboxFailed(f"{self.name} did not start: {error}") from error
        results = bytes(ended.written["results"])
        tail = bytes(ended.written["stderr"])[-4 * TAIL :].decode(errors="replace")[-TAIL:]
        if not results.startswith(ready):
            raise SandboxFailed(f"{self.name} did not come up (code {ended.code}): {tail.strip() or ended.cut or ''}")
        return Outcome(
            status=_status(ended),
            stdout=bytes(ended.written["stdout"]),
            results=tuple(results[len(ready) :].decode(errors="replace").splitlines()),
            tail=tail,
        )


def _status(ended: Ended) -> Status:
    if ended.cut is not None:
        return "output" if ended.cut == "output" else "timeout"
    if ended.code == 0:
        return "passed"
    if ended.code == -SIGXCPU:
        return "timeout"
    if ended.code == OUT_OF_MEMORY:
        return "memory"
    return "killed" if ended.code < 0 else "failed"


def _sealed(content: bytes) -> Any:
    file = os.fdopen(os.memfd_create("job", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), "w+b")
    file.write(content)
    file.flush()
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, SEALS)
    file.seek(0)
    return file


def package_root() -> str:
    """The folder that the package is in."""
    return str(Path(__file__).resolve().parents[3])


def unknown_machine() -> str | None:
    """Why no sandbox can be made on a machine of this kind, whatever is installed; None where one may."""
    if platform.system() != "Linux":
        return f"this is {platform.system()}, and the sandboxes are Linux's"
    if platform.machine() not in AUDIT_ARCH:
        return f"there is no table of system calls for {platform.machine()}"
    return None
