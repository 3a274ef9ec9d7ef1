"""What a person sees of a run: one live table with an ETA on a terminal; elsewhere one line a point, and one when what
engines do has changed.

Drawn from the run's events alone, so that `status` shows the same on another machine. The table has the same height
for one engine and for a thousand.
"""

from __future__ import annotations

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
from banpick_exp.cluster.phases import CallProgress, call_progress, clock, doing, phase
from banpick_exp.cluster.state import Fold, Measured, PointEnd, RunState

MOST_LINES = 8
"""Points, and engines, that have a line of their own."""
MOST_KINDS = 4
"""Kinds of engines that have."""
TICK_SECONDS = 1.0
"""Between two looks at what engines do, where there is no table."""
QUIET_SECONDS = 30.0
"""At least, after a line, until one says that they do something else."""
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""What a terminal would obey rather than show; labels and reasons may hold anything."""


class Display:
    """A listener of `Events`, and a context manager around the time in which the table is drawn."""

    def __init__(self, console: Console, *, progress_file: Path, tick_seconds: float | None = TICK_SECONDS) -> None:
        """`progress_file`: how far a calibration is. `tick_seconds`: None where somebody else calls `tick`."""
        self._console, self._progress_file = console, progress_file
        self._fold = Fold()
        self._folding = threading.Lock()  # the table is drawn from a thread of its own: a call may take hours
        self._live = (
            Live(console=console, refresh_per_second=4, transient=True, get_renderable=self._draw)
            if console.is_terminal
            else None
        )
        self._told: tuple[datetime, str] | None = None
        """When the last line was printed, and what engines did by the last that said so."""
        self._over = threading.Event()
        self._ticking = (
            threading.Thread(target=self._tick_on, args=(tick_seconds,), daemon=True, name="phases")
            if self._live is None and tick_seconds is not None
            else None
        )

    def __enter__(self) -> Display:
        if self._live:
            self._live.__enter__()
        if self._ticking:
            self._ticking.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.__exit__(kind, error, trace)
        self._over.set()
        if self._ticking:
            self._ticking.join()

    def _tick_on(self, seconds: float) -> None:
        while not self._over.wait(seconds):
            self.tick(datetime.now(UTC))

    def tick(self, now: datetime) -> None:
        """Print what engines do, where that is no longer what was said and the last line is QUIET_SECONDS old."""
        with self._folding:
            state = self._fold.state(now)
        if state.begun is None or state.over or not (words := phase(state, self._progress_file)):
            return
        if self._told is not None:
            when, before = self._told
            if words == before or (before and (now - when).total_seconds() < QUIET_SECONDS):
                return
        self._told = now, words
        self._print(f"  {clock(state.seconds)} {words}  ({eta_words(state)})")

    def __call__(self, event: Event) -> None:
        """Take an event; notes are printed, and where there is no table a line a point."""
        with self._folding:
            self._fold.add(event)
            ended = event.kind == "point_done" and self._live is None
            state = self._fold.state(event.time) if ended else None
        if self._told is not None and (event.kind == "note" or ended):
            self._told = event.time, self._told[1]
        # Not under the lock: printing draws the table too.
        if event.kind == "note":
            self._print(f"  {event.fields['text']}")
        elif state is not None:
            eta = eta_words(state)
            self._print(f"  [{state.ended_now}/{state.asked_now}] {_line(state.recent[-1])}  ({eta})")

    def _print(self, text: str) -> None:
        wraps = self._console.is_terminal  # a pipe gets whole lines
        self._console.print(shown(text), highlight=False, markup=False, soft_wrap=not wraps)  # errors hold brackets

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
    progress = call_progress(progress_file)  # of one call that measures a calibration whole, the same for every line
    parts += _most([_running_line(engine, now, progress) for engine in state.running], MOST_LINES)
    calibrating = [e.job.since for e in state.engines if e.job and e.job.kind == "calibration"]
    if calibrating:
        in_blocks = _blocks_line(state.calibrations, now)
        parts.append(in_blocks or _calibration_line(min(calibrating), now, progress))
    if len(state.engines) > 1:
        parts += _most([f"engines {escape(shown(line))}" for line in engine_counts(state.engines)], MOST_KINDS)
    parts.append(_bar(state))
    return parts


def _points(ends: Sequence[PointEnd]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("point", "status", "accuracy", "vs stock", "speed-up", "kept"):
        table.add_column(column, justify="left" if column in ("point", "status") else "right")
    for end in ends[-MOST_LINES:]:
        table.add_row(*(escape(shown(cell)) for cell in _cells(end)))
    return table


def _most(lines: Sequence[str], most: int) -> Iterable[str]:
    """The first few, then how many there are besides."""
    more = len(lines) - most
    return [*lines[:most], f"[dim]... and {more} more[/]"] if more > 0 else lines


def _running_line(engine: EngineState, now: datetime, progress: CallProgress | None) -> str:
    seconds = clock((now - engine.since).total_seconds())
    where = "".join(f"  [dim]{escape(shown(text))}[/]" for text in (engine.host, engine.of_kind) if text)
    return f"{escape(shown(doing(engine, progress)))}  {seconds}{where}"


def job_words(engine: EngineState) -> str:
    """`block 3 of 8`, `point`, `calibrate`, or the phase of an engine that has no job."""
    job = engine.job
    if job is None:
        return "start" if engine.phase == "starting" else engine.phase
    if job.kind == "block" and job.block is not None:
        return f"block {job.block + 1} of {job.of}"
    return "calibrate" if job.kind == "calibration" else job.kind


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
    bar.add_row(
        "points", ProgressBar(total=max(asked, 1), completed=ended, width=40), f"{ended}/{asked}", clock(state.seconds),
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


def _calibration_line(since: datetime, now: datetime, found: CallProgress | None) -> str:
    if found is None:
        return "calibrating ..."
    eta = "-"
    if 0 < found.share <= 1:
        eta = f"{(now - since).total_seconds() * max(1 / found.share - 1, 0):.0f} s"
    return f"calibrating: {100 * found.share:.0f} % of the changes, ETA {eta}"


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
