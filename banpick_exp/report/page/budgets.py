"""Budgets: how a knob was solved for one, and what was implied and measured, by domain and layer."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from banpick_exp.records import OVERALL, BudgetAccount, PointRecord
from banpick_exp.report.page.html_tables import html_table
from banpick_exp.report.page.rest import IN_RECORDS, not_here
from banpick_exp.report.page.section import Section, by_run
from banpick_exp.report.run import Run

INTRODUCTION = (
    "<p>Measured by counters inside the engine, over unpadded tokens and layers, never assumed. "
    "Implied: the range the policy's knobs allow.</p>"
)
EVEN = 0.005
"""Experts a layer: less between layers does not show in two digits."""

_each_run = by_run(lambda run: solved_table(run) + budget_table(run))
SECTION = Section(key="budgets", title="Budgets", html=lambda runs, maps: INTRODUCTION + _each_run(runs, maps))


def solved_table(run: Run) -> str:
    """A row a solved knob: what was asked for, found and measured; empty where the run solved none."""
    solved = [(record, record.budget) for record in run.records if record.budget is not None]
    if not solved:
        return ""
    count = len(solved)
    if count > run.most_shown:
        solved = [(record, account) for record, account in solved if record.fingerprint in run.shown]
    solved.sort(key=lambda pair: (-pair[1].target, pair[0].policy_name))
    rows = [list(map(escape, _solved_row(record, account))) for record, account in solved]
    head = ["policy", "target", "knob found", "measured", "off by", "probes on a sample (knob: experts kept)", "note"]
    table = html_table(f"Knobs solved for a budget, {run.name}", head, rows)
    return table + not_here(count - len(rows), IN_RECORDS)


def _solved_row(record: PointRecord, account: BudgetAccount) -> list[str]:
    probes = ", ".join(f"{value:g}: {measured:.2f}" for value, measured in account.probes)
    notes = {
        "solved before": account.cached,
        "corrected by what all problems showed": account.corrected,
        str(record.reason): record.status != "done",
    }
    return [
        record.label,
        f"{account.target:g}",
        f"{account.knob} = {account.value:g}",
        f"{account.measured:.3f}",
        f"{account.measured - account.target:+.3f}",
        f"{len(account.probes)} on {account.sample_problems} problems ({probes})" if probes else "none needed",
        "; ".join(note for note, holds in notes.items() if holds),
    ]


def budget_table(run: Run) -> str:
    """Implied and measured experts kept, domain by domain and over the layers, and the gap to the reference."""
    domains = [domain for domain in run.domains if domain != OVERALL]
    records = sorted(run.shown_done, key=lambda record: -record.mean_kept)
    body = [
        [
            escape(record.label),
            _implied(record),
            f"{record.mean_kept:.3f}",
            *(_measured(record, domain) for domain in domains),
            _layers(record.measured.overall.mean_kept_by_layer),
            _gap(run, record),
            _key_experts(record),
        ]
        for record in records
    ]
    head = ["policy", "implied", "measured", *domains, "per layer", "gap to reference", "key experts selected, x stock"]
    table = html_table(f"Experts kept per token and layer, {run.name}", head, body)
    return table + not_here(run.unshown, IN_RECORDS)


def _implied(record: PointRecord) -> str:
    ranges = sorted(set(record.engagement.implied.values()))
    return "; ".join(f"{low:g}" if low == high else f"{low:g} to {high:g}" for low, high in ranges) or "-"


def _measured(record: PointRecord, domain: str) -> str:
    metrics = record.measured.domains.get(domain)
    return "-" if metrics is None else f"{metrics.mean_kept:.3f}"


def _layers(kept: Sequence[float]) -> str:
    """The layers that keep fewest and most."""
    if not kept:
        return "-"
    low, high = min(kept), max(kept)
    if high - low < EVEN:
        return f"{kept[0]:.2f} in all"
    return f"{low:.2f} (L{kept.index(low)}) to {high:.2f} (L{kept.index(high)})"


def _gap(run: Run, record: PointRecord) -> str:
    verdict = run.verdict_of.get((record.fingerprint, OVERALL))
    return "-" if verdict is None or verdict["budget_gap"] is None else f"{verdict['budget_gap']:+.2f}"


def _key_experts(record: PointRecord) -> str:
    share = record.engagement.key_expert_share
    return "-" if share is None or not share.stock else f"{share.policy / share.stock:.2f}x"
