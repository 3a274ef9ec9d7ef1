"""Files of a run damaged in every way between two drivers, or refused by the disk under one: the next one repeats what
was damaged or lost, and nothing else.

On a real engine that runs already, so that a test takes seconds.
"""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from loaded_backend import LoadedBackend
from rich.console import Console

from banpick_exp.cluster.plan import RunPlan, plan_run
from banpick_exp.cluster.run import Run
from banpick_exp.disk import ASIDE
from banpick_exp.engine.engine import Engine
from banpick_exp.errors import UserError
from banpick_exp.manifest import MANIFEST
from banpick_exp.run_folder import RunFolder

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("no_pages")]

TYPED = [
    "policy=fixed_k", "policy.k=choice(2,6)", "task.max_problems=4", "task.block_problems=6", "task.speed_seconds=0",
    "tracking=none", "cluster=inline",
    "engine.policies_per_batch=1",  # so that a call is a block
]  # fmt: skip
BLOCKS = 2
LABELS = ("none", "fixed_k k=2", "fixed_k k=6")

Damage = Callable[[Path, Path], None]
"""Done to the first file; the second is another whole one of its kind."""


def truncated(path: Path, other: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path: Path, other: Path) -> None:
    path.write_bytes(b"")


def a_bit_flipped(path: Path, other: Path) -> None:
    """In a digit, so that it is the same JSON with another number; elsewhere in the middle."""
    data = bytearray(path.read_bytes())
    digits = [place for place in range(len(data) // 3, len(data)) if chr(data[place]) in "02468"]
    data[digits[0] if digits else len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def zeroed(path: Path, other: Path) -> None:
    """As some file systems leave it after a power cut: the length is right."""
    path.write_bytes(bytes(path.stat().st_size))


def of_another(path: Path, other: Path) -> None:
    shutil.copyfile(other, path)


DAMAGES: Iterable[Damage] = (truncated, emptied, a_bit_flipped, zeroed, of_another)


def planned(folder: Path, *typed: str) -> RunPlan:
    plan = plan_run([*TYPED, *typed, f"output_dir={folder}"])
    plan.folder.write_manifest(plan.sweep.manifest())
    return plan


def run(plan: RunPlan, engine: Engine, limit: int = 10**6) -> LoadedBackend:
    backend = LoadedBackend(engine, limit=limit)
    with (plan.folder.path / "told").open("a") as file:
        assert Run(plan, Console(file=file, width=200), backend).run() == 0
    return backend


def answers(folder: RunFolder) -> dict[str, list[tuple[object, ...]]]:
    points = folder.read_points()
    assert points.left_out == [] and [record.status for record in points.records] == ["done"] * 3
    return {
        name: outcomes.select("domain", "problem_id", "correct", "completion").rows()
        for name, outcomes in points.outcomes.items()
    }


@pytest.fixture(scope="module")
def whole(tiny_engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> RunPlan:
    plan = planned(tmp_path_factory.mktemp("whole"))
    run(plan, tiny_engine)
    return plan


@pytest.fixture
def half(tiny_engine: Engine, tmp_path: Path) -> tuple[RunPlan, list[tuple[str, str, int]]]:
    """A run whose driver died after all of stock and a block of the next; and what was done."""
    plan = planned(tmp_path)
    backend = LoadedBackend(tiny_engine, limit=2 * BLOCKS + 1)
    with pytest.raises(KeyboardInterrupt):
        Run(plan, Console(quiet=True), backend).run()
    return plan, list(backend.done)


def go_on(plan: RunPlan, engine: Engine) -> list[tuple[str, str, int]]:
    again = planned(plan.folder.path.parents[1], f"resume={plan.folder.path.name}")
    return list(run(again, engine).done)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_block_is_answered_again_alone(
    damage: Damage, whole: RunPlan, half: tuple[RunPlan, list[tuple[str, str, int]]], tiny_engine: Engine
) -> None:
    plan, done = half
    (name, number), *_ = [(label, block) for kind, label, block in done if kind == "block" and label != "none"]
    point = next(point for point in plan.sweep.points if point.label == name)
    stock = plan.sweep.points[0]
    path = plan.folder.block_path(point.fingerprint, number)
    damage(path, plan.folder.block_path(stock.fingerprint, number))
    again = go_on(plan, tiny_engine)
    assert set(again) & set(done) == {("block", name, number)} and len(again) == len(set(again))
    assert answers(plan.folder) == answers(whole.folder)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", ["record", "outcomes"])
def test_a_damaged_record_is_computed_again_alone(
    kind: str, damage: Damage, whole: RunPlan, tiny_engine: Engine, tmp_path: Path
) -> None:
    run_folder = RunFolder(Path(shutil.copytree(whole.folder.path, tmp_path / "custom" / whole.folder.path.name)))
    shutil.rmtree(run_folder.path / "blocks")
    stock, first, _ = (point.fingerprint for point in whole.sweep.points)
    place = run_folder.record_path if kind == "record" else run_folder.outcomes_path
    damage(place(first), place(stock))
    (read_by_reports,) = run_folder.load_points()[1]
    assert read_by_reports.file == run_folder.record_path(first)
    again = planned(tmp_path, f"resume={run_folder.path.name}")
    done = run(again, tiny_engine).done
    assert {label for _, label, _ in done} == {LABELS[1]} and len(done) == len(set(done)) == BLOCKS + 1
    assert answers(run_folder) == answers(whole.folder)
    assert [path.name for path in run_folder.aside_files()] == [f"{first}.json{ASIDE}"]


@pytest.mark.parametrize("damage", [truncated, emptied, a_bit_flipped, zeroed])
def test_a_damaged_manifest_costs_no_point(
    damage: Damage, half: tuple[RunPlan, list[tuple[str, str, int]]], tiny_engine: Engine
) -> None:
    plan, done = half
    path = plan.folder.path / MANIFEST
    before = json.loads(path.read_bytes())
    damage(path, path)
    with pytest.raises(UserError, match=r"run\.json is damaged"):
        plan.folder.manifest()
    with pytest.raises(UserError, match=r"run\.json is damaged"):  # another sweep's command is not believed
        plan_run([*TYPED, "task.max_tokens=7", f"resume={plan.folder.path}"])
    again = planned(plan.folder.path.parents[1], f"resume={plan.folder.path.name}")
    assert any("all of this command's own points" in note for note in again.sweep.notes)
    assert set(run(again, tiny_engine).done) & set(done) == set()
    after = json.loads(path.read_bytes())
    assert {key: after[key] for key in ("sweep", "models", "tasks")} == {
        key: before[key] for key in ("sweep", "models", "tasks")
    }
    assert (plan.folder.path / f"{MANIFEST}{ASIDE}").is_file()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EDQUOT], ids=errno.errorcode.get)
@pytest.mark.parametrize("comes_back", [False, True])
def test_a_disk_that_takes_no_more_ends_the_run_in_order(
    code: int, comes_back: bool, whole: RunPlan, tiny_engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For good, or for the one file that the engine wrote; `test_real_storage.py` does it to a real disk."""
    plan, flush, written = planned(tmp_path), os.fsync, list[int]()

    def fsync(file: int) -> None:
        written.append(file)
        if len(written) == 7 or (
            len(written) > 7 and not comes_back
        ):  # a block or a record, each synced with its folder
            raise OSError(code, os.strerror(code))
        flush(file)

    backend, said = LoadedBackend(tiny_engine), io.StringIO()
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fsync)
        assert Run(plan, Console(file=said, width=500), backend).run() == 1
    assert os.strerror(code) in said.getvalue() and f"resume={plan.folder.path.name} goes on" in said.getvalue()
    assert backend.done[-1] == ("block", LABELS[1], 1) and plan.folder.points_begun()
    assert not [path for path in plan.folder.path.rglob(".*") if path.suffix == ".tmp"]
    again = go_on(plan, tiny_engine)
    assert set(again) & set(backend.done) == {backend.done[-1]}
    assert answers(plan.folder) == answers(whole.folder)
