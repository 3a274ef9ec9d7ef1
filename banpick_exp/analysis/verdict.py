"""Does a policy beat plain truncation at the budget it really used: verdicts, and a sweep's conclusion in a sentence.

Two rules hold the conclusions honest. A policy is compared with the fixed_k point that kept about as many experts, on
the same problems. And because a sweep tries many settings, a verdict must hold for all of them at once (`compare`): on
a model where nothing helps, 19 sweeps of 20 must report no winner at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from banpick_exp.analysis.compare import Comparison, compare_counts, holm, sign_flip_p
from banpick_exp.analysis.pairing import (
    REFERENCE_POLICIES,
    Answers,
    Outcomes,
    References,
    all_answers,
    pair,
    without_repeats,
)
from banpick_exp.records import OVERALL, PointRecord

EQUAL_BUDGET_TOLERANCE = 0.25
"""Experts per token; beyond it a verdict is about the budget as much as about the policy."""
RIVALS = ("fixed_k", "stock")
NAMED_RULES = 4
"""Of a headline; more are counted."""

_SCHEMA: dict[str, Any] = {
    "fingerprint": pl.String, "label": pl.String, "policy": pl.String, "domain": pl.String, "against": pl.String,
    "reference_fingerprint": pl.String, "reference_label": pl.String, "accuracy": pl.Float64,
    "reference_accuracy": pl.Float64, "difference": pl.Float64, "lo": pl.Float64, "hi": pl.Float64,
    "lo_simultaneous": pl.Float64, "hi_simultaneous": pl.Float64, "wins": pl.Int64, "losses": pl.Int64,
    "n_pairs": pl.Int64, "mcnemar_p": pl.Float64, "p_holm": pl.Float64, "comparisons": pl.Int64,
    "mean_kept": pl.Float64, "reference_mean_kept": pl.Float64, "budget_gap": pl.Float64, "verdict": pl.String,
    "note": pl.String,
}  # fmt: skip


def verdicts(
    records: Iterable[PointRecord], outcomes: Outcomes, *, against: Sequence[str] = ("fixed_k",)
) -> pl.DataFrame:
    """Every finished policy against its rivals, overall and per domain.

    `fixed_k`: the done `fixed_k` or `none` point (`none` is fixed_k at K) of the same model, engine and task whose
    measured overall mean_kept is nearest; at equal distance the one that keeps more, then `none`. `stock`: the done
    `none` point, whatever the budget; the fixed_k ladder is compared with it too. Only `done` points take part, and of
    repeats the first: the others are no further policies (`repeat_spread`). Four families are adjusted each for itself,
    for each rival: the overall verdicts of all policies, and those of all policies x domains.

    Args:
        records: as `RunFolder.load_points` returns them.
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
    done = [record for record in without_repeats(records) if record.status == "done"]
    answers = all_answers(done, outcomes)
    references = References(done)
    pairings = [
        pairing
        for rival in against
        for record in done
        if record.series not in (REFERENCE_POLICIES if rival == "fixed_k" else ("none",))
        for pairing in _pairings(record, rival, references, answers)
    ]
    families: dict[tuple[str, bool], list[_Pairing]] = {}
    for pairing in pairings:
        if pairing.answered is not None:
            families.setdefault((pairing.against, pairing.domain == OVERALL), []).append(pairing)
    compared: dict[_Pairing, Comparison] = {}
    for family in families.values():
        compared |= _compared(family)
    return pl.DataFrame([_row(pairing, compared.get(pairing)) for pairing in pairings], schema=_SCHEMA)


@dataclass(frozen=True, slots=True)
class _Answered:
    """What a policy and its reference made of the problems they share."""

    counts: Mapping[int, int]
    """Differences in right answers, in units of 1/scale: how often each occurs."""
    scale: int
    accuracy: float
    reference_accuracy: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Pairing:
    """One policy beside one rival in one domain, not yet judged."""

    record: PointRecord
    against: str
    domain: str
    reference: PointRecord | None = None
    answered: _Answered | None = None
    """None where there is nothing to compare; `why_not` says why."""
    why_not: str | None = None

    @property
    def mean_kept(self) -> float:
        """As measured in the domain."""
        return self.record.measured.of(self.domain).mean_kept

    @property
    def reference_mean_kept(self) -> float | None:
        """None where there is no reference, or it was not measured there."""
        metrics = {} if self.reference is None else self.reference.measured.all()
        return metrics[self.domain].mean_kept if self.domain in metrics else None

    @property
    def budget_gap(self) -> float | None:
        """Policy minus reference."""
        return None if self.reference_mean_kept is None else self.mean_kept - self.reference_mean_kept


def _pairings(
    record: PointRecord, rival: str, references: References, answers: Mapping[str, Answers]
) -> Iterator[_Pairing]:
    """Of one policy, domain by domain."""
    reference = references.nearest_fixed_k(record) if rival == "fixed_k" else references.stock(record)
    if reference is None:
        why_not = f"no finished {'none or fixed_k' if rival == 'fixed_k' else 'none'} point of the same set-up"
        yield _Pairing(record=record, against=rival, domain=OVERALL, why_not=why_not)
        return
    paired = pair(answers[record.fingerprint], answers[reference.fingerprint])
    for domain in record.measured.all():
        pairs = paired.domain(domain)
        answered = _Answered(*pairs.differences("correct"), *pairs.mean("correct")) if pairs.n else None
        yield _Pairing(
            record=record,
            against=rival,
            domain=domain,
            reference=reference,
            answered=answered,
            why_not=None if answered else f"no problem in common with {reference.label}",
        )


