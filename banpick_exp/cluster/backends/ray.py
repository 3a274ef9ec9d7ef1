"""`cluster=local` and `cluster=standing`: engines as Ray actors, each in a placement group of its own.

Why Ray core and not Ray Tune: reuse there is keyed by placement alone, and a killed driver recomputes every finished
trial.
"""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from banpick_exp.cluster.backends.base import CallFailed, CallT, DoesNotFit, EngineLost
from banpick_exp.cluster.backends.remote import RemoteEngine
from banpick_exp.cluster.config import ClusterConfig
from banpick_exp.cluster.faults import reason_of
from banpick_exp.cluster.room import Node, engines_that_fit
from banpick_exp.engine.config import EngineConfig
from banpick_exp.errors import UserError
from banpick_exp.sweep.point import Point

NAMESPACE = "banpick"
CONNECT_SECONDS = 5
"""How long a cluster's port may take to answer."""
LONGEST_TEMP_DIR = 40
"""Characters: below it Ray puts sockets, whose whole path the kernel limits to 107 bytes."""


@dataclass(frozen=True, slots=True)
class RayCall:
    """A reference that Ray resolves."""

    reference: Any

    def result(self) -> Any:
        try:
            return ray.get(self.reference)
        except RayTaskError as error:
            cause = error.cause if isinstance(error.cause, BaseException) else error
            raise CallFailed(type(cause).__name__, reason_of(cause), str(error)) from error
        except RayError as error:  # a node that leaves is an ActorUnavailableError
            raise EngineLost(f"{type(error).__name__}: {reason_of(error)}") from error


@dataclass(slots=True)
class RaySlot:
    """A placement group, and the actor in it."""

    name: str
    group: PlacementGroup
    cpus: int
    gpus: int
    actor: Any = field(default=None)

    @property
    def occupied(self) -> bool:
        return self.actor is not None

    def start(self, point: Point, run_dir: str) -> RayCall:
        self.occupy(RemoteEngine, point, run_dir)
        return self.call("start")

    def occupy(self, actor_class: type, *arguments: Any) -> None:
        """Create an actor inside this slot's placement group. Ray shows it only its own GPUs."""
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

    def call(self, method: str, *arguments: Any) -> RayCall:
        # Ray titles the process by the running call: `ray::EngineActor.run_point`.
        return RayCall(self.actor.ask.options(name=f"EngineActor.{method}").remote(method, *arguments))

    def stop(self) -> None:
        if self.actor is not None:
            with contextlib.suppress(RayError):
                ray.kill(self.actor)
            self.actor = None

    def release(self) -> None:
        self.stop()
        remove_placement_group(self.group)


class RayBackend:
    """A standing cluster at `cluster.address`, or one started on this machine (explicitly local)."""

    def __init__(self, cluster: ClusterConfig) -> None:
        self._cluster = cluster

    def connect(self) -> None:
        """Raises UserError where the cluster cannot be reached, within CONNECT_SECONDS and in one line."""
        options: dict[str, Any] = {"namespace": NAMESPACE, "log_to_driver": False, "logging_level": "ERROR"}
        address = self._cluster.address
        if address is None:
            options |= {"address": "local", "include_dashboard": False}
            if self._cluster.cpus is not None:
                options["num_cpus"] = self._cluster.cpus
            if short := short_temp_dir():
                options["_temp_dir"] = short
        else:
            check_reachable(address, os.environ.get("RAY_ADDRESS"))
            options["address"] = address
        try:
            ray.init(**options)
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            where = "a Ray cluster on this machine" if address is None else f"the Ray cluster at {address}"
            raise UserError(
                f"{where} could not be {'started' if address is None else 'joined'} ({reason_of(error)}): no engine was"
                " started. Type cluster=inline to run one engine without Ray, or mend the cluster: ray status."
            ) from error

    def close(self) -> None:
        ray.shutdown()

    def wait(self, calls: Sequence[CallT], seconds: float) -> list[CallT]:
        references = {call.reference: call for call in calls}  # type: ignore[attr-defined]
        ready, _ = ray.wait(list(references), timeout=seconds)
        return [references[reference] for reference in ready]

    def room(self, engine: EngineConfig, weight_bytes: float) -> int:
        """See `Backend`, by what the nodes of the cluster say they have."""
        have = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        nodes = [Node(int(h.get("CPU", 0)), int(h.get("GPU", 0)), h.get("memory", 0.0)) for h in have]
        return engines_that_fit(nodes, engine, weight_bytes)

    def reserve(self, names: Sequence[str], engine: EngineConfig) -> list[RaySlot]:
        """As in `Backend`. A standing cluster is given engine.start_timeout_seconds for nodes to join; one on this
        machine does not grow."""
        cpus = engine_cpus(engine, len(names))
        wanted, strategy = bundles(engine, cpus)
        have = {kind: ray.cluster_resources().get(kind, 0) for kind in ("CPU", "GPU")}
        asked = {kind: len(names) * sum(bundle.get(kind, 0) for bundle in wanted) for kind in have}
        refusal = DoesNotFit(
            f"{len(names)} engine(s) of {wanted} ({strategy}) do not fit the cluster, which has {have}: no point could "
            f"start. Use fewer with cluster.engines=1, or smaller ones with engine.gpus or engine.cpus."
        )
        if self._cluster.address is None and any(asked[kind] > have[kind] for kind in have):
            raise refusal
        groups = [placement_group(wanted, strategy=strategy, name=name) for name in names]
        slots = [RaySlot(name, group, cpus, engine.gpus) for name, group in zip(names, groups, strict=True)]
        ready = [group.ready() for group in groups]
        _, waiting = ray.wait(ready, num_returns=len(ready), timeout=engine.start_timeout_seconds)
        if waiting:
            for group in groups:
                remove_placement_group(group)
            raise refusal
        return slots


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


def engine_cpus(engine: EngineConfig, engines: int) -> int:
    """CPU cores of one engine: as asked, else its share of the cluster's when there are so many."""
    if engine.cpus is not None:
        return engine.cpus
    if engine.gpus:
        return max(1, engine.gpus)
    return max(1, int(ray.cluster_resources().get("CPU", 1)) // engines)


def short_temp_dir() -> str | None:
    """A folder for Ray's sockets where that of the machine (TMPDIR) is too long for them, None where it is not."""
    # As Ray chooses it: by name, whether or not there is such a folder.
    chosen = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or tempfile.gettempdir()
    if len(os.fsencode(chosen)) <= LONGEST_TEMP_DIR:
        return None
    return tempfile.mkdtemp(prefix="banpick-ray-", dir="/tmp")


def check_reachable(address: str, ray_address: str | None) -> None:
    """UserError unless something answers at a cluster's address. `ray_address`: RAY_ADDRESS, which `auto` follows."""
    typed = f"cluster.address={address}"
    if address == "auto":
        if not ray_address:
            return
        address, typed = ray_address, f"RAY_ADDRESS={ray_address}"
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(
            f"{typed} is no address of a cluster that a driver can join: no engine was started. Run the command on a"
            " machine of the cluster and type cluster.address=auto, or the head's HOST:PORT (its port is mostly 6379)."
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        raise UserError(
            f"{typed} does not answer ({error.strerror or error}): no engine was started. Start the cluster (ray start"
            " --head), or leave it out and type cluster=local for one on this machine."
        ) from None
