"""What is raised on the fixed_k ladder is what it is there to show; stock's own alarms stand before the verdict."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console
from synthetic_run import SyntheticRun, ladder

from banpick_exp.report.run import Run, read_run
from banpick_exp.report.sentences import sentences
from banpick_exp.report.terminal import print_pareto
from banpick_exp.run_folder import RunFolder


def printed(run: Run, *, everything: bool = False) -> str:
    console = Console(file=io.StringIO(), width=400)
    print_pareto(run, console, everything=everything)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_ladders_own_falls_are_left_out_everywhere(tmp_path: Path) -> None:
    run = read_run(RunFolder(ladder(SyntheticRun(problems=800)).write(tmp_path / "s" / "r")))
    warned = run.guards.filter(run.guards["level"] == "warning")
    assert warned.height, "its lower end falls for sure"
    assert run.raised.height == 0
    shown = printed(run)
    assert "guard subtask_drop" not in shown and "none raised on" in shown
    assert not any("subtask_drop" in line for line in sentences(run))


def test_no_guard_was_raised_never_follows_what_was_raised(tmp_path: Path) -> None:
    synthetic = ladder(SyntheticRun(problems=800))
    synthetic.add("pick", {"boost": 2}, shift={"math": -0.3})
    shown = printed(read_run(RunFolder(synthetic.write(tmp_path / "s" / "r"))))
    assert "guard subtask_drop" in shown and "none raised" not in shown and "1 of 8 points" in shown


def test_noise_is_behind_all(tmp_path: Path) -> None:
    synthetic = SyntheticRun(problems=60)
    synthetic.add("none")
    synthetic.add("pick", {"boost": 2}, churn=0.3)
    run = read_run(RunFolder(synthetic.write(tmp_path / "s" / "r")))
    assert run.may_be_noise.height
    assert "may be noise: p =" not in printed(run) and "--all" in printed(run)
    assert "may be noise: p =" in printed(run, everything=True)
