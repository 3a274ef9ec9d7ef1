"""What is printed before anything starts: the short hint, the help page, and the plan of a dry run."""

from __future__ import annotations

from pathlib import Path

import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from banpick_exp.budget import EXPECTED_PROBES, SAMPLE_PROBLEMS, knob_of
from banpick_exp.compose import choices, conf_dir
from banpick_exp.estimate import answer_tokens, point_tokens
from banpick_exp.plan import POLICY_ORDER, SweepPlan
from banpick_exp.points import Point
from banpick_exp.solve import MAX_PROBES

WELCOME = """\
banpick measures what a routing policy gains and costs on a mixture-of-experts checkpoint, on real vLLM engines.

  python -m banpick_exp +sweep=pick_strength                 the first sweep: embedded model, minutes on a laptop
  python -m banpick_exp +sweep=pick_strength dry_run=true    what it would do, starting nothing
  python -m banpick_exp --help                               every sweep, policy and setting
"""

HELP = """\
Usage: python -m banpick_exp +sweep=NAME [KEY=VALUE ...]      run a shipped search space
       python -m banpick_exp policy=NAME [KEY=VALUE ...]      run one policy, or axes of your own, next to stock

{groups}

Settings
  output_dir=outputs      results go to <output_dir>/<sweep>/<run>/
  resume=RUN              go on with a run (folder or name): finished points are not repeated
  dry_run=true            print the points, the engines they share and an estimate, and start nothing
  seed=0                  of sampling and bootstrap
  calibration.score=...   what ranks key experts: insertion_kl, removal_kl, removal_kl_per_use
  calibration.path=FOLDER an artifact made before, instead of making one (python -m banpick_exp.calibrate makes one)
  model.path=FOLDER       a checkpoint of your own; its config.json gives the sizes
  GROUP.KEY=VALUE         any key of the YAML files in conf/, e.g. engine.max_num_seqs=64 task.max_problems=200
  cluster.engines=2       engines loaded side by side
  search=racing           stop points that can no longer reach the front; search=optuna samples 'KEY=interval(a,b)'
  repeats=3               every point twice more in other batches and order (repeat=1: the first of them alone)
  task.samples=4          answers a problem, drawn with task.temperature=0.6 (and task.top_p=0.95): accuracy is avg@4
  sweep.reference='[["policy=fixed_k","policy.k=range(1,K)"]]'   points beside your own; stock is always there

Axes
  KEY=choice(a,b)  KEY=a,b  KEY=range(start,stop,step) make an axis; several axes make their product. The end of a range
  is not part of it. Inside them K, E and L stand for the checkpoint's top_k, experts and MoE layers. Every engine,
  model, policy, task and calibration key can be an axis. Put quotes around parentheses, for the shell.

  On a shipped sweep, an axis that is there is replaced, and one that is not is added:
    python -m banpick_exp +sweep=pick_strength 'policy.boost=choice(0.5,1)' policy.key_experts=4
    python -m banpick_exp +sweep=pick_strength sweep.params='["policy.boost=choice(0.5,1)","policy.key_experts=4"]'
    python -m banpick_exp +sweep=pick_strength 'engine.max_num_seqs=choice(64,256)'

Examples
  python -m banpick_exp +sweep=pick_strength model=tiny_control           the positive control: here Pick must help
  python -m banpick_exp +sweep=ban_threshold task.max_problems=200        fewer problems, wider intervals
  python -m banpick_exp policy=fixed_k 'policy.k=range(1,K)'              the ladder that claims are held against
  python -m banpick_exp policy=naee 'policy.budget=choice(4,5)'           its knob solved for measured budgets
  python -m banpick_exp policy=pick 'policy.experts={{0: [3, 7]}}'          key experts by name, no calibration
  python -m banpick_exp +sweep=ban_pick model=qwen3_30b_a3b tracking=none dry_run=true
  python -m banpick_exp +sweep=ban_pick resume=20260131-093000            the same command, where it stopped
  python -m banpick_exp +sweep=ban_pick task.split=dev                    to choose from: python -m banpick_exp.choose

A run folder holds
  run.json                            the sweep, its models and data
  points/<fingerprint>.json           one record a point: accuracy, speed, measured budget, intervals
  points/<fingerprint>.outcomes.parquet   every problem and its answer
  points.parquet, report.html, *.png   the table, the report and its figures, at the end

Exit codes: 0 done, 1 a point failed or is invalid, 2 nothing was started because of what was typed.
"""

GROUP_TITLES = {
    "sweep": "Sweeps: +sweep=",
    "policy": "Policies: policy=",
    "model": "Models: model=",
    "engine": "Engines: engine=",
    "task": "Tasks: task=",
    "cluster": "Clusters: cluster=",
    "tracking": "Tracking: tracking=",
    "search": "Searches: search=",
}


def help_page() -> str:
    """The help text, with every choice in conf/ and the comment that its file begins with."""
    defaults = {group: name for entry in _defaults() for group, name in entry.items()}
    parts = []
    for group, title in GROUP_TITLES.items():
        lines = [title]
        for name in choices(group):
            mark = " (default)" if defaults.get(group) == name else ""
            lines.append(f"  {name + mark:<24}{_first_comment(conf_dir() / group / f'{name}.yaml')}")
        parts.append("\n".join(lines))
    return HELP.format(groups="\n\n".join(parts))


