"""`python -m banpick_exp.calibrate`: make the calibration of a model and task alone, and look at it.

Usage: python -m banpick_exp.calibrate [model=NAME] [task=NAME] [calibration.samples=N] [KEY=VALUE ...]

Runs on one engine, writes the artifact that sweeps of the same model, data and settings find, prints the most used and
the most influential experts of each domain, and draws heat maps (layer x expert) beside the artifact. An existing
artifact is shown, not repeated. All keys of `python -m banpick_exp --help` apply; dry_run=true starts nothing.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from banpick_exp.artifact import artifact_folder
from banpick_exp.calibration import SCORES, DomainCalibration, load, policy_view
from banpick_exp.errors import UserError

TOP = 5
PLANNED_POLICY = ["policy=pick", "policy.mode=range_replace", "policy.key_experts=1"]
"""Any policy that needs a calibration: it makes the planner check the data and name the artifact."""


def main(argv: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    try:
        return _run(arguments)
    except UserError as error:
        print(f"banpick: {error}", file=sys.stderr)
        return 2


def _run(arguments: list[str]) -> int:
    from banpick_exp.plan import plan_sweep

    plan = plan_sweep([*arguments, *PLANNED_POLICY])
    (fingerprint, point), *_ = plan.calibrations().items()
    folder = artifact_folder(point.calibration, plan.run_dir.parent.parent / "calibrations", fingerprint)
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
        _measure(point, folder, console)
    else:
        console.print("The artifact exists; it is shown, not made again.")
    domains = load(folder, fingerprint)
    assert domains is not None
    for domain, found in domains.items():
        console.print(_table(domain, found, point.calibration.score))
    for path in draw(domains, folder, point.calibration.score):
        console.print(f"  {path}", soft_wrap=True)
    return 0


def _measure(point: object, folder: Path, console: Console) -> None:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from banpick_exp.actor import EngineActor
    from banpick_exp.points import Point

    assert isinstance(point, Point)
    folder.parent.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    actor = EngineActor(point, str(folder.parent), str(folder.parent))
    started = actor.start()
    console.print(f"Engine loaded in {started['load_seconds']:.1f} s, {len(started['layers'])} MoE layers hooked.")
    columns = (TextColumn("layers"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("layers", total=None)
        actor.calibrate(point, lambda done, total: progress.update(task, completed=done, total=total))
    actor.close()
    console.print(f"Calibrated in {time.perf_counter() - begin:.1f} s, the engine's start included.")


def _table(domain: str, found: DomainCalibration, score: str) -> Table:
    """Ranks of one domain: by usage, and by every score."""
    table = Table(title=f"{domain}: most used and most influential experts (L0E2: layer 0, expert 2; KL in nats)")
    table.add_column("rank", justify="right")
    share_LE = found["usage"] / np.maximum(found["tokens"], 1)[:, None]
    columns = []
    for name in ("usage", *SCORES):
        table.add_column(
            f"[bold]{name} (followed)[/]" if name == score else "share of tokens" if name == "usage" else name
        )
        values_LE = share_LE if name == "usage" else found[name]
        order = np.argsort(-values_LE.ravel(), kind="stable")[:TOP]
        experts = values_LE.shape[1]
        columns.append([f"L{i // experts}E{i % experts} {values_LE.ravel()[i]:.4f}" for i in order])
    for rank, row in enumerate(zip(*columns, strict=True), start=1):
        table.add_row(str(rank), *row)
    view = policy_view(found, score)
    sensitivity = ", ".join(f"{x:.2f}" for x in view["layer_sensitivity"])
    table.caption = f"layer sensitivity {sensitivity}; R from {view['r_min']:.3f} to {view['r_max']:.3f}"
    return table


def draw(domains: dict[str, DomainCalibration], folder: Path, score: str) -> list[Path]:
    """One heat map a domain and quantity (usage share, `score`), layer x expert, as PNG in `folder`."""
    from banpick_exp.report import heat_map

    files = []
    for domain, found in domains.items():
        share_LE = found["usage"] / np.maximum(found["tokens"], 1)[:, None]
        for name, values_LE, unit in (("usage", share_LE, "share of tokens"), (score, found[score], "KL (nats)")):
            path = folder / f"{domain}_{name}.png"
            heat_map(values_LE, path, f"{name} per expert, {domain}", unit)
            files.append(path)
    return files


if __name__ == "__main__":
    sys.exit(main())
