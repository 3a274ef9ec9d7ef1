"""The tests of the sandbox again: as a plain user, and as root where Python is open to all (so that Landlock is tried).

Where Python lies in a folder of root's alone, as a checkout of root's may have it, it is shown in a view of its own: a
mount namespace in which that folder holds nothing else.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from banpick_exp.tasks.sandbox.interpreter import closed_folder

UID = 65_001
ROOT = Path(__file__).parents[2]
VIEW = (
    'set -e; shown=$1; place=$2; closed=$3; shift 3; mount --bind "$place" "$shown";'
    ' mount -t tmpfs -o mode=755 tmpfs "$closed"; mkdir -p "$place"; mount --move "$shown" "$place"; exec "$@"'
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3000),
    pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become another user"),
    pytest.mark.skipif(shutil.which("setpriv") is None, reason="no setpriv"),
]


@pytest.mark.parametrize("who", ["a plain user", "root"])
def test_as(who: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    command = [sys.executable, "-B", "-m", "pytest", "-n", "0", "-q", "-rs", "-p", "no:cacheprovider"]
    command += ["tests/tasks/test_sandbox.py", "-W", "ignore::pytest.PytestConfigWarning"]
    base = Path(sys.base_prefix)
    closed = closed_folder((str(base / "lib"),))
    if who != "root":
        command = ["setpriv", "--reuid", str(UID), "--regid", str(UID), "--clear-groups", *command]
    elif closed is None:
        pytest.skip("Python is open to all, so that test_sandbox.py tries Landlock as root itself")
    else:
        command += ["-k", "landlock"]  # bubblewrap is the same whatever root alone may enter
    if closed is not None:
        if (reason := _no_view(Path(closed))) is not None:
            pytest.skip(reason)
        shown = tmp_path_factory.mktemp("python")
        view = ["unshare", "--mount", "sh", "-c", VIEW, "sh", str(shown), str(base), _highest_closed(base), *command]
        command = view
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")} | {"HOME": "/tmp"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout.splitlines()[-1], done.stdout[-4000:]


def _highest_closed(path: Path) -> str:
    """The first folder, from the top, that others may not enter."""
    for each in reversed([path, *path.parents]):
        if closed_folder((str(each),)) is not None:
            return str(each)
    raise AssertionError


def _no_view(closed: Path) -> str | None:
    """Why this checkout could not be read where only Python is shown in that folder; None where it could."""
    if ROOT.is_relative_to(closed) or Path(sys.prefix).resolve().is_relative_to(closed):
        return f"the checkout or its environment lies in {closed}, which others may not enter"
    tried = subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True)
    return None if tried.returncode == 0 else "no mount namespace can be made"
