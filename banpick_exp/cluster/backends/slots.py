"""One place for an engine on a Ray cluster: a placement group, and the actor in it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from banpick_exp.cluster.backends.base import CallFailed, EngineLost
from banpick_exp.cluster.backends.bundles import Resources
from banpick_exp.cluster.backends.lasting import RunsEngines, actor_name, code_digest, place_name
from banpick_exp.cluster.backends.remote import RemoteEngine
from banpick_exp.cluster.faults import reason_of
from banpick_exp.sweep.point import Point

PATIENCE_SECONDS = 5.0
"""That a place may take to come before room is made for it: where there is some, it comes in much less."""


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


@dataclass(frozen=True, slots=True)
class Lasting:
    """Of engines on a standing cluster: what of their run stands there, and for how long they outlive their driver."""

    engines: RunsEngines
    idle_seconds: float
    """0: not at all."""

    @property
    def lifetime(self) -> str | None:
        """As Ray calls it."""
        return "detached" if self.idle_seconds > 0 else None


@dataclass(slots=True)
class RaySlot:
    """A placement group, and the actor in it.

    The group is asked for at once and comes when there is room (`placed`). Each engine after the first has a group made
    anew: one whose node has gone holds nothing, and Ray puts the new one where there is room, now or when a node joins.
    """

    name: str
    bundles: Sequence[Resources]
    strategy: str
    lasting: Lasting | None = None
    """None on a cluster that ends with the driver."""

    group: PlacementGroup | None = None
    actor: Any = None
    left_by_another: Any = None
    """The actor of a driver that is gone, until `start` takes it over."""
    number: int = 0
    """Of the group, counted over all drivers of the run where engines last."""
    asked: float = 0.0
    """When the group was asked for, on the monotonic clock."""
    stale: bool = False
    """Whether an engine was stopped in the group."""
    over: bool = False
    """Whether nothing is asked of the cluster for it any more: it is given back or left, or the cluster is gone."""
    left: bool = False
    """Whether its engine stays on the cluster."""

    apart: ClassVar[bool] = True

    @property
    def occupied(self) -> bool:
        return self.actor is not None

    # ------------------------------------------------------------ its place

    def ask_for_place(self, node: str | None = None) -> None:
        """A group wherever there is room, on `node` where that has some; nothing is waited for."""
        lasting = self.lasting
        numbers = {} if lasting is None else lasting.engines.numbers
        self.number = numbers[self.name] = numbers.get(self.name, self.number) + 1
        self.group = placement_group(
            [dict(bundle) for bundle in self.bundles],
            strategy=self.strategy,
            name=self.place,
            lifetime=None if lasting is None else lasting.lifetime,
            _soft_target_node_id=node if self.strategy == "STRICT_PACK" else None,
        )
        self.asked, self.stale = time.monotonic(), False

    @property
    def place(self) -> str:
        """The group's name; of one whose node is gone it stays taken until Ray has noticed, so each has another."""
        run = "" if self.lasting is None else self.lasting.engines.run
        return place_name(self.name, run, self.number)

    def take_a_new_place(self) -> None:
        """A group like the last one, wherever there is room."""
        assert self.group is not None
        remove_placement_group(self.group)
        self.ask_for_place()

    def take_over(self) -> bool:
        """Whether an engine of an earlier driver stands for this slot: `start` then needs no load."""
        found = None if self.lasting is None else self.lasting.engines.take(self.name)
        if found is not None:
            self.left_by_another, self.group = found
        return found is not None

    def placed(self) -> bool:
        assert self.group is not None
        # Not `group.wait(0)`: over a network, or under load, it says no before the cluster has answered.
        placed = placement_group_table(self.group).get("state") == "CREATED"
        if not placed and self.lasting is not None and time.monotonic() - self.asked > PATIENCE_SECONDS:
            self.lasting.engines.end_others()  # what nobody took over must not stand in the way
        return placed

    # ------------------------------------------------------------ its engine

    def start(self, point: Point, run_dir: str) -> RayCall:
        if self.left_by_another is not None:
            assert self.lasting is not None
            self.actor, self.left_by_another = self.left_by_another, None
            self.actor.keep.remote(self.lasting.idle_seconds)
            return self.call("start")
        if self.stale:
            self.take_a_new_place()
        stays = None if self.lasting is None else self.lasting.idle_seconds or None
        self.occupy(RemoteEngine, point, run_dir, self.name, stays)
        return self.call("start")

    def occupy(self, actor_class: type, *arguments: Any) -> None:
        """Create an actor inside this slot's placement group. Ray shows it only its own GPUs."""
        spread = len(self.bundles) > 1
        bundle = self.bundles[0]
        self.actor = (
            ray.remote(actor_class)
            .options(
                name=self.place if self.lasting is None else actor_name(self.place, code_digest()),
                lifetime=None if self.lasting is None else self.lasting.lifetime,
                num_cpus=0 if spread else bundle.get("CPU", 0),
                num_gpus=0 if spread else bundle.get("GPU", 0),
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
        for actor in (self.actor, self.left_by_another):
            if actor is not None:
                with contextlib.suppress(RayError):
                    ray.kill(actor)
                self.stale = True
        self.actor = self.left_by_another = None

    def release(self) -> None:
        if not self.over:
            self.stop()
            assert self.group is not None
            remove_placement_group(self.group)
            self.over = True

    def leave(self) -> bool:
        """Leave the engine for the next driver, where it is one that lasts and has a place; else `release`."""
        if self.over:
            return False
        lasts = self.lasting is not None and self.lasting.lifetime is not None
        there = self.actor is not None or self.left_by_another is not None
        if lasts and there and self.placed():
            self.over = self.left = True
        else:
            self.release()
        return self.left
