"""avg@n for sampling tasks: several answers a problem, and intervals that know they are not independent.

Outcomes with a column `sample` hold n rows a problem; where a verifier chose one (`chosen`), it alone counts. The unit
of every interval is the problem: it is drawn with all of its samples. Treating n x problems answers as independent
would promise intervals up to sqrt(n) times too narrow.
"""

from __future__ import annotations

from typing import Any

import polars as pl

from banpick_exp.analysis.compare import ERROR_RATE, compare_counts
from banpick_exp.analysis.intervals import average_interval
from banpick_exp.analysis.pairing import answers_of, pair
from banpick_exp.records import OVERALL

NAMES = {"mean": "avg@{}", "majority": "maj@{}", "grader": "pass@{} (upper bound)", "reward": "rm@{}"}
"""Of an accuracy over n answers a problem, by `task.choose`."""


def accuracy_name(frame: pl.DataFrame) -> str:
    """What the accuracy of these points (`points_frame`) is: `avg@4` where all have 4 answers a problem, `maj@4` where
    the most frequent of them counts, `rm@4` where a reward model chooses, else so."""
    if "samples" not in frame.columns:
        return "accuracy"
    n, choose = (_only(frame[name]) if name in frame.columns else None for name in ("samples", "choose"))
    return "accuracy" if n is None or n == 1 else NAMES.get(choose or "mean", "avg@{}").format(n)


def _only(values: pl.Series) -> Any:
    """What all of them are; None where they differ."""
    found = set(values)
    return found.pop() if len(found) == 1 else None


def average_at_n(outcomes: pl.DataFrame, confidence: float = 1 - ERROR_RATE) -> pl.DataFrame:
    """avg@n of one point, overall and per domain.

    Args: outcomes: rows of problem_id, domain, correct and, with several answers a problem, sample.
    Returns: domain ("overall" first), accuracy with lo and hi (0..1), n_problems, samples (n).
    Raises: ValueError where problems have unequal numbers of samples.
    """
    answers, rows = answers_of(outcomes), []
    for domain in (OVERALL, *answers.layout.domains):
        correct = answers.sums["correct"]
        if domain != OVERALL:
            correct = correct[answers.layout.domains[domain]]
        rows.append((domain, *average_interval(correct, answers.samples, confidence), len(correct), answers.samples))
    schema: dict[str, Any] = {"domain": pl.String, "accuracy": pl.Float64, "lo": pl.Float64, "hi": pl.Float64}
    schema |= {"n_problems": pl.Int64, "samples": pl.Int64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def difference_at_n(ours: pl.DataFrame, theirs: pl.DataFrame) -> pl.DataFrame:
    """avg@n of one point minus another's on the same problems, overall and per domain; n may differ between them.

    Returns: domain, difference (0..1) with its paired 95 % interval lo..hi, p (sign flips over problems, not adjusted),
        wins, losses and n_problems in problems.
    Raises: ValueError where there is no common problem, or numbers of samples are unequal.
    """
    pairs, rows = pair(answers_of(ours), answers_of(theirs)), []
    if pairs.n == 0:
        raise ValueError("the two points have no problem in common: there is no difference to speak of")
    for domain in (OVERALL, *pairs.layout.domains):
        found = compare_counts(*pairs.domain(domain).differences("correct"), comparisons=1)
        interval, counts = (found["lo"], found["hi"]), (found["wins"], found["losses"], found["n_pairs"])
        rows.append((domain, found["difference"], *interval, found["mcnemar_p"], *counts))
    schema: dict[str, Any] = {"domain": pl.String, "difference": pl.Float64, "lo": pl.Float64, "hi": pl.Float64}
    schema |= {"p": pl.Float64, "wins": pl.Int64, "losses": pl.Int64, "n_problems": pl.Int64}
    return pl.DataFrame(rows, schema=schema, orient="row")
