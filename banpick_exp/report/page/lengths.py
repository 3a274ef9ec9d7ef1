"""How long answers are, stock beside policies: a histogram each, with the same bins, and a table of quantiles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import polars as pl

from banpick_exp.records import OVERALL, PointRecord
from banpick_exp.report.page.beside_stock import BesideStock, beside_stock
from banpick_exp.report.page.html_tables import html_table
from banpick_exp.report.page.section import Section, by_run
from banpick_exp.report.run import Run
from banpick_exp.report.text import STOCK, in_words

WIDTH, HEIGHT = 400, 190
LEFT, RIGHT, TOP, BOTTOM = 40, 10, 10, 34
MOST_BINS = 40
WIDE = 30
"""Largest over 5 % quantile from which on the axis is logarithmic."""
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
NOTHING = '<p class="small">No policy was compared beside stock in this run, so there are no lengths to compare.</p>'


@dataclass(frozen=True, kw_only=True, slots=True)
class Bins:
    """What all histograms of a run share. B bins."""

    edges: np.ndarray
    """[B+1], tokens; where the axis is not logarithmic, halves between whole numbers."""
    log: bool

    def share(self, tokens: np.ndarray) -> np.ndarray:
        """[B]: the share of answers in each bin, 0 to 1."""
        # An empty answer has no logarithm: it is counted with the shortest.
        return np.histogram(np.maximum(tokens, self.edges[0]), self.edges)[0] / max(len(tokens), 1)

    def x(self, tokens: float) -> float:
        """Where a length stands on the axis, in units of the picture."""
        low, high, at = (self._place(value) for value in (self.edges[0], self.edges[-1], tokens))
        return round(LEFT + (at - low) / (high - low) * (WIDTH - LEFT - RIGHT), 1)

    def _place(self, tokens: float) -> float:
        return math.log(tokens) if self.log else float(tokens)


def bins_of(tokens: np.ndarray) -> Bins:
    """At most MOST_BINS, each of whole tokens where lengths are short; logarithmic where they spread widely."""
    low, high = max(int(tokens.min()), 1), int(tokens.max())
    if high > WIDE * max(float(np.quantile(tokens, 0.05)), 1.0):
        # Rounded, so that no bin lies between two whole numbers and stays empty for that alone.
        edges = np.unique(np.round(np.geomspace(low, high + 1, MOST_BINS + 1)))
        return Bins(edges=edges, log=True)
    first = int(tokens.min())
    step = max(1, math.ceil((high - first + 1) / MOST_BINS))
    return Bins(edges=np.arange(first - 0.5, high + step, step), log=False)


def lengths_html(run: Run) -> str:
    """A picture a policy of `beside_stock`, what is cut off in words, and the quantiles of all."""
    chosen = beside_stock(run)
    if not chosen:
        return NOTHING
    every = {record.fingerprint: record for each in chosen for record in (each.stock, each.record)}
    tokens = {name: run.outcomes[name]["tokens"].to_numpy() for name in every}
    if not any(map(len, tokens.values())):
        return NOTHING
    bins = bins_of(np.concatenate(list(tokens.values())))
    top = max(float(bins.share(each).max()) for each in tokens.values())
    axis = "on a logarithmic axis " if bins.log else ""
    words = (
        f"<p>Generated tokens of an answer, {axis}with the same bins everywhere: stock an area, the policy a line."
        f" {_cut_off(chosen)}</p>"
    )
    figures = "".join(_figure(each, tokens, bins, top) for each in chosen)
    return f'<div class="lengths">{words}<div class="maps">{figures}</div>{_table(run, list(every.values()))}</div>'


SECTION = Section(key="lengths", title="Answer lengths", html=by_run(lengths_html))


def _cut_off(chosen: Sequence[BesideStock]) -> str:
    """`Cut off at the limit of 24 tokens, as a share of all answers: stock 1.0 %; pick boost=4 3.2 %.`

    Policies that are cut off as often as stock, to a tenth of a percent, are not named one by one.
    """
    records = {record.fingerprint: record for each in chosen for record in (each.stock, each.record)}
    shares = {name: record.measured.overall.truncated_fraction for name, record in records.items()}
    if not any(shares.values()):
        return "No answer was cut off at the token limit."
    usual = f"{100 * shares[chosen[0].stock.fingerprint]:.1f} %"
    told = {in_words(records[name].label): f"{100 * share:.1f} %" for name, share in shares.items()}
    named = [f"{escape(label)} {share}" for label, share in told.items() if share != usual or label == in_words(STOCK)]
    said = "; ".join([*named, *([f"the others {usual}"] if len(named) < len(told) else [])])
    limits = sorted({record.task.max_tokens for each in chosen for record in (each.stock, each.record)} - {0})
    limit = f" of {', '.join(map(str, limits))} tokens" if limits else ""
    return f"Cut off at the limit{limit}, as a share of all answers: {said}."


def _figure(beside: BesideStock, tokens: dict[str, np.ndarray], bins: Bins, top: float) -> str:
    label = in_words(beside.record.label)
    stock, policy = tokens[beside.stock.fingerprint], tokens[beside.record.fingerprint]
    title = (
        f"Lengths of answers: stock, median {np.median(stock):,.0f} tokens; {label}, median {np.median(policy):,.0f}"
        if len(stock) and len(policy)
        else f"Lengths of answers: stock and {label}"
    )
    floor = HEIGHT - BOTTOM
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" class="panel" role="img" aria-label="{escape(title)}">',
        *_axes(bins, top),
        f'<path class="area" d="{_steps(bins, bins.share(stock), top)}V{floor}Z"/>',
        f'<path class="ladder c-0072B2" d="{_steps(bins, bins.share(policy), top)}V{floor}"/>',
        "</svg>",
    ]
    key = '<span class="key area"></span>stock <span class="key line"></span>'
    return f"<figure><figcaption>{key}{escape(label)}</figcaption>{''.join(parts)}</figure>"


def _steps(bins: Bins, share: np.ndarray, top: float) -> str:
    """From the floor up, over all bins."""
    floor = HEIGHT - BOTTOM
    path = [f"M{bins.x(bins.edges[0])} {floor}"]
    for right, each in zip(bins.edges[1:], share, strict=True):
        path.append(f"V{floor - each / (top * 1.05) * (floor - TOP):.1f}H{bins.x(right)}")
    return "".join(path)


def _axes(bins: Bins, top: float) -> list[str]:
    floor, parts = HEIGHT - BOTTOM, []
    for share in _round_shares(top):
        y = round(floor - share / (top * 1.05) * (floor - TOP), 1)
        parts.append(f'<path class="grid" d="M{LEFT} {y}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{y + 4}" text-anchor="end">{100 * share:g}%</text>')
    for value in _round_lengths(bins):
        x = bins.x(value)
        parts.append(f'<path class="axis" d="M{x} {floor}v4"/>')
        parts.append(f'<text x="{x}" y="{floor + 16}" text-anchor="middle">{value:,}</text>')
    parts.append(f'<path class="axis" d="M{LEFT} {floor}H{WIDTH - RIGHT}"/>')
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">tokens</text>')
    return parts


def _round_shares(top: float) -> list[float]:
    step = next(step for step in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if top / step < 5)
    return [step * i for i in range(1, math.floor(top * 1.05 / step) + 1)]


def _round_lengths(bins: Bins) -> list[int]:
    low, high = float(bins.edges[0]), float(bins.edges[-1])
    if bins.log:
        powers = [m * 10**p for p in range(7) for m in (1, 2, 5) if low <= m * 10**p <= high]
        return powers if len(powers) <= 7 else [value for value in powers if str(value)[0] == "1"]
    raw = (high - low) / 6
    step = next(m * 10**p for p in range(7) for m in (1, 2, 5) if m * 10**p >= raw)
    return list(range(math.ceil(low / step) * step, math.floor(high) + 1, step))


def _table(run: Run, records: Sequence[PointRecord]) -> str:
    """Quantiles and the share that is cut off, all domains first; the domains are folded below."""
    caption = f"Tokens of an answer, {run.name}"
    rows = [_row(run, record, OVERALL) for record in records]
    parts = [
        [*row[:1], domain, *row[1:]]
        for record in records
        for domain in record.measured.domains
        if (row := _row(run, record, domain))
    ]
    found = html_table(caption, ["policy", *_HEAD], rows)
    if len(parts) > len(rows):
        inner = html_table(f"{caption}, by domain", ["policy", "domain", *_HEAD], parts)
        found += f'<details class="more"><summary>The same by domain</summary>{inner}</details>'
    return found


_HEAD = ("answers", *(f"{100 * q:.0f} %" if q != 0.5 else "median" for q in QUANTILES), "longest", "mean", "cut off %")


def _row(run: Run, record: PointRecord, domain: str) -> list[str]:
    outcomes = run.outcomes[record.fingerprint]
    outcomes = outcomes if domain == OVERALL else outcomes.filter(pl.col("domain") == domain)
    tokens = outcomes["tokens"].to_numpy()
    if not len(tokens):
        return [escape(in_words(record.label)), "0", *["-"] * (len(_HEAD) - 1)]
    values = [f"{each:,.0f}" for each in (*np.quantile(tokens, QUANTILES), tokens.max())]
    cut = 100 * float(outcomes["truncated"].to_numpy().mean())
    return [escape(in_words(record.label)), f"{len(tokens):,}", *values, f"{tokens.mean():,.1f}", f"{cut:.1f}"]
