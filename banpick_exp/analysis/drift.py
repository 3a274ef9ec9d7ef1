"""What changes before accuracy does: truncation, output length and degenerate repetition, each against stock.

All three are paired by problem, and each guard's alarms are Holm-adjusted over all points and domains looked at: a
warning is meant to be true. A change of the stated size that could be noise is still listed, as `ok` and as noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from banpick_exp.analysis.compare import ERROR_RATE, holm, sign_flip_p
from banpick_exp.analysis.finding import Finding, Guard
from banpick_exp.analysis.intervals import bootstrap_intervals, ratio_of_means
from banpick_exp.analysis.pairing import Pairs
from banpick_exp.records import OVERALL, PointRecord

RISE = 0.01
"""Share of answers, for truncation and repetition: one point more than stock."""
LENGTH_DRIFT = 0.10
"""Relative change of the mean number of output tokens."""
MIN_PROBLEMS = 30
"""Fewer give no interval of a length that can be relied on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One measured change of a point against stock. `p`: of no change; `large`: reaches the size worth a row."""

    record: PointRecord
    guard: Guard
    domain: str
    value: float
    p: float
    large: bool
    sentence: Callable[[], str]
    """What happened with its interval; called only for rows that are shown, since intervals cost more than p values."""


def change_findings(changes: list[Change]) -> Iterator[Finding]:
    """Those of one guard: every large change, `warning` where it survives Holm over all of `changes`."""
    for change, p in zip(changes, holm([change.p for change in changes]), strict=True):
        if not change.large:
            continue
        sure = p <= ERROR_RATE
        doubt = f"; may be noise: p = {change.p:.2g}, {p:.2g} after Holm over {len(changes)} comparisons"
        yield Finding(
            record=change.record,
            guard=change.guard,
            domain=change.domain,
            level="warning" if sure else "ok",
            value=change.value,
            detail=change.sentence() + ("" if sure else doubt),
        )


def share_change(record: PointRecord, pairs: Pairs, domain: str, guard: Guard, column: str, predicate: str) -> Change:
    """The rise of a share of answers (a column of `pairs`) over stock's; repetition's value is the share itself."""
    counts, scale = pairs.differences(column)
    ours, theirs = pairs.mean(column)

    def sentence() -> str:
        low, high = (100 * end / scale for end in bootstrap_intervals(counts, 1 - ERROR_RATE)[0])
        rise = 100 * (ours - theirs)
        return (
            f"{ours:.1%} of the answers {predicate}, stock {theirs:.1%}: {rise:+.1f} points [{low:+.1f}, {high:+.1f}]"
        )

    rise = ours - theirs
    return Change(
        record=record,
        guard=guard,
        domain=domain,
        value=ours if guard == "repetition" else rise,
        p=sign_flip_p(counts),
        large=rise >= RISE,
        sentence=sentence,
    )


def length_change(record: PointRecord, pairs: Pairs, domain: str) -> Change | None:
    """The relative change of the mean answer length; None where the problems are too few to say."""
    ours, theirs = pairs.per_answer("tokens")
    if pairs.n < MIN_PROBLEMS or not theirs.mean() > 0:
        return None
    ratio, low, high, p = ratio_of_means(ours, theirs)

    def sentence() -> str:
        return (
            f"answers of {ours.mean():.1f} tokens, stock {theirs.mean():.1f}: {ratio - 1:+.1%} "
            f"[{low - 1:+.1%}, {high - 1:+.1%}]"
        )

    return Change(
        record=record,
        guard="length_drift",
        domain=domain,
        value=ratio - 1,
        p=p,
        large=abs(ratio - 1) >= LENGTH_DRIFT,
        sentence=sentence,
    )


def by_domain(record: PointRecord, pairs: Pairs) -> Iterator[tuple[str, Pairs]]:
    """The pairs of all domains together, then of each; a single domain is not said twice, empty ones not at all."""
    yield OVERALL, pairs
    domains = list(record.measured.domains)
    for domain in domains if len(domains) > 1 else []:
        part = pairs.domain(domain)
        if part.n:
            yield domain, part
