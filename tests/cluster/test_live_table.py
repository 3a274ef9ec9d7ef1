"""What a person sees while a sweep runs, drawn from its events."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from banpick_exp.cluster.events import JSON, KINDS, Event, Events
from banpick_exp.cluster.progress import MOST_LINES, Display
from banpick_exp.run_folder import RunFolder


class Watched:
    """A display and the events that it listens to."""

    def __init__(self, folder: Path, *, terminal: bool) -> None:
        self.output = io.StringIO()
        self.folder = RunFolder(folder)
        console = Console(file=self.output, force_terminal=terminal, width=150, color_system=None)
        self.display = Display(console, progress_file=self.folder.progress, tick_seconds=None)
        self.events = Events(self.folder, [self.display])

    def begin(self, points: int) -> None:
        fields: dict[str, JSON] = {"command": "c", "host": "h", "pid": 1, "cluster": "ray"}
        self.events.write("run_begun", points=points, expected=float(points), **fields)

    def done(self, label: str, status: str = "done", **more: Any) -> None:
        self.events.write("point_done", point=label, label=label, status=status, **more)

    def drawn(self) -> list[str]:
        """The table as it would be drawn now."""
        console = Console(file=io.StringIO(), width=150, color_system=None)
        with console.capture() as capture:
            console.print(self.display._draw(), highlight=False)
        return [line.rstrip() for line in capture.get().splitlines()]


@pytest.fixture
def piped(tmp_path: Path) -> Watched:
    return Watched(tmp_path, terminal=False)


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Watched]:
    watched = Watched(tmp_path, terminal=True)
    with watched.display:
        yield watched


def test_a_pipe_gets_a_line_a_point_and_a_note(piped: Watched) -> None:
    with piped.display:
        piped.begin(points=4)
        piped.events.write("note", text="engine lost ([Errno 5] gone) in [red]")
        piped.events.write("block_begun", engine="e", point="none", label="none", block=0, of=2)
        piped.events.write("block_done", engine="e", point="none", label="none", block=0, of=2, seconds=1.0)
        piped.events.write("progress", done=1.0, expected=4.0)
        piped.done("none", accuracy=0.7125, speedup=1.0, kept=8.0)
        piped.done("pick boost=1", accuracy=0.7, delta=-0.0125, speedup=1.234, kept=7.996)
        piped.done("pick boost=2", "dropped", reason="after 20 problems: worse", accuracy=0.5, delta=-0.2, kept=8.0)
        piped.done("pick boost=4", "failed", reason="EngineError: [x]")
    lines = piped.output.getvalue().splitlines()
    assert lines[0] == "  engine lost ([Errno 5] gone) in [red]"
    assert [line.partition("  (ETA ")[0] for line in lines[1:]] == [
        "  [1/4] none: done, accuracy 71.2 (- to stock), speed-up 1.00x, 8.00 experts kept",
        "  [2/4] pick boost=1: done, accuracy 70.0 (-1.2 to stock), speed-up 1.23x, 8.00 experts kept",
        "  [3/4] pick boost=2: dropped after 20 problems: worse",
        "  [4/4] pick boost=4: failed: EngineError: [x]",
    ]
    assert all(line.endswith(" s)") for line in lines[1:])


def test_the_table_is_as_high_for_a_thousand_engines(live: Watched) -> None:
    live.begin(points=1000)
    for n in range(100):
        engine = f"engine-{n}"
        live.events.write("engine_ready", engine=engine, seconds=1.0, host="node1", pid=n, layers=4)
        live.events.write("block_begun", engine=engine, point=f"p{n}", label=f"running {n}", block=2, of=8)
    for n in range(50):
        live.done(f"ended {n}", accuracy=0.5, delta=0.0, kept=4.0)
    lines = live.drawn()
    assert sum("block 3 of 8" in line for line in lines) == MOST_LINES
    assert next(line for line in lines if line.startswith("ended")).startswith("ended 42")
    assert "... and 92 more" in lines
    assert any(line.startswith("engines 100: 100 busy; at work") for line in lines)
    assert any("50/1000" in line for line in lines)
    assert len(lines) <= 2 * MOST_LINES + 4


def test_several_kinds_of_engines_have_a_line_each(live: Watched) -> None:
    live.begin(points=4)
    for kind, engines in (("large", 2), ("small", 3)):
        for n in range(engines):
            engine = f"{kind}-{n}"
            live.events.write("engine_starting", engine=engine, point="p", of_kind=kind)
            live.events.write("engine_ready", engine=engine, seconds=1.0, host="node1", pid=n, layers=4)
    live.events.write("point_begun", engine="large-0", point="p", label="fixed_k k=2")
    live.events.write("engine_waits", engine="small-2", reason="there is no room for it yet", of_kind="small")
    lines = live.drawn()
    assert any(line.startswith("engines 2 (large): 1 busy, 1 idle; at work") for line in lines)
    assert any(line.startswith("engines 3 (small): 2 idle, 1 waiting; at work") for line in lines)
    assert any(line.startswith("asking fixed_k k=2") and line.endswith("node1  large") for line in lines)
    for n in range(2):
        live.events.write("engine_closed", engine=f"large-{n}")
    told = [line for line in live.drawn() if line.startswith("engines")]
    assert told[-1].startswith("engines 2 (large): 2 closed"), "what is over comes last"
    for n in range(9):
        live.events.write("engine_starting", engine=f"e{n}", point="p", of_kind=f"kind {n}")
    assert "... and 7 more" in live.drawn() and len(live.drawn()) <= 25


def test_labels_are_shown_and_not_obeyed(live: Watched) -> None:
    live.begin(points=1)
    live.events.write("block_begun", engine="e", point="p", label="[red]a\x1b[2J[/red]", block=0, of=1)
    live.done("[bold]b\x1b[2J", "failed", reason="[link=x]c\x07")
    text = "\n".join(live.drawn())
    assert "\x1b" not in text and "\x07" not in text
    assert "[red]a\ufffd[2J[/red]" in text and "[bold]b\ufffd[2J" in text and "[link=x]c\ufffd" in text


def test_a_calibration_says_how_far_it_is(live: Watched) -> None:
    live.begin(points=1)
    live.events.write("calibration_begun", engine="e", calibration="c", label="pick")
    assert "calibrating ..." in live.drawn()
    live.folder.progress.write_text(json.dumps({"done": 25, "total": 100}))
    assert any(line.startswith("calibrating: 25 % of the changes, ETA ") for line in live.drawn())
    live.folder.progress.write_text("{")
    assert "calibrating ..." in live.drawn()


def test_a_calibration_in_blocks_is_one_line_however_many_engines_share_it(live: Watched) -> None:
    live.begin(points=1)
    for engine, what in (("e", "limits math, layers 0 to 7"), ("f", "limits math, layers 8 to 15")):
        live.events.write(
            "calibration_begun", engine=engine, calibration="c", label="pick", what=what, done=10.0, expected=100.0
        )
    live.folder.progress.write_text(json.dumps({"done": 99, "total": 100}))  # of an engine that made one in one call
    lines = live.drawn()
    assert sum(line.startswith("calibrat") and "layers" in line for line in lines) == 2
    assert "calibrating: 10 % of the changes, ETA -" in lines
    live.events.write(
        "calibration_done", engine="f", calibration="c", seconds=1.0, what=what, done=55.0, expected=100.0
    )
    assert any(line.startswith("calibrating: 55 % of the changes, ETA ") for line in live.drawn())
    told: dict[str, Any] = {"engine": "e", "calibration": "c", "what": "adding up", "done": 100.0, "expected": 100.0}
    live.events.write("calibration_begun", label="pick", **told)
    live.events.write("calibration_done", seconds=1.0, **told)
    assert not any("calibrating" in line for line in live.drawn())


def test_events_and_drawing_do_not_wait_for_each_other(live: Watched) -> None:
    """The table is drawn from a thread of its own, and notes are printed above it: neither may hold the other."""

    def work() -> None:
        live.begin(points=1000)
        for n in range(1000):
            live.events.write("block_begun", engine=f"e{n % 8}", point=f"p{n}", label=f"l{n}", block=0, of=1)
            live.events.write("note", text=f"note {n}")

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    for _ in range(50):
        live.display._live.refresh()  # type: ignore[union-attr]
    worker.join(30)
    assert not worker.is_alive()
    assert "note 999" in live.output.getvalue()


# ------------------------------------------------------------ phases; the clock is fed

BEGIN = datetime(2026, 11, 27, 10, 0, tzinfo=UTC)


def happens(watched: Watched, second: float, kind: str, **fields: JSON) -> None:
    """An event at a time of ours."""
    every = {name: fields.get(name) for name in KINDS[kind]}
    watched.display(Event(BEGIN + timedelta(seconds=second), kind, every))


def looks(watched: Watched, *seconds: float) -> list[str]:
    """What is printed by looks at these times."""
    before = len(watched.output.getvalue())
    for second in seconds:
        watched.display.tick(BEGIN + timedelta(seconds=second))
    return watched.output.getvalue()[before:].splitlines()


def test_a_pipe_is_told_what_engines_do_when_it_changes_and_not_too_often(piped: Watched) -> None:
    assert looks(piped, 0) == [], "nothing was begun"
    happens(piped, 0, "run_begun", command="c", host="h", pid=1, points=3, expected=3.0, estimated_seconds=200.0)
    assert looks(piped, 1) == []
    happens(piped, 2, "engine_starting", engine="e", point="p")
    assert looks(piped, 3, 4, 100) == ["  0:03 loading the engine  (ETA 197 s)"], "none while nothing changes"
    happens(piped, 110, "engine_ready", engine="e", seconds=1.0, host="n", pid=2, layers=4)
    happens(piped, 110, "calibration_begun", engine="e", calibration="c", label="pick boost=1")
    assert looks(piped, 111, 112) == ["  1:51 calibrating for pick boost=1  (ETA 89 s)"]
    piped.folder.progress.write_text(json.dumps({"done": 1, "total": 4, "of": "math, layer 3 of 4"}))
    assert looks(piped, 113, 140) == [], "30 s have not gone by"
    assert looks(piped, 141, 150) == ["  2:21 calibrating math, layer 3 of 4  (ETA 59 s)"]
    happens(piped, 160, "calibration_done", engine="e", calibration="c", seconds=50.0)
    happens(piped, 160, "note", text="calibrated in 50.0 s")
    happens(piped, 160, "point_begun", engine="e", point="p", label="none")
    assert looks(piped, 189) == [], "the note was a line, too"
    assert looks(piped, 190, 3700) == ["  3:10 asking stock  (ETA 10 s)"]
    happens(piped, 3701, "engine_closed", engine="e")
    happens(piped, 3701, "run_ended", code=0, seconds=3701.0, left=0)
    assert looks(piped, 4000) == []


def test_many_engines_are_one_line(piped: Watched) -> None:
    happens(piped, 0, "run_begun", command="c", host="h", pid=1, points=9, expected=9.0)
    for n, block in enumerate((0, 0, 0, 1, 1, 2)):
        happens(piped, 1, "block_begun", engine=f"e{n}", point="p", label="none", block=block, of=8)
    assert looks(piped, 3661) == [
        "  1:01:01 asking stock, block 1 of 8 (x3); asking stock, block 2 of 8 (x2); 1 more engines at work  (ETA -)"
    ]


def test_an_engine_that_waits_is_said_to(piped: Watched) -> None:
    happens(piped, 0, "run_begun", command="c", host="h", pid=1, points=9, expected=9.0)
    happens(piped, 1, "engine_waits", engine="e", reason="there is no room for it yet")
    assert looks(piped, 5) == ["  0:05 waiting for room  (ETA -)"]


def test_a_long_line_in_a_pipe_is_one_line(tmp_path: Path) -> None:
    watched = Watched(tmp_path, terminal=False)
    watched.done("pick offsets=" + "x" * 300, "failed", reason="y" * 300)
    assert len(watched.output.getvalue().splitlines()) == 1


def test_a_pipe_is_looked_at_by_itself_and_left_alone_after(tmp_path: Path) -> None:
    watched = Watched(tmp_path, terminal=False)
    display = Display(watched.display._console, progress_file=watched.folder.progress, tick_seconds=0.01)
    events = Events(watched.folder, [display])
    with display:
        events.write("run_begun", command="c", host="h", pid=1, points=1, expected=1.0, cluster="inline")
        events.write("engine_starting", engine="e", point="p")
        deadline = time.monotonic() + 60
        while "loading the engine" not in watched.output.getvalue():
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert not any(thread.name == "phases" for thread in threading.enumerate())


def test_the_table_names_the_phases_too(live: Watched) -> None:
    live.begin(points=2)
    live.events.write("engine_starting", engine="e", point="p")
    assert any(line.startswith("loading the engine  0:0") for line in live.drawn())
    live.events.write("calibration_begun", engine="e", calibration="c", label="pick")
    live.folder.progress.write_text(json.dumps({"done": 1, "total": 4, "of": "gain of math, layers 1 to 4 of 4"}))
    assert any(line.startswith("calibrating gain of math, layers 1 to 4 of 4  0:0") for line in live.drawn())
    live.events.write("point_begun", engine="e", point="p", label="none")
    assert any(line.startswith("asking stock  0:0") for line in live.drawn())
