"""Is there anything to compare: what stock's own answers say of the task, before a single policy is looked at.

A separator that never occurs, a pattern that never matches or gold answers in another format give every policy 0 %, a
prompt without its instruction gives one answer to everything, and every table looks fine. So stock is looked at alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import polars as pl

from banpick_exp.analysis.finding import StockGuard
from banpick_exp.analysis.intervals import wilson
from banpick_exp.records import OVERALL

MIN_PROBLEMS = 8
"""On fewer, all wrong or all alike may well be chance."""
MOSTLY_RIGHT = 0.5
"""Answers that need no steps come without the separator, and are right all the same: then nothing is wrong."""
LONGEST_SHOWN = 160
"""Characters of a completion that are shown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StockAlarm:
    """Something about the answers of one domain that makes every comparison on it meaningless, or nearly so."""

    guard: StockGuard
    domain: str
    value: float
    """Share of answers found, accuracy, or share of the commonest answer: what `detail` is about."""
    fatal: bool
    """Nothing measured on this domain means anything: the sweep stops, unless task.allow_zero=true."""
    detail: str


def stock_alarms(outcomes: pl.DataFrame) -> Iterator[StockAlarm]:
    """What is wrong with stock's answers, domain by domain; each with two completions beside their gold answers.

    Args: outcomes: of a stock point; columns that records of old lack (`found`, `gold`, `completion`) are not judged.
    """
    enough = outcomes.height >= MIN_PROBLEMS
    if enough and _none_found(outcomes) and outcomes["correct"].sum() < MOSTLY_RIGHT * outcomes.height:
        yield _nothing_found(OVERALL, outcomes)
        return
    for (domain,), answers in outcomes.group_by("domain", maintain_order=True):
        if answers["problem_id"].n_unique() >= MIN_PROBLEMS:
            yield from _of_domain(str(domain), answers)


def _of_domain(domain: str, answers: pl.DataFrame) -> Iterator[StockAlarm]:
    count, shown = answers.height, _two_beside_gold(answers)
    accuracy = float(answers["correct"].mean())  # type: ignore[arg-type]
    if _none_found(answers) and accuracy == 0:
        yield _nothing_found(domain, answers)
        return
    if not answers["correct"].any():
        detail = (
            f"stock has none of {count:,} answers right: the gold answers may be written otherwise, or max_tokens cuts"
            f" all answers off. {shown}"
        )
        yield StockAlarm(guard="stock_at_zero", domain=domain, value=0.0, fatal=True, detail=detail)
        return
    alike, share = _commonest(answers["answer"])
    if share == 1.0 and _distinct_gold(answers) > 1:
        detail = f"stock gives one answer to all of {count:,} problems ({alike!r}): it does not read them. {shown}"
        yield StockAlarm(guard="all_alike", domain=domain, value=share, fatal=True, detail=detail)
        return
    if "gold" in answers.columns and not answers["gold"].has_nulls():
        guess, chance = _commonest(answers["gold"])
        low, high = wilson(int(answers["correct"].sum()), count)
        if low <= chance and chance < 1.0:
            detail = (
                f"stock has {accuracy:.1%} [{low:.1%}, {high:.1%}] right, and always answering {guess!r} has"
                f" {chance:.1%}: it cannot be told from a guess. {shown}"
            )
            yield StockAlarm(guard="stock_at_chance", domain=domain, value=accuracy, fatal=False, detail=detail)


def _none_found(answers: pl.DataFrame) -> bool:
    """Whether the separator or pattern stands in no completion at all."""
    return "found" in answers.columns and not answers["found"].has_nulls() and not answers["found"].any()


def _nothing_found(domain: str, answers: pl.DataFrame) -> StockAlarm:
    right = int(answers["correct"].sum()) / answers.height
    detail = (
        f"an answer was found in none of {answers.height:,} completions, so what was graded is not what was"
        f" answered ({right:.1%} right all the same): see task.answer_separator and"
        f" task.answer_pattern. {_two_beside_gold(answers)}"
    )
    return StockAlarm(guard="nothing_found", domain=domain, value=0.0, fatal=True, detail=detail)


def _commonest(values: pl.Series) -> tuple[str, float]:
    """The most frequent text and its share."""
    row = values.value_counts(sort=True).row(0)
    return str(row[0]), float(row[1]) / len(values)


def _distinct_gold(answers: pl.DataFrame) -> int:
    """Different gold answers; records of old say only which answers were right."""
    return answers["gold"].n_unique() if "gold" in answers.columns else answers["correct"].n_unique()


def _two_beside_gold(answers: pl.DataFrame) -> str:
    if not {"completion", "gold"} <= set(answers.columns):
        return "(records of this version keep no completions)"
    rows = answers.group_by("problem_id", maintain_order=True).first().head(2)
    pairs = (
        f"{row['problem_id']}: completion {_cut(row['completion'])!r}, gold {_cut(row['gold'])!r}, graded"
        f" {_cut(row['answer'])!r}"
        for row in rows.iter_rows(named=True)
    )
    return "Two of them: " + "; ".join(pairs)


def _cut(text: str | None) -> str:
    text = text or ""
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."