def _defaults() -> list[dict[str, str]]:
    root = yaml.safe_load((conf_dir() / "config.yaml").read_text(encoding="utf-8"))
    return [entry for entry in root["defaults"] if isinstance(entry, dict)]


def _first_comment(path: Path) -> str:
    comments = (line[1:].strip() for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#"))
    return next((text for text in comments if not text.startswith("@")), "")


def print_plan(plan: SweepPlan, console: Console) -> None:
    """Points, the engines they share, the calibrations they need, an estimate, and notes."""
    domains = ", ".join(dict.fromkeys(domain for point in plan.points for domain in point.task.domains))
    console.print(f"[bold]{plan.sweep_name}[/bold]: {_count(len(plan.points), 'point')} on {domains}")
    for number, points in enumerate(plan.by_engine().values(), start=1):
        console.print()
        console.print(Text(f"Engine {number}: {engine_line(points[0])}, shared by {_count(len(points), 'point')}"))
        console.print(_table(points, finished_points(plan)))
    console.print()
    needed = plan.calibrations()
    if needed:
        given = sorted({point.calibration.path for point in needed.values() if point.calibration.path is not None})
        made = sum(point.calibration.path is None for point in needed.values())
        parts = [f"{_count(made, 'run')} unless an artifact exists"] if made else []
        scores = sorted({point.calibration.score for point in plan.corners if point.calibration_fingerprint})
        sources = "; ".join([*parts, *(f"read from {path}" for path in given)])
        console.print(Text(f"Calibration: {sources}; Pick follows {', '.join(scores)}.", overflow="fold"))
    else:
        console.print("Calibration: none of these policies needs one.")
    if solved := sum(point.budget is not None for point in plan.points):
        console.print(
            f"Budgets: {_count(solved, 'knob')} to solve on the engine, each by about {EXPECTED_PROBES} and at most"
            f" {MAX_PROBES} probes of {SAMPLE_PROBLEMS} problems a domain; a knob that was solved before is used again."
        )
    if plan.search.name != "grid":
        console.print(Text(search_line(plan), overflow="fold"))
    console.print(Text(estimate_line(plan)))
    console.print(Text(f"Results: {plan.run_dir}", overflow="fold"))
    for note in plan.notes:
        console.print(Text(f"Note: {note}", style="yellow"))


def search_line(plan: SweepPlan) -> str:
    """How the space is spent, and what that costs at most and at least."""
    search = plan.search
    if search.sampled:
        spaces = "; ".join(space.text() for space in plan.spaces)
        return f"Search: optuna draws {_count(search.trials, 'point')}, {search.startup} at random, from {spaces}."
    racing = [point for point in plan.points if point.rule.name not in POLICY_ORDER]
    least = sum(search.blocks[0] * answer_tokens(point) for point in racing)
    least += sum(point_tokens(point) for point in plan.points if point.rule.name in POLICY_ORDER)
    shares = ", ".join(f"{share:.4g}" for share in search.blocks)
    return (
        f"Search: racing, points are compared after {shares} of the problems; {_count(len(racing), 'point')} can be"
        f" stopped. At most the {plan.estimate.max_generated_tokens:,} tokens of the whole grid, at least {least:,.0f}."
    )


def estimate_line(plan: SweepPlan) -> str:
    cost = plan.estimate
    return (
        f"Estimate: about {_duration(cost.seconds)} (rough): {_count(cost.engine_loads, 'engine load')}"
        f" {_duration(cost.load_seconds)}, calibration {_duration(cost.calibration_seconds)},"
        f" points {_duration(cost.points_seconds)} for at most {cost.max_generated_tokens:,} tokens."
    )


def engine_line(point: Point) -> str:
    """`tiny (4 layers, 32 experts, top 8), bfloat16, CPU` for a point's engine."""
    shape, engine = point.checkpoint.shape, point.engine
    place = f"{_count(engine.gpus, 'GPU')}" if engine.gpus else "CPU"
    ranks = f", tensor parallel {engine.tensor_parallel_size}" if engine.tensor_parallel_size > 1 else ""
    sizes = f"{_count(shape.num_layers, 'layer')}, {shape.num_experts} experts, top {shape.top_k}"
    return f"{point.model.name} ({sizes}), {point.model.dtype}, {place}{ranks}, {engine.max_num_seqs} sequences"


def finished_points(plan: SweepPlan) -> frozenset[str]:
    """Fingerprints of points that a resumed run already has a record of."""
    return frozenset(path.stem for path in (plan.run_dir / "points").glob("*.json")) if plan.resume else frozenset()


def _table(points: tuple[Point, ...], finished: frozenset[str]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("#", justify="right")
    table.add_column("point", overflow="fold")
    table.add_column("implied budget", justify="right")
    table.add_column("fingerprint", no_wrap=True)
    if finished:
        table.add_column("recorded")
    for number, point in enumerate(points, start=1):
        low, high = point.rule.budget(point.checkpoint.shape)
        budget = f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"
        if point.budget is not None:
            budget = f"{point.budget:g}, {knob_of(point.rule).name} solved"
        recorded = ["yes" if point.fingerprint in finished else ""] if finished else []
        table.add_row(str(number), Text(point.label), budget, point.fingerprint, *recorded)
    return table


def _count(number: int, word: str) -> str:
    return f"{number} {word}" + ("" if number == 1 else "s")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
