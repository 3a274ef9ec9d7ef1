"""Is a difference real, and what does it cost: intervals, the Pareto front, verdicts at equal measured budget.

Frames in, frames out; nothing is read or written here. Two rules hold the conclusions honest. A policy is compared with
the fixed_k point that kept about as many experts, on the same problems. And because a sweep tries many settings, the
verdict uses intervals that are right for all of them at once: on a model where nothing helps, 19 sweeps of 20 must
report no winner at all.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from statistics import NormalDist
from typing import Any

import numpy as np
import polars as pl

from banpick_exp.records import OVERALL, points_frame

__all__ = [
    "BUDGET_TOLERANCE", "compare_pairs", "headline", "mcnemar_exact_p", "paired_bootstrap", "pareto_front",
    "points_frame", "verdicts", "wilson",
]  # fmt: skip

REFERENCE_POLICIES = ("none", "fixed_k")
BUDGET_TOLERANCE = 0.25  # experts per token; beyond it a verdict is about the budget as much as about the policy
ERROR_RATE = 0.05


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of a proportion (Wilson 1927): near its coverage even at 0 or n successes, where Wald collapses.

    Returns: (low, high) in 0..1; (0, 1) for n = 0. Example: wilson(8, 10) is about (0.490, 0.943).
    Raises: ValueError unless 0 <= successes <= n.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} is not a proportion")
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # The ends are exactly 0 and 1 in theory; rounding must not leave 1e-18 there.
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == n else centre + half)


def paired_bootstrap(
    difference: np.ndarray, *, confidence: float = 0.95, resamples: int | None = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """Percentile bootstrap over problems for the mean of paired differences.

    A difference is only ever -1, 0 or +1, so drawing problems with replacement is drawing their three counts from a
    multinomial: the same distribution at a thousandth of the cost.

    Args:
        difference: [n] values in {-1, 0, 1}: policy correct minus reference correct, on the same problem.
        confidence: of the two-sided interval.
        resamples: how many draws; None takes the limit of infinitely many, computed exactly (no seed, no noise), which
            is what an interval at 99.9 % needs.

    Returns: (mean, low, high). Raises: ValueError on an empty array or another value.
    """
    values = np.asarray(difference).astype(np.int64)
    n = values.size
    if n == 0 or not np.isin(values, (-1, 0, 1)).all() or not np.array_equal(values, np.asarray(difference)):
        raise ValueError("paired differences must be a non-empty array of -1, 0 and 1")
    losses, wins = int((values == -1).sum()), int((values == 1).sum())
    if resamples is None:
        low, high = _exact_interval(wins, losses, n, confidence)
    else:
        counts = np.random.default_rng(seed).multinomial(n, [losses / n, (n - wins - losses) / n, wins / n], resamples)
        means = (counts[:, 2] - counts[:, 0]) / n
        low, high = (float(q) for q in np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2]))
    return (wins - losses) / n, low, high


def mcnemar_exact_p(b: int, c: int) -> float:
    """Two-sided exact McNemar test: is b of b + c discordant pairs compatible with a fair coin?

    Example: mcnemar_exact_p(7, 0) = 2 / 2**7 = 0.015625; no discordant pair gives 1.
    """
    n, k = b + c, min(b, c)
    if k < 0:
        raise ValueError(f"{b} and {c} are not counts")
    # Logarithms: 2**-n underflows from about a thousand discordant pairs on.
    logs = [math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) - n * math.log(2) for i in range(k + 1)]
    return min(1.0, 2 * math.fsum(math.exp(value) for value in logs))


def pareto_front(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame with a column `on_front`: no other row is at least as good in everything and better in something.

    Higher `accuracy` and `speedup` are better, and a lower `mean_kept` where the frame has it. Rows compete within
    their `domain` where there is that column; rows that are not `done`, or lack a value, neither stand on the front nor
    push others off it. Equal rows share it.
    """
    columns = [pl.col("accuracy"), pl.col("speedup")]
    if "mean_kept" in frame.columns:
        columns.append(-pl.col("mean_kept"))
    values = frame.select(column.cast(pl.Float64).alias(str(i)) for i, column in enumerate(columns)).to_numpy()
    usable = np.isfinite(values).all(axis=1)
    if "status" in frame.columns:
        usable &= (frame["status"] == "done").to_numpy()
    domains = frame["domain"].to_numpy() if "domain" in frame.columns else np.zeros(frame.height)
    front = np.zeros(frame.height, dtype=bool)
    for i in np.flatnonzero(usable):
        rivals = values[usable & (domains == domains[i])]
        front[i] = not ((rivals >= values[i]).all(axis=1) & (rivals > values[i]).any(axis=1)).any()
    return frame.with_columns(pl.Series("on_front", front, dtype=pl.Boolean))


