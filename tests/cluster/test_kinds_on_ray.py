"""Two kinds of real engines on real Ray: side by side where there is room, one after the other where there is not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from banpick_exp.cluster.events import Event, read
from banpick_exp.run_folder import RunFolder

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(3600)]

ROOT = Path(__file__).resolve().parents[2]
LIMIT_SECONDS = 1500
SWEEP = [
    "policy=fixed_k", "engine.max_num_seqs=choice(4,64)", "task.max_problems=20",
    "task.speed_seconds=1", "tracking=none", "cluster.engines=1",
]  # fmt: skip
MANY, POINTS = "policy.k=choice(2,3,4,5,6,7)", 14
"""Stock and six of fixed_k on each kind: enough that both are at work at a time."""
FEW, FEW_POINTS = "policy.k=choice(2,6)", 6
"""Where one waits for the other; some of the same points."""


def swept(folder: Path, *typed: str) -> tuple[RunFolder, str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}
    done = subprocess.run(
        [sys.executable, "-m", "banpick_exp", *SWEEP, *typed, f"output_dir={folder}"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT_SECONDS,
    )
    assert done.returncode == 0, done.stdout
    (found,) = (folder / "custom").glob("*/run.json")
    return RunFolder(found.parent), done.stdout


def answers(run: RunFolder, points: int = POINTS) -> dict[str, tuple[Any, ...]]:
    """By label: what was answered, and the experts that were kept."""
    records, left_out = run.load_points()
    assert left_out == [] and len(records) == points
    found = {}
    for record in records:
        rows = run.outcomes(record.fingerprint).select("problem_id", "correct", "completion").rows()
        found[record.label] = record.status, record.mean_kept, rows
    return found


class Story:
    """The events of a run, and where in it the engines of its two kinds stand; `first` is the one that began first."""

    def __init__(self, run: RunFolder) -> None:
        self.events = read(run).events
        engines = dict.fromkeys(
            e.fields["engine"] for e in self.events if e.kind in ("engine_waits", "engine_starting")
        )
        self.first, self.second = engines

    def at(self, engine: Any, what: str) -> list[int]:
        def is_it(event: Event) -> bool:
            return event.kind == what and event.fields.get("engine") == engine

        return [index for index, event in enumerate(self.events) if is_it(event)]


@pytest.fixture(scope="module")
def one_after_the_other(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """In one process, which holds one engine at a time."""
    run, output = swept(tmp_path_factory.mktemp("inline"), MANY, "cluster=inline")
    assert "engine loads 2 for 2 engine slot(s)" in output
    story = Story(run)
    assert story.at(story.first, "engine_closed")[0] < story.at(story.second, "engine_starting")[0]
    return run


def test_two_kinds_side_by_side_answer_as_one_after_the_other(one_after_the_other: RunFolder, tmp_path: Path) -> None:
    run, output = swept(tmp_path, MANY, "engine.cpus=1", "cluster.cpus=2")
    assert "engine loads 2 for 2 engine slot(s)" in output
    story = Story(run)
    last = {engine: story.at(engine, "point_begun")[-1] for engine in (story.first, story.second)}
    for engine, other in ((story.first, story.second), (story.second, story.first)):
        assert story.at(engine, "engine_ready")[0] < last[other], "both were at work at a time"
    over = min(last, key=lambda engine: story.at(engine, "engine_closed")[0])
    ends = [index for index, event in enumerate(story.events) if event.kind == "point_done"]
    assert story.at(over, "engine_closed")[0] < ends[-1], "what is over is closed while the other works"
    assert answers(run) == answers(one_after_the_other)


def test_two_kinds_of_which_one_fits_take_turns(one_after_the_other: RunFolder, tmp_path: Path) -> None:
    run, output = swept(tmp_path, FEW, "engine.cpus=2", "cluster.cpus=2")
    assert "engine loads 2 for 2 engine slot(s)" in output
    story = Story(run)
    assert story.at(story.first, "engine_closed")[0] < story.at(story.second, "engine_starting")[0]
    assert story.at(story.second, "engine_waits")[0] < story.at(story.first, "engine_closed")[0]
    few, many = answers(run, FEW_POINTS), answers(one_after_the_other)
    assert few == {label: many[label] for label in few} and len(few) == FEW_POINTS
