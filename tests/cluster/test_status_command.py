"""`status` and `logs`: a run looked at from outside, while its driver lives and after."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from banpick_exp.cluster.commands import logs, status
from banpick_exp.cluster.events import JSON, Events
from banpick_exp.errors import UserError
from banpick_exp.manifest import Manifest
from banpick_exp.run_folder import RunFolder
from banpick_exp.run_lock import held

ROOT = Path(__file__).resolve().parents[2]
COMMAND = "python -m banpick_exp policy=pick"


def made(path: Path) -> RunFolder:
    folder = RunFolder(path)
    folder.write_manifest(Manifest(sweep=path.parent.name, command=COMMAND))
    return folder


def begin(events: Events, points: int = 3, pid: int | None = None) -> None:
    fields: dict[str, JSON] = {
        "host": socket.gethostname(),
        "pid": os.getpid() if pid is None else pid,
        "cluster": "inline",
    }
    events.write("run_begun", command=COMMAND, points=points, expected=float(points), **fields)
    events.write("engine_ready", engine="engine-x-0", seconds=1.5, host="node2", pid=9, layers=4)
    events.write("block_begun", engine="engine-x-0", point="a", label="pick boost=1", block=0, of=2)


def done(events: Events, point: str, status: str = "done", reason: str | None = None) -> None:
    numbers = {} if status == "failed" else {"accuracy": 0.5, "kept": 4.0}
    events.write("point_done", point=point, label=f"pick {point}", status=status, reason=reason, **numbers)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return made(tmp_path / "pick" / "run1")


@pytest.fixture
def at_work(folder: RunFolder) -> Iterator[Events]:
    """The events of a run whose driver is this process."""
    with held(folder):
        events = Events(folder)
        begin(events)
        yield events


def as_json(folder: RunFolder, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    code = status.run([str(folder.path), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_a_run_at_work_in_words(folder: RunFolder, at_work: Events, capsys: pytest.CaptureFixture[str]) -> None:
    done(at_work, "b")
    assert status.run([str(folder.path)]) == 0
    told = capsys.readouterr().out
    assert told.startswith(f"pick/run1: running for 0 s, process {os.getpid()} on {socket.gethostname()}\n")
    assert "points 1 done, 2 left of 3; 0 blocks answered" in told
    assert re.search(r"engine-x-0 +node2 \(9\) +block 1 of 2 +\d+ s +1\.5 s +0 +\d+ %", told), told
    assert "To go on" not in told


def test_engines_of_several_kinds_say_of_which(
    folder: RunFolder, at_work: Events, capsys: pytest.CaptureFixture[str]
) -> None:
    at_work.write("engine_starting", engine="engine-x-0", point="a", of_kind="tiny engine.max_num_seqs=8")
    at_work.write("engine_waits", engine="engine-y-0", reason="there is no room for it yet", of_kind="tiny_control")
    assert status.run([str(folder.path)]) == 0
    told = capsys.readouterr().out
    assert (
        "engines 1 (tiny engine.max_num_seqs=8): 1 starting" in told and "engines 1 (tiny_control): 1 waiting" in told
    )
    assert re.search(r"engine +of +where +state", told), told
    assert re.search(r"engine-y-0 +tiny_control +- +waiting: there is no room for it yet", told), told
    _, found = as_json(folder, capsys)
    assert [engine["of_kind"] for engine in found["engines"]] == ["tiny engine.max_num_seqs=8", "tiny_control"]


def test_what_failed_is_told_with_its_reason(
    folder: RunFolder, at_work: Events, capsys: pytest.CaptureFixture[str]
) -> None:
    for n in range(10):
        done(at_work, f"p{n}", "failed", f"out of memory {n} [x]")
    assert status.run([str(folder.path)]) == 1
    told = capsys.readouterr().out
    assert "failed: pick p0: out of memory 0 [x]" in told and "failed: pick p8" not in told and "... and 2 more" in told


def test_json(folder: RunFolder, at_work: Events, capsys: pytest.CaptureFixture[str]) -> None:
    done(at_work, "b")
    done(at_work, "c", "failed", "out of memory")
    code, found = as_json(folder, capsys)
    assert code == 1 and found["fine"] is False
    assert list(found) == [
        "schema", "run", "folder", "phase", "fine", "driver", "command", "resume", "begun", "updated", "ended", "code",
        "seconds", "eta_seconds", "stop_asked_by", "points", "work", "calibrations", "blocks", "engines", "failed",
        "recent", "notes",
    ]  # fmt: skip
    assert (found["schema"], found["run"], found["folder"], found["phase"]) == (
        1,
        "pick/run1",
        str(folder.path),
        "running",
    )
    assert found["points"] == {"done": 1, "invalid": 0, "dropped": 0, "failed": 1, "left": 1, "total": 3}
    assert found["driver"]["pid"] == os.getpid() and found["driver"]["host"] == socket.gethostname()
    (engine,) = found["engines"]
    assert list(engine) == [
        "name", "of_kind", "phase", "since", "reason", "host", "pid", "load_seconds", "layers", "job", "blocks", "busy",
    ]  # fmt: skip
    assert list(engine["job"]) == ["kind", "label", "since", "point", "block", "of", "what"]
    assert engine["job"]["kind"] == "block" and engine["job"]["since"] == engine["since"]
    (failed,) = found["failed"]
    assert list(failed) == ["time", "point", "label", "status", "reason", "accuracy", "delta", "speedup", "kept"]
    assert failed["reason"] == "out of memory" and found["recent"][0]["accuracy"] == 0.5
    assert found["resume"] == f"{COMMAND} 'resume=\"{folder.path}\"'"


def test_the_keys_of_json_are_documented(
    folder: RunFolder, at_work: Events, capsys: pytest.CaptureFixture[str]
) -> None:
    done(at_work, "c", "failed", "out of memory")
    at_work.write("note", text="a")
    _, found = as_json(folder, capsys)
    keys = {*found, *found["engines"][0], *found["engines"][0]["job"], *found["failed"][0], *found["points"]}
    page = (ROOT / "docs" / "running.md").read_text(encoding="utf-8")
    assert [key for key in sorted(keys) if f"`{key}`" not in page] == []


def test_a_driver_that_is_gone(folder: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    """Really: the process that holds the run is killed."""
    code = (
        "import sys, time, pathlib\n"
        "sys.path[:0] = sys.argv[2:]\n"
        "from test_status_command import Events, RunFolder, begin, held\n"
        "folder = RunFolder(pathlib.Path(sys.argv[1]))\n"
        "with held(folder):\n"
        "    begin(Events(folder))\n"
        "    print('begun', flush=True)\n"
        "    time.sleep(60)\n"
    )
    paths = [str(Path(__file__).parent), str(ROOT)]
    driver = subprocess.Popen([sys.executable, "-c", code, folder.path, *paths], stdout=subprocess.PIPE, text=True)
    try:
        assert driver.stdout is not None and driver.stdout.readline() == "begun\n"
        assert as_json(folder, capsys)[1]["phase"] == "running"
    finally:
        os.kill(driver.pid, signal.SIGKILL)
        driver.communicate()
    exit_code, found = as_json(folder, capsys)
    assert (exit_code, found["phase"], found["driver"], found["points"]["left"]) == (1, "gone", None, 3)
    assert status.run([str(folder.path), "--watch"]) == 1, "nothing is waited for"
    told = capsys.readouterr().out
    assert f"process {driver.pid} on {socket.gethostname()} is gone without a word" in told
    assert f"To go on: {COMMAND} 'resume=\"{folder.path}\"'" in told


def test_a_driver_that_has_said_nothing_yet(folder: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert as_json(folder, capsys)[1]["phase"] == "not begun"
    events = Events(folder)
    begin(events, pid=1)
    events.write("run_ended", code=0, seconds=1.0, left=3)
    assert as_json(folder, capsys)[1]["phase"] == "stopped"
    with held(folder):
        found = as_json(folder, capsys)[1]
        assert (found["phase"], found["driver"]["pid"]) == ("starting", os.getpid())
        assert status.run([str(folder.path)]) == 0
        assert f"process {os.getpid()} on {socket.gethostname()} is starting" in capsys.readouterr().out
        begin(events)
        assert as_json(folder, capsys)[1]["phase"] == "running"


def test_watch_follows_to_the_end(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(status, "WATCH_SECONDS", 0.02)
    begun = threading.Event()

    def driver() -> None:
        with held(folder):
            events = Events(folder)
            begin(events)
            begun.set()
            for point in ("a", "b", "c"):
                time.sleep(0.3)
                done(events, point)
            events.write("run_ended", code=0, seconds=1.0, left=0)

    thread = threading.Thread(target=driver)
    thread.start()
    begun.wait(10)
    assert status.run([str(folder.path), "--watch"]) == 0
    thread.join()
    told = capsys.readouterr().out.splitlines()
    counted = [line.partition(";")[0] for line in told[:3]]
    assert counted == ["3 left of 3", "1 done, 2 left of 3", "2 done, 1 left of 3"]
    assert any(line.startswith("pick/run1: ended after ") for line in told)


def test_which_run_is_meant(
    tmp_path: Path, folder: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    newer = made(tmp_path / "ban" / "run2")
    begin(Events(newer), pid=1)
    begin(Events(folder), pid=1)  # begun before, at work since
    for path, when in ((folder.path / "run.json", 1), (newer.path / "run.json", 2), (newer.events, 2)):
        os.utime(path, (when, when))
    output = f"output_dir={tmp_path}"

    def named(*words: str) -> str:
        status.run([*words, "--json"])
        return str(json.loads(capsys.readouterr().out)["run"])

    assert named(output) == "pick/run1"
    assert named("ban/run2", output) == named(output, "run2") == named(str(newer.path)) == "ban/run2"
    monkeypatch.chdir(tmp_path)
    assert named("ban/run2", "output_dir=.") == named("ban/run2/") == "ban/run2"
    with pytest.raises(UserError, match=r"There is no run below outputs\. Type output_dir=FOLDER"):
        status.run([])
    (tmp_path / "outputs").symlink_to(tmp_path)
    assert named() == "pick/run1"
    with pytest.raises(UserError, match=r"pick/run7 is no run: nothing was done\. Did you mean pick/run1\? "):
        status.run(["pick/run7", output])
    with pytest.raises(UserError, match=r"ban is no run, but runs have that name: .*Type one of these: ban/run2\."):
        status.run(["ban", output])
    made(tmp_path / "ban" / "run1")
    with pytest.raises(
        UserError, match=r"run1 is no run, but runs have that name: .*(pick/run1, ban/run1|ban/run1, pick/run1)\."
    ):
        status.run(["run1", output])
    for words in (["a", "b"], ["--watch", "--json"], ["--color"], ["x" * 5000]):
        with pytest.raises(UserError):
            status.run([*words, output])


def test_a_line_from_the_shell(folder: RunFolder, at_work: Events) -> None:
    """As it is typed, in a process of its own that loads none of what engines and reports need."""
    code = (
        "import sys\n"
        "from banpick_exp.cli.main import run\n"
        "code = run(sys.argv[1:])\n"
        "heavy = ('torch', 'vllm', 'ray', 'wandb', 'transformers', 'datasets', 'polars', 'matplotlib')\n"
        "print('loaded:', [name for name in heavy if name in sys.modules], 'code:', code)\n"
    )
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    done(at_work, "c", "invalid", "it replayed stock")
    told = subprocess.run(
        [sys.executable, "-c", code, "status", folder.path],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": paths},
    )
    assert told.stdout.endswith("loaded: [] code: 1\n"), told.stdout + told.stderr
    assert "invalid: pick c: it replayed stock" in told.stdout


# ------------------------------------------------------------ logs


@pytest.fixture
def logged(folder: RunFolder) -> RunFolder:
    folder.engine_log.write_bytes(b"in the driver\n")
    folder.logs.mkdir()
    folder.log_path("engine-x-0").write_bytes(b"\x1b[32mgreen\x1b[0m\nloading 1%\rloading 100%\r\nbell\x07\n\xff\n")
    folder.log_path("engine-x-1").write_bytes(b"".join(b"line %d\n" % n for n in range(100)))
    return folder


def test_logs_of_one_engine_and_of_all(logged: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert logs.run([str(logged.path), "engine-x-0"]) == 0
    one = "green\nloading 100%\nbell\ufffd\n\ufffd\n"
    assert capsys.readouterr().out == one
    assert logs.run([str(logged.path), "-1", "--tail", "2"]) == 0
    assert capsys.readouterr().out == "line 98\nline 99\n"
    assert logs.run(["--tail", "1", str(logged.path)]) == 0
    told = capsys.readouterr().out
    assert told == "==> driver <==\nin the driver\n==> engine-x-0 <==\n\ufffd\n==> engine-x-1 <==\nline 99\n"
    assert logs.run([str(logged.path), "--files", "driver"]) == 0
    assert capsys.readouterr().out == f"{logged.engine_log}\n"


def test_an_engine_is_a_name_and_no_path(logged: RunFolder) -> None:
    (logged.path / "secret.log").write_text("x")
    for engine in ("../secret", str(logged.path / "secret"), "engine-y"):
        with pytest.raises(UserError, match=r"Type one of these: driver, engine-x-0, engine-x-1\."):
            logs.run([str(logged.path), engine])


def test_no_log_yet(folder: RunFolder) -> None:
    for words in ([], ["engine-x-0"]):
        with pytest.raises(UserError, match="has no log of an engine"):
            logs.run([str(folder.path), *words])
    with pytest.raises(UserError, match="tail"):
        logs.run([str(folder.path), "--tail", "x"])
