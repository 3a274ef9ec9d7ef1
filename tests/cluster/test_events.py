"""events.jsonl: whole lines whatever happens to the disk or the driver, and a reader that minds nothing it finds."""

from __future__ import annotations

import json
import math
import os
import resource
import signal
from datetime import UTC, datetime
from pathlib import Path

import pytest
from synthetic_run import SyntheticRun

from banpick_exp.cluster.events import JSON, KINDS, Event, Events, point_fields, read
from banpick_exp.run_folder import RunFolder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


def texts(folder: RunFolder, offset: int = 0) -> list[object]:
    return [event.fields["text"] for event in read(folder, offset).events]


def test_what_is_written_is_read_and_heard(folder: RunFolder) -> None:
    heard: list[Event] = []
    events = Events(folder, [heard.append])
    events.write("run_begun", command="c", host="h", pid=1, points=3, expected=3.0, cluster="inline")
    events.write("note", text='two\nlines, "quotes" and \u2028 \udcff')
    assert read(folder).events == heard
    lines = [json.loads(line) for line in folder.events.read_text().splitlines()]
    assert [list(line)[:2] for line in lines] == [["time", "kind"]] * 2
    assert lines[0]["time"].endswith("+00:00") and len(lines[0]["time"]) == len("2026-11-27T10:15:00.123+00:00")
    assert abs((datetime.now(UTC) - heard[0].time).total_seconds()) < 60
    assert not folder.events.stat().st_mode & 0o111


def test_reading_goes_on_where_it_was(folder: RunFolder) -> None:
    events = Events(folder)
    assert read(folder) == read(folder, 0) and read(folder).events == []
    events.write("note", text="a")
    first = read(folder)
    events.write("note", text="b")
    assert texts(folder, first.offset) == ["b"]
    assert read(folder).offset == read(folder, first.offset).offset == folder.events.stat().st_size


def test_a_torn_line_is_waited_for_by_a_reader_and_cut_by_the_next_driver(folder: RunFolder) -> None:
    events = Events(folder)
    events.write("note", text="a")
    events.close()
    whole = folder.events.read_bytes()
    folder.events.write_bytes(whole + b'{"time": "2026-11-27T10:15:00.123+00:00", "kind": "note", "te')
    assert texts(folder) == ["a"] and read(folder).offset == len(whole)
    Events(folder).write("note", text="b")
    assert texts(folder) == ["a", "b"] and texts(folder, len(whole)) == ["b"]
    assert folder.events.read_bytes().startswith(whole) and b'"te{' not in folder.events.read_bytes()


@pytest.mark.parametrize("torn", [b"x" * 200_000, b""])
def test_a_file_of_one_torn_line_is_begun_anew(folder: RunFolder, torn: bytes) -> None:
    folder.events.write_bytes(torn)
    Events(folder).write("note", text="a")
    assert texts(folder) == ["a"] and folder.events.read_bytes().count(b"\n") == 1


def test_what_is_not_understood_is_left_out(folder: RunFolder) -> None:
    time = "2026-11-27T10:15:00.123+00:00"
    lines: list[object] = [
        {"time": time, "kind": "note", "text": "a", "newer": [1]},
        {"time": time, "kind": "of a newer version", "text": "b"},
        {"time": time, "kind": "note"},
        {"time": time, "kind": "note", "text": 7},
        {"time": time, "kind": ["note"], "text": "c"},
        {"time": "yesterday", "kind": "note", "text": "d"},
        {"kind": "note", "text": "e"},
        [1, 2],
        None,
        {"time": time, "kind": "point_done", "point": "p", "label": "l", "status": "perhaps"},
        {"time": time, "kind": "point_done", "point": "p", "label": "l", "status": "done", "kept": True},
        {"time": time, "kind": "point_done", "point": "p", "label": "l", "status": "failed"},
    ]
    damaged = b'\xff\xfe\n\n{"time": \n'
    folder.events.write_bytes(damaged + "".join(json.dumps(line) + "\n" for line in lines).encode())
    events = read(folder).events
    assert [event.kind for event in events] == ["note", "point_done"]
    assert dict(events[0].fields) == {"text": "a"}
    assert events[1].fields["reason"] is None and events[1].fields.keys() == KINDS["point_done"].keys()


def test_a_full_disk_is_said_once_and_ends_nothing(folder: RunFolder) -> None:
    os.symlink("/dev/full", folder.events)
    heard: list[Event] = []
    events = Events(folder, [heard.append])
    for text in ("a", "b"):
        events.write("note", text=text)
    told = [str(event.fields["text"]) for event in heard]
    assert told[0] == "a" and told[2:] == ["b"]
    assert told[1].startswith("events.jsonl cannot be written (No space left on device)")
    folder.events.unlink()  # room again
    events.write("note", text="c")
    assert texts(folder) == ["c"] and len(heard) == 4


def test_half_a_line_that_a_full_disk_took_does_not_spoil_the_next(folder: RunFolder) -> None:
    events = Events(folder)
    events.write("note", text="a")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (folder.events.stat().st_size + 10, hard))
        events.write("note", text="b")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert folder.events.read_bytes()[-1:] != b"\n", "a part of the line was written"
    events.write("note", text="c")
    assert texts(folder) == ["a", "c"]


def test_a_folder_that_is_not_there_ends_nothing(tmp_path: Path) -> None:
    heard: list[Event] = []
    events = Events(RunFolder(tmp_path / "gone"), [heard.append])
    events.write("note", text="a")
    assert [event.kind for event in heard] == ["note", "note"]
    assert read(RunFolder(tmp_path / "gone")).events == []


def test_a_driver_that_writes_what_nobody_knows_is_told(folder: RunFolder) -> None:
    events = Events(folder)
    for kind, fields in (
        ("noise", {"text": "a"}),
        ("note", {}),
        ("note", {"text": "a", "more": 1}),
        ("note", {"text": 1}),
    ):
        with pytest.raises(AssertionError):
            events.write(kind, **fields)
    assert not folder.events.exists()


def test_a_record_becomes_an_event(folder: RunFolder) -> None:
    synthetic = SyntheticRun(problems=5)
    done, failed = synthetic.add("none"), synthetic.add("pick", {"boost": 1}, status="failed", reason="out of memory")
    for record in (done, failed):
        Events(folder).write("point_done", **point_fields(record))
    first, second = (event.fields for event in read(folder).events)
    assert first["accuracy"] == done.measured.overall.accuracy and first["delta"] is None and first["kept"] == 8
    assert (second["status"], second["reason"], second["accuracy"]) == ("failed", "out of memory", None)


def test_a_number_that_is_none_is_absent(folder: RunFolder) -> None:
    fields: dict[str, JSON] = {"point": "p", "label": "l", "status": "done", "speedup": math.nan, "kept": math.inf}
    Events(folder).write("point_done", **fields)
    (event,) = read(folder).events
    assert event.fields["speedup"] is None and event.fields["kept"] is None
