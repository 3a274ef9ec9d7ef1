"""`demand.json` in words and as tables, alike in print and on the page."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from pydantic import ValidationError

from banpick_exp.evaluation.demand.found import (
    SCHEMA_VERSION,
    Compared,
    Demand,
    DemandFile,
    Group,
    Number,
    PointDemand,
    Window,
)
from banpick_exp.run_folder import RunFolder

USUAL_WINDOW = 16
"""Tokens of the window that a sentence is about, where answers are as long."""
USUAL_BATCH = 8
WIDTH = 118


def demand_of(folder: RunFolder) -> DemandFile | None:
    """What `demand` wrote of a run; None where it wrote nothing, or what is there is damaged or of another version: it
    is measured again by the same command, and no result hangs on it.
    """
    try:
        found = DemandFile.model_validate_json(folder.demand_path.read_bytes())
    except (OSError, ValidationError):
        return None
    return found if found.schema_version == SCHEMA_VERSION else None


def usual_window(demand: Demand) -> Window | None:
    """The window that a sentence is about: of `USUAL_WINDOW` tokens, else the longest that was measured."""
    by_size = {window.tokens: window for window in demand.windows}
    return by_size.get(USUAL_WINDOW) or (by_size[max(by_size)] if by_size else None)


def sentence(point: PointDemand, group: Group) -> str:
    """`... keeps 5.10 of 8 experts; a decode step of 8 sequences touches 21.3 experts a layer in place of 29.9 ...`"""
    if point.invalid is not None:
        return f"{point.label}: no result. {point.invalid}."
    demand = point.overall
    parts = [f"keeps {demand.kept.policy.value:.2f} of {group.model.top_k} experts"]
    steps = {step.sequences: step for step in demand.steps}
    if step := steps.get(USUAL_BATCH) or (steps[max(steps)] if steps else None):
        parts.append(
            f"a decode step of {step.sequences} sequences touches {step.experts.policy.value:.1f} experts a layer in"
            f" place of {step.experts.stock.value:.1f} ({times(step.experts)})"
        )
    if (window := usual_window(demand)) and window.caches:
        cache = window.caches[0]
        parts.append(
            f"the best cache of {cache.experts} experts a layer that stays for {window.tokens} tokens hits"
            f" {cache.hit_rate.policy.value:.3f}, stock's {cache.hit_rate.stock.value:.3f}; it lacks"
            f" {cache.misses.policy.value:.2f} experts a token and layer in place of {cache.misses.stock.value:.2f}"
        )
    return f"{point.label}: {'; '.join(parts)}."


def times(found: Compared) -> str:
    """`x0.71 ±0.02`: policy over stock with half of its interval; the difference where stock may have none."""
    if found.ratio is None:
        return f"{found.difference.value:+.2f} ±{_half(found.difference):.2f}"
    return f"x{found.ratio.value:.2f} ±{_half(found.ratio):.2f}"


def less(found: Compared) -> str:
    """`+0.021 ±0.011`: of shares, policy less stock."""
    return f"{found.difference.value:+.3f} ±{_half(found.difference):.3f}"


def _half(number: Number) -> float:
    """Intervals stand evenly about their figure."""
    return (number.ci95[1] - number.ci95[0]) / 2


Table = tuple[str, list[str], list[list[str]]]
"""Caption, head, rows: the policy first, stock's row on top."""


def tables(group: Group) -> list[Table]:
    """Steps of a batch, then a table a window."""
    valid = [point for point in group.points if point.invalid is None]
    if not valid:
        return []
    return [_steps(valid), *_windows(valid)]


def _steps(points: Sequence[PointDemand]) -> Table:
    batches = sorted({step.sequences for point in points for step in point.overall.steps})
    first = {step.sequences: step.experts.stock.value for step in points[0].overall.steps}
    head = ["policy", "kept a token", *(f"step of {batch}" for batch in batches)]
    stock = f"{points[0].overall.kept.stock.value:.2f}"
    rows = [["stock", stock, *(f"{first[b]:.2f}" if b in first else "-" for b in batches)]]
    for point in points:
        cells = {step.sequences: _cell(step.experts, 2) for step in point.overall.steps}
        kept = point.overall.kept
        rows.append([point.label, _cell(kept, 2), *(cells.get(batch, "-") for batch in batches)])
    return "Distinct experts of a layer that a decode step of so many sequences touches", head, rows


def _windows(points: Sequence[PointDemand]) -> list[Table]:
    found = []
    for window in points[0].overall.windows:
        caches = [cache.experts for cache in window.caches]
        head = ["policy", "experts", "SRP"]
        head += [text for cache in caches for text in (f"hits of {cache}", f"misses of {cache}")]
        rows = [_stock_window(window)]
        for point in points:
            own = next((each for each in point.overall.windows if each.tokens == window.tokens), None)
            if own is None:
                continue
            cells = [_cell(own.experts, 2), _shares(own.srp)]
            cells += [text for each in own.caches for text in (_shares(each.hit_rate), _cell(each.misses, 2))]
            rows.append([point.label, *cells])
        caption = (
            f"Windows of {window.tokens} tokens: distinct experts of a layer, SRP, and of the best cache of so many"
            " experts a layer the hit rate (SCH) and what it lacks a token"
        )
        found.append((caption, head, rows))
    return found


def _stock_window(window: Window) -> list[str]:
    cells = [f"{window.experts.stock.value:.2f}", f"{window.srp.stock.value:.3f}"]
    for cache in window.caches:
        cells += [f"{cache.hit_rate.stock.value:.3f}", f"{cache.misses.stock.value:.2f}"]
    return ["stock", *cells]


def _cell(found: Compared, digits: int) -> str:
    return f"{found.policy.value:.{digits}f} {times(found)}"


def _shares(found: Compared) -> str:
    return f"{found.policy.value:.3f} {less(found)}"


def told(found: DemandFile) -> list[str]:
    """All of it as lines for a terminal."""
    lines = []
    for group in found.groups:
        demand = group.points[0].overall
        lines += [
            f"{group.model.name} ({group.model.num_experts} experts a layer, {group.model.top_k} a token),"
            f" {group.task}: {demand.problems} problems, each policy and stock on their own answers"
        ]
        for caption, head, rows in tables(group):
            lines += ["", *textwrap.wrap(f"{caption}:", WIDTH), *_aligned([head, *rows])]
        for point in group.points:
            lines += ["", *textwrap.wrap(sentence(point, group), WIDTH, break_on_hyphens=False)]
    return lines


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns below each other; those that find no room in a line go into further lines, with the first repeated."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    blocks: list[list[int]] = [[0]]
    for at in range(1, len(widths)):
        if len(blocks[-1]) > 1 and sum(widths[each] + 2 for each in (*blocks[-1], at)) > WIDTH:
            blocks.append([0])
        blocks[-1].append(at)
    return ["  " + "  ".join(f"{row[at]:<{widths[at]}}" for at in block).rstrip() for block in blocks for row in rows]
