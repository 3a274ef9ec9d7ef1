"""Thousands of points: planned and found again in seconds, and each the very point that it is alone."""

from __future__ import annotations

import dataclasses
import io
import json
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from rich.console import Console
from synthetic_run import SyntheticRun, pick_strength

from banpick_exp import run_folder
from banpick_exp.errors import UserError
from banpick_exp.records import BudgetAccount, FailedProblem, PointRecord, read_record, sealed
from banpick_exp.remembered import read_remembered, remembered
from banpick_exp.run_folder import RunFolder
from banpick_exp.sweep.dry_run import END_ROWS, MOST_ROWS, print_plan
from banpick_exp.sweep.overrides import MOST_POINTS
from banpick_exp.sweep.plan import SweepPlan, plan_sweep
from banpick_exp.sweep.point import Point

PICK = ["policy=pick", "policy.mode=boost"]


def planned(tmp_path: Path, *typed: str) -> SweepPlan:
    return plan_sweep([*typed, "dry_run=true", f"output_dir={tmp_path}"])


def printed(plan: SweepPlan) -> list[str]:
    out = io.StringIO()
    print_plan(plan, plan.estimate(1), Console(file=out, width=160))
    return out.getvalue().splitlines()


def test_ten_thousand_points_are_planned_and_printed_in_seconds(tmp_path: Path) -> None:
    """One or two; five are allowed. Of this process: other tests may run beside it."""
    begin = time.process_time()
    plan = planned(tmp_path, *PICK, "policy.boost=range(0.1,10.05,0.1)", "policy.key_experts=range(1,101)")
    lines = printed(plan)
    assert time.process_time() - begin < 5
    assert len({point.fingerprint for point in plan.points}) == len(plan.points) == 10_001
    rows = [line for line in lines if " pick boost=" in line]
    assert len(rows) == 2 * END_ROWS - 1, "stock is the other one"
    assert any(f"{10_001 - 2 * END_ROWS} points between them" in line for line in lines)
    assert rows[-1].split()[0] == "10001" and plan.points[-1].fingerprint in rows[-1]


def test_a_table_is_folded_where_it_is_long_and_not_before(tmp_path: Path) -> None:
    axes = ["policy.boost=range(1,5)", f"policy.key_experts=range(1,{MOST_ROWS // 4 + 2})"]
    plan = planned(tmp_path, *PICK, *axes)
    for count, rows in ((MOST_ROWS, MOST_ROWS), (MOST_ROWS + 1, 2 * END_ROWS)):
        lines = printed(dataclasses.replace(plan, points=plan.points[:count]))
        shown = [point for point in plan.points[:count] if any(point.fingerprint in line for line in lines)]
        assert len(shown) == rows
        assert any("points between them" in line for line in lines) == (rows < count)


def test_more_than_anybody_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"more than {MOST_POINTS} points would not end"):
        planned(tmp_path, *PICK, "policy.boost=range(0,20,0.1)", "policy.key_experts=range(1,102)")


def identities(point: Point) -> dict[str, Any]:
    """All but the words of a point."""
    return {
        field.name: getattr(point, field.name)
        for field in dataclasses.fields(point)
        if field.name not in ("label", "settings")
    }


@pytest.mark.parametrize(
    "typed",
    [
        [*PICK, "policy.boost=choice(1,2)", "policy.key_experts=4"],
        [*PICK, "policy.boost=1", "policy.key_experts=2", "seed=choice(0,1)", "task.max_tokens=choice(16,24)"],
        [*PICK, "policy.boost=1", "policy.key_experts=2", "calibration.samples=choice(4,8)"],
        ["policy=pick", "policy.mode=choice(force_add,range_replace)", "policy.key_experts=choice(2,3)"],
        ["policy=ban", "policy.lambda=choice(0.5,1)", "engine.max_num_seqs=choice(32,64)"],
    ],
)
def test_a_point_of_many_is_the_one_that_it_is_alone(tmp_path: Path, typed: list[str]) -> None:
    """What the points of a sweep share is read once: never that of another setting or rule."""
    plan = planned(tmp_path, *typed)
    assert len(plan.points) > 2
    for point in plan.points:
        policy = [f"policy={point.rule.name}"]
        policy += [f"policy.{knob}={value}" for knob, value in point.rule.knobs().items()]
        settings = [f"{key}={value}" for key, value in point.settings.items() if key != "model.dtype"]
        (alone,) = [p for p in planned(tmp_path, *policy, *settings).points if p.rule.name == point.rule.name]
        assert identities(alone) == identities(point)


