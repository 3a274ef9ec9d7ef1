"""`bench sweep`: what the driver of a run costs beside its engines, from 100 points to 10,000.

The engines are those of `backends.answering`: no vLLM and no Ray, so what is measured is the driver. Each stage runs in
a process of its own, so that the peak of its memory is its own.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rich.console import Console

from banpick_exp.cluster.backends.answering import AnsweringBackend
from banpick_exp.cluster.plan import plan_run
from banpick_exp.evaluation.bench.timing import Row, emit, print_table
from banpick_exp.report.tracking.wandb import Tracker
from banpick_exp.sweep.dry_run import print_plan

WANTED = {"driver_ms_a_point": 5.0, "driver_mb": 300.0, "resume_seconds": 3.0, "dry_run_seconds": 5.0}
"""What each figure may be at most, at any size up to 10,000 points."""
COLUMNS = (
    ("planned_points", ","),
    ("engines", "d"),
    ("driver_ms_a_point", ".2f"),
    ("driver_cpu_ms_a_point", ".2f"),
    ("slots_ms_a_point", ".2f"),
    ("driver_mb", ".0f"),
    ("plan_seconds", ".2f"),
    ("dry_run_seconds", ".2f"),
    ("resume_seconds", ".2f"),
    ("mirror_ms_a_point", ".0f"),
    ("end_seconds", ".1f"),
    ("end_mb", ".0f"),
)
"""Of the table that is printed, and how each is written."""
PROBLEMS = 20
"""Of each of the three domains of the embedded task."""
ROW = 100
"""Points that differ in one knob alone: sizes are made of whole rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bench:
    """One size."""

    points: int
    engines: int
    answer_seconds: float
    """How long a slot takes for a point."""
    report: bool
    folder: str
    """Where the run is written: `output_dir`."""
    wandb: bool = False
    """Whether the run is mirrored in W&B, offline."""

    @property
    def arguments(self) -> list[str]:
        """What a user would type for these points, and stock beside them."""
        across = min(self.points, ROW)
        return [
            "policy=pick",
            "policy.mode=boost",
            f"policy.boost=range(0.1,{0.1 * (self.points // across) + 0.05:.2f},0.1)",
            f"policy.key_experts=range(1,{across + 1})",
            f"task.max_problems={PROBLEMS}",
            "cluster=inline",
            f"cluster.engines={self.engines}",
            *(("tracking=wandb", "tracking.timeout_seconds=600") if self.wandb else ("tracking=none",)),
            f"output_dir={self.folder}",
        ]


def bench_sweep(
    sizes: Sequence[int],
    engines: int,
    answer_seconds: float,
    *,
    report: bool,
    wandb: bool = False,
    output: Path | None,
    say: Callable[[str], None],
) -> list[Row]:
    """A row for each number of points, printed and appended to `output`, and a table of all.

    Seconds of planning, of the driver a point, of the end, of resume and of a dry run; MB of each. `report`: whether
    the end is measured; `wandb`: with W&B's part of it. `say` is told what begins, and which figure is more than is
    wanted.
    """
    rows: list[Row] = []
    for points in sizes:
        with tempfile.TemporaryDirectory(prefix="bench-sweep-") as folder:
            bench = Bench(
                points=points, engines=engines, answer_seconds=answer_seconds, report=report, folder=folder, wandb=wandb
            )
            row: Row = {"bench": "sweep", "engines": engines, "answer_seconds": answer_seconds}
            for stage in (dry_run, run_all, resume):
                say(f"{points:,} points: {stage.__name__.replace('_', ' ')} ...")
                row |= _in_a_process_of_its_own(stage, bench)
        emit(row, output)
        rows.append(row)
    shown = [(key, form) for key, form in COLUMNS if key in rows[0]]
    print_table("The driver of a sweep, beside engines that answer by themselves", rows, shown)
    for row in rows:
        for key, most in WANTED.items():
            if row[key] > most:
                say(f"{row['planned_points']:,} points: {key}={row[key]:.2f} is over the {most:g} that are wanted")
    return rows


def _in_a_process_of_its_own(stage: Callable[[Bench], Row], bench: Bench) -> Row:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(stage, bench).result()


# ---------------------------------------------------------------- the stages


