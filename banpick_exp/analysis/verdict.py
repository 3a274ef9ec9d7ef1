"""Does a policy beat plain truncation at the budget it really used: verdicts, and a sweep's conclusion in a sentence.

Two rules hold the conclusions honest. A policy is compared with the fixed_k point that kept about as many experts, on
the same problems. And because a sweep tries many settings, a verdict must hold for all of them at once (`compare`): on
a model where nothing helps, 19 sweeps of 20 must report no winner at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import polars as pl

from banpick_exp.analysis.compare import compare_counts, holm, sign_flip_p
from banpick_exp.analysis.pairing import (
    REFERENCE_POLICIES,
    Answers,
    Outcomes,
    Record,
    References,
    all_answers,
    mean_kept,
    pair,
    without_repeats,
)
from banpick_exp.records import OVERALL

BUDGET_TOLERANCE = 0.25  # experts per token; beyond it a verdict is about the budget as much as about the policy
RIVALS = ("fixed_k", "stock")

_SCHEMA: dict[str, Any] = {
    "fingerprint": pl.String, "label": pl.String, "policy": pl.String, "domain": pl.String, "against": pl.String,
    "reference_fingerprint": pl.String, "reference_label": pl.String, "accuracy": pl.Float64,
    "reference_accuracy": pl.Float64, "difference": pl.Float64, "lo": pl.Float64, "hi": pl.Float64,
    "lo_simultaneous": pl.Float64, "hi_simultaneous": pl.Float64, "wins": pl.Int64, "losses": pl.Int64,
    "n_pairs": pl.Int64, "mcnemar_p": pl.Float64, "p_holm": pl.Float64, "comparisons": pl.Int64,
    "mean_kept": pl.Float64, "reference_mean_kept": pl.Float64, "budget_gap": pl.Float64, "verdict": pl.String,
    "note": pl.String,
}  # fmt: skip


def verdicts(records: Iterable[Record], outcomes: Outcomes, *, against: Sequence[str] = ("fixed_k",)) -> pl.DataFrame:
    """Every finished policy against its rivals, overall and per domain.

    `fixed_k`: the done `fixed_k` or `none` point (`none` is fixed_k at K) of the same model, engine and task whose
    measured overall mean_kept is nearest; at equal distance the one that keeps more, then `none`. `stock`: the done
    `none` point, whatever the budget; the fixed_k ladder is compared with it too. Only `done` points take part, and of
    repeats the first: the others are no further policies (`repeat_spread`). Four families are adjusted each for itself,
    for each rival: the overall verdicts of all policies, and those of all policies x domains.

    Args:
        records: as `load_points` returns them.
        outcomes: fingerprint -> per-problem outcomes (problem_id, domain, task, correct, truncated, tokens and, for
            sampling tasks, sample), paired on domain and problem_id.
        against: which rivals; filter the column `against` where both are asked for.

    Returns: one row a policy x rival x domain ("overall" first): fingerprint, label, policy, domain, against,
        reference_fingerprint, reference_label, accuracy and reference_accuracy on the paired problems, difference
        (0..1) with lo, hi (95 %) and lo_simultaneous, hi_simultaneous, wins, losses and n_pairs in problems, mcnemar_p
        (its sign-flip generalisation where there are several samples), p_holm, comparisons, mean_kept and
        reference_mean_kept as measured in that domain, budget_gap (policy minus reference), verdict (beats, ties,
        loses; unmatched when there is nothing to compare with) and note.
    Raises: ValueError for a rival that is none, or outcomes that cannot be paired.
    """
    if unknown := sorted(set(against) - set(RIVALS)):
        raise ValueError(f"against={unknown} names no rival. Use {' or '.join(RIVALS)}")
    done = [record for record in without_repeats(records) if record["status"] == "done"]
    answers = all_answers(done, outcomes)
    references = References(done)
    rows: list[dict[str, Any]] = []
    for rival in against:
        for record in done:
            if record["policy"]["name"] in (REFERENCE_POLICIES if rival == "fixed_k" else ("none",)):
                continue
            reference = (references.nearest_fixed_k if rival == "fixed_k" else references.stock)(record)
            rows += _unjudged(record, reference, rival, answers)
    for rival in against:
        for overall in (True, False):
            _judge([r for r in rows if "counts" in r and r["against"] == rival and (r["domain"] == OVERALL) == overall])
    totals = {r["fingerprint"]: r["metrics"] for r in done}
    for row in rows:
        if row["verdict"] != "unmatched":
            row["note"] = _note(row, totals[row["fingerprint"]])
    return pl.DataFrame([{name: row[name] for name in _SCHEMA} for row in rows], schema=_SCHEMA)


def _unjudged(
    record: Record, reference: Record | None, rival: str, answers: dict[str, Answers]
) -> list[dict[str, Any]]:
    """The rows of one policy without their verdicts; those that can be judged hold `counts` and `scale`."""
    if reference is None:
        wanted = "none or fixed_k" if rival == "fixed_k" else "none"
        return [_row(record, None, OVERALL, rival) | {"note": f"no finished {wanted} point of the same set-up"}]
    paired = pair(answers[record["fingerprint"]], answers[reference["fingerprint"]])
    rows = []
    for domain in (OVERALL, *record["metrics"]["domains"]):
        row = _row(record, reference, domain, rival)
        pairs = paired.domain(domain)
        if pairs.n == 0:
            rows.append(row | {"note": f"no problem in common with {reference['label']}"})
            continue
        counts, scale = pairs.differences("correct")
        row |= {"counts": counts, "scale": scale}
        row["accuracy"], row["reference_accuracy"] = pairs.mean("correct")
        rows.append(row)
    return rows


def _judge(family: list[dict[str, Any]]) -> None:
    """Write the comparisons of one family into its rows."""
    p_values = [sign_flip_p(row["counts"]) for row in family]
    for row, p, p_holm in zip(family, p_values, holm(p_values), strict=True):
        row |= compare_counts(row["counts"], row["scale"], len(family), p=p, p_holm=p_holm)


def headline(frame: pl.DataFrame) -> str:
    """The conclusion of a sweep in one sentence, from `verdicts`; percentages points and the simultaneous interval.

    Only rows against fixed_k count. A `beats` that keeps over BUDGET_TOLERANCE more experts than its reference is no
    gain: it may be the budget's.
    """
    compared = frame.filter((pl.col("verdict") != "unmatched") & (pl.col("against") == "fixed_k"))
    if compared.height == 0:
        return "No verdict: no policy point and fixed_k reference finished together."
    total = compared["fingerprint"].n_unique()
    beats = compared.filter(pl.col("verdict") == "beats")
    gains = beats.filter(pl.col("budget_gap") <= BUDGET_TOLERANCE).sort("lo_simultaneous", descending=True)
    if gains.height:
        best = gains.row(0, named=True)
        where = OVERALL if best["domain"] == OVERALL else f"on {best['domain']}"
        others = gains["fingerprint"].n_unique() - 1
        rival = "stock (none)" if best["reference_label"] == "none" else best["reference_label"]
        return (
            f"Gain: {best['label']} beats {rival} {where} by {100 * best['difference']:+.1f} points "
            f"[{100 * best['lo_simultaneous']:.1f}, {100 * best['hi_simultaneous']:.1f}] at equal budget"
            + (f"; {others} more of {total} points gain too." if others else f" (1 of {total} points).")
        )
    names = "/".join(sorted(set(compared["policy"])))
    apart = (pl.col("domain") == OVERALL) & (pl.col("budget_gap").abs() > BUDGET_TOLERANCE)
    far = compared.filter(apart)["fingerprint"].n_unique()
    if far:
        verb = "has" if far == 1 else "have"
        return (
            f"No gain shown: {total - far} of {total} {names} points tie or lose against fixed_k at equal budget; "
            f"the other {far} {verb} no fixed_k point within {BUDGET_TOLERANCE} experts per token."
        )
    return f"No gain: {total} of {total} {names} points tie or lose against fixed_k at equal budget."


def _row(record: Record, reference: Record | None, domain: str, rival: str) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(_SCHEMA)
    row |= {"fingerprint": record["fingerprint"], "label": record["label"], "policy": record["policy"]["name"]}
    row |= {"domain": domain, "against": rival, "verdict": "unmatched", "mean_kept": mean_kept(record, domain)}
    if reference is not None:
        kept = mean_kept(reference, domain) if domain in (OVERALL, *reference["metrics"]["domains"]) else None
        row |= {"reference_fingerprint": reference["fingerprint"], "reference_label": reference["label"]}
        row |= {"reference_mean_kept": kept, "budget_gap": None if kept is None else row["mean_kept"] - kept}
    return row


def _note(row: dict[str, Any], metrics: Record) -> str | None:
    """What a reader must know before quoting the verdict; None when there is nothing."""
    notes = []
    gap = row["budget_gap"]
    if row["against"] == "fixed_k" and gap is not None and abs(gap) > BUDGET_TOLERANCE:
        amount = f"{abs(gap):.2f} {'more' if gap > 0 else 'fewer'}"
        notes.append(f"not at equal budget: keeps {amount} experts per token than {row['reference_label']}")
    if row["verdict"] == "ties" and (row["lo_simultaneous"] > 0 or row["hi_simultaneous"] < 0):
        notes.append(
            f"few problems differ: exact McNemar p = {row['mcnemar_p']:.2g}, {row['p_holm']:.2g} after Holm, decides"
        )
    total = (metrics["overall"] if row["domain"] == OVERALL else metrics["domains"][row["domain"]])["n_problems"]
    if row["n_pairs"] != total:
        notes.append(f"paired on {row['n_pairs']} of {total} problems")
    return "; ".join(notes) or None