def test_points_share_what_is_the_same(tmp_path: Path) -> None:
    """A kilobyte a point: ten thousand are ten megabytes of a driver."""
    plan = planned(tmp_path, *PICK, "policy.boost=choice(1,2)", "policy.key_experts=4", "seed=choice(0,1)")
    first, second = [point for point in plan.points if not point.rule.is_stock and point.seed == 0]
    for name in ("problems", "settings", "calibration_files", "data_files", "task", "engine", "checkpoint"):
        assert getattr(first, name) is getattr(second, name), name
    assert len(plan.manifest().setups) == 2, "a set-up a seed"


# ---------------------------------------------------------------- found again


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    run = SyntheticRun(problems=4)
    run.add("none")
    pick_strength(run)
    run.add("pick", {"boost": 9}, status="failed", reason="out of memory")
    return RunFolder(run.write(tmp_path / "sweep" / "run"))


def test_what_was_checked_when_it_was_written_is_not_counted_again(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = folder.read_points()

    def counted(data: bytes, name: str) -> pl.DataFrame:
        raise AssertionError(f"{name} was counted again")

    monkeypatch.setattr(run_folder, "table_in", counted)
    assert folder.load_points() == (whole.records, whole.left_out) and len(whole.records) == 18
    assert folder.load_remembered() == ([remembered(record) for record in whole.records], whole.left_out)
    for path in folder.checked.iterdir():
        path.unlink()
    for read in (folder.load_points, folder.load_remembered):
        with pytest.raises(AssertionError, match="was counted again"):
            read()


def test_a_note_says_nothing_of_other_bytes(folder: RunFolder) -> None:
    """Records and outcomes of one size, changed in place: neither dates nor sizes would tell."""
    files = folder.record_files()
    done = [path for path in files if folder.outcomes_path(path.stem).exists()]
    done[0].write_bytes(done[0].read_bytes().replace(b'"status": "done"', b'"status": "gone"'))
    outcomes = folder.outcomes_path(done[1].stem)
    content = outcomes.read_bytes()
    middle = len(content) // 2
    outcomes.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    records, left_out = folder.load_points()
    assert [each.file for each in left_out] == done[:2] and len(records) == len(files) - 2


@pytest.mark.parametrize("damage", ["torn", "empty", "not text", "of another"])
def test_damaged_notes_cost_time_alone(folder: RunFolder, damage: str) -> None:
    whole = folder.load_points()
    (notes,) = folder.checked.iterdir()
    content = notes.read_bytes()
    lines = content.splitlines()
    swapped = b"\n".join(
        line.split()[0] + b" " + other.split()[1] for line, other in zip(lines, lines[::-1], strict=True)
    )
    notes.write_bytes({"torn": content[:100], "empty": b"", "not text": b"\xff" * 99, "of another": swapped}[damage])
    assert folder.load_points() == whole
    assert folder.load_remembered()[0] == [remembered(record) for record in whole[0]]


def test_a_driver_remembers_the_same_whichever_way_it_read() -> None:
    """What is read of the bytes alone is what is kept of the whole record, of failed and solved ones too."""
    run = SyntheticRun(problems=5)
    done = run.add("ban", {"tau": 0.3})
    failed = done.model_copy(
        update={"fingerprint": "f" * 16, "status": "failed", "reason": "no answer", "metrics": None, "score": "gain"}
    )
    solved = done.model_copy(
        update={
            "fingerprint": "e" * 16,
            "budget": BudgetAccount(
                target=6.0, knob="tau", value=0.3, measured=6.01, probes=((0.3, 6.0),), sample_problems=5, cached=False,
                corrected=True,
            ),
            "failed_problems": (FailedProblem(domain="math", problem_id="7", reason="killed"),),
        }
    )  # fmt: skip
    for record in (failed, solved):
        content = json.dumps(sealed(record.plain(), None if record is failed else b"x")).encode()
        read, outcomes = read_remembered(content)
        assert read == remembered(record) == remembered(read_record(content)[0])
        assert (outcomes is None) == (record is failed)
        assert vars(read).keys() == vars(record).keys()


def test_a_driver_keeps_of_a_record_what_it_wants(folder: RunFolder) -> None:
    def slim(record: PointRecord) -> PointRecord:
        return record.model_copy(update={"command": None})

    records, _ = folder.load_points(slim)
    assert [record.fingerprint for record in records] == [path.stem for path in folder.record_files()]
    assert all(record.command is None for record in records)
