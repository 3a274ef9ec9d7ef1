"""The problems of one call put to an engine: all at once, or as carefully as engines that died under the call ask for.

A problem that breaks engines is found in pieces (`narrowing`) and set aside by the driver, who alone knows of a death.
What the engine does for it: it leaves out what is set aside, says before it asks a piece which problems that holds, and
keeps the answers to each. A call under which no engine died, in a run without such problems, is asked in one go and
writes nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

from banpick_exp.engine.engine import Engine
from banpick_exp.evaluation.answer import Answered, DomainPolicy, DomainRun, Problems, answer_problems, joined_runs
from banpick_exp.evaluation.narrowing import Flight, Key, groups
from banpick_exp.evaluation.stored_runs import rules_as_json
from banpick_exp.evaluation.trial import Trial
from banpick_exp.evaluation.trouble import Trouble, set_aside, where
from banpick_exp.records import FailedProblem
from banpick_exp.run_folder import RunFolder
from banpick_exp.tasks.problem import Problem


class TooManyFailed(RuntimeError):
    """More problems of a trial break engines than may be left out of it."""


class Asking:
    """One call to an engine about one trial."""

    def __init__(
        self, engine: Engine, trial: Trial, folder: RunFolder, call: str, given: Answered | None = None
    ) -> None:
        """`call`: the number of a block, or `trouble.POINT`; `given`: answers from a batch with other policies.

        Raises TooManyFailed where it is known beforehand.
        """
        self.engine, self.trial, self.folder = engine, trial, folder
        self._given = given
        self._trouble = Trouble.of(folder, trial.fingerprint, call)
        self._trouble.landed()
        self._suspicion = self._trouble.suspicion()
        there = [each for each in set_aside(folder) if each.where == where(trial)]
        self._failed = {each.key: each.failed for each in there if each.stands_for(trial)}
        self._known = {each.key for each in there} - self._failed.keys()
        self._landed = False
        """Whether a piece was answered by this engine."""
        check_failed(trial, tuple(self._failed.values()))

    def left(self, problems: Problems) -> dict[str, list[Problem]]:
        """Those that are not set aside, domain by domain."""
        return {
            domain: [each for each in items if (domain, each.problem_id) not in self._failed]
            for domain, items in problems.items()
        }

    def answer(self, policies: Mapping[str, DomainPolicy], problems: Problems) -> Answered:
        """Every problem that is not set aside, under its domain's policy; each run tells which are."""
        if self._given is not None and _is_answered(self._given, policies, problems):
            return self._given
        left = self.left(problems)
        answered = self._at_once(policies, left) if self._is_usual(left) else self._in_pieces(policies, left)
        runs = {}
        for domain, items in problems.items():
            run = answered.runs.get(domain) or self._nothing(policies[domain])
            failed = [self._failed[key] for each in items if (key := (domain, each.problem_id)) in self._failed]
            runs[domain] = run.without(failed)
        return Answered(policies=policies, runs=runs, swap_seconds=answered.swap_seconds)

    def undisturbed(self, problems: Problems) -> bool:
        """Whether all of these are asked in one go, so that other policies may be asked in the same one."""
        left = self.left(problems)
        return self._is_usual(left) and all(len(left[domain]) == len(items) > 0 for domain, items in problems.items())

    def pieces(self, problems: Sequence[Problem]) -> Iterator[Sequence[Problem]]:
        """Of one domain, for who only looks at what is routed: each piece is asked before the next is taken."""
        left = self.left({each.domain: problems for each in problems[:1]})
        if self._is_usual(left):
            yield from left.values()
            return
        for keys, part in self._groups(left, ()):
            with self._noted(keys, last=len(problems) == 1, before=False):
                yield [each for items in part.values() for each in items]

    def over(self) -> None:
        """What was answered is kept as a block or a record."""
        self._trouble.over()

    def _is_usual(self, left: Problems) -> bool:
        """Whether nothing says that any of these breaks engines."""
        keys = {(domain, each.problem_id) for domain, items in left.items() for each in items}
        return not self._suspicion.deaths and not keys & self._known

    def _at_once(self, policies: Mapping[str, DomainPolicy], left: Problems) -> Answered:
        asked = {domain: items for domain, items in left.items() if items}
        task, seed, repeat = self.trial.task, self.trial.seed, self.trial.repeat
        return answer_problems(self.engine, policies, task, asked, seed=seed, repeat=repeat)

    def _in_pieces(self, policies: Mapping[str, DomainPolicy], left: Problems) -> Answered:
        rules = rules_as_json(policies)
        runs, swap = self._trouble.pieces(rules), 0.0
        only = sum(map(len, left.values())) == 1
        there = {
            (domain, outcome.problem_id) for part in runs for domain, run in part.items() for outcome in run.outcomes
        }
        for keys, part in self._groups(left, there):
            with self._noted(keys, last=only, before=bool(there)):
                answered = self._at_once(policies, part)
                self._trouble.keep_piece(rules, answered.runs)
            runs.append(answered.runs)
            swap = max(swap, answered.swap_seconds)
        joined = joined_runs(runs)
        for domain, run in joined.items():
            place = {each.problem_id: index for index, each in enumerate(left[domain])}
            run.outcomes[:] = [outcome for outcome in run.outcomes if outcome.problem_id in place]
            run.outcomes.sort(key=lambda outcome: place[outcome.problem_id])
        return Answered(policies=policies, runs=joined, swap_seconds=swap)

    @contextlib.contextmanager
    def _noted(self, keys: Sequence[Key], *, last: bool, before: bool) -> Iterator[None]:
        """While these are asked: the only ones of the call (`last`), or after others were answered `before`.

        As long as no engine died, only what broke one elsewhere can be accused.
        """
        deaths, doubted = self._suspicion.deaths, {*self._suspicion.suspects, *self._known}
        if deaths or self._known.issuperset(keys):
            flight = Flight(
                keys=tuple(keys),
                doubted=doubted.issuperset(keys) or (last and deaths > 0),
                landed=self._landed,
                proven=self._landed or before or last,
            )
            with self._trouble.asked(flight, deaths):
                yield
        else:
            yield
        self._landed = True

    def _groups(self, left: Problems, there: Sequence[Key] | set[Key]) -> Iterator[tuple[list[Key], Problems]]:
        """Piece by piece, what is not `there` yet: its keys and its problems by domain."""
        problems = {(domain, each.problem_id): each for domain, items in left.items() for each in items}
        for keys in groups([key for key in problems if key not in there], self._suspicion, self._known):
            part: dict[str, list[Problem]] = {}
            for key in keys:
                part.setdefault(key[0], []).append(problems[key])
            yield keys, part

    def _nothing(self, policy: DomainPolicy) -> DomainRun:
        """Of a domain without a problem left."""
        policy.activate(self.engine)
        self.engine.counters(reset=True)
        rows = () if policy.row_of is None else tuple(self.engine.counters_by_row(reset=False))
        return DomainRun([], self.engine.counters(reset=True), rows=rows)


def _is_answered(given: Answered, policies: Mapping[str, DomainPolicy], problems: Problems) -> bool:
    """Whether just these problems were answered, under just these policies."""
    asked = {domain: {each.problem_id for each in items} for domain, items in problems.items()}
    same = {domain: run.asked for domain, run in given.runs.items()} == asked
    return same and rules_as_json(given.policies) == rules_as_json(policies)


def check_failed(trial: Trial, failed: Sequence[FailedProblem]) -> None:
    """Raises TooManyFailed, in words, where more problems are set aside than `task.max_failed_problems`."""
    if (said := too_many(trial, failed)) is not None:
        raise TooManyFailed(said)


def too_many(trial: Trial, failed: Sequence[FailedProblem]) -> str | None:
    """Why a trial fails, where too many of its problems are set aside."""
    most = trial.task.max_failed_problems
    if len(failed) <= most:
        return None
    named = "; ".join(each.said for each in failed[:3])
    return (
        f"{len(failed)} problem(s) broke every engine that was asked them, task.max_failed_problems={most} may be left"
        f" out: {named}{'; ...' if len(failed) > 3 else ''}. Mend what breaks them, or type"
        f" task.max_failed_problems={len(failed)} to go on without them"
    )
