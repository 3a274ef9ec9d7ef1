"""The actor that gives back what a run without a driver holds of a standing cluster.

An engine without a driver ends by itself and gives its own placement group back (`remote`). What is left is what has
no engine: a group that still waits for a node, and would make an autoscaled cluster buy one, or whose engine crashed
while nobody looked. One such actor a run, without CPU or GPU; Ray makes it anew where its node dies. It remembers
nothing: all that it needs is the run's folder and the names on the cluster (`lasting`).
"""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

import ray
from ray.exceptions import RayError

from banpick_exp.cluster.backends.lasting import living_engines, places, remove_place
from banpick_exp.cluster.presence import Presence
from banpick_exp.run_folder import RunFolder

MOST_LOOKS_APART = 10.0
"""Seconds."""


class Keeper:
    """Ends itself once there is no driver, no engine and no group of its run."""

    def __init__(self, run_dir: str, run: str, idle_seconds: float) -> None:
        self._run, self._idle_seconds = run, idle_seconds
        self._presence = Presence(RunFolder(Path(run_dir)))
        self._self = ray.get_runtime_context().current_actor
        threading.Thread(target=self._watch, name="keeper", daemon=True).start()

    def keep(self, idle_seconds: float) -> None:
        """From now on for so long without a driver."""
        self._idle_seconds = idle_seconds

    def _watch(self) -> None:
        while True:
            time.sleep(max(0.5, min(MOST_LOOKS_APART, self._idle_seconds / 4)))
            if self._presence.absent_seconds() > self._idle_seconds and not self._clear():
                ray.kill(self._self)
                return

    def _clear(self) -> bool:
        """Give back every group without a living engine; returns whether anything of the run is left."""
        held = {engine.place for engine in living_engines(self._run)}
        standing = {place for place, gone in places(self._run).items() if not gone}
        for place in standing - held:
            remove_place(place)
        return bool(held)


def keep(run_dir: str, run: str, idle_seconds: float) -> None:
    """See to it that a run has a keeper; nothing is waited for."""
    keeper = (
        ray.remote(Keeper)
        .options(name=_name(run), get_if_exists=True, lifetime="detached", num_cpus=0, max_restarts=-1)
        .remote(run_dir, run, idle_seconds)
    )
    keeper.keep.remote(idle_seconds)


def let_go(run: str) -> None:
    """End the keeper of a run, where there is one."""
    with contextlib.suppress(ValueError, RayError):
        ray.kill(ray.get_actor(_name(run)))


def _name(run: str) -> str:
    return f"keeper.{run}"
