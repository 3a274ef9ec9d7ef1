"""Two drivers of one run: the second is refused before it touches anything."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from banpick_exp.cluster.plan import plan_run
from banpick_exp.cluster.run import run_sweep
from banpick_exp.errors import UserError
from banpick_exp.report.run import require_run
from banpick_exp.run_lock import held

TYPED = ["policy=fixed_k", "policy.k=4", "task.max_problems=4", "tracking=none", "cluster=inline"]


def test_the_second_driver_changes_nothing(tmp_path: Path) -> None:
    plan = plan_run([*TYPED, f"output_dir={tmp_path}"])
    plan.folder.write_manifest(plan.sweep.manifest())
    plan.folder.points.mkdir()
    half = plan.folder.record_path("abc")
    half.write_text("{")
    with held(plan.folder):
        before = sorted(plan.folder.path.rglob("*"))
        with pytest.raises(UserError, match=rf"is computed by process .*resume={plan.folder.path.name}"):
            run_sweep(plan)
        assert sorted(plan.folder.path.rglob("*")) == before
        with pytest.raises(UserError, match="none is done"):
            require_run(str(plan.folder.path))  # reading asks for no lock


def test_an_end_in_words_gives_the_run_back(tmp_path: Path) -> None:
    plan = plan_run([*TYPED, "cluster.engines=2", f"output_dir={tmp_path}"])
    plan.folder.write_manifest(plan.sweep.manifest())
    with pytest.raises(UserError, match=r"cluster\.engines=2 do not fit"):
        run_sweep(plan)
    assert not plan.folder.lock.exists()


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_a_job_that_is_ended_gives_the_run_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sign: signal.Signals
) -> None:
    """Else its requeue on another machine would be refused until the lock is stale."""
    plan = plan_run([*TYPED, f"output_dir={tmp_path}"])
    plan.folder.write_manifest(plan.sweep.manifest())

    def ended(_: object) -> None:
        assert plan.folder.lock.exists()
        os.kill(os.getpid(), sign)
        time.sleep(5)

    monkeypatch.setattr("banpick_exp.cluster.run.backend_of", ended)
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        with pytest.raises(KeyboardInterrupt):
            run_sweep(plan)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert not plan.folder.lock.exists()
