"""All problems of a domain put to the engine as the task says: greedy or sampled; a repeat in other batches and order.

Nothing that should matter differs between repeats: the same prompts, policy and seeds. What may differ is how the
requests meet in a batch, and with it the order in which floating-point sums are taken.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from banpick_exp.engine.contrast import Contrast, contrasted_ids
from banpick_exp.engine.engine import Engine, PolicyOfRow
from banpick_exp.engine.types import Generation, Sampling
from banpick_exp.evaluation.choosing import with_chosen
from banpick_exp.evaluation.likelihood import likelihoods
from banpick_exp.evaluation.repetition import is_repetitive
from banpick_exp.evaluation.reward import with_scores
from banpick_exp.policy import Calibration, Rule
from banpick_exp.records import Counters, FailedProblem, Outcome, added_counters
from banpick_exp.tasks.config import TaskConfig
from banpick_exp.tasks.graders.grader import Grade
from banpick_exp.tasks.problem import Problem
from banpick_exp.tasks.registry import grader_of

Problems = Mapping[str, Sequence[Problem]]


@dataclass(frozen=True, kw_only=True, slots=True)
class DomainPolicy:
    """A rule as the engine takes it for one domain: key experts and Ban's thresholds differ between domains."""

    rule: Rule
    calibration_key: str
    calibration: Calibration | None

    @property
    def params(self) -> dict[str, object]:
        return _params(self.rule)

    @property
    def row_of(self) -> Callable[[int], int] | None:
        """Which row answers the sample of a number; None where there is one row."""
        return None if len(self.rule.parts) == 1 else self.rule.row_of

    @property
    def contrast(self) -> Contrast | None:
        """How its two rows answer together, where they do."""
        if self.rule.contrast is None:
            return None
        alpha, beta = self.rule.contrast
        return Contrast(alpha=alpha, beta=beta)

    @property
    def row(self) -> PolicyOfRow:
        """As one of several that an engine holds at once; of a rule that is one row (`search.company`)."""
        return self.rule.name, self.params, self.calibration_key

    def activate(self, engine: Engine) -> float:
        """Put it on, each part of a rule of several rows into its row. Returns seconds."""
        parts = self.rule.parts
        if len(parts) == 1:
            return engine.set_policy(self.rule.name, self.params, self.calibration_key)
        return engine.set_policies([(part.name, _params(part), self.calibration_key) for part in parts])


def _params(rule: Rule) -> dict[str, object]:
    return {knob: value for knob, value in rule.canonical().items() if knob != "name"}