def dry_run(bench: Bench) -> Row:
    """Seconds to plan and to print the plan."""
    begin, cpu = time.perf_counter(), time.process_time()
    plan = plan_run([*bench.arguments, "dry_run=true"])
    planned = time.perf_counter()
    with _log(bench) as console:
        print_plan(plan.sweep, plan.estimate, console)
    return {
        "planned_points": len(plan.sweep.points),
        "plan_seconds": planned - begin,
        "dry_run_seconds": time.perf_counter() - begin,
        "dry_run_cpu_seconds": time.process_time() - cpu,
        "plan_mb": peak_mb(),
    }


def run_all(bench: Bench) -> Row:
    """Seconds of the driver a point, without those of the slots; its memory; seconds of the end."""
    from banpick_exp.cluster.run import Run

    plan = plan_run(bench.arguments)
    plan.folder.write_manifest(plan.sweep.manifest())
    backend = AnsweringBackend(bench.answer_seconds)
    with _log(bench) as console, _end(report=bench.report) as end:
        begin, cpu = time.perf_counter(), time.process_time()
        Run(plan, console, backend).run()
        wall, cpu = time.perf_counter() - begin, time.process_time() - cpu
    driver = wall - end.seconds - backend.meter.seconds
    driver_cpu = cpu - end.cpu_seconds - backend.meter.cpu_seconds
    found: Row = {
        "driver_ms_a_point": 1e3 * driver / len(plan.sweep.points),
        "driver_cpu_ms_a_point": 1e3 * driver_cpu / len(plan.sweep.points),
        "slots_ms_a_point": 1e3 * backend.meter.seconds / len(plan.sweep.points),
        "driver_mb": end.peak_mb,
    }
    if bench.wandb:
        found["mirror_ms_a_point"] = 1e3 * end.mirror_seconds / len(plan.sweep.points)
    return found | ({"end_seconds": end.seconds, "end_mb": peak_mb()} if bench.report else {})


def resume(bench: Bench) -> Row:
    """Seconds to find, in the folder of a whole run, that nothing is left to compute; those of its planning apart."""
    from banpick_exp.cluster.run import Run

    (run,) = Path(bench.folder).glob("*/*/run.json")
    begin = time.perf_counter()
    plan = plan_run([*bench.arguments, f"resume={run.parent.name}"])
    planned, cpu = time.perf_counter(), time.process_time()
    with _log(bench) as console, _end(report=False) as end:
        Run(plan, console, AnsweringBackend(0.0)).run()
    return {
        "resume_plan_seconds": planned - begin,
        "resume_seconds": time.perf_counter() - planned,
        "resume_cpu_seconds": time.process_time() - cpu,
        "resume_mb": end.peak_mb,
    }


def peak_mb() -> float:
    """The most memory this process held at a time, in MB.

    By the kernel's own account of this program: `getrusage` would count what the process held that made it.
    """
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) / 1e3


@contextlib.contextmanager
def _log(bench: Bench) -> Iterator[Console]:
    """What a run prints, in a file as under Slurm."""
    with open(Path(bench.folder) / "driver.log", "a") as file:
        yield Console(file=file, width=120)


@dataclass
class _End:
    """Of a run: the peak of the memory before it, and what it took."""

    peak_mb: float = 0.0
    mirror_seconds: float = 0.0
    """W&B's part of the end: offline every point is mirrored there."""
    seconds: float = 0.0
    cpu_seconds: float = 0.0


@contextlib.contextmanager
def _end(*, report: bool) -> Iterator[_End]:
    """Measures the end of the run that is made meanwhile; without `report` nothing is read and nothing written."""
    from banpick_exp.cluster import run

    found, whole = _End(), vars(run)["finish"]

    def timed(plan: Any, tracker: Tracker, *rest: Any) -> int:
        closing = tracker.finish

        def timed_closing(*told: Any) -> list[str]:
            begun = time.perf_counter()
            failures = closing(*told)
            found.mirror_seconds = time.perf_counter() - begun
            return failures

        vars(tracker)["finish"] = timed_closing
        found.peak_mb, begin, cpu = peak_mb(), time.perf_counter(), time.process_time()
        code: int = whole(plan, tracker, *rest) if report else 0
        found.seconds, found.cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu
        return code

    vars(run)["finish"] = timed
    try:
        yield found
    finally:
        vars(run)["finish"] = whole
