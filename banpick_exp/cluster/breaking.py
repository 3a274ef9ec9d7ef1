"""What the death of an engine says about the problems that it was asked: the driver's side of `evaluation.narrowing`.

The driver alone can tell a death from a stop, a signal or an end of its own, so it is the driver who accuses a problem.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from banpick_exp.cluster.jobs import Job
from banpick_exp.evaluation.asking import too_many
from banpick_exp.evaluation.narrowing import Key, after_death
from banpick_exp.evaluation.trouble import POINT, SetAside, Trouble, pairing, set_aside, where, write_set_aside
from banpick_exp.run_folder import RunFolder
from banpick_exp.sweep.point import Point


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What a death has shown."""

    said: str = ""
    narrowed: bool = False
    """Whether it is work done: the next engine does not die of the same with as many problems in flight."""
    too_many: str | None = None
    """Why the point fails now, where it does."""


class Breaking:
    """Finds the problems that break engines, and sets them aside."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder

    def died(self, job: Job, reason: str) -> Found:
        """An engine died under the job, for this reason."""
        if job.work is None:
            return Found()
        call = str(job.work.block) if job.kind == "block" else POINT
        trouble = Trouble.of(self._folder, job.point.fingerprint, call)
        before = trouble.suspicion()
        flight = trouble.in_flight(before.deaths)
        lesson = after_death(before, flight)
        trouble.write_suspicion(lesson.suspicion)
        if lesson.convicted is not None:
            return self._set_aside(job.point, lesson.convicted, reason)
        if lesson.narrowed and flight is not None:
            said = f"{len(flight.keys)} problem(s) of {job.point.label} were in flight: asked one at a time from now on"
            return Found(said=said, narrowed=True)
        return Found()

    def _set_aside(self, point: Point, key: Key, reason: str) -> Found:
        entries = set_aside(self._folder)
        entry = SetAside(
            domain=key[0],
            problem_id=key[1],
            reason=reason,
            where=where(point),
            point=point.fingerprint,
            stock_of=pairing(point) if point.rule.is_stock else None,
        )
        write_set_aside(self._folder, [*entries, entry])
        here = [each for each in (*entries, entry) if each.where == entry.where and each.stands_for(point)]
        said = f"set aside in {point.label}, because it broke every engine that was asked it: {entry.failed.said}"
        failed = {each.key: each.failed for each in here}
        return Found(said=said, narrowed=True, too_many=too_many(point, list(failed.values())))


def ask_again(folder: RunFolder, points: Collection[str]) -> None:
    """What was set aside in these points is asked again, last and alone: they failed, and are to be computed anew."""
    entries = set_aside(folder)
    if any(each.point in points for each in entries):
        freed = {"point": None, "stock_of": None}
        write_set_aside(folder, [each.model_copy(update=freed) if each.point in points else each for each in entries])
