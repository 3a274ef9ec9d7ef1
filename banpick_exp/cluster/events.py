"""What happens in a run, as lines of its `events.jsonl`: one a transition, appended by the driver as it happens.

The live table, `status` and `stop --wait` know a run from these lines alone, so they say the same in the driver's own
terminal and on any machine that sees the folder. They are a story, not results: a line that is lost costs a table row,
never an answer, so nothing waits for the disk and a disk that is full does not end a run. Resume and reports never read
them. Imports nothing heavy.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from types import NoneType

from banpick_exp.disk import FILE_MODE
from banpick_exp.records import STATUSES, PointRecord
from banpick_exp.run_folder import RunFolder

JSON = str | int | float | bool | None
"""Of a field: plain values, no lists."""
_TEXT, _COUNT, _NUMBER = (str,), (int,), (int, float)
_MAYBE_TEXT, _MAYBE_NUMBER = (str, NoneType), (int, float, NoneType)
_CALIBRATION = {
    "engine": _TEXT,
    "calibration": _TEXT,
    "what": _MAYBE_TEXT,
    "done": _MAYBE_NUMBER,
    "expected": _MAYBE_NUMBER,
}
_BLOCK = {"engine": _TEXT, "point": _TEXT, "label": _TEXT, "block": _COUNT, "of": _COUNT}
ADDING_UP = "adding up"
"""`what` of the last step of a calibration's part."""
KINDS: Mapping[str, Mapping[str, tuple[type, ...]]] = {
    "run_begun": {
        "command": _TEXT,
        "host": _TEXT,
        "pid": _COUNT,
        "points": _COUNT,
        "expected": _NUMBER,
        "cluster": _TEXT,
        "estimated_seconds": _MAYBE_NUMBER,
    },
    "engine_starting": {"engine": _TEXT, "point": _TEXT, "of_kind": _MAYBE_TEXT},
    "engine_ready": {"engine": _TEXT, "seconds": _NUMBER, "host": _TEXT, "pid": _COUNT, "layers": _COUNT},
    "engine_waits": {"engine": _TEXT, "reason": _TEXT, "of_kind": _MAYBE_TEXT},
    "engine_lost": {"engine": _TEXT, "reason": _TEXT},
    "engine_closed": {"engine": _TEXT},
    "calibration_begun": {**_CALIBRATION, "label": _TEXT},
    "calibration_done": {**_CALIBRATION, "seconds": _NUMBER},
    "calibration_failed": {**_CALIBRATION, "reason": _TEXT},
    "block_begun": _BLOCK,
    "block_done": {**_BLOCK, "seconds": _NUMBER},
    "block_failed": {**_BLOCK, "reason": _TEXT},
    "point_begun": {"engine": _TEXT, "point": _TEXT, "label": _TEXT},
    "point_done": {
        "point": _TEXT,
        "label": _TEXT,
        "status": _TEXT,
        "reason": _MAYBE_TEXT,
        "accuracy": _MAYBE_NUMBER,
        "delta": _MAYBE_NUMBER,
        "speedup": _MAYBE_NUMBER,
        "kept": _MAYBE_NUMBER,
    },
    "point_aside": {"point": _TEXT, "label": _TEXT, "reason": _MAYBE_TEXT},
    "points_added": {"points": _COUNT},
    "progress": {"done": _NUMBER, "expected": _NUMBER},
    "note": {"text": _TEXT},
    "stop_asked": {"by": _TEXT},
    "run_ended": {"code": _COUNT, "seconds": _NUMBER, "left": _COUNT},
}
"""Kind -> its fields and what each may be. `point` and `calibration` are fingerprints, `engine` the name of a slot,
seconds are seconds; `points` of run_begun counts those that this driver has to compute, `expected` and `progress` are
work in points, of this driver too; `estimated_seconds`: of all of it, where it is known how fast its engines are;
`of_kind` tells an engine from those of other kinds, where the run has any;
`accuracy` and `delta` are shares, 0.612 and -0.013; `point_aside`: a finished record was set aside, its point counts as
not run; `points_added`: that many more than run_begun said.
Of a calibration in blocks `what` names the block, `done` and `expected` are changes times problems of the part
that it belongs to. What may be absent reads as None."""


@dataclass(frozen=True, slots=True)
class Event:
    """One line. `fields` are all those of its kind, each of a type that `KINDS` allows."""

    time: datetime
    """UTC."""
    kind: str
    fields: Mapping[str, JSON]


