"""From what was typed to an ordered list of unique points: every mistake that can be known without an engine ends here.

Imports no torch, vllm, ray, wandb, transformers or datasets. `plan_sweep` reads conf/, the checkpoint and the data,
and leaves nothing behind.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TypeVar

from banpick_exp.config import Section
from banpick_exp.disk import check_writable
from banpick_exp.errors import UserError
from banpick_exp.evaluation.calibration.artifact import METADATA as CALIBRATION
from banpick_exp.evaluation.calibration.artifact import artifact_folder, parts_in
from banpick_exp.evaluation.calibration.scores import Part
from banpick_exp.manifest import MANIFEST, DamagedManifest, Manifest
from banpick_exp.models.checkpoint import Checkpoint
from banpick_exp.models.shape import MoeShape
from banpick_exp.policy.budget import BUDGET
from banpick_exp.run_folder import RunFolder
from banpick_exp.run_names import find_run_dir, new_run_dir
from banpick_exp.setups import nearest_differences
from banpick_exp.sweep.command import Command, parse_command
from banpick_exp.sweep.compose import Composer
from banpick_exp.sweep.config import (
    GridSearch,
    Hardware,
    OptunaSearch,
    RunBudget,
    RunConfig,
    SearchConfig,
    SelectSearch,
)
from banpick_exp.sweep.estimate import NO_PAST, Estimate, Made, estimate
from banpick_exp.sweep.make_points import PointMaker
from banpick_exp.sweep.overrides import Assignment, Block, edited_blocks, key_of, merged, parse_axis
from banpick_exp.sweep.past import Past, read_past
from banpick_exp.sweep.point import Point
from banpick_exp.sweep.resume import check_setups, setups_of
from banpick_exp.sweep.search.ladder import NO_LADDER, Ladder, asking
from banpick_exp.sweep.search.selection import ON_DEV, Stages, stages_of
from banpick_exp.sweep.search.strategy import setup
from banpick_exp.sweep.space import Space, check_sampled, cornered, space_of
from banpick_exp.sweep.study import expanded
from banpick_exp.tasks.benchmarks.tiny import TINY
from banpick_exp.tasks.config import TaskConfig
from banpick_exp.tasks.registry import benchmark_of

SectionT = TypeVar("SectionT", bound=Section)
RUNG = ("policy=fixed_k", "policy.k=1")


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepPlan:
    """Everything the runner needs. `points`: the largest engine first; for each engine none, fixed_k, then the rest."""

    sweep_name: str
    run: RunConfig
    folder: RunFolder
    points: tuple[Point, ...]
    spaces: tuple[Space, ...]
    """What search=optuna samples beside the points; empty otherwise."""
    corners: tuple[Point, ...]
    """The points, and those that a search may add: what is needed of engines and calibrations shows there."""
    stages: Stages | None
    """What search=select chooses from, and what it may ask once it has; None under any other."""
    ladder: Ladder
    """What search.ladder=auto may add once budgets are measured."""
    maker: PointMaker
    """Makes the points that are sampled later."""
    notes: tuple[str, ...]
    sections: Mapping[str, Section]
    """Of other rooms, by their name in conf/: checked here with everything else, read by their owners."""
    search: SearchConfig
    hardware: Hardware
    budget: RunBudget
    resume: bool
    dry_run: bool
    command: str
    past: Past = NO_PAST
    """What engines did on this machine before."""
    there: Made = frozenset()
    """Calibrations, and parts of them, that were there when this was planned."""

    def by_engine(self) -> dict[str, tuple[Point, ...]]:
        """Points by engine_fingerprint, in the order to load the engines."""
        groups: dict[str, list[Point]] = {}
        for point in self.points:
            groups.setdefault(point.engine_fingerprint, []).append(point)
        return {name: tuple(points) for name, points in groups.items()}

    def calibrations(self) -> dict[str, Point]:
        """One point for each calibration that is needed, by calibration_fingerprint."""
        needed: dict[str, Point] = {}
        for point in self.corners:
            if point.calibration_fingerprint is not None:
                needed.setdefault(point.calibration_fingerprint, point)
        return needed

    def section(self, name: str, kind: type[SectionT]) -> SectionT:
        """The settings of another room, as the type that it planned them with."""
        found = self.sections[name]
        assert isinstance(found, kind)
        return found

    def estimate(self, engines: int) -> Estimate:
        """How long it takes with `engines` copies of each engine side by side."""
        later: tuple[Point, ...] = self.ladder.at_most() if self.stages is None else self.stages.at_most()
        if isinstance(self.search, OptunaSearch):
            later = self.corners[-1:] * self.search.trials
        return estimate(self.points, engines, later, self.hardware, past=self.past, there=self.there)

    def seconds_by_past(self, points: Sequence[Point], engines: int) -> float | None:
        """How long these points take, where it is known how fast their engines are on this machine."""
        cost = estimate(points, engines, (), self.hardware, past=self.past, there=self.there)
        return cost.seconds if cost.by_past else None

    def manifest(self) -> Manifest:
        """What `run.json` says; a resumed run must agree in it."""
        return Manifest(
            sweep=self.sweep_name,
            models={point.checkpoint.identity: point.model.name for point in self.points},
            tasks={point.data_identity: point.task.name for point in self.points},
            search=self.search.name,
            command=self.command,
            setups=setups_of(_one_a_setting(self.points)),
            candidates=() if self.stages is None else self.stages.candidates,
        )


def plan_sweep(
    arguments: Sequence[str],
    *,
    sections: Mapping[str, type[Section]] | None = None,
    now: datetime | None = None,
) -> SweepPlan:
    """Plans the sweep that `arguments` (as typed after `python -m banpick_exp`) describe.

    `sections`: settings of rooms that stand above this one, by their name in conf/, to be checked with the rest.

    Raises UserError for anything in them that cannot work. Example: `plan_sweep(["+sweep=pick_strength"])`.
    """
    command = parse_command(arguments)
    arguments = expanded(arguments)  # what is recorded stays true when a study is changed
    composer = Composer(command.sweep)
    run, others = composer.run_config(command.run_values, sections or {})
    if run.repeats > 1:
        command.settings.append(_repeat_axis(command, run.repeats))
    maker = PointMaker(composer)
    planned = _planned(command, run, maker)
    missing = sorted({t for point in planned.corners for t in (point.checkpoint.missing, point.data_missing) if t})
    if missing and not run.dry_run:
        raise UserError("Nothing can be started: " + "; ".join(missing) + ".")
    folder, begun = _folder(run, now or datetime.now())
    plan = SweepPlan(
        sweep_name=run.sweep.name,
        run=run,
        folder=folder,
        points=planned.points,
        spaces=planned.spaces,
        corners=planned.corners,
        stages=planned.stages,
        ladder=planned.ladder,
        maker=maker,
        notes=(*planned.notes, *missing),
        sections=others,
        search=run.search,
        hardware=run.hardware,
        budget=run.budget,
        resume=begun,
        dry_run=run.dry_run,
        command=shlex.join(["python", "-m", "banpick_exp", *arguments]),
        past=read_past(folder.past),
        there=_there(planned.corners, folder),
    )
    if plan.resume:
        plan = _checked_to_go_on(plan)
    check_writable(plan.folder.path)
    return plan


def _checked_to_go_on(plan: SweepPlan) -> SweepPlan:
    """UserError unless the run in the folder is this plan's, or its manifest is damaged and all its points are."""
    manifest = plan.manifest()
    try:
        plan.folder.check_manifest(manifest)
    except DamagedManifest as error:
        begun = plan.folder.points_begun()
        if not begun or begun - {point.fingerprint for point in plan.points}:
            raise
        kept = "what is computed there is all of this command's own points, and is kept"
        note = f"{str(error).partition(': nobody')[0]}: {kept}; the file is written anew"
        return replace(plan, notes=(*plan.notes, note))
    check_setups(plan.folder, manifest.setups)
    return plan


