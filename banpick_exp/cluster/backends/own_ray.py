"""A Ray cluster of this machine alone, for one run: how it starts, and how it is left once a process of it died."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import ray
from ray._private import ray_constants

from banpick_exp.cluster.pulse import descendants
from banpick_exp.cluster.shared_memory import STORE_BYTES

LONGEST_TEMP_DIR = 40
"""Characters: below it Ray puts sockets, whose whole path the kernel limits to 107 bytes."""


def options_here(cpus: int | None) -> dict[str, Any]:
    """What `ray.init` is told, within `on_loopback`."""
    options: dict[str, Any] = {"address": "local", "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    options["object_store_memory"] = STORE_BYTES
    if cpus is not None:
        options["num_cpus"] = cpus
    if short := short_temp_dir():
        options["_temp_dir"] = short
    return options


@contextlib.contextmanager
def on_loopback() -> Iterator[None]:
    """Ray's own servers listen on 127.0.0.1 alone, for a cluster of this machine.

    What fails without it: GCS and raylet listen on every interface, and who reaches them runs code as this user. Naming
    the address is not enough: `ray._private.services.resolve_ip_for_localhost` (2.60) replaces 127.0.0.1 by the
    machine's outer one, unless this constant says that there is no cluster of several machines, as it does by default
    on macOS and Windows. Safe because the address is then given to every process of the node by its command line.
    """
    kept = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = kept


def short_temp_dir() -> str | None:
    """A folder for Ray's sockets where that of the machine (TMPDIR) is too long for them, None where it is not."""
    # As Ray chooses it: by name, whether or not there is such a folder.
    chosen = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or tempfile.gettempdir()
    if len(os.fsencode(chosen)) <= LONGEST_TEMP_DIR:
        return None
    return tempfile.mkdtemp(prefix="banpick-ray-", dir="/tmp")


def dead_processes() -> list[str]:
    """Names of Ray's own processes that this process started and that are gone."""
    node = ray._private.worker._global_node
    return [] if node is None else sorted({name for name, _ in node.dead_processes()})


def abandon() -> None:
    """End what is left of our own cluster without asking it: a call to a GCS that is gone takes a minute, and then Ray
    ends this process, before it could report."""
    node = ray._private.worker._global_node
    atexit.unregister(ray.shutdown)
    atexit.register(_leave)
    ours = [pid for _, process in node.live_processes() for pid in descendants(process.pid)]
    node.kill_all_processes(check_alive=False, allow_graceful=False)
    for pid in ours:  # what the raylet started outlives it
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _leave() -> None:
    """The end of a driver whose cluster is gone: points are left, so it is 1. Ray's client in this process, which was
    never shut down, would end it with a signal while Python cleans up."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
