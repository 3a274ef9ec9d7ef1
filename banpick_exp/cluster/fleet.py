"""The driver's loop: engines of all kinds side by side, as far as the place has room for them.

Every kind asks for its places at the beginning, the largest first, and a slot waits until its place is there. An engine
for which nothing is left is closed, so that its cores or GPUs go on to those that wait. A kind whose engines do not
load, cannot be kept running or get no room is given up alone; the others go on.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal

from banpick_exp.cluster import stop_request
from banpick_exp.cluster.backends.base import DoesNotFit
from banpick_exp.cluster.calibrating import engines_of_use
from banpick_exp.cluster.dispatch import EngineGroup, Supplies
from banpick_exp.cluster.kinds import Kind
from banpick_exp.cluster.shares import claim_of, granted
from banpick_exp.engine.config import EngineConfig
from banpick_exp.sweep.estimate import weight_bytes

POLL_SECONDS = 0.5
WATCH_SECONDS = 2.0
"""Between two looks at the engines' signs of life, the place they run in and a request to stop."""


class Fleet:
    """All engines of a run."""

    def __init__(self, supplies: Supplies, kinds: Sequence[Kind], engines: int | Literal["auto"]) -> None:
        """`kinds`: the largest engine first; `engines`: of each kind side by side, `cluster.engines`."""
        self._with, self._backend = supplies, supplies.backend
        self._groups = [EngineGroup(supplies, kind) for kind in kinds]
        self._claims = [
            claim_of(
                kind.point.engine,
                self._room(kind) if engines == "auto" else engines,
                max(len(kind.works), engines_of_use((work.point for work in kind.works), supplies.folder.calibrations)),
                by_room=engines == "auto",
            )
            for kind in kinds
        ]
        self._asked = [0] * len(kinds)
        """Slots that each kind has asked for so far."""
        self._gated: dict[int, str] = {}
        """Kinds that may not ask for any yet, and the slot of theirs that was said to wait."""
        self._looked = self._held = time.perf_counter()
        """When was looked around last, and when any engine of the run had its place last."""
        self.stays = ""
        """What to say of engines that a signal leaves on the cluster."""

    def run(self) -> None:
        """Until all work is done, or none can be. Raises DoesNotFit where a kind can never have room, before anything
        starts; PlaceLost where the place itself is gone; StockIsWrong."""
        try:
            self._share_out()
            while not all(group.over for group in self._groups):
                self._turn()
        except KeyboardInterrupt:
            self.stays = self._backend.leave()
            raise
        finally:
            for group in self._groups:
                group.release()
            for engine in self._gated.values():
                self._with.events.write("engine_closed", engine=engine)

    def why_left(self) -> list[str | None]:
        """Of each kind why it began nothing more, where that is so."""
        return [group.stopping for group in self._groups]

    def _turn(self) -> None:
        at = {call: group for group in self._groups for call in group.calls}
        for call in self._backend.wait(list(at), POLL_SECONDS):
            at[call].collect(call)
        if time.perf_counter() - self._looked > WATCH_SECONDS:
            self._look_around()
            self._looked = time.perf_counter()
        held = sum(len(group.slots) for group in self._groups)
        for group in self._groups:
            group.work(self._calibrating_beside(group))
        if sum(len(group.slots) for group in self._groups) < held:
            self._share_out()
            for group in self._groups:
                group.look_for_places()

    def _calibrating_beside(self, group: EngineGroup) -> set[str | None]:
        """Kinds may read the same calibration: it is made once."""
        return {name for other in self._groups if other is not group for name in other.calibrating}

    # ------------------------------------------------------------ room

    def _room(self, kind: Kind) -> int:
        return self._backend.room(kind.point.engine, weight_bytes(kind.point.checkpoint.location))

    def _share_out(self) -> None:
        """Ask for the slots that may be asked for now."""
        wanted = [
            0 if group.over else max(0, min(claim.most - asked, group.engines_of_use() - len(group.slots)))
            for group, claim, asked in zip(self._groups, self._claims, self._asked, strict=True)
        ]
        counts = granted(self._claims, [len(group.slots) for group in self._groups], wanted)
        first = not any(self._asked)
        new = [(index, self._names(index, count)) for index, count in enumerate(counts) if count]
        reserved = []
        try:
            for index, names in new:
                reserved.append((index, self._backend.reserve(names, self._groups[index].kind.point.engine)))
        except DoesNotFit as error:
            if first:
                for _, slots in reserved:
                    for slot in slots:
                        slot.release()
                raise
            self._groups[new[len(reserved)][0]].stop(str(error))
        for index, slots in reserved:
            group = self._groups[index]
            self._with.events.write("note", text=f"starting {len(slots)} engine(s){group.kind.of}")
            self._asked[index] += len(slots)
            self._gated.pop(index, None)
            group.occupy(slots)
        for index, group in enumerate(self._groups):
            if not self._asked[index] and not group.over and index not in self._gated:
                (self._gated[index],) = self._names(index, 1)
                group.tell_that_it_waits(self._gated[index], "engines of other kinds have the room")

    def _names(self, index: int, count: int) -> list[str]:
        """Of slots that are new."""
        kind = f"engine-{self._groups[index].kind.point.engine_fingerprint}-{self._with.folder.path.name}"
        return [f"{kind}-{self._asked[index] + number}" for number in range(count)]

    # ------------------------------------------------------------ looking around

    def _look_around(self) -> None:
        self._backend.check()
        if (asked := stop_request.asked(self._with.folder)) is not None:
            if self._stop(f"stop was asked for by {asked.by}"):
                self._with.events.write("stop_asked", by=asked.by)
        elif (spent := self._with.spent()) is not None and self._stop(spent):
            self._with.events.write("note", text=f"nothing more is begun: {spent}")
        for group in self._groups:
            group.look_around()
        self._give_up_without_room()

    def _stop(self, reason: str) -> bool:
        """Begin nothing more at all; whether anything was to be begun."""
        going_on = [group for group in self._groups if group.stopping is None]
        for group in going_on:
            group.stop(reason)
        return bool(going_on)

    def _give_up_without_room(self) -> None:
        """A kind that waits for room while nothing of this run has any. One that had a place and lost it waits on: a
        node that is gone may come back."""
        now = time.perf_counter()
        if any(group.holds_room for group in self._groups):
            self._held = now
        for group in self._groups:
            engine = group.kind.point.engine
            if group.slots and not group.had_a_place and now - self._held > engine.start_timeout_seconds:
                group.stop(no_room(engine))


def no_room(engine: EngineConfig) -> str:
    """What an engine would have needed and did not get, and what to type."""
    if engine.gpus:
        needs, smaller = f"{engine.gpus} GPU(s)", "engine.gpus=N"
    else:
        needs, smaller = "its share of the cores" if engine.cpus is None else f"{engine.cpus} core(s)", "engine.cpus=N"
    return (
        f"no node had room for an engine ({needs}) within engine.start_timeout_seconds={engine.start_timeout_seconds}."
        f" Type the command again when there is room, a smaller engine with {smaller}, or a longer"
        " engine.start_timeout_seconds"
    )
