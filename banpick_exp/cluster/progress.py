"""What a person sees of a run: one live table with an ETA on a terminal, one line a point elsewhere.

Drawn from the run's events alone, so that `status` shows the same on another machine. The table has the same height
for one engine and for a thousand.
"""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table

from banpick_exp.cluster.engine_state import EngineState
from banpick_exp.cluster.events import Event
from banpick_exp.cluster.state import Fold, Measured, PointEnd, RunState

MOST_LINES = 8
"""Points, and engines, that have a line of their own."""
MOST_KINDS = 4
"""Kinds of engines that have."""
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""What a terminal would obey rather than show; labels and reasons may hold anything."""


class Display:
    """A listener of `Events`, and a context manager around the time in which the table is drawn."""

    def __init__(self, console: Console, *, progress_file: Path) -> None:
        """`progress_file`: how far a calibration is."""
        self._console, self._progress_file = console, progress_file
        self._fold = Fold()
        self._folding = threading.Lock()  # the table is drawn from a thread of its own: a call may take hours
        self._live = (
            Live(console=console, refresh_per_second=4, transient=True, get_renderable=self._draw)
            if console.is_terminal
            else None
        )

    def __enter__(self) -> Display:
        if self._live:
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.__exit__(kind, error, trace)

    def __call__(self, event: Event) -> None:
        """Take an event; notes are printed, and where there is no table a line a point."""
        with self._folding:
            self._fold.add(event)
            ended = event.kind == "point_done" and self._live is None
            state = self._fold.state(event.time) if ended else None
        # Not under the lock: printing draws the table too.
        if event.kind == "note":
            self._print(f"  {event.fields['text']}")
        elif state is not None:
            eta = eta_words(state)
            self._print(f"  [{state.ended_now}/{state.asked_now}] {_line(state.recent[-1])}  ({eta})")

    def _print(self, text: str) -> None:
        self._console.print(shown(text), highlight=False, markup=False)  # errors hold brackets

    def _draw(self) -> RenderableType:
        now = datetime.now(UTC)
        with self._folding:
            state = self._fold.state(now)
        return Group(*drawn(state, now, self._progress_file))


def shown(text: str) -> str:
    """A text without control characters, but for tab and new line."""
    return CONTROLS.sub("\ufffd", text)


def eta_words(state: RunState) -> str:
    """`ETA 120 s`, `ETA -` where nobody can say."""
    return "ETA -" if state.eta_seconds is None else f"ETA {state.eta_seconds:.0f} s"


def drawn(state: RunState, now: datetime, progress_file: Path) -> list[RenderableType]:
    """The points that ended last, what runs, the engines in numbers, and a bar over all: at most 25 lines."""
    parts: list[RenderableType] = []
    if state.recent:
        parts.append(_points(state.recent))
    parts += _most([_running_line(engine, now) for engine in state.running], MOST_LINES)
    calibrating = [e.job.since for e in state.engines if e.job and e.job.kind == "calibration"]
    if calibrating:
        in_blocks = _blocks_line(state.calibrations, now)
        parts.append(in_blocks or _calibration_line(min(calibrating), now, progress_file))
    if len(state.engines) > 1:
        parts += _most([f"engines {escape(shown(line))}" for line in engine_counts(state.engines)], MOST_KINDS)
    parts.append(_bar(state))
    return parts


def _points(ends: Sequence[PointEnd]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("point", "status", "accuracy", "difference", "speed-up", "kept"):
        table.add_column(column, justify="left" if column in ("point", "status") else "right")
    for end in ends[-MOST_LINES:]:
        table.add_row(*(escape(shown(cell)) for cell in _cells(end)))
    return table


def _most(lines: Sequence[str], most: int) -> Iterable[str]:
    """The first few, then how many there are besides."""
    more = len(lines) - most
    return [*lines[:most], f"[dim]... and {more} more[/]"] if more > 0 else lines


def _running_line(engine: EngineState, now: datetime) -> str:
    seconds = max((now - engine.since).total_seconds(), 0.0)
    where = "".join(f"  [dim]{escape(shown(text))}[/]" for text in (engine.host, engine.of_kind) if text)
    return f"[dim]{job_words(engine)}[/] {escape(shown(_of_what(engine)))}  {seconds:.0f} s{where}"


def job_words(engine: EngineState) -> str:
    """`block 3 of 8`, `point`, `calibrate`, or the phase of an engine that has no job."""
    job = engine.job
    if job is None:
        return "start" if engine.phase == "starting" else engine.phase
    if job.kind == "block" and job.block is not None:
        return f"block {job.block + 1} of {job.of}"
    return "calibrate" if job.kind == "calibration" else job.kind


def _of_what(engine: EngineState) -> str:
    return engine.name if engine.job is None else engine.job.label


def engine_counts(engines: Sequence[EngineState]) -> list[str]:
    """`64: 60 busy, 3 idle, 1 lost; at work 93 % of the time since loaded`; a line a kind, with its name, where there
    are several: those first that have an engine which is not closed."""
    kinds: dict[str | None, list[EngineState]] = {}
    for engine in engines:
        kinds.setdefault(engine.of_kind, []).append(engine)
    over = {kind: all(engine.phase == "closed" for engine in members) for kind, members in kinds.items()}
    return [_counted(kinds[kind], kind) for kind in sorted(kinds, key=lambda kind: over[kind])]


def _counted(engines: Sequence[EngineState], kind: str | None) -> str:
    counts = Counter(engine.phase for engine in engines)
    loads = [engine.busy for engine in engines if engine.busy is not None]
    busy = f"; at work {100 * sum(loads) / len(loads):.0f} % of the time since loaded" if loads else ""
    of = f" ({kind})" if kind else ""
    return f"{len(engines)}{of}: {', '.join(f'{count} {phase}' for phase, count in counts.items())}{busy}"


def _bar(state: RunState) -> Table:
    bar = Table.grid(padding=(0, 1))
    ended, asked = state.ended_now, max(state.asked_now, state.ended_now)
    minutes, seconds = divmod(int(state.seconds), 60)
    elapsed = f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
    bar.add_row(
        "points", ProgressBar(total=max(asked, 1), completed=ended, width=40), f"{ended}/{asked}", elapsed,
        eta_words(state),
    )  # fmt: skip
    return bar


def _blocks_line(calibrations: Sequence[Measured], now: datetime) -> str | None:
    """Of calibrations in blocks, however many engines work at them; None where there is none."""
    if not calibrations:
        return None
    done, expected = sum(each.done for each in calibrations), sum(each.expected for each in calibrations)
    left = [each.eta_seconds(now) for each in calibrations]
    known = [seconds for seconds in left if seconds is not None]
    eta = f"{max(known):.0f} s" if len(known) == len(left) else "-"
    return f"calibrating: {100 * done / expected:.0f} % of the changes, ETA {eta}"


def _calibration_line(since: datetime, now: datetime, progress_file: Path) -> str:
    try:
        progress = json.loads(progress_file.read_text())
        done, total = max(progress["done"], 1), progress["total"]
        left = (now - since).total_seconds() / done * (total - done)
        return f"calibrating: {100 * progress['done'] / total:.0f} % of the changes, ETA {max(left, 0):.0f} s"
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
        return "calibrating ..."


def _cells(end: PointEnd) -> list[str]:
    if end.accuracy is None or end.kept is None:
        return [end.label, end.status, end.reason or "", "", "", ""]
    return [
        end.label,
        end.status,
        f"{100 * end.accuracy:.1f}",
        "-" if end.delta is None else f"{100 * end.delta:+.1f}",
        "-" if end.speedup is None else f"{end.speedup:.2f}x",
        f"{end.kept:.2f}",
    ]


def _line(end: PointEnd) -> str:
    label, status, accuracy, delta, speedup, kept = _cells(end)
    if status == "dropped":
        return f"{label}: dropped {end.reason}"
    if not delta:
        return f"{label}: {status}: {accuracy}"
    return f"{label}: {status}, accuracy {accuracy} ({delta} to stock), speed-up {speedup}, {kept} experts kept"
