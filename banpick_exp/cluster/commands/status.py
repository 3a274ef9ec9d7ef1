"""`python -m banpick_exp status [RUN]`: where a run stands, from any machine that sees its folder."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from banpick_exp.cluster.engine_state import EngineState
from banpick_exp.cluster.events import read
from banpick_exp.cluster.find_run import resume_command, typed_run
from banpick_exp.cluster.progress import MOST_LINES, drawn, eta_words, job_words, shown
from banpick_exp.cluster.state import Fold, PointEnd, RunState
from banpick_exp.errors import UserError
from banpick_exp.options import Options
from banpick_exp.records import STATUSES
from banpick_exp.run_folder import RunFolder
from banpick_exp.run_lock import Holder, driver_of

SCHEMA = 1
"""Of --json; a field that changes its meaning is a new one."""
WATCH_SECONDS = 1.0
PIPE_WIDTH = 140
MOST_NOTES = 5
DESCRIPTION = """\
Says where a run stands: what is done, what runs where, what failed and why, the engines and their load, and when it
will be over. Reads the run's events.jsonl alone and changes nothing, so it may be typed on any machine that sees the
folder, as often as you like. RUN is the folder that the sweep printed, or SWEEP/RUN; without it, the run that was at
work last below outputs/ (or output_dir=FOLDER).
"""
EPILOG = """\
examples:
  python -m banpick_exp status
  python -m banpick_exp status pick_strength/20261122-101500 --watch
  python -m banpick_exp status output_dir=/shared/outputs --json

Exit code: 0 all is well, 1 points failed or are invalid, or the driver is gone or ended with an error, 2 there is no
such run.
"""


def run(arguments: list[str]) -> int:
    """Returns 0, or 1 where something is wrong with the run. Raises UserError for a run that is not there."""
    typed = _options().parse_intermixed_args(arguments)
    folder, _ = typed_run(typed.words)
    watched = Watched(folder)
    if typed.json:
        print(json.dumps(plain(watched.look()), allow_nan=False))
    elif typed.watch:
        _watch(watched, _console())
    else:
        _print(told(watched.look()), _console())
    return 0 if watched.last.state.fine else 1


def help_page() -> str:
    return _options().format_help()


def _options() -> Options:
    parser = Options(prog="python -m banpick_exp status", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("words", nargs="*", metavar="RUN", help="run folder or SWEEP/RUN; default: the newest")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--watch", action="store_true", help="draw it anew every second until the run ends")
    how.add_argument("--json", action="store_true", help="one JSON object, described in docs/running.md")
    return parser


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at a run found."""

    folder: RunFolder
    state: RunState
    holder: Holder | None
    """The driver that holds the run now."""
    alive: bool
    """It is the one that `state` tells of; else it has written nothing yet."""
    now: datetime

    @property
    def phase(self) -> str:
        """That of the state, or `starting`: a driver has the run and has not said so yet."""
        return "starting" if self.holder and not self.alive else self.state.phase

    @property
    def over(self) -> bool:
        """Nothing more will happen by itself."""
        return self.holder is None


class Watched:
    """A run that is looked at once or again and again; each look reads what is new."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder, self._fold, self._offset = folder, Fold(), 0
        self.last: Look

    def look(self) -> Look:
        """Raises UserError where the events are there and cannot be read."""
        holder = driver_of(self._folder)  # first: a driver that ends now has written so before it let go
        try:
            found = read(self._folder, self._offset)
        except OSError as error:
            raise UserError(
                f"{self._folder.events} cannot be read ({error.strerror or error}), so nobody can say where the run"
                " stands. Mount the disk or mend the permission, then type the same again."
            ) from None
        for event in found.events:
            self._fold.add(event)
        self._offset = found.offset
        alive = holder is not None and self._fold.begun_by(holder.host, holder.pid)
        now = datetime.now(UTC)
        self.last = Look(self._folder, self._fold.state(now, alive=alive), holder, alive, now)
        return self.last


def _watch(watched: Watched, console: Console) -> None:
    """A table that is drawn over itself; where that is not possible, a line whenever the counts change."""
    if console.is_terminal:
        with Live(console=console, auto_refresh=False, transient=True) as live:
            while not watched.look().over:
                live.update(Group(*told(watched.last)), refresh=True)
                time.sleep(WATCH_SECONDS)
    else:
        before = ""
        while not watched.look().over:
            line = _counted(watched.last.state)
            if line != before:
                console.print(f"{line}, {eta_words(watched.last.state)}", markup=False, highlight=False, soft_wrap=True)
            before = line
            time.sleep(WATCH_SECONDS)
    _print(told(watched.last), console)


def _console() -> Console:
    """Of the terminal's width; a file has none, and 80 columns would break the tables."""
    console = Console()
    return console if console.is_terminal else Console(width=PIPE_WIDTH)


def _print(parts: Sequence[RenderableType], console: Console) -> None:
    for part in parts:
        console.print(part, highlight=False, soft_wrap=isinstance(part, str))


# ------------------------------------------------------------ in words


