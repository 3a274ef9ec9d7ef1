"""What the command `demand` measures of a finished run, on its engine loaded once more."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from banpick_exp.cluster.backends.inline import stderr_in
from banpick_exp.cluster.plan import plan_run
from banpick_exp.engine.engine import Engine
from banpick_exp.errors import UserError
from banpick_exp.evaluation.answer import DomainPolicy
from banpick_exp.evaluation.demand.found import Group, ModelUsed, PointDemand, Settings
from banpick_exp.evaluation.demand.replay import completions_of, point_demand, replays_of, sampled, sums_by_domain
from banpick_exp.evaluation.demand.sums import Asked, Sums
from banpick_exp.evaluation.measure import asked_problems
from banpick_exp.evaluation.session import engine_of
from banpick_exp.policy import parse_policy
from banpick_exp.records import PointRecord
from banpick_exp.report.export.built import Built, built
from banpick_exp.report.export.chosen import matches, nearest
from banpick_exp.report.run import Run
from banpick_exp.setups import numbered, setup_of_record
from banpick_exp.sweep.overrides import key_of
from banpick_exp.sweep.point import Point
from banpick_exp.tasks.problem import Problem

MOST_POINTS = 4
"""That are measured where none is named."""
WHOLE_RUN = ("cluster", "tracking")
"""Settings of a point's command that say nothing of its engine."""
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What was typed."""

    run: str
    points: tuple[str, ...]
    """Labels or fingerprints; none: the foremost."""
    problems: int
    """Of each domain, at most."""
    windows: tuple[int, ...]
    caches: tuple[float, ...]
    """Multiples of K."""
    batches: tuple[int, ...]
    calibration: Path | None
    """Where it is no longer beside the run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Together:
    """Points that share model, task and engine, with their stock."""

    stock: PointRecord
    points: Mapping[str, tuple[PointRecord, Built]]
    """By fingerprint, each with its policy."""
    planned: Point
    """Stock's, from its own command: which engine to load, which problems to read."""
    problems: Mapping[str, Sequence[Problem]]
    """The sample."""
    asked: Asked


def groups_of(opened: Run, wanted: Wanted) -> list[Together]:
    """Everything to measure, whatever can be known of it before an engine is loaded.

    Raises UserError for points that cannot be measured (`_chosen`, `_together`).
    """
    return [_together(opened, stock, points, wanted) for stock, points in _chosen(opened, wanted)]


def _chosen(opened: Run, wanted: Wanted) -> list[tuple[PointRecord, list[PointRecord]]]:
    """Each stock point with those of the named ones, or of the foremost, that were asked as it was."""
    done = [record for record in opened.done if record.model.base is None]
    setup_of = dict(zip((each.fingerprint for each in done), numbered(map(setup_of_record, done)), strict=True))
    stock_of = {setup_of[each.fingerprint]: each for each in done if each.is_stock}
    named = [_named(opened, text, wanted.run) for text in dict.fromkeys(wanted.points)]
    if not wanted.points:
        named = _foremost(opened, [each for each in done if setup_of[each.fingerprint] in stock_of])
    groups: dict[int, list[PointRecord]] = {}
    for record in named:
        setup = setup_of.get(record.fingerprint)
        if setup not in stock_of:
            raise UserError(
                f"{record.label} ({record.fingerprint}) has no stock point of its own model, task and engine in"
                f" {wanted.run}: there is nothing to set beside it. Type another point."
            )
        assert setup is not None
        if record not in groups.setdefault(setup, []):
            groups[setup].append(record)
    return [(stock_of[setup], records) for setup, records in groups.items()]


def _foremost(opened: Run, done: Sequence[PointRecord]) -> list[PointRecord]:
    """What decides the result first; of several rows, which cannot be measured, only where there is nothing else."""
    policies = [record for record in done if not record.is_stock]
    single = [record for record in policies if not record.engagement.measured_by_row]
    by_name = {record.fingerprint: record for record in single or policies}
    found = [by_name[name] for name in opened.by_importance if name in by_name][:MOST_POINTS]
    if not found:
        raise UserError(
            f"{opened.folder.path} has no finished policy beside stock: there is nothing to measure. Type another run."
        )
    return found


def _named(opened: Run, text: str, shown: str) -> PointRecord:
    found = matches(opened, text)
    if len(found) > 1:
        several = ", ".join(f"{each.fingerprint} ({each.model.name}, {each.task.name})" for each in found[:5])
        raise UserError(f"{text} names {len(found)} points of {shown}: type the fingerprint of one: {several}.")
    if not found:
        raise UserError(f"{text} is no point of {shown}: nothing was measured. {nearest(opened, text)}")
    (record,) = found
    if record.is_stock or record.model.base is not None:
        what = (
            "stock, which stands beside every point"
            if record.is_stock
            else "of a checkpoint that was made from another"
        )
        raise UserError(f"{text} is {what}: nothing was measured. Type a policy of the model as it is.")
    if record not in opened.done:
        reason = f" ({record.reason})" if record.reason else ""
        raise UserError(
            f"{record.label} ({record.fingerprint}) is {record.status}{reason}, or a repeat or a point of dev: there is"
            " no budget to hold its figures against. Type a finished point."
        )
    return record


