"""The answers of a finished run put through the engine again, each point's under its own policy."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

import polars as pl

from banpick_exp.engine.engine import Engine
from banpick_exp.evaluation.answer import DomainPolicy
from banpick_exp.evaluation.demand.estimates import FEWEST, Z, compared
from banpick_exp.evaluation.demand.found import Demand, PointDemand
from banpick_exp.evaluation.demand.record import Replay, record
from banpick_exp.evaluation.demand.sums import Asked, Sums
from banpick_exp.records import PointRecord
from banpick_exp.tasks.config import TaskConfig
from banpick_exp.tasks.problem import Problem

Completions = Mapping[tuple[str, str], str]
"""By domain and number of the problem."""
SLACK_ERRORS = 4.0
"""Standard errors of the sample that its budget may be from the record's."""
SLACK_SHARE = 0.01
"""Of the record's budget, for the last bits in which a prefill and a decode differ."""


def completions_of(outcomes: pl.DataFrame) -> dict[tuple[str, str], str]:
    """What a point wrote, of several samples the first; empty for outcomes that hold no completions."""
    if "completion" not in outcomes.columns:
        return {}
    kept = outcomes if "sample" not in outcomes.columns else outcomes.filter(pl.col("sample") == 0)
    return {(domain, name): text for domain, name, text in kept.select("domain", "problem_id", "completion").rows()}


def sampled(
    problems: Mapping[str, Sequence[Problem]], written: Sequence[Completions], most: int
) -> dict[str, list[Problem]]:
    """At most so many problems of each domain that every point wrote something for: the same whenever it is asked.

    A problem that is answered by how likely its choices are has no answer that is written. A domain of fewer than two
    is left out.
    """
    found = {}
    for domain, items in problems.items():
        there = [
            item for item in items if not item.choices and all(each.get((domain, item.problem_id)) for each in written)
        ]
        if len(there) > most:
            places = sorted(random.Random(0).sample(range(len(there)), most))
            there = [there[place] for place in places]
        if len(there) >= FEWEST:
            found[domain] = there
    return found


def replays_of(
    engine: Engine, problems: Mapping[str, Sequence[Problem]], completions: Completions, task: TaskConfig
) -> dict[str, list[Replay]]:
    """Prompt and completion of each problem as tokens, cut where the engine's longest sequence ends.

    The completion's text is turned into tokens again: how a tokenizer divides it there may differ from what was
    generated in a few tokens of an answer.
    """
    room = engine.settings.max_model_len - 1  # the engine writes a token behind each sequence
    found = {}
    for domain, items in problems.items():
        prompts = engine.tokenize([item.asked for item in items], chat=task.chat)
        answers = engine.tokenize([completions[domain, item.problem_id] for item in items], special_tokens=False)
        found[domain] = [
            Replay(tuple([*prompt, *answer][:room]), min(len(prompt), room))
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
    return found


def sums_by_domain(
    engine: Engine,
    policies: Mapping[str, DomainPolicy],
    replays: Mapping[str, Sequence[Replay]],
    asked: Asked,
    say: Callable[[str], None],
) -> dict[str, Sums]:
    """Each domain's sequences under the policy of that domain. Raises EngineError as `record`."""
    found = {}
    for domain, sequences in replays.items():
        tokens = sum(len(each.ids) for each in sequences)
        say(f"{domain}: {len(sequences)} answers, {tokens:,} tokens")
        policies[domain].activate(engine)
        found[domain] = record(engine, sequences, asked)
    return found


def point_demand(
    point: PointRecord, stock: Mapping[str, Sums], policy: Mapping[str, Sums], asked: Asked
) -> PointDemand:
    """The figures of a point beside stock's, over all domains and of each."""
    domains = {name: compared({name: stock[name]}, {name: policy[name]}, asked) for name in policy}
    recorded = {name: point.measured.domains[name].mean_kept for name in policy}
    wrong = [text for name, each in domains.items() if (text := disagreement(name, each, recorded[name]))]
    return PointDemand(
        fingerprint=point.fingerprint,
        label=point.label,
        invalid="; ".join(wrong) or None,
        recorded_kept=recorded,
        overall=compared(stock, policy, asked),
        domains=domains,
    )


def disagreement(domain: str, found: Demand, recorded: float) -> str | None:
    """Why the budget of the replayed answers is not that of the record; None where it may be.

    The run counted the tokens of prompts too, those of a prefix that it had seen before not again: so the record's
    budget lies between that of the answers and that of all tokens.
    """
    ends = found.kept.policy, found.all_kept.policy
    errors = [(each.ci95[1] - each.ci95[0]) / (2 * Z) for each in ends]
    slack = SLACK_ERRORS * max(errors) + SLACK_SHARE * recorded
    low, high = min(each.value for each in ends), max(each.value for each in ends)
    if low - slack <= recorded <= high + slack:
        return None
    return (
        f"{domain}: the replayed answers keep {ends[0].value:.2f} experts a token ({ends[1].value:.2f} with their"
        f" prompts), the record says {recorded:.2f}"
    )