def told(look: Look) -> list[RenderableType]:
    """A look at a run for a person, in as many lines for a thousand engines as for eight."""
    state = look.state
    parts: list[RenderableType] = [f"{escape(shown(look.folder.name))}: {escape(shown(_headline(look)))}"]
    if state.begun is None:
        return parts
    parts.append(f"points {_counted(state)}")
    parts += [] if state.over else drawn(state, look.now, look.folder.progress)
    if state.engines:
        parts.append(_engines(state.engines, look.now))
    parts += _failures(state.failed)
    for when, text in state.notes[-MOST_NOTES:]:
        parts.append(f"[dim]{when.astimezone():%H:%M:%S}[/] {escape(shown(text))}")
    if look.over and (state.left or state.failed):
        parts.append(f"To go on: {escape(shown(resume_command(look.folder)))}")
    return parts


def _headline(look: Look) -> str:
    state, holder = look.state, look.holder
    if look.phase in ("starting", "not begun"):
        if holder is None:
            return "it has no events: it was not begun yet, or by an earlier version (its points are in the report)"
        return f"process {holder.pid} on {holder.host} is starting, since {holder.since}"
    driver = f"process {state.pid} on {state.host}"
    took = f"{state.seconds:.0f} s"
    match state.phase:
        case "running":
            return f"running for {took}, {driver}"
        case "stopping":
            return f"stopping after what runs now, as {state.stop_asked_by} asked; {driver}, for {took}"
        case "gone":
            when = "" if state.updated is None else f", last heard of {state.updated.astimezone():%Y-%m-%d %H:%M:%S}"
            return f"{driver} is gone without a word after {took}{when}; finished points and blocks are kept"
        case _:
            asked = f", as {state.stop_asked_by} asked" if state.left and state.stop_asked_by else ""
            code = f" with exit code {state.code}" if state.code else ""
            return f"{'stopped' if state.left else 'ended'} after {took}{code}{asked}"


def _counted(state: RunState) -> str:
    counts = [f"{state.counts[status]} {status}" for status in STATUSES if state.counts.get(status)]
    return f"{', '.join([*counts, f'{state.left} left'])} of {state.total}; {state.blocks} blocks answered"


def _engines(engines: Sequence[EngineState], now: datetime) -> Table:
    """The first few: those that are wrong or wait before those that work."""
    table = Table(box=None, pad_edge=False)
    several = any(engine.of_kind for engine in engines)
    texts = ("engine", "of", "where", "state") if several else ("engine", "where", "state")
    for column in (*texts, "for", "loaded in", "blocks", "at work"):
        table.add_column(column, justify="left" if column in texts else "right")
    order = ("lost", "waiting", "starting", "busy", "idle", "closed")
    chosen = sorted(engines, key=lambda engine: order.index(engine.phase))
    for each in chosen[:MOST_LINES]:
        what = f"{each.phase}: {each.reason}" if each.reason else each.phase if each.job is None else job_words(each)
        cells = (
            each.name,
            *([each.of_kind or "-"] if several else []),
            f"{each.host} ({each.pid})" if each.host else "-",
            what,
            f"{max((now - each.since).total_seconds(), 0):.0f} s",
            "-" if each.load_seconds is None else f"{each.load_seconds:.1f} s",
            str(each.blocks),
            "-" if each.busy is None else f"{100 * each.busy:.0f} %",
        )
        table.add_row(*(escape(shown(cell)) for cell in cells))
    if len(engines) > MOST_LINES:
        table.add_row(f"[dim]... and {len(engines) - MOST_LINES} more[/]")
    return table


def _failures(failed: Sequence[PointEnd]) -> list[str]:
    lines = [f"{each.status}: {each.label}: {each.reason or 'no reason was given'}" for each in failed[:MOST_LINES]]
    more = len(failed) - MOST_LINES
    return [f"[red]{escape(shown(line))}[/]" for line in lines] + ([f"[dim]... and {more} more[/]"] if more > 0 else [])


# ------------------------------------------------------------ as JSON


def plain(look: Look) -> dict[str, Any]:
    """What --json prints; times are UTC in ISO 8601, seconds are seconds, shares lie between 0 and 1."""
    state, holder = look.state, look.holder
    return {
        "schema": SCHEMA,
        "run": look.folder.name,
        "folder": str(look.folder.path.resolve()),
        "phase": look.phase,
        "fine": state.fine,
        "driver": None if holder is None else {"host": holder.host, "pid": holder.pid, "since": holder.since},
        "command": state.command,
        "resume": resume_command(look.folder),
        "begun": _time(state.begun),
        "updated": _time(state.updated),
        "ended": _time(state.ended),
        "code": state.code,
        "seconds": state.seconds,
        "eta_seconds": state.eta_seconds,
        "stop_asked_by": state.stop_asked_by,
        "points": {status: state.counts.get(status, 0) for status in STATUSES}
        | {"left": state.left, "total": state.total},
        "work": {"done": state.work[0], "expected": state.work[1]},
        "calibrations": [
            {"done": each.done, "expected": each.expected, "eta_seconds": each.eta_seconds(look.now)}
            for each in state.calibrations
        ],
        "blocks": state.blocks,
        "engines": [_plain(engine) for engine in state.engines],
        "failed": [_plain(end) for end in state.failed],
        "recent": [_plain(end) for end in state.recent],
        "notes": [{"time": _time(when), "text": text} for when, text in state.notes],
    }


def _plain(part: EngineState | PointEnd) -> dict[str, Any]:
    def made(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: made(each) for name, each in value.items()}
        return _time(value) if isinstance(value, datetime) else value

    return {name: made(value) for name, value in asdict(part).items()}


def _time(when: datetime | None) -> str | None:
    return None if when is None else when.isoformat(timespec="milliseconds")
