"""Five nodes of eight fake GPUs: engines of two sizes at once land where vLLM can use them, and nothing overlaps."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import pytest
import ray
from ray import cloudpickle
from ray.cluster_utils import Cluster

from banpick_exp.cluster.backends.ray import NAMESPACE, RayBackend
from banpick_exp.cluster.backends.slots import RaySlot
from banpick_exp.cluster.config import ClusterConfig
from banpick_exp.engine.config import EngineConfig

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(900)]

STANDING = ClusterConfig(address="auto")
NODES, DEVICES = 5, 8
TENSOR_PARALLEL_4 = EngineConfig(tensor_parallel_size=4, gpus=4)
TENSOR_PARALLEL_16 = EngineConfig(tensor_parallel_size=16, gpus=16, distributed_executor_backend="ray")
TIMEOUT_SECONDS = 120
Devices = tuple[str, list[int]]
"""A node, and what CUDA_VISIBLE_DEVICES says in a process on it."""


class Witness:
    """Stands in for an engine: says where it is and what it may use."""

    def devices(self) -> Devices:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        return ray.get_runtime_context().get_node_id(), sorted(int(each) for each in visible.split(",") if each)

    def ranks(self, count: int) -> list[Devices]:
        """What vLLM's `ray` backend does: one worker a GPU, from inside the engine's actor."""
        workers = [ray.remote(Witness).options(num_gpus=1, num_cpus=0).remote() for _ in range(count)]
        return ray.get([worker.devices.remote() for worker in workers])


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test module
    node = {"num_cpus": 16, "num_gpus": DEVICES}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    for _ in range(NODES - 1):
        cluster.add_node(**node)
    ray.init(address=cluster.address, namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR")
    cluster.wait_for_nodes()
    yield cluster
    ray.shutdown()
    cluster.shutdown()
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def awaited(what: Callable[[], bool]) -> bool:
    end = time.monotonic() + TIMEOUT_SECONDS
    while not (found := what()) and time.monotonic() < end:
        time.sleep(0.1)
    return found


def devices(slots: Sequence[RaySlot]) -> list[Devices]:
    for slot in slots:
        assert awaited(slot.placed), f"no place for {slot.name}"
        slot.occupy(Witness)
    return ray.get([slot.actor.devices.remote() for slot in slots], timeout=TIMEOUT_SECONDS)


def release(slots: Sequence[RaySlot]) -> None:
    for slot in slots:
        slot.release()
    assert awaited(lambda: ray.available_resources().get("GPU", 0) == ray.cluster_resources()["GPU"])


def test_six_of_four_and_one_of_sixteen_fill_the_cluster(cluster: Cluster) -> None:
    backend = RayBackend(STANDING)
    begin = time.monotonic()
    (wide,) = backend.reserve(["wide"], TENSOR_PARALLEL_16)
    narrow = backend.reserve([f"narrow-{i}" for i in range(7)], TENSOR_PARALLEL_4)
    assert time.monotonic() - begin < 10, "nothing is waited for"
    seventh, node = narrow.pop(), None
    try:
        found = devices(narrow)
        assert all(len(visible) == 4 for _, visible in found), "four each, and so on one node"
        assert awaited(wide.placed)
        wide.occupy(Witness)
        ranks = ray.get(wide.actor.ranks.remote(16), timeout=TIMEOUT_SECONDS)
        assert sorted(Counter(node for node, _ in ranks).values()) == [8, 8], "two whole nodes"
        assert all(len(visible) == 1 for _, visible in ranks)
        used = Counter((node, device) for node, visible in [*found, *ranks] for device in visible)
        assert set(used.values()) == {1} and len(used) == NODES * DEVICES, "no device twice, none free"

        assert not seventh.placed(), "no room, so it waits"
        node_of_first = found[0]
        narrow[0].release()
        assert devices([seventh]) == [node_of_first], "and takes the place that was given back"

        (eighth,) = backend.reserve(["narrow-8"], TENSOR_PARALLEL_4)
        narrow.append(eighth)
        time.sleep(1)
        assert not eighth.placed()
        node = cluster.add_node(num_cpus=16, num_gpus=DEVICES)
        ((where, visible),) = devices([eighth])
        assert where == node.node_id and len(visible) == 4, "a node that joined starts what waited"
    finally:
        release([wide, *narrow, seventh])
        if node is not None:
            cluster.remove_node(node)


def test_small_engines_fill_a_node_before_they_begin_another(cluster: Cluster) -> None:
    """Left to itself Ray puts six of them on five nodes, and one of sixteen then lies on four."""
    backend = RayBackend(STANDING)
    narrow = backend.reserve([f"narrow-{i}" for i in range(6)], TENSOR_PARALLEL_4)
    wide: list[RaySlot] = []
    try:
        assert sorted(Counter(node for node, _ in devices(narrow)).values()) == [2, 2, 2]
        wide = backend.reserve(["wide"], TENSOR_PARALLEL_16)
        assert awaited(wide[0].placed)
        wide[0].occupy(Witness)
        ranks = ray.get(wide[0].actor.ranks.remote(16), timeout=TIMEOUT_SECONDS)
        assert sorted(Counter(node for node, _ in ranks).values()) == [8, 8]
    finally:
        release([*narrow, *wide])
