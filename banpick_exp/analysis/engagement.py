"""Did the policy take effect: the measured budget against what it implies, native K and the floor."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from banpick_exp.analysis.finding import Finding, Level
from banpick_exp.analysis.pairing import REFERENCE_POLICIES
from banpick_exp.records import PointRecord

SLACK = 1e-6
"""Measured budgets are ratios of exact counts."""
MARGIN = 0.05
"""Experts per token: closer than this to the end of its range, a rule that spends a range hardly does anything."""


def engagement_findings(record: PointRecord) -> Iterator[Finding]:
    """One `overall` finding: invalid with the record's reason, else what was measured; one more a domain at an end."""
    own = Finding(record=record, guard="engaged", detail="", level="invalid")
    if record.metrics is None:
        yield replace(own, detail=f"nothing was measured: {record.reason or 'no reason recorded'}")
        return
    kept, native = record.mean_kept, record.model.top_k
    if record.status == "invalid":
        yield replace(own, value=kept, detail=record.reason or "the point is invalid, no reason recorded")
        return
    ends = list(_at_an_end(record))
    level: Level = "ok" if not ends else "invalid" if any(end.level == "invalid" for end in ends) else "warning"
    detail = f"keeps {kept:.2f}{f' of {native}' if native else ''} experts a token{_implied(record)}{_keys(record)}"
    if ends:
        detail += "; " + "; ".join(f"{end.domain}: {end.detail}" for end in ends)
    yield replace(own, value=kept, level=level, detail=detail)
    yield from ends


def _at_an_end(record: PointRecord) -> Iterator[Finding]:
    """The domains where the budget is not what the policy implies, or hardly moves."""
    native = record.model.top_k
    for domain, metrics in record.measured.domains.items():
        implied, measured = _range(record, domain), metrics.mean_kept
        if implied is None:
            continue
        low, high = implied
        spends_a_range = (
            low < high and record.policy_name not in REFERENCE_POLICIES
        )  # a k with a fraction leaves chance
        found = Finding(record=record, guard="engaged", domain=domain, value=measured, level="warning", detail="")
        if not low - SLACK <= measured <= high + SLACK:
            detail = f"measured {measured:.3f} experts, the policy implies {low:g} to {high:g}"
            yield replace(found, level="invalid", detail=detail)
        elif spends_a_range and native and high <= native and measured >= high - MARGIN:
            yield replace(found, detail=f"keeps {measured:.3f} experts, native K: it prunes next to nothing")
        elif spends_a_range and native and low < native and measured <= low + MARGIN:
            yield replace(found, detail=f"keeps {measured:.3f} experts, its floor almost everywhere")


def _range(record: PointRecord, domain: str) -> tuple[float, float] | None:
    """The budget the policy implies: as recorded, else what the two references imply by their definition."""
    implied = record.engagement.implied.get(domain)
    if implied is not None:
        return implied
    k = {"fixed_k": record.knobs.get("k"), "none": record.model.top_k}.get(record.policy_name)
    return None if k is None else (float(math.floor(k)), float(math.ceil(k)))


def _implied(record: PointRecord) -> str:
    ranges = record.engagement.implied.values()
    if not ranges:
        return ""
    low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
    return f", implied {low:g}" if low == high else f", implied {low:g} to {high:g}"


def _keys(record: PointRecord) -> str:
    share = record.engagement.key_expert_share
    if share is None:
        return ""
    return f"; its key experts take {share.policy:.2%} of the selections, under stock {share.stock:.2%}"
