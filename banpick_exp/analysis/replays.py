"""The replay trap: answers that equal another policy's to the last one.

A cache that is keyed on too little serves one configuration's answers as another's, and every table looks fine. So
equal answers under unequal definitions are an alarm, unless the two routes are equal anyway:

- by definition: the same rule and knobs on the same checkpoint; or, as the record tells it, the same table of router
  values (fixed_k K is stock, boost 0 is stock); or `none` and `fixed_k` with the same k.
- in effect: a rule that spends a range and was measured at one end of it in every layer (Ban at its floor routes as
  fixed_k does there). `engaged` speaks of that already.

Equal counters besides equal answers (tokens, kept experts and every expert's usage) mean that one and the same routing
happened: then the point is `invalid`, it cannot be told from a replay. With other counters the policy did run and the
answers merely agree: a `warning`, since the two scores are one piece of evidence, not two.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import polars as pl

from banpick_exp.analysis.finding import Finding
from banpick_exp.analysis.pairing import Outcomes
from banpick_exp.config import fingerprint
from banpick_exp.records import Engagement, PointRecord

MIN_PROBLEMS = 50
"""On fewer, policies that differ a little may well answer alike."""
ANSWERED = ("domain", "problem_id", "sample", "correct", "answer")


def replay_findings(records: Iterable[PointRecord], outcomes: Outcomes) -> Iterator[Finding]:
    """One `overall` finding for each point whose answers are another's; `value` counts the others."""
    groups: dict[tuple[int, int], list[PointRecord]] = {}
    for record in records:
        frame = outcomes.get(record.fingerprint)
        if record.status != "failed" and frame is not None and frame.height:
            groups.setdefault((frame.height, _digest(frame, ANSWERED)), []).append(record)
    for (rows, _), group in groups.items():
        if len(group) > 1:
            yield from _of_one_answer(group, rows, outcomes)


class _Routes:
    """What a group of points routes by, a number for each thing, so that one is held against all others at once.

    On a few easy problems a thousand policies answer alike, and a pair at a time is a million pairs.
    """

    def __init__(self, group: Sequence[PointRecord]) -> None:
        self._model = _numbers(_model(record) for record in group)
        self._policy = _numbers(record.policy for record in group)
        self._table = _numbers(record.engagement.routing_table or None for record in group)
        self._k = _numbers(_uniform_k(record) for record in group)

    def twins(self, index: int) -> np.ndarray:
        """The others of the group that are not expected to answer as this one does, in order.

        Expected is it by definition, or in effect at an end of their range.
        """
        ours, k = self._table[index], self._k[index]
        same_table = (self._table == ours) & (ours >= 0)
        # The same rule with another calibration may name other experts: the tables know.
        one_policy = same_table | (self._table < 0) | (ours < 0)
        two_policies = same_table | ((self._k == k) & (k >= 0))
        alike = np.where(self._policy == self._policy[index], one_policy, two_policies)
        return np.flatnonzero(~(alike & (self._model == self._model[index])))


def _numbers(values: Iterable[object]) -> np.ndarray:
    """One number for each value, the same for equal ones; -1 for None."""
    known: dict[object, int] = {}
    return np.array([-1 if each is None else known.setdefault(_hashable(each), len(known)) for each in values])


def _hashable(value: object) -> object:
    """Equal where the values are: dicts and lists as JSON has them."""
    if isinstance(value, Mapping):
        return frozenset((key, _hashable(each)) for key, each in value.items())
    return tuple(map(_hashable, value)) if isinstance(value, list | tuple) else value


def _of_one_answer(group: Sequence[PointRecord], rows: int, outcomes: Outcomes) -> Iterator[Finding]:
    """What there is to say of points that answered alike."""
    routes = _Routes(group)
    lengths = np.array([_digest(outcomes[record.fingerprint], (*ANSWERED, "tokens")) for record in group], object)
    counts = _numbers(record.engagement.routing_counts or None for record in group)
    for index, record in enumerate(group):
        twins = routes.twins(index)
        if not twins.size:
            continue
        names = ", ".join(group[twin].label for twin in twins[:3])
        names += f" and {len(twins) - 3} more" if len(twins) > 3 else ""
        what = f"all {rows:,} answers equal those of {names}"
        found = Finding(record=record, guard="duplicated_scores", value=float(len(twins)), detail=what)
        copies = twins[lengths[twins] == lengths[index]]
        counted_alike = bool(((counts[copies] == counts[index]) & (counts[copies] >= 0)).any())
        yield _judged(found, rows, bool(copies.size), counted_alike)


def _judged(found: Finding, rows: int, copied: bool, counted_alike: bool) -> Finding:
    """How much equal answers say. `copied`: the lengths are equal too; `counted_alike`: and so are the counters."""
    what = found.detail
    if not copied:
        return replace(found, detail=f"{what}, but with other lengths: they were generated anew")
    if rows < MIN_PROBLEMS:
        return replace(found, detail=f"{what}, which so few problems can do by chance")
    if counted_alike:
        detail = f"{what}, and so do the routing counters: it cannot be told from a replay of another policy's run"
        return replace(found, level="invalid", detail=detail)
    detail = f"{what} although the policies differ: replayed, or without effect here; the scores are one, not two"
    return replace(found, level="warning", detail=detail)


def _model(record: PointRecord) -> str:
    return record.model.identity or fingerprint({key: str(value) for key, value in record.model.plain().items()})


def _uniform_k(record: PointRecord) -> float | None:
    """The k of the fixed_k that this point equals: by its name, or because it was measured at an end everywhere."""
    if record.policy_name == "fixed_k":
        return float(record.knobs["k"])
    if record.is_stock:
        return float(record.model.top_k or record.mean_kept)
    engaged = record.engagement
    if engaged.key_expert_share is not None or not engaged.implied:
        return None
    kept = {k for metrics in record.measured.domains.values() for k in metrics.mean_kept_by_layer or (None,)}
    spends_a_range = all(low < high for low, high in engaged.implied.values())
    (only,) = kept if len(kept) == 1 else (None,)
    return only if spends_a_range and only in _shared_ends(engaged) else None


def _shared_ends(engaged: Engagement) -> set[float]:
    """The ends of the implied range that all domains share."""
    return set.intersection(*({low, high} for low, high in engaged.implied.values()))


def _digest(frame: pl.DataFrame, columns: tuple[str, ...]) -> int:
    """64 bits over the rows, whatever their order."""
    present = [name for name in columns if name in frame.columns]
    return int(frame.select(present).hash_rows(seed=0).sum())
