"""All runs of an output folder at a glance: state, points, verdict, age; hundreds in a second.

Of each run its small files alone are read: `run.json`, `driver.lock`, the end of `events.jsonl`, `found.json`,
`bill.json`; never a record. Whatever else lies there is told in words. Imports nothing heavy, changes nothing.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from banpick_exp.cluster.events import Event, read
from banpick_exp.costs import Cost
from banpick_exp.errors import UserError
from banpick_exp.manifest import MANIFEST
from banpick_exp.run_folder import RunFolder
from banpick_exp.run_lock import driver_of
from banpick_exp.sweep.config import RESERVED_NAMES

TAIL_BYTES = 64 * 1024
"""Of the events: where a driver wrote more since it began, its begin is not seen, and nothing hangs on it."""

ListedPhase = Literal[
    "running", "stopping", "starting", "ended", "stopped", "gone", "not begun", "no events", "half-written", "damaged"
]
"""As `state.Phase`, and: `no events` of a version that wrote none; `half-written`: there are files of a run and no
`run.json`; `damaged`: that is not what was written."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ListedRun:
    """One run at a glance."""

    folder: RunFolder
    phase: ListedPhase
    host: str | None
    """Where its driver is, or was."""
    code: int | None
    """Exit code of a driver that ended in order."""
    recorded: int
    """Points that have a record."""
    planned: int | None
    """Points of the run as far as they are known; None where nothing says."""
    counts: dict[str, int] | None
    """Status -> points, by the last report; None where there is none, or records came or went since."""
    headline: str | None
    """The verdict by the last report; None before the first."""
    told_all: bool
    """No record came or went since that report."""
    spent: Cost | None
    age_seconds: float
    """Since something was written last."""
    reason: str | None
    """Why a `damaged` or `half-written` one is none that can be gone on with."""

    @property
    def name(self) -> str:
        """`<sweep>/<run>`."""
        return self.folder.name


@dataclass(frozen=True, slots=True)
class Listing:
    """What is in an output folder."""

    runs: list[ListedRun]
    """The newest first."""
    others: dict[Path, str]
    """Folders that are no runs -> why not."""


def listing(output_dir: Path) -> Listing:
    """What is in an output folder, or in the folder of one sweep.

    Raises UserError for a folder that is not there, cannot be looked into, or is itself a run.
    """
    if (output_dir / MANIFEST).is_file():
        raise UserError(
            f"{output_dir} is one run, and the folder of many was asked for. Type python -m banpick_exp status"
            f" {output_dir}, or list {output_dir.parent.parent}"
        )
    if not output_dir.is_dir():
        raise UserError(
            f"{output_dir} is no folder, so there are no runs to list. Type the folder that sweeps write to:"
            " python -m banpick_exp list FOLDER (outputs by default)."
        )
    runs: list[ListedRun] = []
    others: dict[Path, str] = {}
    now = time.time()
    try:
        entries = _folders(output_dir)
    except OSError as error:
        raise UserError(
            f"{output_dir} cannot be looked into ({error.strerror or error}): mend the permission, then type the same."
        ) from None
    for entry in entries:
        if entry.name in RESERVED_NAMES:
            continue
        try:
            found = [entry] if _is_run(entry) else [path for path in _folders(entry) if _is_run(path)]
            runs += [_listed(RunFolder(path), now) for path in found]
        except OSError as error:
            others[entry] = f"cannot be looked into ({error.strerror or error})"
        else:
            if not found:
                others[entry] = "holds no run"
    return Listing(sorted(runs, key=lambda run: run.age_seconds), others)


def _folders(parent: Path) -> list[Path]:
    with os.scandir(parent) as entries:
        return sorted(Path(entry.path) for entry in entries if entry.name[0] != "." and entry.is_dir())


def _is_run(folder: Path) -> bool:
    """Whether files of a run are there, be they all or not."""
    run = RunFolder(folder)
    return any(path.exists() for path in (folder / MANIFEST, run.points, run.events))


def _listed(folder: RunFolder, now: float) -> ListedRun:
    recorded = len(folder.record_files())
    found, bill = folder.found(), folder.bill()
    told_all = found is not None and folder.tells_all(folder.found_path)
    story = _story(folder)
    phase, host, reason = _phase(folder, story, recorded)
    left = story.left if story is not None else None
    planned = None if left is None else recorded + left
    if planned is None and bill is not None:
        planned = max(bill.points, recorded)
    return ListedRun(
        folder=folder,
        phase=phase,
        host=host,
        code=story.code if story else None,
        recorded=recorded,
        planned=planned,
        counts=found.points if found is not None and told_all else None,
        headline=None if found is None else found.headline,
        told_all=told_all,
        spent=None if bill is None else bill.spent,
        age_seconds=max(now - _last_written(folder), 0.0),
        reason=reason,
    )