@dataclass(frozen=True, slots=True)
class _Planned:
    points: tuple[Point, ...]
    spaces: tuple[Space, ...]
    corners: tuple[Point, ...]
    notes: tuple[str, ...]
    stages: Stages | None = None
    ladder: Ladder = NO_LADDER


def _planned(command: Command, run: RunConfig, maker: PointMaker) -> _Planned:
    """The points, and beside them what a search asks later: spaces that are sampled, points that dev may choose."""
    blocks, shipped = _search_space(command, [run.sweep.params, *run.sweep.blocks]), Shipped(command)
    blocks = [_with_task(block, maker, shipped=command.sweep is not None) for block in blocks]
    if isinstance(run.search, SelectSearch):
        return _staged(maker, blocks, run, run.search, shipped)
    if not isinstance(run.search, OptunaSearch):
        points, notes = _points(maker, blocks, run.sweep.reference, shipped)
        wanted = isinstance(run.search, GridSearch) and run.search.ladder == "auto"
        ladder = _ladder(maker, blocks, points) if wanted else NO_LADDER
        return _Planned(points, (), points, tuple(notes), ladder=ladder)
    corners, _ = _points(maker, [cornered(block) for block in blocks], run.sweep.reference, shipped)
    spaces, given = _spaces(blocks, corners[0].checkpoint.shape)
    points, notes = _points(maker, given, run.sweep.reference, shipped)
    return _Planned(points, spaces, corners, tuple(notes))


