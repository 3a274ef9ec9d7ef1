"""Small whole runs: the real command in a process of its own, or a plan on an engine that is loaded already."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from loaded_backend import LoadedBackend
from rich.console import Console

from banpick_exp.cluster.plan import plan_run
from banpick_exp.cluster.run import Run
from banpick_exp.run_folder import RunFolder

if TYPE_CHECKING:
    from banpick_exp.engine.engine import Engine

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "policy=fixed_k", "policy.k=4", "task.max_problems=4", "task.speed_seconds=0.1",
    "cluster=inline",
]  # fmt: skip
TIMEOUT_SECONDS = 240


def small(*typed: str) -> list[str]:
    """`SMALL` with what was typed in the place of its own words."""
    return list({word.split("=")[0]: word for word in [*SMALL, *typed]}.values())


@dataclass(frozen=True)
class Done:
    """A finished command: exit code and all that it printed, in one line where `text` is asked for."""

    code: int
    output: str

    @property
    def text(self) -> str:
        return " ".join(self.output.split())


def command(
    folder: Path, *typed: str, prefix: list[str] | None = None, environment: Mapping[str, str] | None = None
) -> Done:
    """`python -m banpick_exp`, typed in `folder`."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    done = subprocess.run(
        [*(prefix or []), sys.executable, "-m", "banpick_exp", *typed],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=folder,
        timeout=TIMEOUT_SECONDS,
        env=clean | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])} | dict(environment or {}),
    )
    return Done(done.returncode, done.stdout.decode(errors="replace"))


def on(engine: Engine, folder: Path, *typed: str, width: int = 120) -> tuple[Done, RunFolder]:
    """What was typed, on a loaded engine; what it prints is as wide as the terminal is said to be."""
    output = io.StringIO()
    plan = plan_run(small("tracking=none", f'output_dir="{folder}"', *typed))
    plan.folder.write_manifest(plan.sweep.manifest())
    console = Console(file=output, width=width)
    code = Run(plan, console, LoadedBackend(engine)).run()
    return Done(code, output.getvalue()), plan.folder


def statuses(folder: RunFolder) -> dict[str, str]:
    """Label -> status of every record; none of them was set aside."""
    records, set_aside = folder.load_points()
    assert set_aside == []
    return {record.label: record.status for record in records}


def only_run(outputs: Path) -> RunFolder:
    (manifest,) = outputs.glob("*/*/run.json")
    return RunFolder(manifest.parent)
