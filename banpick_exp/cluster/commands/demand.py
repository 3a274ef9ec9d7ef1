"""`python -m banpick_exp demand RUN [POINT ...]`: which experts policies of a finished run demand at once."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from banpick_exp.disk import write_atomically
from banpick_exp.errors import UserError
from banpick_exp.options import Options

if TYPE_CHECKING:
    from pathlib import Path

    from banpick_exp.engine.engine import Engine
    from banpick_exp.evaluation.answer import DomainPolicy
    from banpick_exp.evaluation.demand.found import DemandFile, Group, PointDemand
    from banpick_exp.evaluation.demand.sums import Asked, Sums
    from banpick_exp.records import PointRecord
    from banpick_exp.report.export.built import Built
    from banpick_exp.report.run import Run
    from banpick_exp.sweep.point import Point
    from banpick_exp.tasks.problem import Problem

DESCRIPTION = """\
Which experts do policies demand at once? For those who hold experts in slow memory and load them (offloading), and for
those who spread them over devices (expert parallel). Of each point, beside stock:

  steps    distinct experts of a layer that a decode step of 1, 8 and 32 sequences touches
  windows  distinct experts of 4, 16 and 64 consecutive tokens of one sequence; how well one fixed group of experts
           covers them (SRP); how often the best cache of K or 2 K experts hits (SCH), and how many it lacks a token

The engine of the run is loaded once more and reads a sample of the answers that the run has kept, each point's own
under its own policy, stock's under stock: nothing is generated, so it takes a prefill of each answer. Figures are
paired by problem and have 95 % intervals. A policy that keeps another number of experts than its record says gets none.

POINT is a fingerprint (or its first digits) or a label in quotes, as the report has them. Without one it is the points
that decide the result, at most 4. The run's records are not touched: RUN/demand.json and RUN/demand.png are written, in
the place of those of an earlier call, and `report RUN` puts them on the page.
"""
EXAMPLES = """\
examples:
  python -m banpick_exp demand outputs/pick_strength/20261122-101500
  python -m banpick_exp demand RUN "pick boost=1 key_experts=4" 134f96fe
  python -m banpick_exp demand RUN --problems 200 --caches 1,1.5,2 --windows 16,256
  python -m banpick_exp demand RUN --dry-run                which points and how many answers; loads nothing

What the figures mean, their formulas and sources: docs/demand.md.

Exit code: 0; 1 a point's budget was not that of its record; 2 it cannot be measured, and the message says why.
"""
MOST_POINTS = 4
"""That are measured where none is named."""
WHOLE_RUN = ("cluster", "tracking")
"""Settings of a point's command that say nothing of its engine."""


def help_page() -> str:
    return _options().format_help()


def _options() -> Options:
    parser = Options(
        prog="python -m banpick_exp demand",
        usage="python -m banpick_exp demand RUN [POINT ...] [options]",
        description=DESCRIPTION,
        epilog=EXAMPLES,
    )
    parser.add_argument("run", metavar="RUN", help="run folder, as a sweep printed it (holds points/)")
    parser.add_argument("points", nargs="*", metavar="POINT", help="which points, beside stock")
    sample = "problems of each domain, drawn once for all points (default: 64)"
    parser.add_argument("--problems", type=int, default=64, metavar="N", help=sample)
    windows = "tokens of a window (default: 4,16,64)"
    parser.add_argument("--windows", type=_whole, default=(4, 16, 64), metavar="M,...", help=windows)
    caches = "experts that a cache holds of each layer, in multiples of the K a token selects (default: 1,2)"
    parser.add_argument("--caches", type=_numbers, default=(1.0, 2.0), metavar="RHO,...", help=caches)
    batches = "sequences of a decode step (default: 1,8,32)"
    parser.add_argument("--batches", type=_whole, default=(1, 8, 32), metavar="B,...", help=batches)
    parser.add_argument("--calibration", metavar="FOLDER", help="the calibration, where it is no longer beside the run")
    parser.add_argument("--json", action="store_true", help="print demand.json in place of the tables")
    parser.add_argument("--dry-run", action="store_true", help="say what would be read; load and write nothing")
    return parser


def _whole(text: str) -> tuple[int, ...]:
    try:
        return tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of whole numbers such as 1,8,32") from None


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(sorted({float(part) for part in text.split(",")}))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers such as 1,1.5,2") from None


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


