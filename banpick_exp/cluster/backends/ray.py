"""`cluster=local` and `cluster=standing`: engines as Ray actors, each in a placement group of its own.

Why Ray core and not Ray Tune: reuse there is keyed by placement alone, and a killed driver recomputes every finished
trial.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

import ray
from ray._private.state import available_resources_per_node

from banpick_exp.cluster.backends import own_ray
from banpick_exp.cluster.backends.base import CallT, DoesNotFit
from banpick_exp.cluster.backends.bundles import bundles, engine_cpus, fits_empty, less, never_fits, tightest
from banpick_exp.cluster.backends.joining import check_reachable, check_token, stderr_held, token_refused
from banpick_exp.cluster.backends.keeper import keep, let_go
from banpick_exp.cluster.backends.lasting import RunsEngines, run_digest
from banpick_exp.cluster.backends.slots import Lasting, RaySlot
from banpick_exp.cluster.backends.slow_start import patient
from banpick_exp.cluster.config import ClusterConfig
from banpick_exp.cluster.faults import PlaceLost, reason_of
from banpick_exp.cluster.room import Node, engines_that_fit
from banpick_exp.cluster.shared_memory import check_there
from banpick_exp.engine.config import EngineConfig
from banpick_exp.errors import UserError

NAMESPACE = "banpick"
REMEDY = "Type cluster=inline to run one engine without Ray, or mend the cluster: ray status."


class RayBackend:
    """A standing cluster at `cluster.address`, or one started on this machine (explicitly local)."""

    def __init__(self, cluster: ClusterConfig) -> None:
        self._cluster = cluster
        self._slots: list[RaySlot] = []
        self._lost = False
        self._lasting: Lasting | None = None

    # ------------------------------------------------------------ the cluster

    def connect(self, run_dir: str) -> None:
        """Raises UserError where the cluster cannot be reached, within CONNECT_SECONDS and in one line."""
        address = self._cluster.address
        if address is None:
            options = own_ray.options_here(self._cluster.cpus)
            check_there()
        else:
            check_reachable(address, os.environ.get("RAY_ADDRESS"))
            check_token()
            options = {"address": address}
        try:
            with own_ray.on_loopback() if address is None else stderr_held(), patient():
                ray.init(namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR", **options)
        except Exception as error:  # Ray raises it bare where its raylet does not start in time
            where = "a Ray cluster on this machine" if address is None else f"the Ray cluster at {address}"
            why = token_refused(error)
            remedy = "" if why else f" {REMEDY}"
            raise UserError(
                f"{where} could not be {'started' if address is None else 'joined'} ({why or reason_of(error)}): no"
                f" engine was started.{remedy}"
            ) from error
        if address is not None:
            self._look_for_engines(run_dir)

    def _look_for_engines(self, run_dir: str) -> None:
        """What an earlier driver of this run has left on a standing cluster."""
        engines = RunsEngines(run_digest(run_dir))
        engines.find()
        self._lasting = Lasting(engines, self._cluster.idle_seconds)
        if self._lasting.lifetime is None:
            let_go(engines.run)
        else:
            keep(run_dir, engines.run, self._cluster.idle_seconds)

    def close(self) -> None:
        if self._lost:
            return
        if self._lasting is not None:
            self._lasting.engines.end_others()
            if not any(slot.left for slot in self._slots):  # else it waits for them to end
                let_go(self._lasting.engines.run)
        ray.shutdown()

    def leave(self) -> str:
        stay = sum([slot.leave() for slot in self._slots])
        if not stay:
            return ""
        return (
            f"{stay} engine(s) stay loaded on the cluster for cluster.idle_seconds={self._cluster.idle_seconds:g}: who"
            " goes on until then needs no load"
        )

    def check(self) -> None:
        """Of a cluster that this process has made; one that stands is its owner's, and Ray says when it is gone."""
        if self._cluster.address is None and (dead := own_ray.dead_processes()):
            for slot in self._slots:
                slot.actor, slot.over = None, True
            self._lost = True
            own_ray.abandon()
            names = ", ".join(dead)
            raise PlaceLost(f"Ray's own process {names} died, and with it every engine of this machine")

    def wait(self, calls: Sequence[CallT], seconds: float) -> list[CallT]:
        if not calls:
            time.sleep(seconds)
            return []
        references = {call.reference: call for call in calls}  # type: ignore[attr-defined]
        ready, _ = ray.wait(list(references), timeout=seconds)
        return [references[reference] for reference in ready]

    # ------------------------------------------------------------ room on it

    def room(self, engine: EngineConfig, weight_bytes: float) -> int:
        """See `Backend`, by what the nodes of the cluster say they have."""
        have = _nodes()
        nodes = [Node(int(h.get("CPU", 0)), int(h.get("GPU", 0)), h.get("memory", 0.0)) for h in have]
        return engines_that_fit(nodes, engine, weight_bytes)

    def reserve(self, names: Sequence[str], engine: EngineConfig) -> list[RaySlot]:
        """As in `Backend`: at once, with places that come when there is room. Living engines of an earlier driver of
        the run are taken over under their names."""
        nodes = _nodes()
        wanted, strategy = bundles(engine, engine_cpus(engine, len(names), nodes))
        self._refuse_what_never_fits(names, engine, wanted, nodes)
        slots = [RaySlot(name, wanted, strategy, self._lasting) for name in names]
        self._slots += slots
        waiting = [slot for slot in slots if not slot.take_over()]
        if self._lasting is not None:
            self._lasting.engines.end_others(names)
        free = available_resources_per_node()
        for slot in waiting:
            node = tightest(wanted[0], free)
            slot.ask_for_place(node)
            if node is not None:
                free[node] = less(free[node], wanted[0])
        return slots

    def _refuse_what_never_fits(
        self, names: Sequence[str], engine: EngineConfig, wanted: list[dict[str, float]], nodes: list[dict[str, float]]
    ) -> None:
        if self._cluster.address is not None:
            if not fits_empty(wanted, nodes) and not self._cluster.grows and not _autoscaled():
                raise DoesNotFit(never_fits(engine, wanted, nodes))
            return
        have = {kind: sum(node.get(kind, 0) for node in nodes) for kind in ("CPU", "GPU")}
        asked = {kind: len(names) * sum(bundle.get(kind, 0) for bundle in wanted) for kind in have}
        if any(asked[kind] > have[kind] for kind in have) or not fits_empty(wanted, nodes):
            raise DoesNotFit(
                f"{len(names)} engine(s) of {wanted} do not fit this machine, which has {have}: no point could start."
                f" Use fewer with cluster.engines=1, or smaller ones with engine.gpus or engine.cpus."
            )


def _nodes() -> list[dict[str, float]]:
    """What each living node of the cluster has, whoever uses it."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _autoscaled() -> bool:
    """Whether an autoscaler has told the cluster what it may grow to. Not all do: `cluster.grows` says it for them."""
    return ray._private.state.state.get_max_resources_from_cluster_config() is not None