def _phase(folder: RunFolder, story: _Story | None, recorded: int) -> tuple[ListedPhase, str | None, str | None]:
    """The phase, the host, and what is wrong with its files."""
    holder = driver_of(folder)
    host = holder.host if holder else story.host if story else None
    if not (folder.path / MANIFEST).is_file():
        return "half-written", host, f"there is no {MANIFEST}: nobody can say which sweep it is"
    try:
        folder.manifest()
    except UserError as error:
        return "damaged", host, str(error)
    if holder is not None:
        if story is None or story.ended:
            return "starting", host, None
        return ("stopping" if story.stop_asked else "running"), host, None
    if story is None:
        return ("no events" if recorded else "not begun"), host, None
    if not story.ended:
        return "gone", host, None
    return ("stopped" if story.left else "ended"), host, None


@dataclass(slots=True)
class _Story:
    """What the last events say of the last driver."""

    host: str | None = None
    stop_asked: bool = False
    ended: bool = False
    code: int | None = None
    left: int | None = None
    """Points without a record; None where the end of the events does not tell."""


def _story(folder: RunFolder) -> _Story | None:
    """None where nothing was written, or it cannot be read."""
    try:
        size = folder.events.stat().st_size
        events = read(folder, max(0, size - TAIL_BYTES)).events  # the line that was cut in front is no event
    except OSError:
        return None
    return _told(events) if events else None


def _told(events: Iterable[Event]) -> _Story:
    """The same as `state.Fold` says of the whole, where the driver's begin is among them."""
    story = _Story()
    for event in events:
        fields = event.fields
        match event.kind:
            case "run_begun":
                story = _Story(host=str(fields["host"]), left=_count(fields["points"]))
            case "progress" if not story.ended:
                story.left = max(math.ceil(_number(fields["expected"]) - _number(fields["done"])), 0)
            case "point_aside" if story.left is not None:
                story.left += 1
            case "stop_asked":
                story.stop_asked = True
            case "run_ended":
                story.ended, story.code, story.left = True, _count(fields["code"]), _count(fields["left"])
    return story


def _number(value: object) -> float:
    assert isinstance(value, int | float), "`events.read` checks the types"
    return float(value)


def _count(value: object) -> int:
    return int(_number(value))


def _last_written(folder: RunFolder) -> float:
    """By the run itself: a report that is drawn again makes it no younger."""
    times = []
    for path in (folder.path / MANIFEST, folder.events, folder.points):
        with contextlib.suppress(OSError):
            times.append(path.stat().st_mtime)
    return max(times, default=0.0)


# ------------------------------------------------------------ in words


def state_words(run: ListedRun) -> str:
    """`running on node7`, `ended`, `ended with exit code 1`, `stopped, 12 left`."""
    match run.phase:
        case "running" | "stopping" | "starting":
            return f"{run.phase} on {run.host}"
        case "ended":
            return f"ended with exit code {run.code}" if run.code else "ended"
        case "stopped":
            left = None if run.planned is None else run.planned - run.recorded
            return f"stopped, {left} left" if left else "stopped"
        case "gone":
            return f"gone, was on {run.host}" if run.host else "gone"
        case phase:
            return phase


def points_words(run: ListedRun) -> str:
    """`37/40`, `37/?`; with what came of those that are not done: `40/40, 1 failed`."""
    wrong = [f", {count} {status}" for status, count in (run.counts or {}).items() if status != "done"]
    return f"{run.recorded}/{'?' if run.planned is None else run.planned}{''.join(wrong)}"


def verdict_words(run: ListedRun) -> str:
    """The verdict, what is wrong with the run, or what to type to have one."""
    if run.reason is not None:
        return run.reason
    if run.headline is None:
        return (
            f"not told yet: python -m banpick_exp report {run.folder.path}"
            if run.recorded and run.phase not in ("running", "stopping", "starting")
            else ""
        )
    return run.headline if run.told_all else f"at its last report: {run.headline}"


def age_words(seconds: float) -> str:
    """`12 s`, `5 min`, `3 h`, `12 d`."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