def run(arguments: list[str]) -> int:
    """Returns 0, or 1 where a point's budget was not that of its record. Raises UserError where nothing is measured."""
    typed = _options().parse_intermixed_args(arguments)
    if problem := _wrong(typed):
        raise UserError(problem)
    # Imported here: --help and a mistyped option answer at once.
    from banpick_exp.report.run import opened_run

    opened = opened_run(typed.run)
    groups = [_together(opened, stock, points, typed) for stock, points in _chosen(opened, typed)]
    if typed.dry_run:
        print("\n".join(line for group in groups for line in _intention(group)))
        return 0
    _check_writable(opened)
    from banpick_exp.evaluation.demand.found import DemandFile
    from banpick_exp.report.demanded import told

    found = DemandFile(
        run=opened.name,
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        command=shlex.join(["python", "-m", "banpick_exp", "demand", *arguments]),
        groups=tuple(_measured(opened, group, typed) for group in groups),
    )
    text = found.model_dump_json(indent=1) + "\n"
    write_atomically(opened.folder.demand_path, text.encode(), "what was measured is lost")
    print(text.rstrip() if typed.json else "\n".join(told(found)))
    for path in (opened.folder.demand_path, *_drawn(opened, found)):
        print(f"  {path}", file=sys.stderr)
    print(f"To have it in report.html: python -m banpick_exp report {shlex.quote(typed.run)}", file=sys.stderr)
    return int(any(point.invalid is not None for group in found.groups for point in group.points))


# ------------------------------------------------------------ what is measured


def _wrong(typed: argparse.Namespace) -> str | None:
    """What would make the figures meaningless, said before anything is read."""
    if typed.problems < 2:
        return f"--problems={typed.problems}: an interval needs two problems of a domain or more. Type --problems 64."
    if min(typed.windows) < 1 or max(typed.windows) > 4096:
        return f"--windows={_listed(typed.windows)}: a window has 1 to 4096 tokens. Type --windows 4,16,64."
    if min(typed.batches) < 1:
        return f"--batches={_listed(typed.batches)}: a step has one sequence or more. Type --batches 1,8,32."
    if max(typed.batches) >= typed.problems:
        return (
            f"--batches={_listed(typed.batches)}: a step of {max(typed.batches)} sequences needs more problems than"
            f" --problems={typed.problems}, so that one can be left out. Type --problems {2 * max(typed.batches)}."
        )
    if not min(typed.caches) > 0:
        return f"--caches={_listed(typed.caches)}: a cache holds more than 0 times K. Type --caches 1,2."
    return None


def _listed(numbers: Sequence[float]) -> str:
    return ",".join(f"{number:g}" for number in numbers)


def _chosen(opened: Run, typed: argparse.Namespace) -> list[tuple[PointRecord, list[PointRecord]]]:
    """Each stock point with those of the named ones, or of the foremost, that were asked as it was."""
    from banpick_exp.setups import numbered, setup_of_record

    done = [record for record in opened.done if record.model.base is None]
    setup_of = dict(zip((each.fingerprint for each in done), numbered(map(setup_of_record, done)), strict=True))
    stock_of = {setup_of[each.fingerprint]: each for each in done if each.is_stock}
    wanted = [_named(opened, text, typed.run) for text in dict.fromkeys(typed.points)]
    if not typed.points:
        wanted = _foremost(opened, [each for each in done if setup_of[each.fingerprint] in stock_of])
    groups: dict[int, list[PointRecord]] = {}
    for record in wanted:
        setup = setup_of.get(record.fingerprint)
        if setup not in stock_of:
            raise UserError(
                f"{record.label} ({record.fingerprint}) has no stock point of its own model, task and engine in"
                f" {typed.run}: there is nothing to set beside it. Type another point."
            )
        assert setup is not None
        if record not in groups.setdefault(setup, []):
            groups[setup].append(record)
    return [(stock_of[setup], records) for setup, records in groups.items()]


def _foremost(opened: Run, done: Sequence[PointRecord]) -> list[PointRecord]:
    """What decides the result first."""
    by_name = {record.fingerprint: record for record in done if not record.is_stock}
    found = [by_name[name] for name in opened.by_importance if name in by_name][:MOST_POINTS]
    if not found:
        raise UserError(
            f"{opened.folder.path} has no finished policy beside stock: there is nothing to measure. Type another run."
        )
    return found


def _named(opened: Run, text: str, shown: str) -> PointRecord:
    from banpick_exp.report.export.chosen import matches, nearest

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


def _together(opened: Run, stock: PointRecord, points: Sequence[PointRecord], typed: argparse.Namespace) -> Together:
    """Plans stock's own command and builds the policies.

    Raises UserError where that is another point now, a policy another one, or answers are not there to be read.
    """
    from pathlib import Path

    from banpick_exp.evaluation.demand.replay import completions_of, sampled
    from banpick_exp.evaluation.demand.sums import Asked
    from banpick_exp.evaluation.measure import asked_problems
    from banpick_exp.report.export.built import built

    planned = _planned(stock)
    written = [completions_of(opened.outcomes[each.fingerprint]) for each in (stock, *points)]
    if not all(written):
        raise UserError(
            f"{typed.run} was made by a version that kept no completions: there is nothing to read. Run it again:"
            f" {stock.command}"
        )
    problems = sampled(asked_problems(planned), written, typed.problems)
    if not problems:
        raise UserError(
            f"{typed.run}: no domain has two problems for which stock and every point wrote an answer"
            f" ({stock.task.name}): nothing is decoded there, so there is no demand of decoding to measure."
        )
    artifact = None if typed.calibration is None else Path(typed.calibration).expanduser()
    shape = planned.checkpoint.shape
    caches = sorted({round(rho * shape.top_k) for rho in typed.caches} & set(range(1, shape.num_experts + 1)))
    if not caches:
        raise UserError(
            f"--caches={_listed(typed.caches)}: none of these times K={shape.top_k} lies between 1 and the"
            f" {shape.num_experts} experts of a layer. Type --caches 1,2."
        )
    return Together(
        stock=stock,
        points={
            each.fingerprint: (each, built(each, opened.folder, artifact if each.calibration is not None else None))
            for each in points
        },
        planned=planned,
        problems=problems,
        asked=Asked(windows=typed.windows, caches=tuple(caches), batches=typed.batches),
    )