def _ladder(maker: PointMaker, blocks: Sequence[Block], points: Sequence[Point]) -> Ladder:
    """How fixed_k of any k is made under every setting of these points, and which of them may ask for one."""
    lacking = asking(points)
    if not lacking:
        return NO_LADDER
    varied = _varied([assignment for block in blocks for assignment in maker.assignments(block)])
    under: dict[tuple[object, ...], Assignment] = {}
    for setting in _settings(blocks):
        for assignment in maker.assignments(merged(RUNG, setting)):
            under[setup(maker.point(assignment, varied))] = assignment

    def at(point: Point, k: float) -> Point:
        return maker.point(under[setup(point)] | {"policy.k": k}, varied)

    return Ladder(at=at, asking=lacking)


def _staged(
    maker: PointMaker, blocks: Sequence[Block], run: RunConfig, search: SelectSearch, shipped: Shipped
) -> _Planned:
    """The space on dev with stock, stock and the references on the typed split, and there the space for later."""
    test, notes = _points(maker, blocks, run.sweep.reference, shipped)
    dev, _ = _points(maker, [merged(block, ON_DEV) for block in blocks], (), shipped, told=("task.split",))
    stages = stages_of(dev, test, search)
    if not stages.candidates and not shipped.notes():
        raise UserError(
            "search=select has nothing to choose from: stock and fixed_k are what every choice is held against. Type a"
            " policy to choose from, e.g. +sweep=pick_auto or policy=ban 'policy.lambda=choice(0.5,0.6)'."
        )
    corners = (*stages.points, *stages.twins.values())
    return _Planned(stages.points, (), corners, tuple(dict.fromkeys((*notes, *maker.notes))), stages)


def _there(points: Iterable[Point], folder: RunFolder) -> Made:
    """What of the calibrations that these points read need not be measured."""
    found: set[tuple[str, Part | None]] = set()
    for name, point in {point.calibration_fingerprint: point for point in points}.items():
        if name is not None:
            artifact = artifact_folder(point.calibration, folder.calibrations, name)
            if (artifact / CALIBRATION).is_file():
                found |= {(name, None), *((name, part) for part in parts_in(artifact))}
    return frozenset(found)


def _folder(run: RunConfig, now: datetime) -> tuple[RunFolder, bool]:
    """Of the run that is gone on with, or of a new one; and whether it was begun before."""
    if run.resume is not None:
        if run.run not in (None, run.resume):
            raise UserError(
                f"run={run.run} and resume={run.resume} both name the run's folder: one of them would be ignored. Type"
                f" run={run.run} alone: it goes on with that run where it was begun."
            )
        return RunFolder(find_run_dir(run.resume, run.output_dir, run.sweep.name)), True
    folder = RunFolder(new_run_dir(run.output_dir, run.sweep.name, now))
    if run.run is None:
        return folder, False
    folder = RunFolder(folder.path.with_name(run.run))
    if folder.path.is_symlink() and not (folder.path / MANIFEST).is_file():
        raise UserError(
            f"run={run.run} is a link to {folder.path.resolve()}, which is no run: files there would be mixed up with"
            " ours, outside of output_dir. Type another name, or output_dir=FOLDER."
        )
    try:
        return folder, folder.manifest().sweep is not None
    except DamagedManifest:
        return folder, True


