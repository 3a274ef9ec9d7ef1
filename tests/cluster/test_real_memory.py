"""Memory that runs out under a sweep with a real engine, and a machine without shared memory. Slow."""

from __future__ import annotations

import os
import re
import resource
import subprocess
from pathlib import Path

import pytest
from running_sweep import assert_answered_once, assert_nothing_left, descendants, running

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(3600)]

SWEEP = [
    "policy=fixed_k", "policy.k=choice(2,3,4,5,6,7)", "task.max_problems=20", "task.speed_seconds=2",
    "cluster.engines=1", "cluster.dead_seconds=20",
]  # fmt: skip
POINTS, PROBLEMS = 7, 60
LONGER = ["policy=top_p", "policy.p=range(0.30,0.89,0.02)", "search.ladder=none", *SWEEP[2:]]
LONGER_POINTS = 31
"""An engine lives for some points on what it has taken already: a short sweep may end before it asks for more."""


def test_an_engine_that_gets_no_more_memory_is_replaced(tmp_path: Path) -> None:
    with running(tmp_path, *LONGER) as sweep:
        sweep.until_points(1)
        (engine,) = sweep.engines().values()
        vsize = int(Path(f"/proc/{engine}/statm").read_text().split()[0]) * resource.getpagesize()
        resource.prlimit(engine, resource.RLIMIT_AS, (vsize, resource.RLIM_INFINITY))  # no new page from now on
        below = descendants(sweep.process.pid)
        sweep.until(lambda: sweep.events("engine_lost") or None)
        assert sweep.ends() == 0, sweep.output
        assert "Traceback" not in sweep.output
        (lost,) = sweep.events("engine_lost")
        assert re.search("memory|sign of life", str(lost.fields["reason"])), lost
    assert_answered_once(sweep.run, LONGER_POINTS, PROBLEMS)
    assert_nothing_left(tmp_path, below)


def test_a_node_without_memory_ends_the_run_in_words(tmp_path: Path) -> None:
    """Ray's monitor kills whatever engine is started: the node is above its limit at once."""
    monitor = {"RAY_memory_usage_threshold": "0.0001", "RAY_memory_monitor_refresh_ms": "200"}
    with running(tmp_path, *SWEEP, environment=monitor) as sweep:
        sweep.until(lambda: True if "engine lost" in sweep.output else None)
        below = descendants(sweep.process.pid)
        assert sweep.ends() == 1, sweep.output
        for words in ("ran out of memory", "cluster.engines=1", f"resume={sweep.run.path.name} goes on from here"):
            assert words in sweep.told, sweep.output
        assert "Traceback" not in sweep.output
        assert sweep.run.record_files() == []
    assert_nothing_left(tmp_path, below)
    with running(tmp_path, *SWEEP, f"resume={sweep.run.path.name}") as sweep:
        assert sweep.ends() == 0, sweep.output
    assert_answered_once(sweep.run, POINTS, PROBLEMS)


TINY = "mount -t tmpfs -o size=64k none /dev/shm"
MISSING = (
    "mkdir -p {0} && mount -t tmpfs -o mode=755 none {0} && cp -a /dev/null /dev/zero /dev/random /dev/urandom"
    " /dev/full /dev/tty {0} && ln -s /proc/self/fd {0}/fd && mount --move {0} /dev"
)


@pytest.mark.parametrize(("shared", "size"), [(TINY, 1), (TINY, 2), (MISSING, 1)], ids=["tiny", "tiny-tp", "missing"])
def test_without_shared_memory_the_run_goes_on_or_says_what_to_do(tmp_path: Path, shared: str, size: int) -> None:
    """In a mount namespace of its own, as in a container that was given little of it, or none."""
    mounts = shared.format(tmp_path / "dev")
    if os.geteuid() != 0 or subprocess.run(["unshare", "-m", "bash", "-c", mounts], check=False).returncode:
        pytest.skip("only root may take a process's /dev/shm away")
    within = ["unshare", "-m", "bash", "-c", f'{mounts} && exec "$@"', "bash"]
    typed = [*SWEEP, f"engine.tensor_parallel_size={size}"]
    with running(tmp_path, *typed, within=within) as sweep:
        code = sweep.ends()
        assert "Traceback" not in sweep.output
        if shared == MISSING:
            assert code == 2 and "There is no /dev/shm" in sweep.told and "--shm-size" in sweep.told, sweep.output
            assert sweep.run.record_files() == []
        elif size == 1:
            assert code == 0, sweep.output
            assert_answered_once(sweep.run, POINTS, PROBLEMS)
        else:  # it may do with less than we ask for
            assert code == 0 or "free in /dev/shm" in sweep.told, sweep.output
