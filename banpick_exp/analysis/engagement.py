"""Did the policy take effect: the measured budget against what it implies, native K and the floor. A row a point."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from banpick_exp.analysis.pairing import Record, mean_kept
from banpick_exp.records import OVERALL

SLACK = 1e-6
"""Measured budgets are ratios of exact counts."""
MARGIN = 0.05
"""Experts per token: closer than this to the end of its range, a rule that spends a range hardly does anything."""


def engaged_rows(record: Record) -> Iterator[dict[str, Any]]:
    """One `overall` row: invalid with the record's reason, else what was measured; one more a domain at an end."""
    row: dict[str, Any] = {"guard": "engaged", "domain": OVERALL, "level": "ok", "value": None}
    if record["metrics"] is None:
        yield row | {"level": "invalid", "detail": f"nothing was measured: {record['reason'] or 'no reason recorded'}"}
        return
    kept, native = mean_kept(record), record["model"].get("top_k")
    row["value"] = kept
    if record["status"] == "invalid":
        yield row | {"level": "invalid", "detail": record["reason"] or "the point is invalid, no reason recorded"}
        return
    problems = list(_at_an_end(record, native))
    worst = [level for _, _, level, _ in problems]
    detail = f"keeps {kept:.2f}{f' of {native}' if native else ''} experts a token{_implied(record)}{_keys(record)}"
    if worst:
        row["level"] = "invalid" if "invalid" in worst else "warning"
        detail += "; " + "; ".join(f"{domain}: {sentence}" for domain, _, _, sentence in problems)
    yield row | {"detail": detail}
    for domain, measured, level, sentence in problems:
        yield row | {"domain": domain, "value": measured, "level": level, "detail": sentence}


def _at_an_end(record: Record, native: int | None) -> Iterator[tuple[str, float, str, str]]:
    """(domain, measured, level, sentence) where the budget is not what the policy implies, or hardly moves."""
    for domain in record["metrics"]["domains"]:
        measured, (low, high) = mean_kept(record, domain), _range(record, domain, native)
        if low is None or high is None:
            continue
        if not low - SLACK <= measured <= high + SLACK:
            yield (
                domain,
                measured,
                "invalid",
                f"measured {measured:.3f} experts, the policy implies {low:g} to {high:g}",
            )
        elif low < high and native and high <= native and measured >= high - MARGIN:
            yield domain, measured, "warning", f"keeps {measured:.3f} experts, native K: it prunes next to nothing"
        elif low < high and native and low < native and measured <= low + MARGIN:
            yield domain, measured, "warning", f"keeps {measured:.3f} experts, its floor almost everywhere"


def _range(record: Record, domain: str, native: int | None) -> tuple[float | None, float | None]:
    """The budget the policy implies: as recorded, else what the two references imply by their definition."""
    implied = record["engagement"].get("implied", {}).get(domain)
    if implied is not None:
        return float(implied[0]), float(implied[1])
    k = {"fixed_k": record["policy"].get("k"), "none": native}.get(record["policy"]["name"])
    return (None, None) if k is None else (float(k), float(k))


def _implied(record: Record) -> str:
    ranges = list(record["engagement"].get("implied", {}).values())
    if not ranges:
        return ""
    low, high = min(r[0] for r in ranges), max(r[1] for r in ranges)
    return f", implied {low:g}" if low == high else f", implied {low:g} to {high:g}"


def _keys(record: Record) -> str:
    share = record["engagement"].get("key_expert_share")
    if not share:
        return ""
    return f"; its key experts take {share['policy']:.2%} of the selections, under stock {share['stock']:.2%}"