def _spaces(blocks: Sequence[Block], shape: MoeShape) -> tuple[tuple[Space, ...], list[Block]]:
    """What is sampled, and the blocks of points beside it; one that names no policy keeps the settings."""
    spaces = [(block, space_of(block, shape)) for block in blocks]
    check_sampled([space for _, space in spaces])
    given = [block for block, space in spaces if not space.dimensions]
    settings = {tuple(text for text in block if not _is_policy(text)) for block in blocks}
    if len(settings) > 1:
        raise UserError(
            "search=optuna compares points under one setting, and the blocks of this sweep differ in theirs: "
            f"{'; '.join(' '.join(each) or 'none' for each in sorted(settings))}. Run the command once for each."
        )
    stock = merged(("policy=none",), settings.pop())
    return tuple(space for _, space in spaces if space.dimensions), [*given, stock]


def _points(
    maker: PointMaker,
    blocks: Sequence[Block],
    reference: Sequence[Block],
    shipped: Shipped,
    told: tuple[str, ...] = (),
) -> tuple[tuple[Point, ...], list[str]]:
    """Unique points in the order to run, and what to tell the user about them.

    `told`: keys that labels show although they are the same in all.
    """
    spaces = [(block, maker.assignments(block)) for block in blocks]
    for block, assignments in spaces:
        if not assignments:
            raise UserError(_why_empty(block))
    # Stock and the ladder under every setting that the search space visits: a result is held against its own engine.
    settings = _settings(blocks)
    references = dict.fromkeys(merged(each, setting) for each in [("policy=none",), *reference] for setting in settings)
    every = [assignment for _, assignments in spaces for assignment in assignments]
    varied = (*told, *_varied(every))
    found: dict[str, Point] = {}
    for block in references:
        for assignment in maker.assignments(block):
            point = maker.point(assignment, varied)
            found.setdefault(point.fingerprint, point)
    known, dropped = set(found), []
    for block, assignments in spaces:
        points = shipped.fitting(maker, assignments, varied)
        if points:
            _refuse_idle_knobs(block, points)
        for point in points:
            if point.fingerprint in found and point.fingerprint not in known:
                dropped.append(point.label)
            found.setdefault(point.fingerprint, point)
    notes = [*maker.notes, *shipped.notes()]
    if shared := max((point.calibration_overlap for point in found.values()), default=0):
        notes.append(
            f"{shared} of the problems asked stand among those of the calibration: what a policy gains there may be"
            " learnt by heart"
        )
    if dropped:
        shown = ", ".join(dict.fromkeys(dropped[:3])) + (", ..." if len(set(dropped)) > 3 else "")
        notes.append(f"{len(dropped)} duplicate point(s) dropped, because another point is the same: {shown}")
    if any(point.task.data_files is None and point.model.path for point in found.values() if _embedded(point.task)):
        notes.append("the embedded tasks suit the embedded model; for your own type task=jsonl task.data_files=PATH")
    notes += _without_base(found.values())
    _check_one_number_of_rows(found.values())
    notes += _narrow_engines(found.values())
    return _ordered(found.values()), notes


def _embedded(task: TaskConfig) -> bool:
    return benchmark_of(task) is TINY


def _without_base(points: Iterable[Point]) -> list[str]:
    """What to say of checkpoints whose base is not asked the same here. UserError where two have one name."""
    asked = list({setup(point): point for point in points}.values())
    made = [point for point in asked if point.checkpoint.base is not None]
    known: dict[str, Checkpoint] = {}
    notes = []
    for point in made:
        base, name = point.checkpoint.base, point.model.name
        assert base is not None
        other = known.setdefault(name, point.checkpoint)
        if other.identity != point.checkpoint.identity:
            raise UserError(
                f"{other.location} and {point.checkpoint.location} would both be called {name} in tables and figures,"
                " and nobody could tell them apart. Rename a folder, or type a model.name for each, in blocks:"
                """ 'sweep.blocks=[["policy=none","model.path=FIRST","model.name=first"],"""
                """["policy=none","model.path=SECOND","model.name=second"]]'."""
            )
        (own,) = setups_of([point])
        bases = [each for each in asked if each.checkpoint.base is None and each.checkpoint.identity == base.identity]
        if not bases:
            notes.append(
                f"{name} was made from {point.model.made_from}, of which this line asks no point: unless its run has"
                f" them already, {name} is compared with nothing. Type"
                f" 'model.path=choice(ORIGINAL,{point.checkpoint.location})', or a block for each"
            )
        elif found := nearest_differences(own, setups_of(bases)):
            said = ", ".join(f"{key}={mine} (there {theirs})" for key, (theirs, mine) in found.items())
            notes.append(
                f"{name} was made from {point.model.made_from}, but is asked with {said}: their points are no"
                " comparison. Type the same for both"
            )
    return list(dict.fromkeys(notes))


