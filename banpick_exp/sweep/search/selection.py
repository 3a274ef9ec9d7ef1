"""`search=select`: dev chooses among the points of the space, and of them only what it chose runs on the typed split.

The best of many settings looks better than it is on the very problems that chose it, so the two stages ask different
problems. The choice follows from the dev records alone, by one rule (`picks`) that the driver and the report share:
highest accuracy, equal ones to the earlier of the space, and stock before them all. So nothing is carried on that dev
does not find better than stock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from banpick_exp.errors import UserError
from banpick_exp.manifest import Candidate
from banpick_exp.policy.budget import policy_of
from banpick_exp.policy.rule import short
from banpick_exp.records import PointRecord
from banpick_exp.setups import varying
from banpick_exp.sweep.config import SelectSearch
from banpick_exp.sweep.point import Point
from banpick_exp.sweep.resume import setups_of
from banpick_exp.sweep.search.strategy import Work, setup

DEV = "dev"
"""As `analysis.selection` has it, which would load Polars to plan."""
ON_DEV = (f"task.split={DEV}", "task.speed_seconds=0")
"""What a candidate is typed with on dev. Dev chooses by accuracy, so nothing is timed there."""
ALL = "all"
"""The one group where `search.by` names none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stages:
    """What is planned of both stages."""

    references: tuple[Point, ...]
    """Stock and fixed_k on the typed split: asked whatever dev chooses."""
    dev: tuple[Point, ...]
    """Stock, then the candidates in the order of the space."""
    candidates: tuple[Candidate, ...]
    twins: Mapping[str, Point]
    """The candidates on the typed split, by fingerprint: of each group at most one is asked."""

    @property
    def points(self) -> tuple[Point, ...]:
        """Those that are asked for sure."""
        return (*self.references, *self.dev)

    @property
    def groups(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(each.group for each in self.candidates))

    def at_most(self) -> tuple[Point, ...]:
        """Points like those that dev may choose, one a group: for the estimate."""
        first = {each.group: each.test for each in reversed(self.candidates)}
        return tuple(self.twins[name] for name in first.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class Pick:
    """What dev chose in one group."""

    group: str
    candidates: int
    finished: int
    """Candidates that are `done` on dev; the others cannot be chosen."""
    best: Candidate | None
    """The most accurate on dev; None where none finished."""
    best_accuracy: float | None
    stock_accuracy: float | None
    """On dev; None where stock did not finish there, and then nothing is chosen."""

    @property
    def chosen(self) -> Candidate | None:
        """None: stock, because nothing is more accurate on dev."""
        if self.best_accuracy is None or self.stock_accuracy is None or self.best_accuracy <= self.stock_accuracy:
            return None
        return self.best


def picks(candidates: Iterable[Candidate], records: Iterable[PointRecord]) -> list[Pick]:
    """Of each group of candidates what dev chose, groups in the order of their first.

    Args: candidates: in the order of the space, the gentler first; records: those on dev, stock's too. All were asked
        the same problems.

    Example: stock 0.70, candidates 0.72, 0.74, 0.74: the first of 0.74. Stock 0.74: stock.
    """
    done = {record.fingerprint: record for record in records if record.status == "done" and record.task.split == DEV}
    stock = next((record.measured.overall.accuracy for record in done.values() if record.is_stock), None)
    groups: dict[str, list[Candidate]] = {}
    for each in candidates:
        groups.setdefault(each.group, []).append(each)
    found = []
    for group, members in groups.items():
        accuracy = {each: done[each.dev].measured.overall.accuracy for each in members if each.dev in done}
        best = max(accuracy, key=accuracy.__getitem__, default=None)  # the first of equal ones
        found.append(
            Pick(
                group=group,
                candidates=len(members),
                finished=len(accuracy),
                best=best,
                best_accuracy=None if best is None else accuracy[best],
                stock_accuracy=stock,
            )
        )
    return found


def stages_of(dev: Sequence[Point], test: Sequence[Point], search: SelectSearch) -> Stages:
    """The two stages from the same points planned on dev and on the typed split, in the same order.

    Raises UserError where dev could not choose, or its choice would be reported on the problems that chose it.
    """
    _check_splits(dev, test)
    if len({setup(point) for point in test}) > 1:
        differing = ", ".join(varying(setups_of(test))) or "repeat"
        raise UserError(
            f"search=select chooses among points of one setting, and those of this sweep differ in {differing}: dev"
            " would choose among answers to different questions. Type one value, and the command once for each."
        )
    pairs = list(zip(_candidates(dev), _candidates(test), strict=True))
    values = [group_of(twin, search.by) for _, twin in pairs]
    if pairs and None in values:
        asked = pairs[values.index(None)][1].label
        raise UserError(
            f"search.by={search.by} is no knob of {asked}: it would belong to no group. Type search.by=policy, a knob"
            " that all policies of the sweep have (search.by=policy.KNOB), or search.by=null for one choice among all."
        )
    return Stages(
        references=tuple(point for point in test if point.rule.is_reference),
        dev=tuple(point for point in dev if point.rule.is_stock or not point.rule.is_reference),
        candidates=tuple(
            Candidate(group=group or ALL, label=twin.label, dev=point.fingerprint, test=twin.fingerprint)
            for group, (point, twin) in zip(values, pairs, strict=True)
        ),
        twins={twin.fingerprint: twin for _, twin in pairs},
    )


def group_of(point: Point, by: str | None) -> str | None:
    """`scope=merged` for by=policy.scope, `policy=pick` for by=policy, `all` for none; None where it has no such knob.

    A knob that is left at its default counts with its default.
    """
    if by is None:
        return ALL
    if by == "policy":
        return f"policy={point.rule.name}"
    knob = by.removeprefix("policy.")
    value = policy_of(point.rule, point.budget).get(knob, getattr(point.rule, knob, None))
    return None if value is None else f"{knob}={short(value)}"


def _candidates(points: Sequence[Point]) -> list[Point]:
    return [point for point in points if not point.rule.is_reference]


def _check_splits(dev: Sequence[Point], test: Sequence[Point]) -> None:
    """UserError where the two stages would ask the same problems."""
    split = test[0].task.split
    if split == DEV:
        raise UserError(
            f"task.split={DEV} under search=select: the result would be reported on the problems that chose it. Leave"
            f" task.split out, or type search=grid to run every point on {DEV}."
        )
    if dev[0].data_identity == test[0].data_identity and not test[0].data_missing:
        raise UserError(
            f"the problems of task.split={split} are those of task.split={DEV}, byte for byte: search=select would"
            " report its choice on the problems that chose it. Give dev and test files of their own (task.data_files"
            " with {split} in it)."
        )


class Selection:
    """The points of both stages on one engine: dev and the references first, what dev chose once dev is over."""

    def __init__(self, stages: Stages, records: Mapping[str, PointRecord], note: Callable[[str], None]) -> None:
        """`records`: what is finished already, by fingerprint; `note`: is told what dev chose."""
        self._stages, self._records, self._note = stages, dict(records), note
        self._out: set[str] = set()
        """Points handed out."""
        self._done = 0
        self._chose = False

    def begin(self) -> list[Work]:
        return [*self._hand_out(self._stages.points), *self._chosen()]

    def finished(self, work: Work, record: PointRecord | None) -> list[Work]:
        assert record is not None, "points are answered whole"
        self._records[record.fingerprint] = record
        self._out.discard(record.fingerprint)
        self._done += 1
        return self._chosen()

    def waiting(self) -> list[Point]:
        return []

    def to_come(self) -> int:
        return 0 if self._chose else len(self._stages.groups)

    def points_left(self) -> int:
        return len(self._out) + (0 if self._chose else len(self._stages.groups))

    def progress(self) -> tuple[float, float]:
        return self._done, self._done + self.points_left()

    def _chosen(self) -> list[Work]:
        """What dev chose, once all of dev is over; nothing before, and nothing a second time."""
        if self._chose or any(point.fingerprint not in self._records for point in self._stages.dev):
            return []
        self._chose = True
        found = picks(self._stages.candidates, self._records.values())
        for pick in found:
            self._note(f"dev chose ({pick.group}): {pick.chosen.label if pick.chosen else 'stock'}")
        return self._hand_out([self._stages.twins[pick.chosen.test] for pick in found if pick.chosen])

    def _hand_out(self, points: Iterable[Point]) -> list[Work]:
        works = [Work(point=point) for point in points if point.fingerprint not in self._records]
        self._out |= {work.point.fingerprint for work in works}
        return works
