"""/dev/shm, of which containers are given 64 MB, or none: what is kept there, and what is said where it is too small.

Ray sizes its object store by the machine's memory, and on a large machine refuses to start where /dev/shm cannot hold
that. What passes through ours are calls and records, a few kilobytes each, so a small one serves; where /dev/shm is
smaller still, Ray puts it into its temporary folder. vLLM keeps its locks in /dev/shm, and the processes of an engine
that has several talk to each other there.
"""

from __future__ import annotations

import os
from pathlib import Path

from banpick_exp.errors import UserError

SHARED = Path("/dev/shm")
STORE_BYTES = 512 * 1024**2
"""Of Ray's object store on this machine."""
ENOUGH_BYTES = 256 * 1024**2
"""For the processes of one engine; less may do where prompts are short."""
REMEDY = "Give this machine more (docker run --shm-size=1g; in Kubernetes an emptyDir of medium Memory at /dev/shm)"


def check_there() -> None:
    """UserError where this machine has no shared memory at all: no engine could be loaded here."""
    if not SHARED.is_dir():
        raise UserError(f"There is no {SHARED}, where vLLM keeps its locks: no engine can be loaded. {REMEDY}.")


def too_small(processes: int) -> str:
    """What to say beside the error of an engine of so many processes that did not start; empty where that is enough."""
    if not SHARED.is_dir():
        return f"there is no {SHARED}, where vLLM keeps its locks. {REMEDY}"
    found = os.statvfs(SHARED)
    free = found.f_bavail * found.f_frsize
    if processes < 2 or free >= ENOUGH_BYTES:
        return ""
    has = f"only {free / 1024**2:.1f} MB are free in {SHARED}"
    return f"{has}, where the {processes} processes of an engine talk to each other. {REMEDY}"
