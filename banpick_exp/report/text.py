"""Numbers as text, and what a run found in sentences: only what its records and outcomes say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from banpick_exp.analysis import BUDGET_TOLERANCE
from banpick_exp.records import OVERALL, STATUSES
from banpick_exp.report.run import Run

JOINED = {"beats": " ", "loses": " to ", "ties": " with "}
NAMED = 6  # single findings a list spells out before it counts the rest


def span(row: Mapping[str, Any], key: str, form: str, scale: float = 1) -> str:
    """`61.2 [59.0, 63.3]`; the value alone without an interval (a speed-up timed once), `-` without a value."""
    if row.get(key) is None:
        return "-"
    text, low, high = format(row[key] * scale, form), row.get(f"{key}_lo"), row.get(f"{key}_hi")
    return (
        text
        if low is None or high is None or (key == "speedup" and low == high)
        else f"{text} [{low * scale:{form}}, {high * scale:{form}}]"
    )


def points(row: Mapping[str, Any], *, simultaneous: bool = False) -> str:
    """A paired difference in points with its interval: `-0.3 [-1.2, +0.6]`."""
    end = "_simultaneous" if simultaneous else ""
    low, high = row[f"lo{end}"], row[f"hi{end}"]
    return f"{100 * row['difference']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def verdict_text(row: Mapping[str, Any]) -> str:
    """`ties fixed_k k=4 [-0.5, +0.8]`: the verdict with its simultaneous interval in points."""
    if row["verdict"] == "unmatched":
        return "unmatched"
    low, high = 100 * row["lo_simultaneous"], 100 * row["hi_simultaneous"]
    return f"{row['verdict']} {row['reference_label']} [{low:+.1f}, {high:+.1f}]"


def p_text(row: Mapping[str, Any]) -> str:
    """`p = 0.031`: the exact McNemar p of a comparison, Holm-adjusted over all that were judged with it."""
    return f"p\u00a0=\u00a0{row['p_holm']:.2g}"


def rival(row: Mapping[str, Any]) -> str:
    """Who a policy was compared with: `stock`, or the label of a fixed_k point."""
    return "stock" if row["reference_label"] == "none" else str(row["reference_label"])


def against(row: Mapping[str, Any]) -> str:
    """`loses to stock`, `ties with fixed_k k=4`, `beats fixed_k k=4`, `unmatched`."""
    if row["verdict"] == "unmatched":
        return "unmatched"
    return f"{row['verdict']}{JOINED[row['verdict']]}{rival(row)}"


def sentences(run: Run) -> list[str]:
    """What a reader should know after the headline, one fact a line."""
    lines = [_extent(run), _sampling(run), *_tally(run), *_by_domain(run), *_speed(run), *_guards(run)]
    return [line for line in lines if line]


def _extent(run: Run) -> str:
    counts = {status: sum(r["status"] == status for r in run.records) for status in STATUSES}
    problems = max(record["metrics"]["overall"]["n_problems"] for record in run.done)
    wrong = [f"{count} {status}" for status, count in counts.items() if status != "done" and count]
    return (
        f"{counts['done']} of {len(run.records)} points are done{' (' + ', '.join(wrong) + ')' if wrong else ''}: "
        f"model {run.models}, task {run.tasks}, {problems:,} problems a point."
    )


def _sampling(run: Run) -> str:
    """How answers were drawn, where they were; the greedy case needs no sentence."""
    drawn = {(t.get("samples", 1), t.get("temperature", 0), t.get("top_p", 1)) for t in (r["task"] for r in run.done)}
    said = [
        f"{n} a problem at temperature {temperature:g}, top-p {top_p:g}" for n, temperature, top_p in sorted(drawn)
        if temperature
    ]  # fmt: skip
    if not said:
        return ""
    return (
        f"Answers were sampled: {'; '.join(said)}. Accuracy is their mean, intervals are over problems, and every"
        " policy had the same seeds."
    )


def _tally(run: Run) -> list[str]:
    overall = run.found.filter(pl.col("domain") == OVERALL)
    compared = overall.filter(pl.col("verdict") != "unmatched")
    if compared.height == 0:
        return []
    near = compared.filter(pl.col("budget_gap").abs() <= BUDGET_TOLERANCE)
    count = {verdict: int((near["verdict"] == verdict).sum()) for verdict in ("beats", "ties", "loses")}
    lines = [
        f"Against fixed_k at equal measured budget, all domains together: of {near.height} policies {count['beats']} "
        f"beat it, {count['ties']} tie, {count['loses']} lose."
    ]
    if overall.height > near.height:
        lines.append(
            f"Without a fixed_k point within {BUDGET_TOLERANCE} experts per token: {overall.height - near.height} more;"
            " what is said of them is not at equal budget."
        )
    half = (compared["hi_simultaneous"] - compared["lo_simultaneous"]).median()
    assert isinstance(half, float)
    lines.append(
        f"Resolution: with {max(compared['n_pairs']):,} paired problems, differences under about {50 * half:.1f} "
        "points cannot be told from chance (half the median simultaneous interval). A tie is no proof of equality."
    )
    return lines


def _by_domain(run: Run) -> list[str]:
    rows = run.found.filter((pl.col("domain") != OVERALL) & pl.col("verdict").is_in(["beats", "loses"]))
    rows = rows.sort(pl.col("difference").abs(), descending=True)
    named = [
        f"{r['label']} {against(r)} on {r['domain']}, {points(r, simultaneous=True)} points"
        + ("" if abs(r["budget_gap"]) <= BUDGET_TOLERANCE else " (not at equal budget)")
        for r in rows.head(NAMED).iter_rows(named=True)
    ]
    if not named:
        return []
    more = f"; and {rows.height - NAMED} more in the table below" if rows.height > NAMED else ""
    return ["Single domains apart from fixed_k: " + "; ".join(named) + more + "."]


def _speed(run: Run) -> list[str]:
    stock = [record["metrics"]["overall"] for record in run.done if record["policy"]["name"] == "none"]
    stock = [metrics for metrics in stock if metrics["speedup_spread"]]
    if not stock:
        return []
    low, high = min(m["speedup_spread"][0] for m in stock), max(m["speedup_spread"][1] for m in stock)
    repeats = {record["task"].get("throughput_repeats") for record in run.done}
    said = f"{low:.2f}x" if low == high else f"{low:.2f}x to {high:.2f}x; a speed-up within that is noise"
    once = " Each point was timed once, so no speed-up of this run has a spread." if repeats == {1} else ""
    return [f"Speed noise: stock timed against itself gives {said}.{once}"]


def _guards(run: Run) -> list[str]:
    raised = run.guards.filter(pl.col("level") != "ok")
    if raised.height == 0:
        return []
    count = raised["fingerprint"].n_unique()
    names = ", ".join(sorted(set(raised["guard"])))
    return [f"Guards: {raised.height} raised on {count} points ({names}); listed under Guards."]
