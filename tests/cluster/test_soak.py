"""Three hundred points on two engines that are killed every few seconds: every problem is answered exactly once."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from pathlib import Path

import pytest
from running_sweep import RunningSweep, assert_answered_once, assert_nothing_left, descendants, running

from banpick_exp.cluster.events import read

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(2400)]

POINTS, PROBLEMS = 300, 6
SWEEP = [
    "policy=top_p", "policy.p=range(0.300,0.896,0.002)", "task.max_problems=2", "task.speed_seconds=0",
    "cluster.engines=2", "cluster.dead_seconds=60", "search.ladder=none",
]  # fmt: skip
MOST_KILLS, FEWEST_KILLS, KILLING_SECONDS = 24, 6, 150
"""So that the test ends on a machine of any speed: an engine's start takes many times as long as what it gets done.
After so many seconds from the first point only the fewest are still made up."""
REST_SECONDS = (0.5, 5.0)
DEADLINE_SECONDS = 2300


def victims(sweep: RunningSweep) -> list[tuple[str, int]]:
    """Engines at work that have got something done since they were loaded: slot and pid."""
    ready: dict[str, int] = {}
    done: set[str] = set()
    at: dict[str, str] = {}
    for event in read(sweep.run).events:
        name = str(event.fields.get("engine"))
        if event.kind == "engine_ready":
            ready[name] = int(str(event.fields["pid"]))
            done.discard(name)
        elif event.kind == "engine_lost":
            ready.pop(name, None)
        elif event.kind == "point_begun":
            at[str(event.fields["point"])] = name
        elif event.kind == "point_done" and (by := at.get(str(event.fields["point"]))):
            done.add(by)
    return [(name, pid) for name, pid in ready.items() if name in done]


def test_engines_that_are_killed_all_the_time_cost_no_answer(tmp_path: Path) -> None:
    chance = random.Random(13)
    begin = time.monotonic()
    killed: list[int] = []
    with running(tmp_path, *SWEEP) as sweep:
        sweep.until_points(1)
        first = time.monotonic()
        while sweep.process.poll() is None and len(killed) < MOST_KILLS:
            if time.monotonic() - first > KILLING_SECONDS and len(killed) >= FEWEST_KILLS:
                break
            time.sleep(chance.uniform(*REST_SECONDS))
            living = [pid for _, pid in victims(sweep) if pid not in killed]
            if living:
                killed.append(chance.choice(living))
                with contextlib.suppress(ProcessLookupError):
                    os.kill(killed[-1], signal.SIGKILL)
            assert time.monotonic() - begin < DEADLINE_SECONDS, sweep.output
        below = descendants(sweep.process.pid)
        code = sweep.ends(DEADLINE_SECONDS - (time.monotonic() - begin))
        assert code == 0, sweep.output
        assert f"{POINTS} done, 0 invalid, 0 failed" in sweep.told
    assert len(killed) >= FEWEST_KILLS, "the machine was too fast to be disturbed"
    lost = [event for event in read(sweep.run).events if event.kind == "engine_lost"]
    assert FEWEST_KILLS <= len(lost) <= len(killed)
    assert_answered_once(sweep.run, POINTS, PROBLEMS)
    assert_nothing_left(tmp_path, below)
