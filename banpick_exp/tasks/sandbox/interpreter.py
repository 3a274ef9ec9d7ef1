"""Which files Python itself needs, and numpy, which published tests compare floats with. Neither is loaded."""

from __future__ import annotations

import functools
import importlib.util
import os
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache")
DATA = ("/usr/share/zoneinfo", "/etc/localtime")
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")
OPTIONS = ("-s", "-P", "-S", "-B")
"""Of Python's: no packages of the user's or the environment's, nothing written beside the modules."""
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",  # the same sets in the same order, so that a grade is the same twice
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}


@dataclass(frozen=True, slots=True)
class Interpreter:
    """Python without its packages."""

    executable: str
    paths: tuple[str, ...]
    """What it reads: its modules, and shared libraries."""
    packages: tuple[str, ...]
    """Folders of numpy; empty where it is not installed."""

    @property
    def site(self) -> str | None:
        """The folder that `packages` are in."""
        return os.path.dirname(self.packages[0]) if self.packages else None


@functools.cache
def interpreter() -> Interpreter:
    """This process's, outside of its virtual environment."""
    executable = os.path.realpath(getattr(sys, "_base_executable", "") or sys.executable)
    wanted = [executable, os.path.dirname(os.__file__), f"{sys.base_prefix}/lib", *LIBRARIES, *DATA]
    there = dict.fromkeys(path for path in wanted if os.path.exists(path))
    spec = importlib.util.find_spec("numpy")
    folder = Path(spec.origin).parent if spec is not None and spec.origin else None
    packages = [] if folder is None else [folder, folder.with_name("numpy.libs")]
    return Interpreter(executable, tuple(there), tuple(str(path) for path in packages if path.is_dir()))


def closed_folder(paths: tuple[str, ...]) -> str | None:
    """A folder on the way to one of the paths that only its owner and group may enter; None where all are open."""
    for path in paths:
        for each in [Path(path), *Path(path).parents]:
            if each.is_dir() and not each.stat().st_mode & stat.S_IXOTH:
                return str(each)
    return None
