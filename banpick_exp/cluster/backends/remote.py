"""The process that Ray makes for an engine: a name that the driver can give without importing torch."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from banpick_exp.cluster.answers import Started, Together
from banpick_exp.cluster.presence import Presence
from banpick_exp.cluster.pulse import beating
from banpick_exp.disk import create_folder
from banpick_exp.records import CorruptRecord, MissingOutcomes
from banpick_exp.run_folder import RunFolder

if TYPE_CHECKING:
    from banpick_exp.records import PointRecord
    from banpick_exp.sweep.point import Point

LONGEST_CALL_SECONDS = 3600.0
"""That a call which a dead driver began may go on beyond `idle_seconds`: what it writes counts, but it may hang."""
LAST_SECONDS = 10.0
"""For a cluster to take an engine's place back; then the process ends anyway."""


class RemoteEngine:
    """An `EngineActor`, made where it runs."""

    def __init__(self, point: Point, run_dir: str, name: str, idle_seconds: float | None = None) -> None:
        """`name`: of the engine's slot, after which its log and its signs of life are named.

        `idle_seconds`: how long it stays without a driver; None for one that ends with its driver.
        """
        os.umask(os.umask(0o077) | 0o002)  # a standing cluster's may be 0, and all that is made here lies in the run
        self._folder = RunFolder(Path(run_dir))
        self._life = contextlib.ExitStack()
        self._life.enter_context(beating(self._folder, name))
        _print_into(self._folder.log_path(name))
        self._started: Started | None = None
        self._failed_to_start = False
        self._busy, self._quiet_since = False, time.monotonic()
        self._idle_seconds = idle_seconds
        if idle_seconds is not None:
            import ray

            own = ray.util.get_current_placement_group()
            threading.Thread(target=self._end_without_driver, args=(own,), name="idle", daemon=True).start()

        from banpick_exp.cluster.actor import EngineActor

        self._actor = EngineActor(point, run_dir)

    def ask(self, method: str, *arguments: Any) -> Any:
        """What a method of the actor answers."""
        with self._at_work():
            if method == "start":
                return self._start()
            if method == "run_point" and (record := self._recorded(arguments[0])) is not None:
                return record
            if method == "run_together":
                return self._together(*arguments)
            return getattr(self._actor, method)(*arguments)

    def keep(self, idle_seconds: float) -> None:
        """From now on stay for so long without a driver: the next one may say otherwise."""
        self._idle_seconds = idle_seconds
        self._quiet_since = time.monotonic()

    def _start(self) -> Started:
        """Loads once; for a driver that takes the engine over, what the load had to say."""
        if self._started is not None:
            return replace(self._started, attached=True, load_seconds=0.0, verify_seconds=0.0)
        if self._failed_to_start:
            os._exit(1)  # its driver died before it heard of it; half an engine is of no use to the next
        try:
            self._started = self._actor.start()
        except BaseException:
            self._failed_to_start = True
            raise
        return self._started

    def _together(self, method: Any, calls: Sequence[tuple[Any, ...]]) -> Together:
        recorded = (self._recorded(call[0]) for call in calls if method == "run_point")
        there = {record.fingerprint: record for record in recorded if record is not None}
        left = [call for call in calls if call[0].fingerprint not in there]
        if not left:
            return Together(answers=there, pays=None, said="")
        found = self._actor.run_together(method, left)
        return replace(found, answers={**there, **found.answers})

    def _recorded(self, point: Point) -> PointRecord | None:
        """A point that was still running here when its driver died, and finished since: it is not measured twice."""
        try:
            record = self._folder.read_point(point.fingerprint)
        except (OSError, CorruptRecord, MissingOutcomes):
            return None
        return None if record.status == "failed" else record

    @contextlib.contextmanager
    def _at_work(self) -> Iterator[None]:
        self._busy = True
        try:
            yield
        finally:
            self._busy, self._quiet_since = False, time.monotonic()

    # ------------------------------------------------------------ without a driver

    def _end_without_driver(self, own_place: Any) -> None:
        presence = Presence(self._folder)
        while True:
            idle_seconds = self._idle_seconds or 0.0
            time.sleep(max(0.5, min(5.0, idle_seconds / 4)))
            absent = presence.absent_seconds()
            if self._busy:
                over = absent > idle_seconds + LONGEST_CALL_SECONDS
            else:
                over = min(absent, time.monotonic() - self._quiet_since) > idle_seconds
            if over:
                print(
                    f"no driver for {absent:.0f} s (cluster.idle_seconds={idle_seconds:g}): this engine ends",
                    flush=True,
                )
                self._end(own_place)

    def _end(self, own_place: Any) -> None:
        """Give the place back, which ends this process, and end it whatever becomes of that."""
        self._life.close()
        threading.Thread(target=_give_back, args=(own_place,), daemon=True).start()
        time.sleep(LAST_SECONDS)
        os._exit(0)


def _give_back(place: Any) -> None:
    from ray.util import remove_placement_group

    remove_placement_group(place)


def _print_into(log: Path) -> None:
    """What this process and those it starts write goes to a file of the run, which every machine of it can read."""
    create_folder(log.parent)
    with log.open("ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
