"""The end of a run whose report cannot be written, or whose records were damaged meanwhile."""

from __future__ import annotations

import errno
import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console
from synthetic_run import SyntheticRun, ladder

from banpick_exp.cluster.summary import Totals, finish
from banpick_exp.report.run import read_run
from banpick_exp.report.tracking.found import FoundOut
from banpick_exp.run_folder import RunFolder

NOTHING = Totals(seconds=1, engine_loads=0, engine_slots=0, engine_load_seconds=0, points_computed=0)


class FakeTracker:
    def finish(self, summary: dict[str, object], artifacts: list[tuple[str, str, Path]], found: FoundOut) -> list[str]:
        return []

    def to_publish(self) -> list[str]:
        return ["W&B: type wandb sync"]


def ended(folder: RunFolder, left: str = "") -> tuple[int, str]:
    """The exit code, and what is printed."""
    output = io.StringIO()
    plan = SimpleNamespace(folder=folder, sweep=SimpleNamespace(calibrations=dict))
    code = finish(cast(Any, plan), cast(Any, FakeTracker()), Console(file=output, width=200), NOTHING, left)
    return code, output.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(ladder(SyntheticRun(problems=12), ks=(4,)).write(tmp_path / "pick" / "run"))


@pytest.mark.parametrize("at", ["run_folder.write_atomically", "report.figures.front.draw_front"])
def test_a_full_disk_costs_the_report_and_no_point(folder: RunFolder, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(f"banpick_exp.{at}", full)
        code, printed = ended(folder)
    assert code == 1 and "2 done" in printed, "the front is told all the same"
    (sentence,) = [line for line in printed.splitlines() if "cannot be written" in line]
    assert "No space left on device" in sentence and "the points are whole" in sentence
    assert sentence.endswith(f"python -m banpick_exp report {folder.path}")
    assert len(folder.load_points()[0]) == 2
    code, printed = ended(folder)
    assert code == 0 and folder.report.is_file() and "cannot" not in printed


def test_what_was_damaged_meanwhile_is_told(folder: RunFolder) -> None:
    path = folder.record_files()[0]
    path.write_bytes(path.read_bytes()[:-20])
    _, printed = ended(folder)
    assert f"Left out: {path}: not readable as JSON" in printed and path.exists()


def test_the_verdict_is_the_last_that_is_said(tmp_path: Path) -> None:
    synthetic = ladder(SyntheticRun(problems=12), ks=(4,))
    synthetic.add("ban", {"lambda": 0.5}, kept=4.1, churn=0.1)
    folder = RunFolder(synthetic.write(tmp_path / "ban" / "run"))
    _, printed = ended(folder, left="7 point(s) are left without a record: it was late. " + "x" * 300)
    *before, last = printed.splitlines()
    assert last.startswith(read_run(folder).headline) and "keeps 4.10 experts a token" in last
    where = {
        word: n
        for n, line in enumerate(before)
        for word in ("Pareto table", "report.html", "wandb sync", "7 point(s)")
        if word in line
    }
    assert list(where) == sorted(where, key=lambda word: where[word]) and len(where) == 4
    assert before[where["7 point(s)"]].endswith("xxx"), "in a pipe it is one line"
