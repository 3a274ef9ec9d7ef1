"""Engines of a standing cluster that outlive their driver: how their places are named, found and cleared away.

Actor and placement group are detached, so they stay where a driver ends without a word, for `cluster.idle_seconds`. All
that the next driver must know is in the names, which Ray keeps: the slot, the run (a digest of its folder), a number,
and of the actor a digest of the code it was made from. So nothing is asked of an engine before it is taken over, which
it could not answer while a call of the dead driver runs there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util import list_named_actors
from ray.util.placement_group import PlacementGroup, get_placement_group, placement_group_table, remove_placement_group

import banpick_kernels
from banpick_exp import errors
from banpick_exp.versions import versions


def run_digest(run_dir: str) -> str:
    """Tells runs apart on a cluster: two sweeps may have begun in the same second, and so be named the same."""
    return hashlib.sha256(run_dir.encode()).hexdigest()[:8]


def code_digest() -> str:
    """Of the sources and versions that an engine started now is made from: one of other code may answer otherwise."""
    digest = hashlib.sha256(json.dumps(versions(), sort_keys=True).encode())
    for root in (Path(errors.__file__).parent, *map(Path, banpick_kernels.__path__)):
        for path in sorted(root.rglob("*.py")):
            digest.update(f"{path.relative_to(root)}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:8]


def place_name(slot: str, run: str, number: int) -> str:
    """Of the `number`th placement group of a slot."""
    return f"{slot}.{run}.{number}"


def actor_name(place: str, code: str) -> str:
    return f"{place}.{code}"


@dataclass(frozen=True, slots=True)
class LivingEngine:
    """An actor that another driver of this run has left."""

    slot: str
    number: int
    code: str
    place: str

    @property
    def actor(self) -> str:
        return actor_name(self.place, self.code)


@dataclass(slots=True)
class RunsEngines:
    """What stands on the cluster of one run."""

    run: str
    living: dict[str, LivingEngine] = field(default_factory=dict)
    """By slot, those that can be taken over and were not yet."""
    numbers: dict[str, int] = field(default_factory=dict)
    """By slot, the highest number of a place so far."""

    def find(self) -> None:
        """Look at the cluster; end what no driver can use: groups without an engine, and engines of other code."""
        code, kept = code_digest(), dict[str, LivingEngine]()
        for engine in sorted(living_engines(self.run), key=lambda engine: engine.number):
            if engine.code == code:
                if engine.slot in kept:
                    end(kept[engine.slot])
                kept[engine.slot] = engine
            else:
                end(engine)
        self.living = kept
        for place, gone in places(self.run).items():
            slot, _, number = place.rsplit(".", 2)
            self.numbers[slot] = max(self.numbers.get(slot, 0), int(number))
            if not gone and place not in {engine.place for engine in kept.values()}:
                remove_place(place)

    def take(self, slot: str) -> tuple[Any, PlacementGroup] | None:
        """The living engine of a slot and its group, no longer ours to end; None where there is none."""
        engine = self.living.pop(slot, None)
        if engine is None:
            return None
        try:
            return ray.get_actor(engine.actor), get_placement_group(engine.place)
        except ValueError:  # it ended meanwhile
            remove_place(engine.place)
            return None

    def end_others(self, slots: Collection[str] = ()) -> None:
        """End those that nobody has taken: of the kinds of engine of some slots, or all."""
        kinds = {kind_of(slot) for slot in slots}
        for slot, engine in list(self.living.items()):
            if not slots or kind_of(slot) in kinds:
                del self.living[slot]
                end(engine)


def kind_of(slot: str) -> str:
    """Slots of one engine differ in the number at the end."""
    return slot.rpartition("-")[0]


def living_engines(run: str) -> list[LivingEngine]:
    """Of a run, whoever made them."""
    found = []
    for name in list_named_actors():
        slot, *rest = name.rsplit(".", 3)
        if len(rest) == 3 and rest[0] == run and rest[1].isdecimal():
            found.append(LivingEngine(slot, int(rest[1]), rest[2], place_name(slot, run, int(rest[1]))))
    return found


def places(run: str) -> dict[str, bool]:
    """Placement groups of a run by name, and whether each is gone: Ray remembers those that were removed."""
    found = dict[str, bool]()
    for group in placement_group_table().values():
        slot, *rest = group["name"].rsplit(".", 2)
        if slot and len(rest) == 2 and rest[0] == run and rest[1].isdecimal():
            gone = group["state"] == "REMOVED"
            found[group["name"]] = found.get(group["name"], True) and gone
    return found


def remove_place(place: str) -> None:
    with contextlib.suppress(ValueError, RayError):  # removed by another meanwhile
        remove_placement_group(get_placement_group(place))


def end(engine: LivingEngine) -> None:
    with contextlib.suppress(ValueError, RayError):
        ray.kill(ray.get_actor(engine.actor))
    remove_place(engine.place)