@dataclass(frozen=True, slots=True)
class Reading:
    """What `read` found, and where to go on."""

    events: list[Event]
    offset: int
    """Bytes read: behind the last whole line."""


def point_fields(record: PointRecord) -> dict[str, JSON]:
    """The fields of `point_done`."""
    overall = None if record.metrics is None else record.metrics.overall
    return {
        "point": record.fingerprint,
        "label": record.label,
        "status": record.status,
        "reason": record.reason,
        "accuracy": None if overall is None else overall.accuracy,
        "delta": None if overall is None else overall.delta,
        "speedup": None if overall is None else overall.speedup,
        "kept": None if overall is None else overall.mean_kept,
    }


class Events:
    """The one writer of a run's events: its driver, which holds the run's lock."""

    def __init__(self, folder: RunFolder, listeners: Sequence[Callable[[Event], None]] = ()) -> None:
        """`listeners` are handed every event after it is written, those that could not be written too."""
        self._path, self._listeners = folder.events, tuple(listeners)
        self._file: int | None = None
        self._told = False

    def write(self, kind: str, **fields: JSON) -> None:
        """Append one event and hand it on. Raises AssertionError for what `KINDS` does not know, nothing else."""
        now = datetime.now(UTC)
        now = now.replace(microsecond=now.microsecond // 1000 * 1000)  # as it is read again
        finite = {name: _finite(value) for name, value in fields.items()}
        event = _checked(now, kind, finite)
        assert event is not None and fields.keys() <= KINDS[kind].keys(), f"{kind} has other fields than {fields}"
        line = json.dumps({"time": now.isoformat(timespec="milliseconds"), "kind": kind, **finite}) + "\n"
        failure = self._append(line.encode("ascii"))
        self._hand_on(event)
        if failure is not None and not self._told:
            self._told = True
            text = (
                f"{self._path.name} cannot be written ({failure.strerror or failure}): status will not see what is"
                " missing there. The run goes on"
            )
            self._hand_on(Event(now, "note", {"text": text}))

    def _hand_on(self, event: Event) -> None:
        for listener in self._listeners:
            listener(event)

    def _append(self, line: bytes) -> OSError | None:
        """One system call a line, so that a reader sees whole lines; why it failed, where it did."""
        try:
            if self._file is None:
                self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, FILE_MODE)
                _cut_torn_line(self._file)
            if os.write(self._file, line) == len(line):
                return None
            failure = OSError("only a part of a line was written")
        except OSError as error:
            failure = error
        self.close()  # opened again for the next line, which cuts what was torn
        return failure

    def close(self) -> None:
        """Let go of the file; a later `write` opens it again."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _cut_torn_line(file: int) -> None:
    """A driver that was killed, or a full disk, may leave half a line at the end: the next would be joined to it."""
    size = os.fstat(file).st_size
    end = size
    while end > 0:
        begin = max(0, end - 65536)
        newline = os.pread(file, end - begin, begin).rfind(b"\n")
        if newline >= 0:
            end = begin + newline + 1
            break
        end = begin
    if end < size:
        os.ftruncate(file, end)


def read(folder: RunFolder, offset: int = 0) -> Reading:
    """The events of a run from a byte on, which an earlier `Reading` gave; none where nothing was written yet.

    Whatever is not understood is left out: a kind of a newer version, a line that is damaged or not whole yet. Raises
    OSError for a file that is there and cannot be read.
    """
    try:
        with open(folder.events, "rb") as file:
            file.seek(offset)
            data = file.read()
    except FileNotFoundError:
        return Reading([], offset)
    whole = data[: data.rfind(b"\n") + 1]
    events = [event for line in whole.splitlines() if (event := _parsed(line)) is not None]
    return Reading(events, offset + len(whole))


def _parsed(line: bytes) -> Event | None:
    try:
        plain = json.loads(line)
        time = datetime.fromisoformat(plain.pop("time"))
        kind = plain.pop("kind")
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return _checked(time.astimezone(UTC), kind, plain) if isinstance(kind, str) else None


def _checked(time: datetime, kind: str, fields: Mapping[str, JSON]) -> Event | None:
    """None where a field that must be there is not, or is of another type."""
    known = KINDS.get(kind)
    if known is None:
        return None
    found = {name: fields.get(name) for name in known}
    if any(type(found[name]) not in types for name, types in known.items()):
        return None
    if kind == "point_done" and found["status"] not in STATUSES:
        return None
    return Event(time, kind, found)


def _finite(value: JSON) -> JSON:
    """JSON has no NaN, and a field that may be a number may be absent."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
