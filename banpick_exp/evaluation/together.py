"""Several policies asked the same problems in one batch, each request routed by its own.

Where problems are few a policy alone leaves the engine's batch half empty, and its last long answers leave it emptier
still: many policies together fill it. Each policy's counters are its own (`Engine.counters_by_row`), so its budget is
measured as it is alone. Speed is not: a step of such a batch is nobody's.

An answer is that of a run alone but for what batching moves anyway (`blocks.py`): other requests stand beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from banpick_exp.engine.engine import Engine
from banpick_exp.engine.types import Generation
from banpick_exp.evaluation.answer import DomainPolicy, DomainRun, Problems, choose_among, graded, written
from banpick_exp.records import Counters
from banpick_exp.tasks.config import TaskConfig
from banpick_exp.tasks.problem import Problem

GAIN = 0.9
"""Of the time that a policy takes alone: what it may take in company, to be asked in company from then on."""


@dataclass(slots=True)
class Pace:
    """Seconds that a policy takes on so many requests, as this engine was measured."""

    alone: float | None = None
    together: float | None = None

    @property
    def pays(self) -> bool | None:
        """Whether policies belong into one batch; None where nobody knows yet."""
        if self.alone is None or self.together is None:
            return None
        return self.together <= GAIN * self.alone


def answer_together(
    engine: Engine, policies_P: Sequence[Mapping[str, DomainPolicy]], task: TaskConfig, problems: Problems, *, seed: int
) -> tuple[list[dict[str, DomainRun]], float]:
    """Every problem of every domain under each of P policies, and the seconds of the slowest swap.

    None of the problems may be one of choices, and P at most `engine.rows`. `seed` is that of sampled answers.
    """
    runs_P: list[dict[str, DomainRun]] = [{} for _ in policies_P]
    slowest = 0.0
    for domain, items in problems.items():
        swap, answers_P, counters_P = _ask_together(
            engine, [policies[domain] for policies in policies_P], task, items, seed=seed
        )
        slowest = max(slowest, swap)
        of_one = _of_one(task, items)
        for runs, answers, counters in zip(runs_P, answers_P, counters_P, strict=True):
            given = [
                (items[number], answer, sample if task.samples > 1 else None)
                for (number, sample), answer in zip(of_one, answers, strict=True)
            ]
            runs[domain] = DomainRun(graded(given, task), counters)
    choose_among(runs_P, task, problems)
    return runs_P, slowest


def count_together(
    engine: Engine, policies: Sequence[DomainPolicy], task: TaskConfig, problems: Sequence[Problem], *, salt: str
) -> list[Counters]:
    """What each of P policies routes while it answers each of some problems of one domain once, greedily."""
    greedy = task.model_copy(update={"temperature": 0.0, "samples": 1})
    return _ask_together(engine, policies, greedy, problems, seed=0, salt=salt)[2]


def _ask_together(
    engine: Engine,
    policies: Sequence[DomainPolicy],
    task: TaskConfig,
    problems: Sequence[Problem],
    *,
    seed: int,
    salt: str = "",
) -> tuple[float, list[list[Generation]], list[Counters]]:
    """Some problems of one domain under each of P policies: the seconds of the swap, and by policy the answers, in the
    order of `_of_one`, and what was counted."""
    swap = engine.set_policies([policy.row for policy in policies])
    engine.counters_by_row(reset=True)
    ids = engine.tokenize([problem.asked for problem in problems], chat=task.chat)
    of_one = _of_one(task, problems)
    rows = [row for row in range(len(policies)) for _ in of_one]
    answers = written(engine, problems, ids, of_one * len(policies), task, seed=seed, salt=salt, rows=rows)
    by_policy = [answers[start : start + len(of_one)] for start in range(0, len(answers), len(of_one))]
    return swap, by_policy, engine.counters_by_row(reset=True)


def _of_one(task: TaskConfig, problems: Sequence[Problem]) -> list[tuple[int, int]]:
    """What one policy is asked: each problem's place, with the number of each of its samples."""
    return [(number, sample) for number in range(len(problems)) for sample in range(task.samples)]
