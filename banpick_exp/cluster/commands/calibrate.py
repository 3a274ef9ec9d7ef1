"""`python -m banpick_exp calibrate`: make the calibration of a model and task alone, and look at it.

Usage: python -m banpick_exp calibrate [model=NAME] [task=NAME] [calibration.samples=N] [KEY=VALUE ...]

Runs on one engine, writes the artifact that sweeps of the same model, data and settings find, prints the most used and
the most influential experts of each domain, and draws heat maps (layer x expert) beside the artifact. An existing
artifact is shown, not repeated. All keys of `python -m banpick_exp --help` apply; dry_run=true starts nothing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from banpick_exp.errors import UserError
from banpick_exp.evaluation.calibration.arrays import SCORES, DomainCalibration, contrast, load, npmi, policy_view
from banpick_exp.evaluation.calibration.artifact import artifact_folder
from banpick_exp.sweep.overrides import key_of
from banpick_exp.sweep.point import Point

TOP = 5
PLANNED_POLICY = ["policy=pick", "policy.mode=range_replace", "policy.key_experts=1"]
"""Any policy that needs a calibration: it makes the planner check the data and name the artifact."""


def help_page() -> str:
    return str(__doc__)


def run(arguments: list[str]) -> int:
    """Returns 0."""
    from banpick_exp.cluster.plan import plan_run

    for text in arguments:
        if key_of(text).split(".")[0] in ("policy", "sweep"):
            raise UserError(
                f"{text} chooses a policy, but a calibration is made before any: it would change nothing. Leave it out."
            )
    plan = plan_run([*arguments, *PLANNED_POLICY]).sweep
    (fingerprint, point), *_ = plan.calibrations().items()
    folder = artifact_folder(point.calibration, plan.folder.calibrations, fingerprint)
    console = Console()
    shape = point.checkpoint.shape
    candidates = 2 * shape.num_layers * shape.num_experts + shape.num_layers
    console.print(
        f"Calibration {fingerprint}: {point.model.name}, {point.calibration.samples} problems for each of "
        f"{', '.join(point.task.domains)}; {candidates} changes to the router each. Artifact: {folder}",
        soft_wrap=True,
    )
    if plan.dry_run:
        return 0
    if load(folder, fingerprint) is None:
        _measure(point, plan.folder.path, console)
    else:
        console.print("The artifact exists; it is shown, not made again.")
    domains = load(folder, fingerprint)
    assert domains is not None
    for domain, found in domains.items():
        others = [other for name, other in domains.items() if name != domain]
        console.print(_table(domain, found, others, point.calibration.score))
    for path in draw(domains, folder, point.calibration.score):
        console.print(f"  {path}", soft_wrap=True)
    return 0


def _measure(point: Point, run_dir: Path, console: Console) -> None:
    from banpick_exp.cluster.actor import EngineActor

    begin = time.perf_counter()
    actor = EngineActor(point, str(run_dir))
    started = actor.start()
    console.print(f"Engine loaded in {started.load_seconds:.1f} s, {started.layers} MoE layers hooked.")
    columns = (TextColumn("layers"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("layers", total=None)
        actor.calibrate(point, lambda done, total: progress.update(task, completed=done, total=total))
    actor.close()
    console.print(f"Calibrated in {time.perf_counter() - begin:.1f} s, the engine's start included.")


def _table(domain: str, found: DomainCalibration, others: Sequence[DomainCalibration], score: str) -> Table:
    """Ranks of one domain: by usage, and by every score; below them what the rival rules read."""
    table = Table(title=f"{domain}: most used and most influential experts (L0E2: layer 0, expert 2; KL in nats)")
    table.add_column("rank", justify="right")
    columns = []
    for name in ("usage", *SCORES):
        table.add_column(
            f"[bold]{name} (followed)[/]" if name == score else "share of tokens" if name == "usage" else name
        )
        columns.append(_top(found.share if name == "usage" else found.score(name), TOP, ".4f"))
    for rank, row in enumerate(zip(*columns, strict=True), start=1):
        table.add_row(str(rank), *row)
    view = policy_view(found, score)
    per_layer = (view.layer_sensitivity or (), view.fisher or ())
    sensitivity, fisher = (", ".join(f"{value:.2f}" for value in values) for values in per_layer)
    lines = [
        f"per layer: sensitivity {sensitivity}; fisher {fisher}",
        f"R from {view.r_min:.3f} to {view.r_max:.3f}; most alike: {', '.join(_most_alike(found))}",
    ]
    if others:
        lines.append(f"more used here than elsewhere (share): {', '.join(_top(contrast(found, others), 3, '+.2f'))}")
    if marker_tokens := int(found.marker_tokens.max()):
        lines.append(f"with the {marker_tokens} markers (nPMI): {', '.join(_top(npmi(found), 3, '+.2f'))}")
    table.caption = "\n".join(lines)
    return table


def _top(values_LE: np.ndarray, count: int, form: str) -> list[str]:
    """The largest values with their experts, such as `L0E2 0.1234`."""
    experts = values_LE.shape[1]
    order = np.argsort(-values_LE.ravel(), kind="stable")[:count]
    return [f"L{i // experts}E{i % experts} {values_LE.ravel()[i]:{form}}" for i in order]


def _most_alike(found: DomainCalibration) -> list[str]:
    """The two pairs of experts with the largest CKA."""
    pairs_LEE = np.triu(found.similarity, 1)
    order = np.argsort(-pairs_LEE.ravel(), kind="stable")[:2]
    places = [(*map(int, np.unravel_index(i, pairs_LEE.shape)),) for i in order]
    return [f"L{layer}E{one} and E{two} {pairs_LEE[layer, one, two]:.2f}" for layer, one, two in places]


def draw(domains: dict[str, DomainCalibration], folder: Path, score: str) -> list[Path]:
    """One heat map a domain and quantity (usage, `score`, contrast), layer x expert, as PNG in `folder`."""
    from banpick_exp.report.figures.heat_map import heat_map

    files = []
    for domain, found in domains.items():
        maps = [("usage", found.share, "share of tokens"), (score, found.score(score), "KL (nats)")]
        if others := [other for name, other in domains.items() if name != domain]:
            maps.append(("contrast", contrast(found, others), "share of tokens, less elsewhere"))
        for name, values_LE, unit in maps:
            path = folder / f"{domain}_{name}.png"
            heat_map(values_LE, path, f"{name} per expert, {domain}", unit)
            files.append(path)
    return files
