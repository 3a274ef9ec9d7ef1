"""Engines in this process (`cluster=inline`): a whole command, what does not fit, and a backend of a newcomer."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import pytest
from loaded_backend import Done, LoadedSlot

from banpick_exp.cluster.backends.base import Call, CallFailed, DoesNotFit
from banpick_exp.cluster.backends.inline import InlineBackend, InlineCall, stderr_in
from banpick_exp.cluster.backends.registry import BACKENDS, backend_of
from banpick_exp.cluster.config import ClusterConfig
from banpick_exp.cluster.plan import plan_run
from banpick_exp.cluster.run import run_sweep
from banpick_exp.engine.config import EngineConfig
from banpick_exp.errors import UserError
from banpick_exp.run_folder import RunFolder

if TYPE_CHECKING:
    from banpick_exp.engine.engine import Engine

TYPED = [
    "policy=fixed_k", "policy.k=4", "task.max_problems=4", "task.speed_seconds=0.1",
    "tracking=none", "cluster=inline",
]  # fmt: skip
ENTRY = "import sys; from banpick_exp.__main__ import main; sys.exit(main())"
TIMEOUT_SECONDS = 240


def only_run(folder: Path) -> RunFolder:
    (manifest,) = (folder / "custom").glob("*/run.json")
    return RunFolder(manifest.parent)


@pytest.mark.engine
def test_a_run_without_ray(tmp_path: Path) -> None:
    """The whole command in a process of its own, in which Ray cannot be imported."""
    entry = "import sys; sys.modules['ray'] = None; " + ENTRY
    command = [sys.executable, "-c", entry, *TYPED, f"output_dir={tmp_path}"]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=TIMEOUT_SECONDS, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout
    assert "2 done, 0 invalid, 0 failed" in done.stdout and "engine loads 1 for 1 engine slot(s)" in done.stdout
    assert "starting 1 engine(s)" in done.stdout and "Traceback" not in done.stdout
    assert "Warning" not in done.stdout and "Loading safetensors" not in done.stdout, "of libraries: in engine.log"
    assert "Loading safetensors" in only_run(tmp_path).engine_log.read_text()
    records, set_aside = only_run(tmp_path).load_points()
    assert set_aside == [] and {record.label: record.status for record in records} == {
        "none": "done",
        "fixed_k k=4": "done",
    }
    assert {record.label: record.mean_kept for record in records} == {"none": 8, "fixed_k k=4": 4}


def test_two_engines_do_not_fit_into_one_process(tmp_path: Path) -> None:
    with pytest.raises(DoesNotFit, match=r"cluster\.engines=2 do not fit cluster=inline.*Type cluster\.engines=1"):
        InlineBackend(ClusterConfig(backend="inline", engines=2)).reserve(["a", "b"], EngineConfig())
    plan = plan_run([*TYPED, "cluster.engines=2", f"output_dir={tmp_path}"])
    with pytest.raises(UserError, match=r"cluster\.engines=2 do not fit"):
        run_sweep(plan)
    assert plan.folder.record_files() == [], "refused before anything was asked"


def test_a_call_that_raises_keeps_its_trace() -> None:
    call = InlineCall(lambda: 1 // 0)
    call.run()
    with pytest.raises(CallFailed, match="ZeroDivisionError") as caught:
        call.result()
    assert caught.value.error == "ZeroDivisionError" and "Traceback" in caught.value.trace


def test_stderr_of_a_load_goes_into_the_log_and_comes_back(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Of the process itself and of those it starts; also after a load that failed."""
    log = tmp_path / "engine.log"
    for word in ("first", "second"):
        with contextlib.suppress(RuntimeError), stderr_in(log):
            os.write(2, f"{word}\n".encode())
            subprocess.run([sys.executable, "-c", "import sys; print('child', file=sys.stderr)"], check=True)
            raise RuntimeError
    os.write(2, b"ours\n")
    assert capfd.readouterr().err == "ours\n"
    assert log.read_text() == "first\nchild\nsecond\nchild\n"


# ------------------------------------------------------------ a newcomer's backend


class NotingBackend:
    """Places engines as `inline` does, one at a time, and notes which; the engine is one that runs already."""

    engine: ClassVar[Engine]
    placed: ClassVar[list[str]]
    done: ClassVar[list[Done]]

    def __init__(self, cluster: ClusterConfig) -> None:
        self._inner = InlineBackend(cluster)

    def connect(self, run_dir: str) -> None:
        self._inner.connect(run_dir)

    def room(self, engine: EngineConfig, weight_bytes: float) -> int:
        return 1

    def reserve(self, names: Sequence[str], engine: EngineConfig) -> list[LoadedSlot]:
        self.placed.extend(names)
        return [LoadedSlot(name, self.engine, self.done, 1000) for name in names]

    def check(self) -> None:
        self._inner.check()

    def wait(self, calls: Sequence[Call], seconds: float) -> list[Call]:
        return self._inner.wait(calls, seconds)

    def leave(self) -> str:
        return self._inner.leave()

    def close(self) -> None:
        self._inner.close()


@pytest.mark.engine
def test_a_backend_is_one_class_and_one_line(
    tiny_engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    placed: list[str] = []
    done: list[Done] = []
    for name, value in (("engine", tiny_engine), ("placed", placed), ("done", done)):
        monkeypatch.setattr(NotingBackend, name, value, raising=False)
    monkeypatch.setitem(BACKENDS, "noting", f"{__name__}:NotingBackend")
    plan = plan_run([*TYPED, "cluster.backend=noting", f"output_dir={tmp_path}"])
    assert isinstance(backend_of(plan.cluster), NotingBackend)
    plan.folder.write_manifest(plan.sweep.manifest())
    assert run_sweep(plan) == 0
    assert done == [("point", "none", 0), ("point", "fixed_k k=4", 0)]
    assert len(placed) == 1 and placed[0].startswith("engine-") and plan.folder.path.name in placed[0]
    assert [record.status for record in plan.folder.load_points()[0]] == ["done", "done"]


def test_a_backend_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cluster\.backend=rey is unknown.*Use one of ray, inline"):
        backend_of(ClusterConfig(backend="rey"))
