"""What a person sees while a sweep runs: one live table with an ETA on a terminal, one line a point elsewhere."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from banpick_exp.records import PointRecord

RECENT = 8


@dataclass(frozen=True, slots=True)
class Running:
    """What a slot is doing. `started` on the perf_counter clock."""

    slot: str
    kind: str
    label: str
    started: float


class Display:
    """Use as a context manager. `update` refreshes the running jobs, `point` counts a finished one."""

    def __init__(self, console: Console, *, total: int, progress_file: Path) -> None:
        self._console, self._progress_file = console, progress_file
        self._bar = Progress(
            TextColumn("points"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[eta]}"),
        )
        self._task: TaskID = self._bar.add_task("points", total=total, eta="ETA -")
        self._recent: list[PointRecord] = []
        self._running: Sequence[Running] = ()
        self._first_point: float | None = None
        self._done, self._total = 0, total
        self._work: tuple[float, float] = (0.0, float(total))
        self._live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None

    def __enter__(self) -> Display:
        if self._live:
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.__exit__(kind, error, trace)

    def note(self, text: str) -> None:
        self._console.print(f"  {text}", highlight=False, markup=False)  # errors hold brackets

    def update(self, running: Sequence[Running]) -> None:
        self._running = running
        if any(job.kind in ("point", "block") for job in running) and self._first_point is None:
            self._first_point = time.perf_counter()
        self._refresh()

    def expect(self, done: float, total: float) -> None:
        """What the ETA is drawn from: work done and expected, in points; a point that is not whole counts in part."""
        self._work = done, total

    def point(self, record: PointRecord) -> None:
        self._done += 1
        self._recent.append(record)
        eta = self._eta_seconds()
        self._bar.update(self._task, completed=self._done, eta=f"ETA {eta:.0f} s")
        if self._live is None:
            self._console.print(
                f"  [{self._done}/{self._total}] {_line(record)}  (ETA {eta:.0f} s)", highlight=False, markup=False
            )
        self._refresh()

    def _eta_seconds(self) -> float:
        begin = self._first_point or time.perf_counter()
        done, total = self._work
        return (time.perf_counter() - begin) / max(done, 0.01) * max(total - done, 0.0)

    def _refresh(self) -> None:
        if self._live is None:
            return
        table = Table(box=None, pad_edge=False)
        for column in ("point", "status", "accuracy", "difference", "speed-up", "kept"):
            table.add_column(column, justify="left" if column in ("point", "status") else "right")
        for record in self._recent[-RECENT:]:
            table.add_row(*map(escape, _cells(record)))
        lines = [
            f"[dim]{job.kind}[/] {escape(job.label)}  {time.perf_counter() - job.started:.0f} s"
            for job in self._running
        ]
        if any(job.kind == "calibrate" for job in self._running):
            lines.append(self._calibration_line())
        self._live.update(Group(table, *lines, self._bar))

    def _calibration_line(self) -> str:
        try:
            progress = json.loads(self._progress_file.read_text())
        except (OSError, ValueError):
            return "calibrating ..."
        start = min(job.started for job in self._running if job.kind == "calibrate")
        done, total = max(progress["done"], 1), progress["total"]
        left = (time.perf_counter() - start) / done * (total - done)
        return f"calibrating: {100 * progress['done'] / total:.0f} % of the changes, ETA {left:.0f} s"


def _cells(record: PointRecord) -> list[str]:
    if record.metrics is None:
        return [record.label, record.status, record.reason or "", "", "", ""]
    overall = record.metrics.overall
    return [
        record.label,
        record.status,
        f"{100 * overall.accuracy:.1f}",
        "-" if overall.delta is None else f"{100 * overall.delta:+.1f}",
        "-" if overall.speedup is None else f"{overall.speedup:.2f}x",
        f"{overall.mean_kept:.2f}",
    ]


def _line(record: PointRecord) -> str:
    label, status, accuracy, delta, speedup, kept = _cells(record)
    if status == "dropped":
        return f"{label}: dropped {record.reason}"
    if not delta:
        return f"{label}: {status}: {accuracy}"
    return f"{label}: {status}, accuracy {accuracy} ({delta} to stock), speed-up {speedup}, {kept} experts kept"