@dataclass(frozen=True, slots=True)
class DomainRun:
    """Graded answers of one domain and what was routed meanwhile."""

    outcomes: list[Outcome]
    counters: Counters
    failed: tuple[FailedProblem, ...] = ()
    """Problems without an answer, because they break engines."""
    rows: tuple[Counters, ...] = ()
    """The same counters by row, where the policy holds several; they add up to `counters`, but for the tokens of rows
    that are contrasted: these are the same tokens, and counted once."""

    @property
    def asked(self) -> set[str]:
        """The problems that were answered or set aside."""
        return {outcome.problem_id for outcome in self.outcomes} | {each.problem_id for each in self.failed}

    def without(self, failed: Collection[FailedProblem]) -> DomainRun:
        """The same with these problems set aside too; what was routed for an answer stays counted."""
        new = {each.problem_id: each for each in failed}
        gone = {each.problem_id for each in self.failed}
        return DomainRun(
            [outcome for outcome in self.outcomes if outcome.problem_id not in new],
            self.counters,
            (*self.failed, *(each for name, each in new.items() if name not in gone)),
            self.rows,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Answered:
    """All problems answered under one policy a domain."""

    policies: Mapping[str, DomainPolicy]
    runs: dict[str, DomainRun]
    swap_seconds: float
    """The slowest swap of a policy."""
    block_seconds: float | None = None
    """Of answers that were given before, in blocks or in one batch with other policies, where they were."""


def answer_problems(
    engine: Engine,
    policies: Mapping[str, DomainPolicy],
    task: TaskConfig,
    problems: Problems,
    *,
    seed: int = 0,
    repeat: int = 0,
) -> Answered:
    """Every problem of every domain, as the task samples, under that domain's policy.

    `seed` is that of sampled answers, `repeat` says in which batches and order to ask (`batches`).
    """
    runs, swap = {}, 0.0
    for domain, items in problems.items():
        policy = policies[domain]
        swap = max(swap, policy.activate(engine))
        engine.counters(reset=True)
        answers = ask(engine, items, task, seed=seed, repeat=repeat, row_of=policy.row_of, contrast=policy.contrast)
        asked = zip(items, answers, strict=True)
        given = [
            (problem, answer, sample if task.samples > 1 else None)
            for problem, answers in asked
            for sample, answer in enumerate(answers)
        ]
        rows = () if policy.row_of is None else tuple(engine.counters_by_row(reset=False))
        counters = engine.counters(reset=True)
        if policy.contrast is not None:
            counters = replace(counters, tokens=rows[0].tokens)
        runs[domain] = DomainRun(graded(given, task), counters, rows=rows)
    choose_among([runs], task, problems)
    return Answered(policies=policies, runs=runs, swap_seconds=swap)


def joined_runs(parts: Sequence[Mapping[str, DomainRun]]) -> dict[str, DomainRun]:
    """Answers one after the other, counters added up, domain by domain."""
    joined = {}
    for domain in dict.fromkeys(domain for part in parts for domain in part):
        runs = [part[domain] for part in parts if domain in part]
        joined[domain] = DomainRun(
            [outcome for run in runs for outcome in run.outcomes],
            added_counters([run.counters for run in runs]),
            tuple(each for run in runs for each in run.failed),
            tuple(added_counters(counters) for counters in zip(*(run.rows for run in runs), strict=True)),
        )
    return joined


def graded(given: Sequence[tuple[Problem, Generation, int | None]], task: TaskConfig) -> list[Outcome]:
    """What came of answers, each with its problem and the number of its sample, and all to grade them again."""
    grades = grader_of(task).grade_all([(answer.text, problem) for problem, answer, _ in given], task)
    return [_outcome(*each, grade) for each, grade in zip(given, grades, strict=True)]


def choose_among(runs_P: Sequence[Mapping[str, DomainRun]], task: TaskConfig, problems: Problems) -> None:
    """Have one answer of each problem count under each of P policies, where the task says so; in place.

    All at once, so that a reward model is loaded once.
    """
    runs = [run for of_policy in runs_P for run in of_policy.values()]
    if task.choose == "reward":
        known = {(each.domain, each.problem_id): each for items in problems.values() for each in items}
        scored = iter(with_scores([outcome for run in runs for outcome in run.outcomes], known, task))
        for run in runs:
            run.outcomes[:] = [next(scored) for _ in run.outcomes]
    for run in runs:
        run.outcomes[:] = with_chosen(run.outcomes, task.choose)


def gold_of(problem: Problem) -> str:
    """The right answers of a problem, as an outcome tells them."""
    return problem.answer if not problem.also else json.dumps(problem.answers, ensure_ascii=False)


def _outcome(problem: Problem, answer: Generation, sample: int | None, grade: Grade) -> Outcome:
    return Outcome(
        problem_id=problem.problem_id,
        domain=problem.domain,
        task=problem.task,
        correct=grade.correct,
        truncated=answer.truncated,
        tokens=len(answer.token_ids),
        answer=grade.answer,
        found=grade.found,
        repetitive=is_repetitive(answer.token_ids, stopped=not answer.truncated),
        sample=sample,
        completion=answer.text,
        finish_reason=answer.finish_reason,
        gold=gold_of(problem),
        pattern_timeout=grade.pattern_timeout or None,
        grader_timeout=grade.grader_timeout or None,
    )


def ask(
    engine: Engine,
    problems: Sequence[Problem],
    task: TaskConfig,
    *,
    seed: int = 0,
    repeat: int = 0,
    row_of: Callable[[int], int] | None = None,
    contrast: Contrast | None = None,
) -> list[list[Generation]]:
    """The answers to each problem, `task.samples` of them, in the order of `problems`; under the current policy.

    `row_of`: which of its rows answers the sample of a number, where it holds several. A problem of choices is answered
    by how likely each is, under row 0: planning refuses it beside several rows. `contrast`: how two rows answer
    together.
    """
    if task.temperature == 0 and repeat == 0 and row_of is None:
        return [[answer] for answer in ask_once(engine, problems, task)]
    scored = _scored(engine, problems, repeat=repeat)
    written = iter(
        _written(engine, _without_choices(problems), task, seed=seed, repeat=repeat, row_of=row_of, contrast=contrast)
    )
    return [[next(scored)] if problem.choices else next(written) for problem in problems]


def ask_once(engine: Engine, problems: Sequence[Problem], task: TaskConfig, *, salt: str = "") -> list[Generation]:
    """One greedy answer to each problem, or the likelihoods of its choices, all asked in one go."""
    others = _without_choices(problems)
    prompts, stop = [problem.asked for problem in others], [problem.stop for problem in others]
    written: list[Generation] = []
    if others:
        written = engine.generate(prompts, max_tokens=task.max_tokens, chat=task.chat, salt=salt, stop=stop)
    if len(others) == len(problems):
        return written
    scored, answers = _scored(engine, problems, salt=salt), iter(written)
    return [next(scored if problem.choices else answers) for problem in problems]


def _without_choices(problems: Sequence[Problem]) -> list[Problem]:
    return [problem for problem in problems if not problem.choices]


def _written(
    engine: Engine,
    problems: Sequence[Problem],
    task: TaskConfig,
    *,
    seed: int,
    repeat: int,
    row_of: Callable[[int], int] | None,
    contrast: Contrast | None,
) -> list[list[Generation]]:
    """The samples of each problem, drawn where the task says so, in the batches of a repeat."""
    if not problems:
        return []
    requests = [(number, sample) for number in range(len(problems)) for sample in range(task.samples)]
    ids = engine.tokenize([problem.asked for problem in problems], chat=task.chat)
    found: dict[tuple[int, int], Generation] = {}
    # A repeat must not find the prompts of another in the prefix cache: they are part of what is repeated.
    salt = f"repeat{repeat}" if repeat else ""
    for batch in batches(len(problems), task.samples, repeat, engine.settings.max_num_seqs):
        asked = [requests[index] for index in batch]
        rows = None if row_of is None else [row_of(sample) for _, sample in asked]
        answers = written(engine, problems, ids, asked, task, seed=seed, salt=salt, rows=rows, contrast=contrast)
        found |= dict(zip(asked, answers, strict=True))
    return [[found[number, sample] for sample in range(task.samples)] for number in range(len(problems))]


def written(
    engine: Engine,
    problems: Sequence[Problem],
    ids: Sequence[Sequence[int]],
    asked: Sequence[tuple[int, int]],
    task: TaskConfig,
    *,
    seed: int,
    salt: str = "",
    rows: Sequence[int] | None = None,
    contrast: Contrast | None = None,
) -> list[Generation]:
    """One answer each to what is `asked`, a problem's place and the number of the sample, drawn where the task says so.

    `ids`: the problems' tokens; `rows`: which of the policies that the engine holds answers each, row 0 by default;
    `contrast`: which two answer each together.
    """
    sampling = None
    if task.temperature > 0:
        seeds = (sample_seed(seed, problems[number], sample) for number, sample in asked)
        sampling = [Sampling(temperature=task.temperature, top_p=task.top_p, seed=each) for each in seeds]
    sequences, stop = [ids[number] for number, _ in asked], [problems[number].stop for number, _ in asked]
    if contrast is not None:
        return contrasted_ids(
            engine, sequences, contrast, max_tokens=task.max_tokens, sampling=sampling, salt=salt, stop=stop
        )
    return engine.generate_ids(
        sequences, max_tokens=task.max_tokens, sampling=sampling, salt=salt, stop=stop, rows=rows
    )


def _scored(engine: Engine, problems: Sequence[Problem], *, repeat: int = 0, salt: str = "") -> Iterator[Generation]:
    """The likelihoods of the problems of choices, in their order, asked in the batches of a repeat."""
    by_choices = [problem for problem in problems if problem.choices]
    order = [n for batch in batches(len(by_choices), 1, repeat, engine.settings.max_num_seqs) for n in batch]
    size = max(1, len(order) // 2**repeat)
    found: dict[int, Generation] = {}
    for begin in range(0, len(order), size):
        part = order[begin : begin + size]
        asked = [by_choices[number] for number in part]
        answers = likelihoods(engine, asked, salt=f"{salt}repeat{repeat}" if repeat else salt)
        found |= dict(zip(part, answers, strict=True))
    return iter([found[number] for number in range(len(by_choices))])


def batches(problems: int, samples: int, repeat: int, max_num_seqs: int) -> list[list[int]]:
    """Indices of the requests (problem by problem, each with its samples) that go to the engine in one call.

    Repeat 0: all at once, in order. Repeat r: problems in an order drawn with seed r, in calls of as many requests as
    the engine batches at most, halved r times. The samples of a problem stay together: they share their prompt's KV.
    """
    order = list(range(problems))
    if repeat:
        random.Random(repeat).shuffle(order)
    requests = [number * samples + sample for number in order for sample in range(samples)]
    size = max(1, min(max_num_seqs, len(requests)) // 2**repeat) if repeat else max(1, len(requests))
    return [requests[begin : begin + size] for begin in range(0, len(requests), size)]


def sample_seed(seed: int, problem: Problem, sample: int) -> int:
    """Of one answer: the same for every policy and repeat, so that runs are paired sample by sample."""
    text = f"{seed}/{problem.domain}/{problem.problem_id}/{sample}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")
