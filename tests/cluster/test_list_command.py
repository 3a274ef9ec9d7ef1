"""`list`: what lies in an output folder, from its small files alone, whatever else is there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.text import Text
from synthetic_run import SyntheticRun, ladder, pick_strength

from banpick_exp.__main__ import main
from banpick_exp.cluster.commands.list import lines
from banpick_exp.cluster.events import Events, read
from banpick_exp.cluster.outputs import TAIL_BYTES, age_words, listing
from banpick_exp.cluster.state import fold
from banpick_exp.manifest import Manifest
from banpick_exp.report.files import write_tables
from banpick_exp.report.run import read_run
from banpick_exp.run_folder import RunFolder
from banpick_exp.run_lock import held

ROOT = Path(__file__).resolve().parents[2]


def begun(points: int) -> dict[str, Any]:
    return {"command": "c", "host": "node7", "pid": 1, "points": points, "expected": float(points), "cluster": "inline"}


def small() -> SyntheticRun:
    return ladder(SyntheticRun(problems=20), ks=(6, 4))


def a_run(folder: Path, synthetic: SyntheticRun | None = None, *, ended: bool = True, report: bool = True) -> RunFolder:
    """A run that is over; `ended`: its driver said so."""
    run = RunFolder(folder)
    run.write_manifest(Manifest(sweep=folder.parent.name))
    (synthetic or small()).write(folder)
    events = Events(run)
    events.write("run_begun", **begun(len(run.record_files())))
    events.write("progress", done=float(len(run.record_files())), expected=float(len(run.record_files())))
    if ended:
        events.write("run_ended", code=0, seconds=1.0, left=0)
    events.close()
    if report:
        write_tables(read_run(run))
    return run


def age(folder: RunFolder, seconds: float) -> None:
    """As if all of it was written earlier."""
    for path in [*folder.path.iterdir(), folder.path]:
        then = path.stat().st_mtime - seconds
        os.utime(path, (then, then))


def listed(folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["list", str(folder), "--json"]) == 0
    plain: dict[str, Any] = json.loads(capsys.readouterr().out)
    return {run["run"]: run for run in plain["runs"]} | {"others": plain["others"]}


def test_each_run_with_state_points_and_verdict_the_newest_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gain = pick_strength(ladder(SyntheticRun(problems=300)), gain=0.12)
    gain.add("pick", {"boost": 8}, status="failed", reason="no memory")
    first = a_run(tmp_path / "pick_strength" / "first", gain)
    second = a_run(tmp_path / "ladder" / "second", ended=False)
    age(first, 3 * 86400)
    age(second, 7200)
    a_run(tmp_path / "ladder" / "third", report=False)
    assert main(["list", str(tmp_path)]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["run", "state", "points", "age", "verdict"]
    assert [line.split()[0] for line in lines] == ["ladder/third", "ladder/second", "pick_strength/first"]
    assert (
        "ended" in lines[0]
        and "3/3" in lines[0]
        and f"python -m banpick_exp report {tmp_path}/ladder/third" in lines[0]
    )
    assert "gone, was on node7" in lines[1] and " 2 h " in lines[1]
    assert lines[2].endswith(f"24/24, 1 failed  3 d  {read_run(first).headline}"), "a pipe cuts nothing"


@pytest.mark.parametrize(("width", "beside"), [(160, True), (80, False)])
def test_a_terminal_cuts_the_end_of_a_verdict_alone(width: int, beside: bool, tmp_path: Path) -> None:
    run = a_run(tmp_path / "pick_strength" / "20261122-101500", pick_strength(ladder(SyntheticRun(problems=60))))
    head, *found = [Text.from_markup(line).plain for line in lines(listing(tmp_path).runs, width)]
    assert len(found) == (1 if beside else 2) and all(len(line) <= width for line in (head, *found))
    assert "pick_strength/20261122-101500  ended  23/23" in found[0]
    verdict = found[-1].rpartition("  ")[2]
    assert read_run(run).headline.startswith(verdict.removesuffix("…")) and len(verdict) >= 40


def test_a_run_at_work_says_where_and_how_far(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = a_run(tmp_path / "s" / "r")
    events = Events(run)
    with held(run):
        assert listed(tmp_path, capsys)["s/r"]["phase"] == "starting", "a driver that wrote nothing yet"
        events.write("run_begun", **begun(5))
        events.write("progress", done=1.5, expected=5.0)
        found = listed(tmp_path, capsys)["s/r"]
        assert found["phase"] == "running" and found["points"]["planned"] == 3 + 4
        events.write("stop_asked", by="me")
        assert listed(tmp_path, capsys)["s/r"]["phase"] == "stopping"
    events.write("run_ended", code=1, seconds=2.0, left=4)
    found = listed(tmp_path, capsys)["s/r"]
    assert (found["phase"], found["code"], found["points"]["planned"]) == ("stopped", 1, 7)


def test_the_end_of_the_events_says_what_all_of_them_say(tmp_path: Path) -> None:
    run = a_run(tmp_path / "s" / "r", ended=False)
    events = Events(run)
    while run.events.stat().st_size < 2 * TAIL_BYTES:
        events.write("note", text="x" * 1000)
    assert listing(tmp_path).runs[0].planned is None, "nothing in the end tells"
    events.write("progress", done=3.0, expected=9.0)
    events.write("run_ended", code=0, seconds=1.0, left=6)
    events.close()
    (found,) = listing(tmp_path).runs
    whole = fold(read(run).events, alive=False)
    assert found.phase == whole.phase == "stopped" and found.planned == found.recorded + whole.left == 9


def test_a_verdict_of_fewer_points_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = a_run(tmp_path / "s" / "r")
    assert listed(tmp_path, capsys)["s/r"]["verdict_tells_all"]
    more = SyntheticRun(problems=20)
    more.add("pick", {"boost": 1})
    more.write(run.path)
    assert not listed(tmp_path, capsys)["s/r"]["verdict_tells_all"]
    assert main(["list", str(tmp_path)]) == 0
    assert "at its last report: No verdict" in capsys.readouterr().out


def test_what_is_half_written_damaged_or_foreign_is_told_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half = a_run(tmp_path / "s" / "half")
    (half.path / "run.json").unlink()
    damaged = a_run(tmp_path / "s" / "damaged")
    (damaged.path / "run.json").write_text((damaged.path / "run.json").read_text()[:40])
    cut = a_run(tmp_path / "s" / "cut")
    for name in ("found.json", "events.jsonl", "points.parquet"):
        (cut.path / name).write_bytes(b"\xff{")
    RunFolder(tmp_path / "s" / "new").write_manifest(Manifest(sweep="s"))
    for name in ("calibrations", "photos", "photos/one"):
        (tmp_path / name).mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    found = listed(tmp_path, capsys)
    assert {name: run["phase"] for name, run in found.items() if name != "others"} == {
        "s/half": "half-written", "s/damaged": "damaged", "s/cut": "no events", "s/new": "not begun",
    }  # fmt: skip
    assert "nobody can say which sweep" in found["s/half"]["reason"] and "is damaged" in found["s/damaged"]["reason"]
    assert [(Path(each["folder"]).name, each["reason"]) for each in found["others"]] == [("photos", "holds no run")]
    assert main(["list", str(tmp_path)]) == 0
    assert "No runs: photos holds no run." in capsys.readouterr().out


def test_one_sweeps_folder_and_the_words_of_other_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a_run(tmp_path / "s" / "r")
    assert list(listed(tmp_path / "s", capsys)) == ["s/r", "others"]
    assert main(["list", f"output_dir={tmp_path}"]) == 0
    assert "s/r" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "nowhere is no folder, so there are no runs to list"),
        (["s/r"], "is one run"),
        (["s", "t"], "t: too many words"),
    ],
)
def test_what_cannot_be_listed(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    RunFolder(tmp_path / "s" / "r").write_manifest(Manifest(sweep="s"))
    monkeypatch.chdir(tmp_path)
    assert main(["list", *words]) == 2
    assert said in capsys.readouterr().err


def test_an_empty_folder_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", str(tmp_path)]) == 0
    assert f"There is no run in {tmp_path} yet." in capsys.readouterr().out


def test_hundreds_are_listed_without_a_record_and_without_polars(tmp_path: Path) -> None:
    run = a_run(tmp_path / "s" / "0")
    for path in run.points.iterdir():
        path.write_bytes(b"whoever reads this fails")
    for number in range(1, 200):
        shutil.copytree(run.path, tmp_path / "s" / str(number))
    code = (
        "import sys\nfrom banpick_exp.__main__ import main\n"
        f"assert main(['list', {str(tmp_path)!r}]) == 0\n"
        "print('loaded:', [name for name in ('polars', 'torch', 'ray', 'vllm', 'numpy') if name in sys.modules])"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment)
    lines = done.stdout.splitlines()
    assert len(lines) == 1 + 200 + 1 and lines[-1] == "loaded: []", done.stderr
    assert all("No verdict" in line for line in lines[1:-1])


def test_an_age_in_words() -> None:
    assert [age_words(seconds) for seconds in (5, 119, 120, 7199, 7200, 200_000)] == [
        "5 s", "119 s", "2 min", "120 min", "2 h", "2 d",
    ]  # fmt: skip
