"""Nodes that go while a sweep runs on them: two real Ray nodes on this machine, a real engine, a driver that joined."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster
from running_sweep import RunningSweep, assert_answered_once, assert_nothing_left, descendants, running

from banpick_exp.cluster.backends.slow_start import patient

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(3600)]

SWEEP = [
    "policy=top_p", "policy.p=range(0.30,0.89,0.02)", "task.max_problems=10", "task.speed_seconds=2",
    "cluster=standing", "cluster.engines=1", "engine.cpus=1", "cluster.dead_seconds=30",
    "search.ladder=none",
]  # fmt: skip
POINTS, PROBLEMS = 31, 30
"""So many that a fast machine is not through before the loss of a node is noticed: Ray takes up to half a minute."""
NODE = {"num_cpus": 1, "object_store_memory": 128 * 1024**2}


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head that has no room for an engine, and two nodes that have room for one each."""
    head = {**NODE, "num_cpus": 0, "include_dashboard": False}
    with patient():
        cluster = Cluster(initialize_head=True, head_node_args=head)
    yield cluster
    cluster.shutdown()


def raylet_of(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


def node_of(engine: int, nodes: list[Any]) -> Any:
    """The one whose raylet is above an engine."""
    (found,) = [node for node in nodes if engine in descendants(raylet_of(node))]
    return found


def engine_after(sweep: RunningSweep, lost: int) -> int:
    """The pid of the engine, once it was loaded again so many times."""

    def found() -> int | None:
        living = list(sweep.engines().values())
        return living[0] if living and len(sweep.events("engine_ready")) > lost else None

    return sweep.until(found)


def test_a_sweep_outlives_the_nodes_it_runs_on(cluster: Cluster, tmp_path: Path) -> None:
    with patient():
        nodes = [cluster.add_node(**NODE), cluster.add_node(**NODE)]
    cluster.wait_for_nodes()
    with running(tmp_path, *SWEEP, f"cluster.address={cluster.address}") as sweep:
        sweep.until_points(2)  # on the first: its raylet is killed, and with it the node
        first = node_of(engine_after(sweep, 0), nodes)
        os.kill(raylet_of(first), signal.SIGKILL)
        engine_after(sweep, 1)
        done = len(sweep.events("point_done"))
        sweep.until_points(done + 1)  # on the second: the node is taken away, and one joins
        nodes.remove(first)
        (second,) = nodes
        cluster.remove_node(second, allow_graceful=True)
        sweep.until(lambda: sweep.events("engine_lost")[1:] or None)
        with patient():
            third = cluster.add_node(**NODE)
        assert node_of(engine_after(sweep, 2), [third]) is third
        assert sweep.ends() == 0, sweep.output
        assert "Traceback" not in sweep.output and len(sweep.events("engine_lost")) == 2
    assert_answered_once(sweep.run, POINTS, PROBLEMS)
    assert_nothing_left(tmp_path, descendants(sweep.process.pid))