class Shipped:
    """Values of a shipped sweep that a checkpoint has no room for (a k_min of 3 where K is 2) are left out and said.

    A typed value must fit somewhere: otherwise the error is the user's to see.
    """

    def __init__(self, command: Command) -> None:
        self._lenient = command.sweep is not None
        self._typed = {key_of(text) for text in [*command.policy, *(command.params or [])]}
        self._left_out: dict[str, str] = {}
        """Assignment as text -> why."""
        self._refused: dict[tuple[str, str], UserError] = {}
        """Typed values that had no room in some block; `_fitted` are those that had in one."""
        self._fitted: set[tuple[str, str]] = set()

    def fitting(self, maker: PointMaker, assignments: Sequence[Assignment], varied: Sequence[str]) -> list[Point]:
        """The points of one block. Raises UserError where one does not fit that no shipped sweep has."""
        points = []
        for assignment in assignments:
            typed = {(key, str(value)) for key, value in assignment.items() if key in self._typed}
            try:
                policy = maker.policy(assignment)
            except UserError as error:
                if not self._lenient:
                    raise
                self._refused.update(dict.fromkeys(typed - set(self._refused), error))
                knobs = (f"{key}={value}" for key, value in assignment.items() if _is_policy(key))
                self._left_out[" ".join(knobs)] = str(error)
            else:
                self._fitted |= typed
                points.append(maker.point(assignment, varied, policy))
        return points

    def notes(self) -> list[str]:
        """One line for all that was left out, with the first reason.

        Raises UserError where a typed value fits nowhere.
        """
        for value, error in self._refused.items():
            if value not in self._fitted:
                raise error
        if not self._left_out:
            return []
        (first, why), *more = self._left_out.items()
        others = f" and {len(more)} more" if more else ""
        return [f"left out, because this checkpoint has no room for it: {first}{others} ({why})"]


def _repeat_axis(command: Command, repeats: int) -> str:
    """repeats=3 as the axis that it stands for."""
    if typed := next((text for text in command.settings if key_of(text) == "repeat"), None):
        raise UserError(
            f"repeats={repeats} and {typed} both say which repeats to run: one of them would be ignored. Type one."
        )
    return f"repeat=range(0,{repeats})"


def _search_space(command: Command, shipped: Sequence[Block]) -> list[Block]:
    """The blocks of the sweep after the command line's edits, each with the typed settings in it."""
    if command.sweep is None and not any(shipped):
        blocks = _typed_space(command)
    else:
        space = "sweep.blocks" if command.sweep is None else f"+sweep={command.sweep}"
        named = next((text for text in command.policy if key_of(text) == "policy"), None)
        if named is not None:
            raise UserError(
                f"{named} and {space} both choose the policies: one of them would be ignored. Leave {space} out to run"
                f" {named} alone, or type the whole space: sweep.params='[\"{named}\", ...]'."
            )
        params = command.params or []
        if any(key_of(text) == "policy" for text in params):
            # They take the place of the shipped space; blocks that were typed too are products of their own.
            typed = [tuple(block) for block in command.run_values.get("sweep.blocks", ())]
            blocks = [merged(tuple(params), command.policy), *edited_blocks(typed, command.policy)]
        else:
            blocks = edited_blocks([block for block in shipped if block], [*params, *command.policy])
    return [merged(block, command.settings) for block in blocks]


def _with_task(block: Block, maker: PointMaker, *, shipped: bool) -> Block:
    """The block with the task that suits its model, said in a note, where it leaves that open."""
    task = maker.suited_task(block, shipped=shipped)
    if task is None:
        return block
    maker.notes.setdefault(f"no task was typed, so {task} is asked, which suits the model: type another to change that")
    return merged(block, [task])


def _typed_space(command: Command) -> list[Block]:
    """Without +sweep: one block, the policy and knobs that were typed."""
    block = merged(tuple(command.policy), command.params or [])
    if any(key_of(text) == "policy" for text in block):
        return [block]
    if block and _is_policy(block[0]):
        raise UserError(
            f"{block[0]} belongs to no policy: nothing would change. Type policy=pick (or another) beside it."
        )
    raise UserError(
        "Neither a sweep nor a policy is named, so there is nothing to run."
        " Type +sweep=pick_strength, or e.g. policy=fixed_k 'policy.k=choice(4,6)'."
    )