def _together(opened: Run, stock: PointRecord, points: Sequence[PointRecord], wanted: Wanted) -> Together:
    """Plans stock's own command and builds the policies.

    Raises UserError where that is another point now, a policy another one, or answers are not there to be read.
    """
    planned = planned_again(stock)
    written = [completions_of(opened.outcomes[each.fingerprint]) for each in (stock, *points)]
    if not all(written):
        raise UserError(
            f"{wanted.run} was made by a version that kept no completions: there is nothing to read. Run it again:"
            f" {stock.command}"
        )
    problems = sampled(asked_problems(planned), written, wanted.problems)
    if not problems:
        raise UserError(
            f"{wanted.run}: no domain has two problems for which stock and every point wrote an answer"
            f" ({stock.task.name}): nothing is decoded there, so there is no demand of decoding to measure."
        )
    shape = planned.checkpoint.shape
    caches = sorted({round(rho * shape.top_k) for rho in wanted.caches} & set(range(1, shape.num_experts + 1)))
    if not caches:
        raise UserError(
            f"--caches: none of {', '.join(map(str, wanted.caches))} times K={shape.top_k} lies between 1 and the"
            f" {shape.num_experts} experts of a layer. Type --caches 1,2."
        )
    return Together(
        stock=stock,
        points={
            each.fingerprint: (each, built(each, opened.folder, wanted.calibration if each.calibration else None))
            for each in points
        },
        planned=planned,
        problems=problems,
        asked=Asked(windows=wanted.windows, caches=tuple(caches), batches=wanted.batches),
    )


def planned_again(stock: PointRecord) -> Point:
    """The point of a record, from its command. Raises UserError where that is another one now."""
    if stock.command is None:
        raise UserError(f"the stock point {stock.fingerprint} has no command (an old record): run the sweep again.")
    words = shlex.split(stock.command)[3:]
    kept = [word for word in words if key_of(word).split(".")[0] not in WHOLE_RUN]
    points = plan_run([*kept, "tracking=none"]).sweep.points
    found = next((point for point in points if point.fingerprint == stock.fingerprint), None)
    if found is None:
        raise UserError(
            f"{stock.command} is another point here than the stock of the run ({stock.fingerprint}): the checkpoint,"
            " the problems or this version of the program have changed since, so what would be measured is not what"
            " the run measured. Measure where the run was made, or run it again here."
        )
    return found


@contextmanager
def opened_engine(point: Point, log: Path, say: Say) -> Iterator[Engine]:
    """The engine of a point, loaded and verified."""
    say(f"{point.model.name}: loading the engine; what it says goes to {log}")
    engine = engine_of(point)
    try:
        with stderr_in(log):
            seconds = engine.start()
            engine.verify()
        say(f"loaded in {seconds:.0f} s")
        yield engine
    finally:
        engine.close()


def measured(opened: Run, group: Together, wanted: Wanted, say: Say) -> Group:
    """The figures of a group. Raises EngineError where what is recorded is not what the engine counts."""
    asked, shape = group.asked, group.planned.checkpoint.shape
    found: list[PointDemand] = []
    with opened_engine(group.planned, opened.folder.engine_log, say) as engine:

        def sums(record: PointRecord, policies: Mapping[str, DomainPolicy]) -> dict[str, Sums]:
            completions = completions_of(opened.outcomes[record.fingerprint])
            replays = replays_of(engine, group.problems, completions, group.planned.task)
            return sums_by_domain(engine, policies, replays, asked, lambda text: say(f"{record.label}, {text}"))

        stock = sums(group.stock, _stock_policies(group))
        for record, made in group.points.values():
            found.append(point_demand(record, stock, sums(record, _policies(engine, made, group)), asked))
    return Group(
        model=ModelUsed(
            name=group.planned.model.name,
            num_layers=shape.num_layers,
            num_experts=shape.num_experts,
            top_k=shape.top_k,
        ),
        task=f"{group.planned.task.name} {group.planned.task.split}",
        stock=group.stock.fingerprint,
        settings=Settings(problems=wanted.problems, windows=asked.windows, caches=asked.caches, batches=asked.batches),
        points=tuple(found),
    )


def _stock_policies(group: Together) -> dict[str, DomainPolicy]:
    rule = parse_policy("none", {}, group.planned.checkpoint.shape)
    return dict.fromkeys(group.problems, DomainPolicy(rule=rule, calibration_key="", calibration=None))


def _policies(engine: Engine, made: Built, group: Together) -> dict[str, DomainPolicy]:
    """A policy by domain as the engine takes it, the calibrations that it reads handed over."""
    found = {}
    for domain in group.problems:
        part, key = made.calibrations[domain], ""
        if part is not None:
            key = f"demand/{made.policies[domain].digest()[:16]}/{domain}"
            engine.load_calibration(key, part)
        found[domain] = DomainPolicy(rule=made.rule, calibration_key=key, calibration=part)
    return found
