"""Landlock with a filter of system calls, where nothing may be mounted and no namespace made: in most containers.

It takes away what a process may reach, and makes nothing of its own: there is no place to write, not even /tmp.
"""

from __future__ import annotations

import os
from typing import Any

from banpick_exp.tasks.sandbox.bubblewrap import threads_of
from banpick_exp.tasks.sandbox.interpreter import DEVICES, OPTIONS, closed_folder, interpreter
from banpick_exp.tasks.sandbox.landlock import version
from banpick_exp.tasks.sandbox.limits import Limits
from banpick_exp.tasks.sandbox.sandbox import JAIL, Sandbox, package_root


class Landlocked(Sandbox):
    """This machine, with nothing but Python to be read."""

    name = "Landlock"

    def missing(self) -> str | None:
        if version() == 0:
            return "the kernel has no Landlock, or it is switched off (Linux 5.13 and newer have it)"
        found = interpreter()
        if os.geteuid() == 0 and (closed := closed_folder((found.executable, os.path.dirname(os.__file__)))):
            return f"Python lies in {closed}, which root alone may enter, and programs do not run as root"
        return None

    def command(self, limits: Limits) -> list[str]:
        # The path of the package is given up before the program runs; env(1) is not there, so Python is told by itself.
        start = (
            f"import sys, runpy; sys.path.append({package_root()!r}); runpy.run_module({JAIL!r}, run_name='__main__')"
        )
        return [interpreter().executable, *OPTIONS, "-c", start]

    def given_up(self) -> dict[str, Any]:
        found = interpreter()
        return {
            "parent": os.getpid(),
            "folder": "/",
            "package": package_root(),
            "packages": [found.site] if found.site else [],
            "landlock": {
                "readable": [*found.paths, *found.packages, "/dev/zero", "/dev/urandom", "/dev/random"],
                "listable": [found.site] if found.site else [],
                "writable": [DEVICES[0]],
            },
        }

    def processes(self, limits: Limits) -> int:
        return limits.threads + (0 if os.geteuid() == 0 else threads_of(os.geteuid()))
