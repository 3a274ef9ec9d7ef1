"""Inputs that are an environment: a home, a temporary folder, an encoding, W&B's variables, an address."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

import pytest
from commands import command, only_run, small, statuses
from wandb_runs import read_back

pytestmark = [pytest.mark.engine, pytest.mark.slow]

BOTH = {"none": "done", "fixed_k k=4": "done"}
WITHOUT = ["tracking=none"]


def mounts() -> bool:
    """Whether this machine lets us mount in a namespace of our own."""
    unshare = shutil.which("unshare")
    return unshare is not None and subprocess.run([unshare, "-m", "true"], capture_output=True).returncode == 0


@pytest.mark.long
@pytest.mark.skipif(not mounts(), reason="no mount namespaces here")
def test_a_home_that_is_read_only(tmp_path: Path) -> None:
    """A12: every point failed after the load, on a lock in ~/.cache, of the embedded tasks too."""
    home = tmp_path / "home"
    home.mkdir()
    mount = (
        'mount --bind "$HOME" "$HOME" && mount -o remount,bind,ro "$HOME" && ! touch "$HOME/x" 2>/dev/null && exec "$@"'
    )
    prefix = ["unshare", "-m", "bash", "-c", mount, "bash"]
    done = command(tmp_path, *small(*WITHOUT, "output_dir=out"), prefix=prefix, environment={"HOME": str(home)})
    assert done.code == 0, done.output
    assert statuses(only_run(tmp_path / "out")) == BOTH and list(home.iterdir()) == []


@pytest.mark.long
def test_folders_that_are_not_there_and_signs_that_cannot_be_printed(tmp_path: Path) -> None:
    """No home, no temporary folder, and output in an encoding without circles."""
    missing = {"HOME": "/proc/nowhere", "TMPDIR": str(tmp_path / "nowhere"), "PYTHONIOENCODING": "latin-1"}
    done = command(tmp_path, *small(*WITHOUT, "output_dir=out"), environment=missing)
    assert done.code == 0 and "UnicodeEncodeError" not in done.output, done.output
    assert statuses(only_run(tmp_path / "out")) == BOTH


def test_a_sweep_ends_well_where_a_circle_cannot_be_printed(tmp_path: Path) -> None:
    """H1 and I1 at once: the sweep died of a filled circle, and of a run id that was in use."""
    theirs = {"WANDB_RUN_ID": "fixed", "WANDB_RESUME": "must", "WANDB_MODE": "disabled", "WANDB_RUN_GROUP": "theirs"}
    terminal = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "COLUMNS": "20"}
    done = command(tmp_path, *small("output_dir=out"), environment=terminal | theirs)
    assert done.code == 0 and "Traceback" not in done.output and "UnicodeEncodeError" not in done.output, done.output
    run = only_run(tmp_path / "out")
    assert statuses(run) == BOTH and run.report.is_file() and "W&B failed" not in done.output
    mirrored = read_back(run.path)
    assert set(mirrored) == {"none", "fixed_k k=4", "summary"}
    assert {each["exit_code"] for each in mirrored.values()} == {0}, "the summary is closed"
    assert "theirs" not in str(mirrored)


@pytest.mark.long
def test_ray_starts_where_the_temporary_folder_is_too_deep(tmp_path: Path) -> None:
    """G1: a socket's path has at most 107 bytes, and this one's letters have two each.

    That the folder's name alone decides is test_faults.py's.
    """
    deep = tmp_path / ("é" * 60)
    deep.mkdir()
    done = command(tmp_path, *small(*WITHOUT, "cluster=local", "output_dir=out"), environment={"TMPDIR": str(deep)})
    assert done.code == 0 and "Traceback" not in done.output, done.output
    assert statuses(only_run(tmp_path / "out")) == BOTH


@pytest.mark.parametrize(
    ("typed", "environment"),
    [
        (["cluster.address=foo"], {}),
        (["cluster.address=ray://127.0.0.1:10001"], {}),
        (["cluster.address=http://127.0.0.1:8265"], {}),
        (["cluster.address=[::1"], {}),
        (["cluster.address=127.0.0.1:1"], {}),
        (["cluster.address=256.256.256.256:6379"], {}),
        (["cluster=standing"], {"RAY_ADDRESS": "http://127.0.0.1:8265"}),
        (["cluster=standing"], {"RAY_ADDRESS": "127.0.0.1:1"}),
    ],
    ids=str,
)
def test_a_cluster_that_is_none_is_said_at_once(typed: list[str], environment: dict[str, str], tmp_path: Path) -> None:
    """G1: tracebacks, or two minutes of C++ log."""
    begin = time.monotonic()
    done = command(tmp_path, *small(*WITHOUT, "cluster=local", *typed, "output_dir=out"), environment=environment)
    assert done.code == 2 and "Traceback" not in done.output, done.output
    lines = [line for line in done.output.splitlines() if line.startswith("banpick: ")]
    assert (len(lines) == 1 and "Type" in done.text) or "type" in done.text
    assert time.monotonic() - begin < 60, "it took two minutes; the imports take seconds, on a busy machine more"