def _why_empty(block: Block) -> str:
    for text in block:
        if "range(" in text:
            return (
                f"{text} is empty, so this is a sweep with zero points: there is nothing to run. The end of a range is"
                f" not part of it: range(1,4) is 1, 2, 3. Type e.g. '{key_of(text)}=choice(1,2)'."
            )
    return f"{' '.join(block)} is a sweep with zero points: there is nothing to run. Name an axis with choice()."


def _refuse_idle_knobs(block: Block, points: Sequence[Point]) -> None:
    """UserError for a knob that no point of its block listens to: the user would read an effect into noise."""
    for text in block:
        knob = key_of(text).removeprefix("policy.")
        listens = knob == BUDGET or any(knob in point.rule.canonical() for point in points)
        if not key_of(text).startswith("policy.") or listens:
            continue
        if all(value in (None, False) for value in parse_axis(text, points[0].checkpoint.shape).values):
            continue
        others = "; ".join(dict.fromkeys(point.rule.label() for point in points[:3]))
        raise UserError(
            f"{text} changes nothing here ({others}): no point would differ by it. {points[0].rule.idle_remedy(knob)}"
        )


def _one_a_setting(points: Iterable[Point]) -> list[Point]:
    """The first point of each: those that differ in the policy alone share the very objects of their setting."""
    first: dict[tuple[object, ...], Point] = {}
    for point in points:
        parts = (id(point.model), id(point.engine), id(point.task), id(point.checkpoint))
        first.setdefault((*parts, point.data_identity, point.seed), point)
    return list(first.values())


def _settings(blocks: Sequence[Block]) -> list[Block]:
    """All but the policies of the blocks, each once."""
    return sorted({tuple(text for text in block if not _is_policy(text)) for block in blocks})


def _varied(every: Sequence[Assignment]) -> tuple[str, ...]:
    """Keys besides the policy's that differ between assignments: labels show them."""
    return tuple(key for key in dict.fromkeys(key for a in every for key in a) if _varies(key, every))


def _varies(key: str, assignments: Sequence[Assignment]) -> bool:
    return not _is_policy(key) and len({repr(assignment.get(key)) for assignment in assignments}) > 1


def _is_policy(text: str) -> bool:
    return key_of(text).split(".")[0] == "policy"


def _check_one_number_of_rows(points: Iterable[Point]) -> None:
    """UserError where points that share an engine would have it hold different numbers of policies."""
    rows: dict[str, dict[int, Point]] = {}
    for point in points:
        rows.setdefault(point.engine_fingerprint, {}).setdefault(point.engine.rows, point)
    for held in rows.values():
        if len(held) > 1:
            said = ", ".join(f"{each} ({point.label})" for each, point in held.items())
            raise UserError(
                f"engine.policies_per_batch differs between points of one engine: {said}. It is loaded once, for all of"
                f" them. Type engine.policies_per_batch={max(held)} on the line, for the whole sweep."
            )


def _narrow_engines(points: Iterable[Point]) -> list[str]:
    """A note where key experts, should they all fall into one layer, exceed the width of a compiled engine."""
    needed = {}
    for point in points:
        most = point.rule.max_kept(point.checkpoint.shape) - point.checkpoint.shape.top_k
        if point.engine.compile and most > point.engine.extra_slots:
            needed[point.label] = most
    if not needed:
        return []
    label, most = max(needed.items(), key=lambda item: item[1])
    return [
        f"{len(needed)} point(s) add experts, and a compiled engine has room for as many as engine.extra_slots says: "
        f"{label} fails if over that many of its key experts fall into one layer. Sure to fit: "
        f"engine.extra_slots={most}, or engine.compile=false"
    ]


def _ordered(points: Iterable[Point]) -> tuple[Point, ...]:
    """Largest engine first (placed last, it scatters over nodes), engines kept together, references before the rest."""
    points = list(points)
    first_seen = {name: index for index, name in enumerate(dict.fromkeys(point.engine_fingerprint for point in points))}

    def rank(point: Point) -> tuple[int, int, int, int, float]:
        engine, order = point.engine, point.rule.reference_rank
        # Repeats last: a run that ends early then has every point once.
        return (
            -engine.gpus,
            -engine.ranks,
            first_seen[point.engine_fingerprint],
            point.repeat,
            math.inf if order is None else order,
        )

    return tuple(sorted(points, key=rank))