def _planned(stock: PointRecord) -> Point:
    from banpick_exp.cluster.plan import plan_run
    from banpick_exp.sweep.overrides import key_of

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


def _intention(group: Together) -> list[str]:
    asked, sizes = group.asked, ", ".join(f"{name} {len(items)}" for name, items in group.problems.items())
    answers = (1 + len(group.points)) * sum(map(len, group.problems.values()))
    return [
        f"{group.planned.model.name}, {group.planned.task.name}: {answers} answers would be read ({sizes} a point)",
        f"  windows of {_listed(asked.windows)} tokens, caches of {_listed(asked.caches)} experts, steps of"
        f" {_listed(asked.batches)} sequences",
        *(
            f"  {record.label} ({record.fingerprint})"
            for record in (group.stock, *(record for record, _ in group.points.values()))
        ),
        "Nothing was started.",
    ]


# ------------------------------------------------------------ measuring


@contextmanager
def opened_engine(point: Point, log: Path) -> Iterator[Engine]:
    """The engine of a point, loaded and verified."""
    from banpick_exp.cluster.backends.inline import stderr_in
    from banpick_exp.evaluation.session import engine_of

    _say(f"{point.model.name}: loading the engine; what it says goes to {log}")
    engine = engine_of(point)
    try:
        with stderr_in(log):
            seconds = engine.start()
            engine.verify()
        _say(f"loaded in {seconds:.0f} s")
        yield engine
    finally:
        engine.close()


def _measured(opened: Run, group: Together, typed: argparse.Namespace) -> Group:
    from banpick_exp.evaluation.demand.found import Group, ModelUsed, Settings
    from banpick_exp.evaluation.demand.replay import completions_of, point_demand, replays_of, sums_by_domain

    asked, shape = group.asked, group.planned.checkpoint.shape
    found: list[PointDemand] = []
    with opened_engine(group.planned, opened.folder.engine_log) as engine:

        def sums(record: PointRecord, policies: Mapping[str, DomainPolicy]) -> dict[str, Sums]:
            completions = completions_of(opened.outcomes[record.fingerprint])
            replays = replays_of(engine, group.problems, completions, group.planned.task)
            return sums_by_domain(engine, policies, replays, asked, _said(record.label))

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
        settings=Settings(problems=typed.problems, windows=asked.windows, caches=asked.caches, batches=asked.batches),
        points=tuple(found),
    )


def _stock_policies(group: Together) -> dict[str, DomainPolicy]:
    from banpick_exp.evaluation.answer import DomainPolicy
    from banpick_exp.policy import parse_policy

    rule = parse_policy("none", {}, group.planned.checkpoint.shape)
    return dict.fromkeys(group.problems, DomainPolicy(rule=rule, calibration_key="", calibration=None))


def _policies(engine: Engine, made: Built, group: Together) -> dict[str, DomainPolicy]:
    """A policy by domain as the engine takes it, the calibrations that it reads handed over."""
    from banpick_exp.evaluation.answer import DomainPolicy

    found = {}
    for domain in group.problems:
        part, key = made.calibrations[domain], ""
        if part is not None:
            key = f"demand/{made.policies[domain].digest()[:16]}/{domain}"
            engine.load_calibration(key, part)
        found[domain] = DomainPolicy(rule=made.rule, calibration_key=key, calibration=part)
    return found


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _said(label: str) -> Callable[[str], None]:
    return lambda text: _say(f"{label}, {text}")


def _check_writable(opened: Run) -> None:
    if (why := opened.folder.unwritable()) is not None:
        raise UserError(f"{why}: what is measured would be lost. Copy the run to a folder of yours and measure there.")


def _drawn(opened: Run, found: DemandFile) -> list[Path]:
    from banpick_exp.report.figures.demand import demand_figure
    from banpick_exp.report.figures.names import DEMAND
    from banpick_exp.report.figures.sheet import SCREEN, save

    figure = demand_figure(found, SCREEN)
    return [] if figure is None else [save(figure, opened.folder.figure_path(DEMAND))]
