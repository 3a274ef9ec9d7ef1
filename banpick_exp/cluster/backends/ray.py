"""Where engines go: placement groups, named actors, the devices each one gets."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from banpick_exp.cluster.config import ClusterConfig
from banpick_exp.engine.config import EngineConfig

NAMESPACE = "banpick"


class DoesNotFit(RuntimeError):
    """The cluster is too small for the engines that were asked for. The message says what to type."""


@dataclass(slots=True)
class Slot:
    """One place for an engine, and the actor in it."""

    name: str
    group: PlacementGroup
    cpus: int
    gpus: int
    actor: Any = field(default=None)

    def start_actor(self, actor_class: type, *arguments: Any) -> None:
        """Create the actor inside this slot's placement group. Ray shows it only its own GPUs."""
        spread = len(self.group.bundle_specs) > 1
        self.actor = (
            ray.remote(actor_class)
            .options(
                name=self.name,
                num_cpus=0 if spread else self.cpus,
                num_gpus=0 if spread else self.gpus,
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    self.group,
                    # vLLM's own `ray` workers then take the GPU bundles of the same group.
                    placement_group_capture_child_tasks=spread,
                ),
            )
            .remote(*arguments)
        )

    def stop_actor(self) -> None:
        """End the actor's process; the slot can be used again."""
        if self.actor is not None:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.kill(self.actor)
            self.actor = None

    def release(self) -> None:
        self.stop_actor()
        remove_placement_group(self.group)


def connect(cluster: ClusterConfig) -> None:
    """Join the standing cluster at `cluster.address`, or start one on this machine (explicitly local)."""
    options: dict[str, Any] = {"namespace": NAMESPACE, "log_to_driver": False, "logging_level": "ERROR"}
    if cluster.address is None:
        options |= {"address": "local", "include_dashboard": False}
        if cluster.cpus is not None:
            options["num_cpus"] = cluster.cpus
    else:
        options["address"] = cluster.address
    ray.init(**options)


def bundles(engine: EngineConfig, cpus: int) -> tuple[list[dict[str, float]], str]:
    """Resources of one engine and how to pack them.

    One bundle on one node, unless vLLM's `ray` backend spreads the ranks: then one GPU a bundle, packed as tight as
    the nodes allow.
    """
    if engine.distributed_executor_backend == "ray" and engine.gpus > 1:
        return [{"CPU": 1, "GPU": 1} for _ in range(engine.gpus)], "PACK"
    bundle: dict[str, float] = {"CPU": cpus}
    if engine.gpus:
        bundle["GPU"] = engine.gpus
    return [bundle], "STRICT_PACK"


def engine_cpus(engine: EngineConfig, cluster: ClusterConfig) -> int:
    """CPU cores of one engine: as asked, else its share of the cluster's."""
    if engine.cpus is not None:
        return engine.cpus
    if engine.gpus:
        return max(1, engine.gpus)
    return max(1, int(ray.cluster_resources().get("CPU", 1)) // cluster.engines)


def reserve(names: list[str], engine: EngineConfig, cluster: ClusterConfig, timeout_seconds: float) -> list[Slot]:
    """One slot a name. Raises DoesNotFit when the cluster cannot hold them, with what it has and what was asked.

    A standing cluster is given `timeout_seconds` for nodes to join; one on this machine does not grow.
    """
    cpus = engine_cpus(engine, cluster)
    wanted, strategy = bundles(engine, cpus)
    have = {kind: ray.cluster_resources().get(kind, 0) for kind in ("CPU", "GPU")}
    asked = {kind: len(names) * sum(bundle.get(kind, 0) for bundle in wanted) for kind in have}
    refusal = DoesNotFit(
        f"{len(names)} engine(s) of {wanted} ({strategy}) do not fit the cluster, which has {have}: no point could "
        f"start. Use fewer with cluster.engines=1, or smaller ones with engine.gpus or engine.cpus."
    )
    if cluster.address is None and any(asked[kind] > have[kind] for kind in have):
        raise refusal
    slots = [Slot(name, placement_group(wanted, strategy=strategy, name=name), cpus, engine.gpus) for name in names]
    _, waiting = ray.wait([s.group.ready() for s in slots], num_returns=len(slots), timeout=timeout_seconds)
    if waiting:
        for slot in slots:
            remove_placement_group(slot.group)
        raise refusal
    return slots
