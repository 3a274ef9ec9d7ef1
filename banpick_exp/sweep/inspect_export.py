"""`python -m banpick_exp inspect OUT/`: which policy a folder holds, for which model, and what was measured of it."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from banpick_exp.policy.exported import Exported
from banpick_exp.records import OVERALL

WIDTH = 100
LABEL = 13
MOST_LISTED = 12
"""Key experts of a domain, knobs' characters: what is longer is counted."""


def told_of_export(exported: Exported) -> list[str]:
    """Lines; what they say was checked against its digests when it was read."""
    header, shape = exported.header, exported.shape
    model = header.model
    where = f"{model.id}{f' at {model.revision}' if model.revision else ''}, " if model.id else ""
    lines = [f"{exported.folder}: {header.label}, whole and as it was written", ""]
    lines += _field("rule", header.policy["name"])
    lines += [line for knob, value in exported.params.items() for line in _field("", f"{knob}={_short(value)}")]
    if (solved := header.solved) is not None:
        lines += _field(
            "", f"{solved.knob} was solved for {solved.budget:g} experts a token, {solved.measured:.2f} counted"
        )
    lines += _field(
        "for",
        f"{model.name} ({where}identity {model.identity}): {shape.num_layers} MoE layers of {shape.num_experts}"
        f" experts, {shape.top_k} a token",
    )
    if model.made_from is not None:
        lines += _field("", f"a checkpoint that was made from {model.made_from}")
    lines += ["", *_domains(exported), "", *_measured(header.measured), ""]
    for each in header.guards:
        lines += _field("guard", f"{each['guard']} ({each['domain']}): {each['detail']}")
    point = header.point
    lines += _field("point", f"{point['fingerprint']} of {point['run']}, {point['finished_at']}")
    if header.calibration is not None:
        source = header.calibration
        lines += _field("calibration", f"{source.fingerprint}{f', score {source.score}' if source.score else ''}")
    lines += _field("versions", ", ".join(f"{name} {version}" for name, version in header.versions.items()))
    if point["command"]:
        lines += ["measured by", f"  {point['command']}"]
    return lines


def _domains(exported: Exported) -> list[str]:
    """What differs between them: tables, key experts."""
    lines = []
    for number, (domain, each) in enumerate(exported.header.domains.items()):
        low, high = each.implied_budget
        kept = f"{low:g}" if low == high else f"{low:g} to {high:g}"
        keys = [f"L{layer}E{expert}" for layer, experts in (each.key_experts or {}).items() for expert in experts]
        named = "" if each.key_experts is None else f"; reinforces {_listed(keys)}"
        reads = "" if each.calibration is None else f"; reads {', '.join(each.calibration.parts)}"
        text = f"{domain}: keeps {kept} experts a token{named}{reads}; table {each.routing_sha256[:16]}"
        lines += _field("domains" if number == 0 else "", text)
    if exported.one_policy and len(exported.domains) > 1:
        lines += _field("", "all route alike")
    return lines


def _listed(keys: list[str]) -> str:
    more = f" and {len(keys) - MOST_LISTED} more" if len(keys) > MOST_LISTED else ""
    return (" ".join(keys[:MOST_LISTED]) or "none") + more


def _measured(found: Mapping[str, Any]) -> list[str]:
    lines = [line for alarm in found["read_first"] for line in _field("read first", alarm)]
    lines += _field("measured", f"on {found['task'].get('name')} ({found['task'].get('split')})")
    head = ["", "problems", f"{found['accuracy_is']} %", "vs stock, points", "kept", "speed-up"]
    rows = [head, *([domain, *_cells(row)] for domain, row in found["domains"].items())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    for first, *rest in rows:
        cells = [f"{first:<{widths[0]}}", *(f"{cell:>{width}}" for cell, width in zip(rest, widths[1:], strict=True))]
        lines.append(" " * LABEL + "  ".join(cells))
    for row in found["against_fixed_k"]:
        if row["domain"] == OVERALL and row["verdict"] != "unmatched":
            rival = "stock" if row["reference_label"] == "none" else row["reference_label"]
            ends = f"[{100 * row['lo_simultaneous']:+.1f}, {100 * row['hi_simultaneous']:+.1f}]"
            note = f" ({row['note']})" if row["note"] else ""
            lines += _field(
                "verdict", f"{row['verdict']}, {100 * row['difference']:+.1f} {ends} points to {rival}{note}"
            )
    lines += _field("the run", found["headline"])
    return lines + (_field("chosen", found["chosen"]) if found["chosen"] else [])


def _cells(row: Mapping[str, Any]) -> list[str]:
    return [
        f"{row['n_problems']:,}",
        _span(row, "accuracy", 100, ".1f"),
        _span(row, "delta", 100, "+.1f"),
        f"{row['mean_kept']:.2f}",
        _span(row, "speedup", 1, ".2f"),
    ]


def _span(row: Mapping[str, Any], name: str, scale: float, form: str) -> str:
    if row[name] is None:
        return "-"
    low, high = row[f"{name}_lo"], row[f"{name}_hi"]
    text = format(scale * row[name], form)
    return text if low is None or high is None else f"{text} [{scale * low:{form}}, {scale * high:{form}}]"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 20]}... ({len(text)} characters)"


def _field(label: str, text: str) -> list[str]:
    wrapper = textwrap.TextWrapper(
        WIDTH, f"{label:<{LABEL}}", " " * LABEL, break_long_words=False, break_on_hyphens=False
    )
    return wrapper.wrap(text)
