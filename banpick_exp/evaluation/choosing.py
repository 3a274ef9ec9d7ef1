"""Which of several answers to a problem counts, by `task.choose`: best-of-n, with a verifier that chooses.

    majority   the answer that most samples gave, of those in which one was found (self-consistency, arXiv 2203.11171);
               equal counts: the one that came first. Equal means: the same text, as the grader reads it
    grader     the first that is right: an oracle, so accuracy is pass@n, an upper bound of any verifier
    reward     the one that the reward model scores highest (task.reward_model, `reward`); equal scores: the first
    mean       none is chosen: accuracy is the mean of all (avg@n)

What is chosen counts in every comparison; what the model spent is counted over all answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from banpick_exp.records import Outcome


def with_chosen(outcomes: Sequence[Outcome], choose: str) -> list[Outcome]:
    """The same outcomes in the same order, of each problem one chosen; under `mean` all count alike.

    Under `reward` each must have its score; a score is kept under no other verifier.
    """
    if choose != "reward":
        outcomes = [replace(outcome, score=None, score_cut=None) for outcome in outcomes]
    if choose == "mean":
        return [replace(outcome, chosen=None) for outcome in outcomes]
    problems: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        problems.setdefault((outcome.domain, outcome.problem_id), []).append(outcome)
    verifier = VERIFIERS[choose]
    best = {key: verifier(sorted(given, key=lambda each: each.sample or 0)).sample for key, given in problems.items()}
    return [replace(outcome, chosen=outcome.sample == best[outcome.domain, outcome.problem_id]) for outcome in outcomes]


def by_majority(given: Sequence[Outcome]) -> Outcome:
    """Of the answers to one problem, first sample first: the first of those that most agree on."""
    found = [outcome for outcome in given if outcome.found]
    votes = Counter(outcome.answer for outcome in found)
    return max(found, key=lambda outcome: votes[outcome.answer], default=given[0])


def by_grader(given: Sequence[Outcome]) -> Outcome:
    """The first that is right, else the first."""
    return next((outcome for outcome in given if outcome.correct), given[0])


def by_reward(given: Sequence[Outcome]) -> Outcome:
    """The first of those with the highest score."""
    return max(given, key=_score)


def _score(outcome: Outcome) -> float:
    assert outcome.score is not None, f"sample {outcome.sample} of {outcome.problem_id} has no score"
    return outcome.score


VERIFIERS: Mapping[str, Callable[[Sequence[Outcome]], Outcome]] = {
    "majority": by_majority,
    "grader": by_grader,
    "reward": by_reward,
}
"""By `task.choose`."""
