"""Problems that kill or hang the process of a real engine on Ray, each to the end of its run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from banpick_exp.cluster.events import read
from banpick_exp.records import PointRecord
from banpick_exp.run_folder import RunFolder
from banpick_exp.tasks.config import TaskConfig
from banpick_exp.tasks.load import load_problems

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.engine, pytest.mark.timeout(3000)]
ROOT = Path(__file__).resolve().parents[2]
SWEEP = ["policy=fixed_k", "policy.k=choice(2,6)", "task.max_problems=20", "task.speed_seconds=0", "tracking=none"]
TASK = TaskConfig(name="tiny", domains=("math", "code", "knowledge"), max_problems=20)
PROBLEM = load_problems(TASK, "test", 20)["code"][11]


def swept(folder: Path, how: str, times: int, *typed: str) -> tuple[RunFolder, str, list[str]]:
    """A sweep to its end, in which one problem breaks engines: its folder, what it printed, and the pids that broke."""
    planted = {"prompts": [PROBLEM.prompt], "how": how, "times": times, "log": str(folder / "broken")}
    paths = [str(ROOT / "tests" / "support" / "planted"), str(ROOT), str(ROOT / "kernels")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "BANPICK_PLANTED": json.dumps(planted)}
    for attempt in range(5):
        output = folder / str(attempt)
        done = subprocess.run(
            [sys.executable, "-m", "banpick_exp", *SWEEP, *typed, f"output_dir={output}"],
            capture_output=True, text=True, cwd=folder, env=environment, timeout=2700,
        )  # fmt: skip
        if "timed out during startup" not in done.stderr:  # Ray gives a local cluster 30 s; this machine may be busy
            break
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = (output / "custom").glob("*/run.json")
    return RunFolder(run.parent), " ".join(done.stdout.split()), (folder / "broken").read_text().split()


def records_of(folder: RunFolder, problems: int) -> list[PointRecord]:
    records, left_out = folder.load_points()
    assert left_out == [] and [record.status for record in records] == ["done"] * 3
    for record in records:
        rows: list[Any] = folder.outcomes(record.fingerprint).select("domain", "problem_id").rows()
        assert len(rows) == len(set(rows)) == record.measured.overall.n_problems == problems
    return records


def lost(folder: RunFolder) -> list[str]:
    return [str(event.fields["reason"]) for event in read(folder).events if event.kind == "engine_lost"]


def test_a_problem_that_kills_its_engine_is_set_aside(tmp_path: Path) -> None:
    folder, told, broken = swept(tmp_path, "kill", 1000, "cluster.engines=1")
    assert len(set(broken)) == len(lost(folder)) == 3, "found under stock, and asked no more"
    for record in records_of(folder, 59):
        (failed,) = record.failed_problems
        assert (failed.domain, failed.problem_id) == (PROBLEM.domain, PROBLEM.problem_id)
        assert "Died" in failed.reason
    assert "3 done, 0 invalid, 0 failed" in told and "engine loads 4 for 1 engine slot(s)" in told
    assert "guard failed_problems none: 1 problem(s) are set aside" in told
    assert f"code {PROBLEM.problem_id}" in told


def test_a_call_that_never_returns_is_ended_at_its_deadline_though_its_process_lives(tmp_path: Path) -> None:
    """One engine hangs in its call and gives signs of life; another, or the next, answers the block."""
    folder, _, broken = swept(
        tmp_path, "hang", 1, "cluster.engines=2", "task.block_problems=20", "cluster.deadline_seconds=60"
    )
    assert len(broken) == 1
    assert any("no answer within" in reason and "it hangs" in reason for reason in lost(folder))
    assert not any("no sign of life" in reason for reason in lost(folder)), "it was alive all the time"
    assert not any(record.failed_problems for record in records_of(folder, 60))
    events = read(folder).events
    done = Counter((event.fields["point"], event.fields["block"]) for event in events if event.kind == "block_done")
    assert len(done) == 9 and set(done.values()) == {1}, "each block is answered once"
    with pytest.raises(ProcessLookupError):
        os.kill(int(broken[0]), 0)
