"""Inside: gives up everything that a program does not need, says so, and runs it. The first process of a sandbox.

`python -m banpick_exp.tasks.sandbox.jail JOB RESULTS`: two descriptors. JOB holds one JSON object with the work, its
limits, and what is to be given up; the first line to RESULTS says that it has been. Imports nothing that is no part of
Python but its neighbours, which may be all that there is of the package.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from typing import Any

from banpick_exp.tasks.sandbox import harness, landlock, seccomp

READY = "ready"
PR_SET_PDEATHSIG = 1
AFTERWARDS = 1
"""Seconds of processor time between the signal that a program may catch and the one that it cannot."""


def limit(limits: dict[str, Any]) -> None:
    seconds = max(1, int(limits["seconds"] + 0.999))
    hard = {
        resource.RLIMIT_AS: limits["memory_mb"] * 2**20,
        resource.RLIMIT_FSIZE: limits["scratch_bytes"],
        resource.RLIMIT_NOFILE: limits["files"],
        resource.RLIMIT_NPROC: limits["processes"],
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    for which, value in hard.items():
        most = resource.getrlimit(which)[1]
        value = value if most == resource.RLIM_INFINITY else min(value, most)
        resource.setrlimit(which, (value, value))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + AFTERWARDS))


def drop(uid: int) -> None:
    """Another user, in no group but its own, for good."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def main(job: int, results: int) -> None:
    with os.fdopen(job, encoding="utf-8") as file:
        told = json.load(file)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    limit(told["limits"])
    if told["uid"] is not None:
        drop(told["uid"])
    seccomp.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # a change of user forgets it
    if os.getppid() != told["parent"]:
        return  # it is gone already
    os.chdir(told["folder"])
    sys.path[:] = [path for path in sys.path if path != told["package"]] + told["packages"]
    if told["landlock"] is not None:
        seccomp.prctl(seccomp.PR_SET_NO_NEW_PRIVS, 1)
        landlock.restrict(**told["landlock"])
    seccomp.install(files=told["landlock"] is None)
    os.write(results, f"{READY}\n".encode())
    harness.run(told["work"], results)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
