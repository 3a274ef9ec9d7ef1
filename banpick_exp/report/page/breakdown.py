"""What lies below a point's mean: domains and sub-tasks, budgets by domain and layer, guards."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import polars as pl

from banpick_exp.analysis import GUARDS, holm, subtasks, without_repeats
from banpick_exp.records import OVERALL
from banpick_exp.report.page.tables import MARKS, at_equal_budget, html_table
from banpick_exp.report.run import Run
from banpick_exp.report.text import points, span

ERROR_RATE = 0.05
AGAINST_STOCK = ("truncation", "length_drift", "subtask_drop")
"""Guards with a row only for what is large enough to be named."""


def domain_tables(run: Run) -> str:
    """One table a domain: accuracy, verdict at equal budget, difference to stock there and in each of its sub-tasks."""
    found = subtasks(without_repeats(run.records), run.outcomes)
    found = found.with_columns(p_holm=pl.Series(holm(found["p"].to_list()), dtype=pl.Float64))
    chance = round(ERROR_RATE * found.height)
    note = (
        "Differences to stock are on the same problems, in points, with 95 % paired bootstrap intervals, each for "
        f"itself: of the {found.height:,} of sub-tasks about {chance:,} exclude zero by chance. ▲ ▼ and colour: apart "
        "from stock in an exact test right for all of them at once (Holm). At equal budget: against the nearest "
        "fixed_k point, with the interval that is right for all policies and domains at once; * has a note under the "
        "pointer. "
        "Stock's own row has its accuracy."
    )
    tables = "".join(_domain_table(run, domain, found) for domain in run.domains if domain != OVERALL)
    return f'<p class="small">{note}</p>{tables}'


def _domain_table(run: Run, domain: str, found: pl.DataFrame) -> str:
    tasks = found.filter(pl.col("domain") == domain)
    row_of = {(row["fingerprint"], row["task"]): row for row in tasks.iter_rows(named=True)}
    stock = {row["task"]: row["stock_accuracy"] for row in row_of.values()}
    sizes = dict(tasks.group_by("task", maintain_order=True).agg(pl.col("n_problems").max()).iter_rows())
    rows = run.frame.filter((pl.col("status") == "done") & (pl.col("domain") == domain))
    body = []
    for row in rows.sort("mean_kept", "accuracy", descending=True).iter_rows(named=True):
        own = row["policy"] == "none"
        line = [escape(row["label"]), f"{100 * row['accuracy']:.1f}"]
        line.append(at_equal_budget(run.verdict_of.get((row["fingerprint"], domain)), short=True))
        line.append("-" if own else span(row, "delta", "+.1f", 100))
        for task in sizes:
            line.append(f"{100 * stock[task]:.1f} %" if own else _difference(row_of.get((row["fingerprint"], task))))
        body.append(line)
    head = ["policy", f"{run.measure} %", "at equal budget", f"{domain} vs stock"]
    head += [f"{task} (n\u00a0=\u00a0{size:,})" for task, size in sizes.items()]
    return html_table(f"{domain}: accuracy, and differences to stock by sub-task (points)", head, body)


def _difference(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "-"
    mark = MARKS["beats" if row["difference"] > 0 else "loses"] if row["p_holm"] <= ERROR_RATE else ""
    return f"{mark} {points(row)}".strip()


def budget_table(run: Run) -> str:
    """Implied and measured experts kept, domain by domain and over the layers, and the gap to the reference."""
    body = []
    domains = [domain for domain in run.domains if domain != OVERALL]
    for record in sorted(run.done, key=lambda r: -r["metrics"]["overall"]["mean_kept"]):
        overall, evidence = record["metrics"]["overall"], record["engagement"]
        verdict = run.verdict_of.get((record["fingerprint"], OVERALL))
        by_layer = overall["mean_kept_by_layer"] or []
        lowest, highest = (by_layer.index(min(by_layer)), by_layer.index(max(by_layer))) if by_layer else (0, 0)
        layers = (
            "-" if not by_layer
            else f"{by_layer[0]:.2f} in all" if max(by_layer) - min(by_layer) < 0.005
            else f"{min(by_layer):.2f} (L{lowest}) to {max(by_layer):.2f} (L{highest})"
        )  # fmt: skip
        gap = "-" if verdict is None or verdict["budget_gap"] is None else f"{verdict['budget_gap']:+.2f}"
        ranges = {tuple(implied) for implied in evidence.get("implied", {}).values()}
        implied = (
            "; ".join(f"{low:g}" if low == high else f"{low:g} to {high:g}" for low, high in sorted(ranges)) or "-"
        )
        line = [escape(record["label"]), implied, f"{overall['mean_kept']:.3f}"]
        line += [_measured(record, domain) for domain in domains]
        body.append([*line, layers, gap, _share(evidence)])
    head = ["policy", "implied", "measured", *domains, "per layer", "gap to reference", "key experts selected, x stock"]
    return html_table(f"Experts kept per token and layer, {run.name}", head, body)


def _measured(record: Mapping[str, Any], domain: str) -> str:
    block = record["metrics"]["domains"].get(domain)
    return "-" if block is None else f"{block['mean_kept']:.3f}"


def _share(evidence: Mapping[str, Any]) -> str:
    share = evidence.get("key_expert_share")
    return "-" if not share or not share["stock"] else f"{share['policy'] / share['stock']:.2f}x"


def guard_table(run: Run) -> str:
    """Guards that were raised, the invalid ones first; folded, what may be noise; then points without a result."""
    raised = run.guards.filter(pl.col("level") != "ok").sort(pl.col("level") != "invalid", maintain_order=True)
    possible = run.guards.filter(
        (pl.col("level") == "ok") & pl.col("guard").is_in(AGAINST_STOCK) & pl.col("value").is_not_null()
    )
    found = f"{raised.height} were raised." if raised.height else "None was raised."
    parts = [f"<p>Looked for at every point: {', '.join(GUARDS)}. {found}</p>"]
    if raised.height:
        parts.append(_findings(raised, f"Guards raised in {run.name}"))
    if possible.height:
        table = _findings(possible, f"Changes that may be noise in {run.name}")
        parts.append(
            f"<details><summary>{possible.height:,} changes are large enough to be named, but chance explains them"
            f"</summary>{table}</details>"
        )
    lost = [record for record in run.records if record["status"] != "done"]
    if lost:
        rows = [[escape(r["label"]), r["status"], escape(r["reason"] or "no reason recorded")] for r in lost]
        caption = f"Points without a result in {run.name}"
        parts.append(html_table(caption, ["policy", "status", "why"], rows, kind="words"))
    return "".join(parts)


def _findings(rows: pl.DataFrame, caption: str) -> str:
    cells = [
        [escape(row["label"]), escape(row["domain"]), escape(row["guard"]),
         f'<b class="{escape(row["level"])}">{escape(row["level"])}</b>', escape(row["detail"] or "")]
        for row in rows.iter_rows(named=True)
    ]  # fmt: skip
    return html_table(caption, ["policy", "domain", "guard", "level", "what was seen"], cells, kind="words")
