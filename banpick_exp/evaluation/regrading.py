"""A finished run graded again from its stored completions, without an engine: by another grader, another mark, or with
another of several answers chosen.

Nothing is asked again, so only what a grade decides changes: which answers are right, accuracy, and its difference to
stock's. Budgets, speeds and what was routed stay.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from banpick_exp.analysis.avg_at_n import average_at_n, difference_at_n
from banpick_exp.analysis.pairing import References
from banpick_exp.config import fingerprint, validated
from banpick_exp.errors import UserError
from banpick_exp.evaluation.answer import gold_of
from banpick_exp.evaluation.choosing import with_chosen
from banpick_exp.evaluation.reward import with_scores
from banpick_exp.models.reward_model import reward_identity
from banpick_exp.records import (
    OVERALL,
    SCHEMA_VERSION,
    Metrics,
    Outcome,
    PointMetrics,
    PointRecord,
    TaskUsed,
    outcomes_frame,
    outcomes_of,
)
from banpick_exp.tasks.config import TaskConfig
from banpick_exp.tasks.files import inspect_task
from banpick_exp.tasks.problem import Problem
from banpick_exp.tasks.registry import grader_of

Key = tuple[str, str]
"""Domain and number of a problem."""


@dataclass(frozen=True, slots=True)
class Regraded:
    """A point before and after."""

    before: PointRecord
    after: PointRecord
    outcomes: list[Outcome]
    flips: tuple[tuple[Outcome, Outcome], ...]
    """Answers, before and after, that were right and are wrong, or the other way round."""


@dataclass(frozen=True, slots=True)
class Material:
    """What is graded with: the task as it is now, and its problems."""

    task: TaskConfig
    problems: Mapping[Key, Problem]
    identity: str
    """Of the problems, as their new grader compares them."""
    note: str | None
    """What to tell the user, where the files of the problems could not be used."""
    reward_model: str | None
    """Identity of the checkpoint that chooses; None where none does."""
    scores_anew: bool
    """Whether it is asked again; else the scores that are kept with the outcomes choose."""


def task_of(used: TaskUsed, changes: Mapping[str, Any]) -> TaskConfig:
    """The task that a record was asked, with some settings changed. Raises UserError where it does not hold together.

    What was permitted when it ran is not permitted now: a run may be somebody else's. A reward model goes with the
    choice that it made.
    """
    told = {key: value for key, value in used.plain().items() if key in TaskConfig.model_fields}
    if changes.get("choose", "reward") != "reward":
        told.pop("reward_model", None)
    return validated(TaskConfig, told | {"allow_code": False} | dict(changes), "task")


def material_of(record: PointRecord, outcomes: pl.DataFrame, changes: Mapping[str, Any]) -> Material:
    """The problems of a record, from its files where these are still what was asked, else from the outcomes' golds.

    Raises UserError where the grader cannot grade here, or needs what only the files have.
    """
    task = task_of(record.task, changes)
    grader = grader_of(task)
    if (refusal := grader.refused(task) or grader.lacking(task)) is not None:
        raise UserError(refusal)
    kept_scores = record.task.choose == "reward" and "score" in outcomes.columns and "reward_model" not in changes
    anew = task.choose == "reward" and not kept_scores
    reward = reward_identity(str(task.reward_model)) if anew else None
    if task.choose == "reward" and not anew:
        reward = record.task.reward_identity
    place = {key: value for key, value in changes.items() if key == "data_files"}
    place |= {"allow_code": True}  # these are only looked at
    try:
        asked = inspect_task(task_of(record.task, place), task.split)
        same = asked.identity == record.task.identity
        why = None if same else asked.missing or "their content has changed since"
    except UserError as error:
        why = str(error)
    if why is None:
        now = inspect_task(task, task.split)
        problems = {(p.domain, p.problem_id): p for items in now.loaded.values() for p in items}
        return Material(task, problems, now.identity, None, reward, anew)
    if anew:
        raise UserError(
            f"The problems of {record.task.name} cannot be read again ({why}), and a reward model scores a question and"
            " its answer: nothing was graded. Put the files back as they were, or type where they are:"
            " task.data_files=..."
        )
    if not grader.from_gold:
        raise UserError(
            f"The problems of {record.task.name} cannot be read again ({why}), and task.grader={grader.name} needs more"
            " of them than their right answers: nothing was graded. Put the files back as they were, or type where they"
            " are: task.data_files=..."
        )
    kept = {(o.domain, o.problem_id): _from_gold(o, task) for o in outcomes_of(outcomes) if o.gold is not None}
    identity = fingerprint({"data": record.task.identity, "grader": grader.identity()})
    note = f"{record.task.name}: the right answers are those kept with the outcomes, because of the files: {why}"
    return Material(task, kept, identity, note, reward, anew)


def _from_gold(outcome: Outcome, task: TaskConfig) -> Problem:
    gold, grader = str(outcome.gold), grader_of(task)
    try:
        several = json.loads(gold) if gold.startswith('["') else None
    except ValueError:
        several = None
    answers = [gold] if not isinstance(several, list) or not all(isinstance(e, str) for e in several) else several
    first, *also = dict.fromkeys(map(grader.normalised, answers))
    if never := next((f"{each!r} {why}" for each in (first, *also) if (why := grader.never_given(each, task))), None):
        raise UserError(
            f"Problem {outcome.problem_id} of {outcome.domain} has the right answer {never}: nothing was graded."
        )
    return Problem(outcome.problem_id, outcome.domain, outcome.task, "", first, tuple(also))


def regraded(
    records: Sequence[PointRecord], outcomes: Mapping[str, pl.DataFrame], changes: Mapping[str, Any]
) -> tuple[list[Regraded], list[str]]:
    """Every point that has outcomes, graded again, and what to tell the user.

    Raises UserError where completions are not kept, or the grader cannot grade them here.
    """
    found: list[Regraded] = []
    known: dict[str, Material] = {}
    new: dict[str, list[Outcome]] = {}
    graded = [record for record in records if record.metrics is not None]
    for record in graded:
        if record.schema_version < 2:
            raise UserError(
                f"{record.label} was recorded before whole completions were kept, so it cannot be graded again. Run it"
                " again."
            )
        key = json.dumps(record.task.plain(), sort_keys=True)
        if key not in known:
            known[key] = material_of(record, outcomes[record.fingerprint], changes)
        new[record.fingerprint] = _graded(outcomes_of(outcomes[record.fingerprint]), known[key])
    for key, material in known.items():
        names = [each.fingerprint for each in graded if json.dumps(each.task.plain(), sort_keys=True) == key]
        new |= _chosen({name: new[name] for name in names}, material)
    references = References(record for record in graded if record.status != "dropped")
    frames = {name: outcomes_frame(each) for name, each in new.items()}
    for record in graded:
        material = known[json.dumps(record.task.plain(), sort_keys=True)]
        first = record.model_copy(update={"repeat": 0})
        stock = record if record.is_stock else references.stock(record) or references.stock(first)
        ours = frames[record.fingerprint]
        metrics = _metrics(record.measured, ours, None if stock is None else frames[stock.fingerprint])
        after = _record(record, material, metrics)
        old = outcomes_of(outcomes[record.fingerprint])
        pairs = zip(old, new[record.fingerprint], strict=True)
        flips = tuple((one, other) for one, other in pairs if one.correct != other.correct)
        found.append(Regraded(record, after, new[record.fingerprint], flips))
    return found, list(dict.fromkeys(each.note for each in known.values() if each.note))


def _graded(outcomes: Iterable[Outcome], material: Material) -> list[Outcome]:
    each = list(outcomes)
    missing = [o for o in each if (o.domain, o.problem_id) not in material.problems]
    if missing:
        raise UserError(
            f"Problem {missing[0].problem_id} of {missing[0].domain} has an answer and is in no file of the task any"
            " more, so nothing was graded. Put the files back as they were."
        )
    pairs = [(o.completion or "", material.problems[o.domain, o.problem_id]) for o in each]
    grades = grader_of(material.task).grade_all(pairs, material.task)
    return [
        replace(
            outcome,
            correct=grade.correct,
            answer=grade.answer,
            found=grade.found,
            gold=gold_of(problem),
            pattern_timeout=grade.pattern_timeout or None,
            grader_timeout=grade.grader_timeout or None,
        )
        for outcome, (_, problem), grade in zip(each, pairs, grades, strict=True)
    ]


def _chosen(graded: Mapping[str, list[Outcome]], material: Material) -> dict[str, list[Outcome]]:
    """Of each point one answer a problem, as the task says; a reward model is loaded once for all of them."""
    if material.scores_anew:
        scored = iter(
            with_scores([each for items in graded.values() for each in items], material.problems, material.task)
        )
        graded = {name: [next(scored) for _ in items] for name, items in graded.items()}
    return {name: with_chosen(items, material.task.choose) for name, items in graded.items()}


def _metrics(told: PointMetrics, ours: pl.DataFrame, stock: pl.DataFrame | None) -> PointMetrics:
    scores = {row["domain"]: row for row in average_at_n(ours).iter_rows(named=True)}
    deltas = {} if stock is None else {r["domain"]: r for r in difference_at_n(ours, stock).iter_rows(named=True)}

    def again(domain: str, metrics: Metrics) -> Metrics:
        score, delta = scores[domain], deltas.get(domain)
        return metrics.model_copy(
            update={
                "accuracy": score["accuracy"],
                "accuracy_ci95": (score["lo"], score["hi"]),
                "delta": None if delta is None else delta["difference"],
                "delta_ci95": None if delta is None else (delta["lo"], delta["hi"]),
            }
        )

    return PointMetrics(
        overall=again(OVERALL, told.overall),
        domains={domain: again(domain, metrics) for domain, metrics in told.domains.items()},
    )


def _record(record: PointRecord, material: Material, metrics: PointMetrics) -> PointRecord:
    """The record of the same answers under another grade: a fingerprint of its own, that no sweep plans."""
    grader = grader_of(material.task)
    used = material.task.model_dump(mode="json")
    task = {key: used.get(key, value) for key, value in record.task.plain().items()}
    task |= {key: used[key] for key in ("grader", "answer_pattern", "answer_separator", "reward_model")}
    identity = {"regraded": record.fingerprint, "grader": grader.identity(), "data": material.identity}
    marks = {key: used[key] for key in ("answer_pattern", "answer_separator")}
    if material.task.choose != record.task.choose:
        task["choose"] = marks["choose"] = material.task.choose
    if material.reward_model != record.task.reward_identity:
        task["reward_identity"] = marks["reward_model"] = material.reward_model
    return record.model_copy(
        update={
            "schema_version": SCHEMA_VERSION,
            "fingerprint": fingerprint(identity | marks),
            "task": TaskUsed.model_validate(task | {"identity": material.identity}),
            "versions": dict(record.versions) | grader.built_from(),
            "metrics": metrics,
        }
    )
