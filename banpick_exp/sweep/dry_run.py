"""`dry_run=true`: the plan in print, before anything starts."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from banpick_exp.evaluation.budget.root_search import MAX_PROBES
from banpick_exp.policy.budget import EXPECTED_PROBES, SAMPLE_PROBLEMS, knob_of
from banpick_exp.sweep.config import OptunaSearch, RacingSearch, SelectSearch
from banpick_exp.sweep.estimate import Estimate, answer_tokens, point_tokens
from banpick_exp.sweep.plan import SweepPlan
from banpick_exp.sweep.point import Point
from banpick_exp.sweep.price import price_lines, price_notes

MOST_ROWS = 200
"""Of a table of points; a longer one shows its first and last `END_ROWS` alone."""
END_ROWS = 20


def print_plan(plan: SweepPlan, cost: Estimate, console: Console) -> None:
    """Points, the engines they share, the calibrations they need, an estimate, and notes."""
    domains = ", ".join(dict.fromkeys(domain for point in plan.points for domain in point.task.domains))
    console.print(f"[bold]{plan.sweep_name}[/bold]: {_count(len(plan.points), 'point')} on {domains}")
    finished = finished_points(plan)
    for number, points in enumerate(plan.by_engine().values(), start=1):
        console.print()
        console.print(Text(f"Engine {number}: {engine_line(points[0])}, shared by {_count(len(points), 'point')}"))
        console.print(Text(format_line(points[0])))
        console.print(_table(points, finished))
    console.print()
    needed = plan.calibrations()
    if needed:
        given = sorted({point.calibration.path for point in needed.values() if point.calibration.path is not None})
        made = sum(point.calibration.path is None for point in needed.values())
        parts = [f"{_count(made, 'run')} unless an artifact exists"] if made else []
        scores = sorted({point.score for point in plan.corners if point.score is not None})
        sources = "; ".join([*parts, *(f"read from {path}" for path in given)])
        followed = f"; key experts by {', '.join(scores)}" if scores else ""
        console.print(Text(f"Calibration: {sources}{followed}.", overflow="fold"))
    else:
        console.print("Calibration: none of these policies needs one.")
    if solved := sum(point.budget is not None for point in plan.points):
        console.print(
            f"Budgets: {_count(solved, 'knob')} to solve on the engine, each by about {EXPECTED_PROBES} and at most"
            f" {MAX_PROBES} probes of {SAMPLE_PROBLEMS} problems a domain; a knob that was solved before is used again."
        )
    if plan.search.name != "grid":
        console.print(Text(search_line(plan), overflow="fold"))
    if plan.ladder.asking:
        console.print(
            f"Ladder: up to {_count(len(plan.ladder.asking), 'fixed_k point')} more, one at each measured budget that"
            " has none, once the points above have run (search.ladder=none leaves them out); they are in the price."
        )
    for line in price_lines(plan, cost):
        console.print(Text(line, overflow="fold"), soft_wrap=True)
    console.print(Text(f"Results: {plan.folder.path}", overflow="fold"))
    for note in (*plan.notes, *price_notes(plan, cost)):
        console.print(Text(f"Note: {note}", style="yellow"))


def search_line(plan: SweepPlan) -> str:
    """How the space is spent, and what that costs at most and at least."""
    search = plan.search
    if isinstance(search, OptunaSearch):
        spaces = "; ".join(space.text() for space in plan.spaces)
        return f"Search: optuna draws {_count(search.trials, 'point')}, {search.startup} at random, from {spaces}."
    if isinstance(search, SelectSearch):
        return _select_line(plan, search)
    if not isinstance(search, RacingSearch):
        return "Search: grid, every point on every problem."
    racing = [point for point in plan.points if not point.rule.is_reference]
    least = sum(search.blocks[0] * answer_tokens(point) for point in racing)
    least += sum(point_tokens(point) for point in plan.points if point.rule.is_reference)
    most = sum(map(point_tokens, plan.points))
    shares = ", ".join(f"{share:.4g}" for share in search.blocks)
    return (
        f"Search: racing, points are compared after {shares} of the problems; {_count(len(racing), 'point')} can be"
        f" stopped. At most the {most:,} tokens of the whole grid, at least {least:,.0f}."
    )


def _select_line(plan: SweepPlan, search: SelectSearch) -> str:
    """What dev chooses from, and what that adds on the split of the result; the estimate has both."""
    stages = plan.stages
    assert stages is not None
    split = stages.references[0].task.split
    tokens = [sum(map(point_tokens, points)) for points in (stages.dev, (*stages.references, *stages.at_most()))]
    of = "" if search.by is None else f" for each {search.by} ({', '.join(stages.groups)})"
    return (
        f"Search: select, dev chooses one of {_count(len(stages.candidates), 'candidate')}{of}: at most {tokens[0]:,}"
        f" tokens. What dev finds better than stock runs on {split} beside the {len(stages.references)} references:"
        f" {_count(len(stages.at_most()), 'point')} more than listed at most, in all at most {tokens[1]:,} tokens."
    )


def engine_line(point: Point) -> str:
    """`tiny (4 layers, 32 experts, top 8), CPU` for a point's engine."""
    shape, engine = point.checkpoint.shape, point.engine
    place = f"{_count(engine.gpus, 'GPU')}" if engine.gpus else "CPU"
    sizes = f"{_count(shape.num_layers, 'layer')}, {shape.num_experts} experts, top {shape.top_k}"
    return f"{point.model.name} ({sizes}), {place}{engine.ranks_in_words}, {engine.max_num_seqs} sequences"


def format_line(point: Point) -> str:
    """`Computes in float32: this CPU ...` for a point's engine."""
    return f"Computes in {point.model.dtype}: {point.dtype_reason}."


def finished_points(plan: SweepPlan) -> frozenset[str]:
    """Fingerprints of points that a resumed run already has a record of."""
    return frozenset(path.stem for path in plan.folder.record_files()) if plan.resume else frozenset()


def _table(points: tuple[Point, ...], finished: frozenset[str]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("#", justify="right")
    table.add_column("point", overflow="fold")
    table.add_column("implied budget", justify="right")
    table.add_column("fingerprint", no_wrap=True)
    if finished:
        table.add_column("recorded")
    left_out = range(END_ROWS + 1, len(points) - END_ROWS + 1) if len(points) > MOST_ROWS else range(0)
    for number, point in enumerate(points, start=1):
        if number in left_out:
            if number == left_out[0]:
                table.add_row("...", f"{_count(len(left_out), 'point')} between them", *[""] * (len(table.columns) - 2))
            continue
        low, high = point.rule.budget(point.checkpoint.shape)
        budget = f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"
        if point.budget is not None:
            budget = f"{point.budget:g}, {knob_of(point.rule).name} solved"
        recorded = ["yes" if point.fingerprint in finished else ""] if finished else []
        table.add_row(str(number), Text(point.label), budget, point.fingerprint, *recorded)
    return table


def _count(number: int, word: str) -> str:
    return f"{number} {word}" + ("" if number == 1 else "s")
