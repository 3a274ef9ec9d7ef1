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

from collections.abc import Iterable, Iterator
from dataclasses import replace

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
        for record in group if len(group) > 1 else []:
            twins = [other for other in group if other is not record and not same_routing(record, other)]
            if twins:
                yield _replayed(record, twins, rows, outcomes)


def same_routing(one: PointRecord, other: PointRecord) -> bool:
    """Whether two points are expected to answer alike: by definition, or in effect at an end of their range."""
    if _model(one) != _model(other):
        return False
    ours, theirs = one.engagement.routing_table, other.engagement.routing_table
    if one.policy == other.policy:
        # The same rule with another calibration may name other experts: the tables know.
        return not (ours and theirs) or ours == theirs
    if ours and ours == theirs:
        return True
    k, other_k = _uniform_k(one), _uniform_k(other)
    return k is not None and k == other_k


def _replayed(record: PointRecord, twins: list[PointRecord], rows: int, outcomes: Outcomes) -> Finding:
    def lengths(point: PointRecord) -> int:
        return _digest(outcomes[point.fingerprint], (*ANSWERED, "tokens"))

    names = ", ".join(twin.label for twin in twins[:3]) + (f" and {len(twins) - 3} more" if len(twins) > 3 else "")
    what = f"all {rows:,} answers equal those of {names}"
    found = Finding(record=record, guard="duplicated_scores", value=float(len(twins)), detail=what)
    copies = [twin for twin in twins if lengths(twin) == lengths(record)]
    counted = record.engagement.routing_counts
    if not copies:
        return replace(found, detail=f"{what}, but with other lengths: they were generated anew")
    if rows < MIN_PROBLEMS:
        return replace(found, detail=f"{what}, which so few problems can do by chance")
    if counted and any(twin.engagement.routing_counts == counted for twin in copies):
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