def compare_pairs(wins: int, losses: int, n: int, comparisons: int) -> dict[str, Any]:
    """One paired comparison, as one of `comparisons` made together.

    The simultaneous interval is the bootstrap's at confidence 1 - 0.05 / comparisons (Bonferroni). With few discordant
    pairs the bootstrap is too sure of itself (7 wins, 0 losses exclude zero at 99.75 %, although a fair coin does that
    once in 64), so a verdict other than `ties` also needs the exact McNemar test at the same level.
    """
    level = ERROR_RATE / comparisons
    difference = (wins - losses) / n
    low, high = _exact_interval(wins, losses, n, 1 - ERROR_RATE)
    low_all, high_all = _exact_interval(wins, losses, n, 1 - level)
    p = mcnemar_exact_p(wins, losses)
    apart = (low_all > 0 or high_all < 0) and p <= level
    return {
        "difference": difference, "lo": low, "hi": high, "lo_simultaneous": low_all, "hi_simultaneous": high_all,
        "wins": wins, "losses": losses, "n_pairs": n, "mcnemar_p": p, "comparisons": comparisons,
        "verdict": ("beats" if difference > 0 else "loses") if apart else "ties",
    }  # fmt: skip


def verdicts(records: Iterable[Mapping[str, Any]], outcomes: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    """Every finished policy against fixed_k at the nearest measured budget, overall and per domain.

    The reference is the done `fixed_k` or `none` point (`none` is fixed_k at K) of the same model, engine and task
    whose measured overall mean_kept is nearest; at equal distance the one that keeps more, then `none`. Only `done`
    points take part. The overall verdicts are simultaneous over all compared policies, the domain verdicts over all
    policies x domains.

    Args:
        records: as `load_points` returns them.
        outcomes: fingerprint -> per-problem outcomes (problem_id, domain, correct), paired on problem_id.

    Returns: one row a policy x domain ("overall" first): fingerprint, label, policy, domain, reference_fingerprint,
        reference_label, accuracy and reference_accuracy on the paired problems, difference (0..1) with lo, hi (95 %)
        and lo_simultaneous, hi_simultaneous, wins, losses, n_pairs, mcnemar_p, comparisons, mean_kept and
        reference_mean_kept as measured in that domain, budget_gap (policy minus reference), verdict (beats, ties,
        loses; unmatched when there is nothing to compare with) and note.
    """
    done = [record for record in records if record["status"] == "done"]
    pairings = []  # (record, reference, domain, paired outcomes)
    rows = []
    for record in done:
        if record["policy"]["name"] in REFERENCE_POLICIES:
            continue
        reference = _nearest_reference(record, done)
        if reference is None:
            rows.append(_row(record, None, OVERALL) | {"note": "no finished none or fixed_k point of the same set-up"})
            continue
        pairs = outcomes[record["fingerprint"]].join(
            outcomes[reference["fingerprint"]].select("problem_id", reference_correct="correct"), on="problem_id"
        )
        pairings += [(record, reference, name, pairs) for name in (OVERALL, *record["metrics"]["domains"])]
    policies = sum(domain == OVERALL for _, _, domain, _ in pairings)
    for record, reference, domain, pairs in pairings:
        if domain != OVERALL:
            pairs = pairs.filter(pl.col("domain") == domain)
        row = _row(record, reference, domain)
        if pairs.height == 0:
            rows.append(row | {"note": f"no problem in common with {reference['label']}"})
            continue
        ours, theirs = pairs["correct"].to_numpy(), pairs["reference_correct"].to_numpy()
        comparisons = policies if domain == OVERALL else len(pairings) - policies
        row |= compare_pairs(int((ours & ~theirs).sum()), int((~ours & theirs).sum()), pairs.height, comparisons)
        row |= {"accuracy": float(ours.mean()), "reference_accuracy": float(theirs.mean())}
        rows.append(row | {"note": _note(row, record)})
    return pl.DataFrame(rows, schema=_VERDICT_SCHEMA)


def headline(frame: pl.DataFrame) -> str:
    """The conclusion of a sweep in one sentence, from `verdicts`; percentages points and the simultaneous interval.

    A `beats` that keeps over BUDGET_TOLERANCE more experts than its reference is no gain: it may be the budget's.
    """
    compared = frame.filter(pl.col("verdict") != "unmatched")
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
    far = compared.filter(pl.col("budget_gap").abs() > BUDGET_TOLERANCE)["fingerprint"].n_unique()
    if far:
        return (
            f"No gain shown: {total - far} of {total} {names} points tie or lose against fixed_k at equal budget; "
            f"the other {far} have no fixed_k point within {BUDGET_TOLERANCE} experts per token."
        )
    return f"No gain: {total} of {total} {names} points tie or lose against fixed_k at equal budget."


_VERDICT_SCHEMA: dict[str, Any] = {
    "fingerprint": pl.String, "label": pl.String, "policy": pl.String, "domain": pl.String,
    "reference_fingerprint": pl.String, "reference_label": pl.String, "accuracy": pl.Float64,
    "reference_accuracy": pl.Float64, "difference": pl.Float64, "lo": pl.Float64, "hi": pl.Float64,
    "lo_simultaneous": pl.Float64, "hi_simultaneous": pl.Float64, "wins": pl.Int64, "losses": pl.Int64,
    "n_pairs": pl.Int64, "mcnemar_p": pl.Float64, "comparisons": pl.Int64, "mean_kept": pl.Float64,
    "reference_mean_kept": pl.Float64, "budget_gap": pl.Float64, "verdict": pl.String, "note": pl.String,
}  # fmt: skip


def _exact_interval(wins: int, losses: int, n: int, confidence: float) -> tuple[float, float]:
    """Percentile bootstrap interval with infinitely many resamples.

    The sum of n draws from {-1, 0, 1} has the characteristic function phi(t)^n; its values at 2n + 1 equal steps are
    the discrete Fourier transform of its exact probabilities.
    """
    size = 2 * n + 1
    angle = 2j * np.pi * np.arange(size) / size
    transform = (((n - wins - losses) + wins * np.exp(-angle) + losses * np.exp(angle)) / n) ** n
    probability = np.fft.ifft(transform).real  # index s is the sum s, modulo size
    cumulative = np.cumsum(np.roll(probability, n).clip(0))  # index i is the sum i - n
    tail = (1 - confidence) / 2
    # Half of 1e-12 of slack: the transform's rounding must not move a quantile past a sum that cannot occur.
    low, high = np.searchsorted(cumulative, [tail + 5e-13, cumulative[-1] - tail - 5e-13])
    return (int(low) - n) / n, (int(high) - n) / n


def _nearest_reference(record: Mapping[str, Any], done: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    def setup(point: Mapping[str, Any]) -> str:
        return json.dumps([point["model"], point["engine"], point["task"]], sort_keys=True, default=str)

    def rank(point: Mapping[str, Any]) -> tuple[float, float, bool]:
        kept = _kept(point, OVERALL)
        return round(abs(kept - _kept(record, OVERALL)), 6), -round(kept, 6), point["policy"]["name"] != "none"

    candidates = [p for p in done if p["policy"]["name"] in REFERENCE_POLICIES and setup(p) == setup(record)]
    return min(candidates, key=rank, default=None)


def _kept(record: Mapping[str, Any], domain: str) -> float:
    metrics = record["metrics"]
    return float((metrics["overall"] if domain == OVERALL else metrics["domains"][domain])["mean_kept"])


def _row(record: Mapping[str, Any], reference: Mapping[str, Any] | None, domain: str) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(_VERDICT_SCHEMA)
    row |= {"fingerprint": record["fingerprint"], "label": record["label"], "policy": record["policy"]["name"]}
    row |= {"domain": domain, "verdict": "unmatched", "mean_kept": _kept(record, domain)}
    if reference is not None:
        kept = _kept(reference, domain) if domain in (OVERALL, *reference["metrics"]["domains"]) else None
        row |= {"reference_fingerprint": reference["fingerprint"], "reference_label": reference["label"]}
        row |= {"reference_mean_kept": kept, "budget_gap": None if kept is None else row["mean_kept"] - kept}
    return row


def _note(row: Mapping[str, Any], record: Mapping[str, Any]) -> str | None:
    """What a reader must know before quoting the verdict; None when there is nothing."""
    notes = []
    gap, metrics = row["budget_gap"], record["metrics"]
    if gap is not None and abs(gap) > BUDGET_TOLERANCE:
        amount = f"{abs(gap):.2f} {'more' if gap > 0 else 'fewer'}"
        notes.append(f"not at equal budget: keeps {amount} experts per token than {row['reference_label']}")
    if row["verdict"] == "ties" and (row["lo_simultaneous"] > 0 or row["hi_simultaneous"] < 0):
        notes.append(f"few problems differ: exact McNemar p = {row['mcnemar_p']:.2g} decides")
    total = (metrics["overall"] if row["domain"] == OVERALL else metrics["domains"][row["domain"]])["n_problems"]
    if row["n_pairs"] != total:
        notes.append(f"paired on {row['n_pairs']} of {total} problems")
    return "; ".join(notes) or None
