"""Ray's own processes are given longer to start on this machine than Ray gives them.

What fails without it, on a machine whose cores are busy: a raylet (2.60) waits 15 s, a number in the code, for its two
agents to write into files which ports they listen on, and then aborts (ray-project/ray#65983); and
`ray._private.node.Node` asks for its own raylet for 30 s, and then raises. No run begins. Here the files are there
before the raylet: no port (-1) for the metrics and the dashboard, which is what an installation without their packages
writes and nothing of ours reads, and a free port, which is given to the other agent as well. And the asking is drawn
out. Safe because the agents write the same files when they are up, and the answers and errors are Ray's own.
"""

from __future__ import annotations

import contextlib
import inspect
import socket
import time
from collections.abc import Iterator
from typing import Any

from ray import _raylet
from ray._private import services

START_SECONDS = 180.0
NOT_THERE = -1


@contextlib.contextmanager
def patient() -> Iterator[None]:
    """While the block runs, a node that Ray starts knows its ports, and has START_SECONDS to show itself."""
    start, ask, end = services.start_raylet, services.get_node, time.monotonic() + START_SECONDS

    def start_with_ports(*arguments: Any, **named: Any) -> Any:
        given = inspect.signature(start).bind(*arguments, **named).arguments
        named["runtime_env_agent_port"] = port = given.get("runtime_env_agent_port") or free_port()
        ports = {
            _raylet.METRICS_AGENT_PORT_NAME: given.get("metrics_agent_port") or NOT_THERE,
            _raylet.METRICS_EXPORT_PORT_NAME: given.get("metrics_export_port") or NOT_THERE,
            _raylet.DASHBOARD_AGENT_LISTEN_PORT_NAME: given.get("dashboard_agent_listen_port") or NOT_THERE,
            _raylet.RUNTIME_ENV_AGENT_PORT_NAME: port,
        }
        for name, number in ports.items():
            _raylet.persist_port(given["session_dir"], given["node_id"], name, number)
        return start(*arguments, **named)

    def ask_again(*arguments: Any, **named: Any) -> Any:
        while True:
            try:
                return ask(*arguments, **named)
            except RuntimeError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)

    services.start_raylet, services.get_node = start_with_ports, ask_again
    try:
        yield
    finally:
        services.start_raylet, services.get_node = start, ask


def free_port() -> int:
    """One of loopback that nobody listens on at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