def _compared(family: Sequence[_Pairing]) -> dict[_Pairing, Comparison]:
    """One family, adjusted for all of its comparisons."""
    answered = [pairing.answered for pairing in family if pairing.answered is not None]
    p_values = [sign_flip_p(each.counts) for each in answered]
    comparisons = [
        compare_counts(each.counts, each.scale, len(family), p=p, p_holm=p_holm)
        for each, p, p_holm in zip(answered, p_values, holm(p_values), strict=True)
    ]
    return dict(zip(family, comparisons, strict=True))


def gains_in(frame: pl.DataFrame) -> pl.DataFrame:
    """Rows of `verdicts` that beat a fixed_k reference which keeps as many experts or more, the surest first."""
    beats = frame.filter((pl.col("verdict") == "beats") & (pl.col("against") == "fixed_k"))
    return beats.filter(pl.col("budget_gap") <= EQUAL_BUDGET_TOLERANCE).sort("lo_simultaneous", descending=True)


def headline(frame: pl.DataFrame) -> str:
    """The conclusion of a sweep in one sentence, from `verdicts`; percentages points and the simultaneous interval.

    Only rows against fixed_k count. A `beats` that keeps over EQUAL_BUDGET_TOLERANCE more experts than its
    reference is no gain: it may be the budget's.
    """
    compared = frame.filter((pl.col("verdict") != "unmatched") & (pl.col("against") == "fixed_k"))
    if compared.height == 0:
        return "No verdict: no policy point and fixed_k reference finished together."
    total = compared["fingerprint"].n_unique()
    gains = gains_in(frame)
    if gains.height:
        best = gains.row(0, named=True)
        where = OVERALL if best["domain"] == OVERALL else f"on {best['domain']}"
        others = gains["fingerprint"].n_unique() - 1
        rival = "stock (none)" if best["reference_label"] == "none" else best["reference_label"]
        return (
            f"Gain: {best['label']} beats {rival} {where} by {100 * best['difference']:+z.1f} points "
            f"[{100 * best['lo_simultaneous']:.1f}, {100 * best['hi_simultaneous']:.1f}] at equal budget"
            + (f"; {others} more of {total} points gain too." if others else f" (1 of {total} points).")
        )
    rules = sorted(set(compared["policy"]))
    points = f"{'/'.join(rules)} points" if len(rules) <= NAMED_RULES else f"points of {len(rules)} rules"
    apart = (pl.col("domain") == OVERALL) & (pl.col("budget_gap").abs() > EQUAL_BUDGET_TOLERANCE)
    far = compared.filter(apart)["fingerprint"].n_unique()
    if far:
        verb = "has" if far == 1 else "have"
        return (
            f"No gain shown: {total - far} of {total} {points} tie or lose against fixed_k at equal budget; "
            f"the other {far} {verb} no fixed_k point within {EQUAL_BUDGET_TOLERANCE} experts per token."
        )
    return f"No gain: {total} of {total} {points} tie or lose against fixed_k at equal budget."


def _row(pairing: _Pairing, comparison: Comparison | None) -> dict[str, Any]:
    record, reference, answered = pairing.record, pairing.reference, pairing.answered
    row: dict[str, Any] = {
        "fingerprint": record.fingerprint,
        "label": record.label,
        "policy": record.series,
        "domain": pairing.domain,
        "against": pairing.against,
        "mean_kept": pairing.mean_kept,
        "reference_mean_kept": pairing.reference_mean_kept,
        "budget_gap": pairing.budget_gap,
        "verdict": "unmatched",
        "note": pairing.why_not,
    }
    if reference is not None:
        row |= {"reference_fingerprint": reference.fingerprint, "reference_label": reference.label}
    if answered is not None and comparison is not None:
        row |= {"accuracy": answered.accuracy, "reference_accuracy": answered.reference_accuracy}
        row |= comparison | {"note": _note(pairing, comparison)}
    return row


def _note(pairing: _Pairing, found: Comparison) -> str | None:
    """What a reader must know before quoting the verdict; None when there is nothing."""
    notes = []
    gap, reference = pairing.budget_gap, pairing.reference
    if pairing.against == "fixed_k" and reference and gap is not None and abs(gap) > EQUAL_BUDGET_TOLERANCE:
        amount = f"{abs(gap):.2f} {'more' if gap > 0 else 'fewer'}"
        notes.append(f"not at equal budget: keeps {amount} experts per token than {reference.label}")
    if found["verdict"] == "ties" and (found["lo_simultaneous"] > 0 or found["hi_simultaneous"] < 0):
        p, p_holm = found["mcnemar_p"], found["p_holm"]
        notes.append(f"few problems differ: exact McNemar p = {p:.2g}, {p_holm:.2g} after Holm, decides")
    total = pairing.record.measured.of(pairing.domain).n_problems
    if found["n_pairs"] != total:
        notes.append(f"paired on {found['n_pairs']} of {total} problems")
    return "; ".join(notes) or None
