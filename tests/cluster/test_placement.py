"""Where engines land, on a cluster of fake GPUs: real Ray, real placement groups, devices that only have numbers."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import ray
from ray import cloudpickle
from ray.cluster_utils import Cluster

from banpick_exp.cluster.backends import ray as placement
from banpick_exp.cluster.backends.base import DoesNotFit
from banpick_exp.cluster.backends.bundles import bundles, engine_cpus
from banpick_exp.cluster.backends.slots import RaySlot
from banpick_exp.cluster.config import ClusterConfig
from banpick_exp.engine.config import EngineConfig

pytestmark = pytest.mark.slow

TENSOR_PARALLEL_4 = EngineConfig(tensor_parallel_size=4, gpus=4)
OVER_NODES = EngineConfig(tensor_parallel_size=6, gpus=6, distributed_executor_backend="ray")
STANDING = ClusterConfig(address="auto")
TIMEOUT_SECONDS = 60


class Witness:
    """Stands in for an engine: says where it is and what it may use."""

    def devices(self) -> tuple[str, list[int], str]:
        node = ray.get_runtime_context().get_node_id()
        return node, sorted(map(int, ray.get_gpu_ids())), os.environ.get("CUDA_VISIBLE_DEVICES", "")

    def ranks(self, count: int) -> list[tuple[str, list[int]]]:
        """What vLLM's `ray` backend does: one worker a GPU, from inside the engine's actor."""
        workers = [ray.remote(Witness).options(num_gpus=1, num_cpus=0).remote() for _ in range(count)]
        return [found[:2] for found in ray.get([worker.devices.remote() for worker in workers])]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """One node of 8 fake GPUs; tests may add nodes."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test module
    node = {"num_cpus": 8, "num_gpus": 8, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    ray.init(address=cluster.address, namespace=placement.NAMESPACE, log_to_driver=False, logging_level="ERROR")
    yield cluster
    ray.shutdown()
    cluster.shutdown()
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def reserve(names: list[str], engine: EngineConfig) -> list[RaySlot]:
    """Slots that have their places."""
    slots = placement.RayBackend(STANDING).reserve(names, engine)
    for slot in slots:
        assert awaited(slot.placed), f"no place for {slot.name}"
    return slots


def awaited(what: Callable[[], bool]) -> bool:
    end = time.monotonic() + TIMEOUT_SECONDS
    while not (found := what()) and time.monotonic() < end:
        time.sleep(0.1)
    return found


def ask(slots: list[RaySlot], method: str, *arguments: Any) -> list[Any]:
    for slot in slots:
        slot.occupy(Witness)
    return ray.get([getattr(slot.actor, method).remote(*arguments) for slot in slots], timeout=TIMEOUT_SECONDS)


def test_two_tensor_parallel_engines_have_devices_of_their_own(cluster: Cluster) -> None:
    slots = reserve(["a", "b"], TENSOR_PARALLEL_4)
    try:
        found = ask(slots, "devices")
        assert sorted(device for _, devices, _ in found for device in devices) == list(range(8))
        for _, devices, visible in found:
            assert len(devices) == 4
            assert sorted(map(int, visible.split(","))) == devices, "vLLM sees these and no others"
        assert ray.available_resources().get("GPU", 0) == 0
        first = slots[0].actor
        slots[0].stop()
        deadline = time.monotonic() + TIMEOUT_SECONDS
        with pytest.raises(ray.exceptions.RayActorError):
            while time.monotonic() < deadline:  # the kill is on its way: a call right behind it may still be answered
                ray.get(first.devices.remote(), timeout=TIMEOUT_SECONDS)
        (again,) = ask(slots[:1], "devices")
        assert len(again[1]) == 4 and not {*again[1]} & {*found[1][1]}, "an engine that died comes back to free devices"
    finally:
        for slot in slots:
            slot.release()


def test_as_many_engines_as_the_cluster_has_devices_for(cluster: Cluster) -> None:
    backend = placement.RayBackend(STANDING)
    total = int(ray.cluster_resources()["GPU"])
    assert backend.room(TENSOR_PARALLEL_4, 1e12) == total // 4
    assert backend.room(EngineConfig(gpus=total + 1), 1e12) == 1, "one, so that there is something to refuse"


def test_what_can_never_fit_is_refused_in_words(cluster: Cluster) -> None:
    nine = EngineConfig(tensor_parallel_size=9, gpus=9)
    with pytest.raises(DoesNotFit) as caught:
        placement.RayBackend(STANDING).reserve(["wide"], nine)
    for word in (
        "9 GPU(s) and 9 core(s) on one node",
        "1 x 8 GPU(s) and 8 core(s)",
        "engine.gpus",
        "cluster.grows=true",
    ):
        assert word in str(caught.value)
    assert "distributed_executor_backend" not in str(caught.value), "there are too few on all nodes together"
    over_nodes = nine.model_copy(update={"distributed_executor_backend": "ray"})
    with pytest.raises(DoesNotFit, match=r"takes 9 GPUs, each with a core of its node; the cluster has 1 x 8 GPU"):
        placement.RayBackend(STANDING).reserve(["wide"], over_nodes)
    # A cluster of our own does not grow: three of four GPUs will never all be there, wherever one would do.
    with pytest.raises(DoesNotFit, match=r"3 engine\(s\) .* do not fit this machine"):
        placement.RayBackend(ClusterConfig()).reserve(["a", "b", "c"], TENSOR_PARALLEL_4)
    assert awaited(lambda: ray.available_resources().get("GPU") == ray.cluster_resources()["GPU"]), "nothing is kept"


def test_what_fits_no_node_of_today_waits_where_the_cluster_grows(cluster: Cluster) -> None:
    nine = EngineConfig(tensor_parallel_size=9, gpus=9)
    (slot,) = placement.RayBackend(STANDING.model_copy(update={"grows": True})).reserve(["wide"], nine)
    assert not slot.placed()
    node = cluster.add_node(num_cpus=9, num_gpus=9)
    try:
        assert awaited(slot.placed)
    finally:
        slot.release()
        cluster.remove_node(node)


def test_one_engine_over_nodes_takes_a_gpu_a_bundle(cluster: Cluster) -> None:
    node = cluster.add_node(num_cpus=4, num_gpus=2)
    cluster.wait_for_nodes()
    taken = reserve(["taken"], TENSOR_PARALLEL_4)  # no node has six left
    slots = reserve(["wide"], OVER_NODES)
    try:
        assert slots[0].bundles == [{"CPU": 1, "GPU": 1}] * 6
        (ranks,) = ask(slots, "ranks", 6)
        assert len({(where, *devices) for where, devices in ranks}) == 6, "a device each"
        assert sorted(sum(where == each for where, _ in ranks) for each in {where for where, _ in ranks}) == [2, 4]
    finally:
        for slot in [*taken, *slots]:
            slot.release()
        cluster.remove_node(node)


def test_an_engine_whose_node_is_gone_waits_for_another(cluster: Cluster) -> None:
    full = reserve(["full-a", "full-b"], TENSOR_PARALLEL_4)
    node = cluster.add_node(num_cpus=4, num_gpus=4)
    cluster.wait_for_nodes()
    (slot,) = reserve(["moving"], TENSOR_PARALLEL_4)
    (first,) = ask([slot], "devices")
    cluster.remove_node(node)
    slot.stop()
    slot.take_a_new_place()
    assert not slot.placed(), "no node has four left"
    joined = cluster.add_node(num_cpus=4, num_gpus=4)
    try:
        assert awaited(slot.placed)
        (second,) = ask([slot], "devices")
        assert second[0] != first[0] and len(second[1]) == 4
    finally:
        for each in (slot, *full):
            each.release()
        cluster.remove_node(joined)


def test_bundles_of_each_kind_of_engine() -> None:
    assert bundles(EngineConfig(), 2) == ([{"CPU": 2}], "STRICT_PACK")
    assert bundles(TENSOR_PARALLEL_4, 4) == ([{"CPU": 4, "GPU": 4}], "STRICT_PACK")
    assert bundles(OVER_NODES, 6) == ([{"CPU": 1, "GPU": 1}] * 6, "PACK")
    one = EngineConfig(gpus=1, distributed_executor_backend="ray")
    assert bundles(one, 1) == ([{"CPU": 1, "GPU": 1}], "STRICT_PACK"), "one rank has nothing to spread"


def test_cores_of_an_engine() -> None:
    assert engine_cpus(EngineConfig(cpus=3), 2, []) == 3
    assert engine_cpus(TENSOR_PARALLEL_4, 1, []) == 4
    assert engine_cpus(EngineConfig(), 2, [{"CPU": 8}]) == 4
    assert engine_cpus(EngineConfig(), 1, [{"CPU": 4}, {"CPU": 4}]) == 4, "an engine is on one node"
    assert engine_cpus(EngineConfig(), 2, [{"CPU": 8}, {"CPU": 2}]) == 4, "both fit"
    assert engine_cpus(EngineConfig(), 1000, [{"CPU": 8}]) == 1
