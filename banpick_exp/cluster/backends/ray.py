"""`cluster=local` and `cluster=standing`: engines as Ray actors, each in a placement group of its own.

Why Ray core and not Ray Tune: reuse there is keyed by placement alone, and a killed driver recomputes every finished
trial.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import ray
from ray._private import ray_constants
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from banpick_exp.cluster.backends.base import CallFailed, CallT, DoesNotFit, EngineLost
from banpick_exp.cluster.backends.remote import RemoteEngine
from banpick_exp.cluster.backends.slow_start import patient
from banpick_exp.cluster.config import ClusterConfig
from banpick_exp.cluster.faults import PlaceLost, reason_of
from banpick_exp.cluster.pulse import descendants
from banpick_exp.cluster.room import Node, engines_that_fit
from banpick_exp.cluster.shared_memory import STORE_BYTES, check_there
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
    """A placement group, and the actor in it.

    Each engine after the first has a group made anew: one whose node has gone holds nothing, and Ray puts the new one
    where there is room, now or when a node joins.
    """

    name: str
    group: PlacementGroup
    cpus: int
    gpus: int
    actor: Any = field(default=None)
    engines: int = 0
    """Started so far."""
    stale: bool = False
    """Whether an engine was stopped in the group."""

    lost: bool = False
    """Whether the cluster is gone: nothing may be asked of it."""

    apart: ClassVar[bool] = True

    @property
    def occupied(self) -> bool:
        return self.actor is not None

    def placed(self) -> bool:
        return bool(self.group.wait(timeout_seconds=0))

    def start(self, point: Point, run_dir: str) -> RayCall:
        if self.stale:
            self.take_a_new_place()
        self.occupy(RemoteEngine, point, run_dir, self.name)
        return self.call("start")

    def take_a_new_place(self) -> None:
        """A group like the last one, wherever there is room; nothing is waited for."""
        wanted, strategy = self.group.bundle_specs, self.strategy
        remove_placement_group(self.group)
        self.group, self.stale = placement_group(wanted, strategy=strategy, name=self.name), False

    @property
    def strategy(self) -> str:
        return "PACK" if len(self.group.bundle_specs) > 1 else "STRICT_PACK"

    def occupy(self, actor_class: type, *arguments: Any) -> None:
        """Create an actor inside this slot's placement group. Ray shows it only its own GPUs."""
        spread = len(self.group.bundle_specs) > 1
        self.engines += 1
        self.actor = (
            ray.remote(actor_class)
            .options(
                # The name of one whose node is gone stays taken until Ray has noticed.
                name=f"{self.name}-{self.engines}",
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
            self.actor, self.stale = None, True

    def release(self) -> None:
        if not self.lost:
            self.stop()
            remove_placement_group(self.group)


class RayBackend:
    """A standing cluster at `cluster.address`, or one started on this machine (explicitly local)."""

    def __init__(self, cluster: ClusterConfig) -> None:
        self._cluster = cluster
        self._slots: list[RaySlot] = []
        self._lost = False

    def connect(self) -> None:
        """Raises UserError where the cluster cannot be reached, within CONNECT_SECONDS and in one line."""
        options: dict[str, Any] = {"namespace": NAMESPACE, "log_to_driver": False, "logging_level": "ERROR"}
        address = self._cluster.address
        if address is None:
            options |= {"address": "local", "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
            if self._cluster.cpus is not None:
                options["num_cpus"] = self._cluster.cpus
            if short := short_temp_dir():
                options["_temp_dir"] = short
            options["object_store_memory"] = STORE_BYTES
            check_there()
        else:
            check_reachable(address, os.environ.get("RAY_ADDRESS"))
            options["address"] = address
        try:
            with on_loopback() if address is None else contextlib.nullcontext(), patient():
                ray.init(**options)
        except Exception as error:  # Ray raises it bare where its raylet does not start in time
            where = "a Ray cluster on this machine" if address is None else f"the Ray cluster at {address}"
            raise UserError(
                f"{where} could not be {'started' if address is None else 'joined'} ({reason_of(error)}): no engine was"
                " started. Type cluster=inline to run one engine without Ray, or mend the cluster: ray status."
            ) from error

    def close(self) -> None:
        if not self._lost:
            ray.shutdown()

    def check(self) -> None:
        """Of a cluster that this process has made; one that stands is its owner's, and Ray says when it is gone."""
        node = ray._private.worker._global_node
        if self._cluster.address is None and node is not None and (dead := node.dead_processes()):
            names = ", ".join(sorted({name for name, _ in dead}))
            self._abandon(node)
            raise PlaceLost(f"Ray's own process {names} died, and with it every engine of this machine")

    def _abandon(self, node: Any) -> None:
        """End what is left of our own cluster without asking it: a call to a GCS that is gone takes a minute, and then
        Ray ends this process, before it could report."""
        for slot in self._slots:
            slot.actor, slot.lost = None, True
        self._lost = True
        atexit.unregister(ray.shutdown)
        atexit.register(_leave)
        ours = [pid for _, process in node.live_processes() for pid in descendants(process.pid)]
        node.kill_all_processes(check_alive=False, allow_graceful=False)
        for pid in ours:  # what the raylet started outlives it
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def wait(self, calls: Sequence[CallT], seconds: float) -> list[CallT]:
        if not calls:
            time.sleep(seconds)
            return []
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
        self._slots += slots
        return slots


def _leave() -> None:
    """The end of a driver whose cluster is gone: points are left, so it is 1. Ray's client in this process, which was
    never shut down, would end it with a signal while Python cleans up."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


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
