"""Records: what is written is whole, what is read is checked, and the schema is golden."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from synthetic_run import DOMAINS, SyntheticRun, ladder, pick_strength

from banpick_exp import records
from banpick_exp.analysis.frame import points_frame
from banpick_exp.records import (
    CorruptRecord,
    load_outcomes,
    load_points,
    outcomes_path,
    read_outcomes,
    read_point,
    write_parquet,
    write_point,
)


@pytest.fixture
def point() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    run = SyntheticRun(problems=5)
    run.add("fixed_k", {"k": 4}, kept=4.0)
    record, outcomes = run.points[0]
    assert outcomes is not None
    return record, outcomes


def test_round_trip(tmp_path: Path, point: Any) -> None:
    record, outcomes = point
    path = write_point(tmp_path / "points", record, outcomes)
    assert path.name == f"{record['fingerprint']}.json"
    assert read_point(path) == record
    assert read_outcomes(path.parent, record["fingerprint"]).to_dicts() == outcomes
    assert sorted(p.name for p in path.parent.iterdir()) == [path.name, f"{path.stem}.outcomes.parquet"]


def test_schema_is_golden(tmp_path: Path, point: Any) -> None:
    """Readers outside this repository rely on these names; a change here is a new schema_version."""
    record, outcomes = point
    path = write_point(tmp_path, record, outcomes)
    read = json.loads(path.read_text())
    assert records.SCHEMA_VERSION == 1
    assert list(read) == [
        "schema_version", "finished_at", "fingerprint", "status", "reason", "label", "policy", "model", "engine",
        "task", "versions", "calibration", "metrics", "engagement", "timing", "command",
    ]  # fmt: skip
    assert list(read["metrics"]) == ["overall", "domains"]
    assert list(read["metrics"]["overall"]) == list(read["metrics"]["domains"]["math"]) == [
        "accuracy", "accuracy_ci95", "delta", "delta_ci95", "n_problems", "tokens_per_second", "speedup",
        "speedup_spread", "mean_kept", "mean_kept_by_layer", "truncated_fraction",
    ]  # fmt: skip
    assert read_outcomes(tmp_path, record["fingerprint"]).schema == {
        "problem_id": pl.String, "domain": pl.String, "task": pl.String, "correct": pl.Boolean,
        "truncated": pl.Boolean, "tokens": pl.Int32, "answer": pl.String,
    }  # fmt: skip


def test_optional_columns_are_kept_and_old_outcomes_have_none(tmp_path: Path, point: Any) -> None:
    record, outcomes = point
    told = [row | {"repetitive": index == 1} for index, row in enumerate(outcomes)]
    write_point(tmp_path, record, told)
    read = read_outcomes(tmp_path, record["fingerprint"])
    assert read["repetitive"].to_list() == [False, True] + [False] * 13 and read.to_dicts() == told
    write_point(tmp_path, record, outcomes)
    assert "repetitive" not in read_outcomes(tmp_path, record["fingerprint"]).columns
    assert load_points(tmp_path)[0] == [record]


def test_a_sampling_task_has_several_rows_a_problem(tmp_path: Path, point: Any) -> None:
    record, outcomes = point
    sampled = [row | {"sample": n} for row in outcomes for n in range(3)]
    assert read_point(write_point(tmp_path, record, sampled)) == record
    assert read_outcomes(tmp_path, record["fingerprint"])["sample"].to_list()[:4] == [0, 1, 2, 0]
    with pytest.raises(ValueError, match=r"repeat a problem: \(domain, problem_id, sample\)"):
        write_point(tmp_path, record, [*sampled, sampled[0]])
    with pytest.raises(ValueError, match=r"repeat a problem: \(domain, problem_id\)"):
        write_point(tmp_path, record, [*outcomes, outcomes[0]])
    with pytest.raises(ValueError, match="outcomes of 14 problems for n_problems=15"):
        write_point(tmp_path, record, sampled[3:])


def test_load_outcomes_of_whatever_has_them(tmp_path: Path) -> None:
    run = SyntheticRun(problems=4)
    run.add("none")
    run.add("fixed_k", {"k": 4}, status="invalid", reason="measured 8")
    run.add("pick", {"boost": 1}, status="failed", reason="no")
    points = run.write(tmp_path) / "points"
    found = load_outcomes(points, load_points(points)[0])
    assert sorted(found) == sorted(record["fingerprint"] for record, _ in run.points[:2])
    assert all(frame.height == 12 for frame in found.values())


def test_fills_in_version_and_time(tmp_path: Path, point: Any) -> None:
    record, outcomes = point
    bare = {key: value for key, value in record.items() if key not in ("schema_version", "finished_at")}
    read = read_point(write_point(tmp_path, bare, outcomes))
    assert read["schema_version"] == 1 and read["finished_at"].endswith("+00:00")


def corrupt(path: Path, how: str) -> None:
    outcomes = outcomes_path(path.parent, path.stem)
    record = json.loads(path.read_text())
    if how == "cut":
        path.write_bytes(path.read_bytes()[:200])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "not utf-8":
        path.write_bytes(b"\xff\xfe{}")
    elif how == "a list":
        path.write_text("[1]")
    elif how == "no outcomes":
        outcomes.unlink()
    elif how == "outcomes cut":
        outcomes.write_bytes(outcomes.read_bytes()[:-50])
    elif how == "outcomes of fewer problems":
        pl.read_parquet(outcomes).head(3).write_parquet(outcomes)
    elif how == "outcomes of another shape":
        pl.read_parquet(outcomes).drop("answer").write_parquet(outcomes)
    else:
        change: dict[str, Any] = {
            "schema": {"schema_version": 2}, "fingerprint": {"fingerprint": "0123456789abcdef"},
            "status": {"status": "running"}, "metrics": {"metrics": None}, "policy": {"policy": {}},
        }  # fmt: skip
        if how == "a key":
            del record["command"]
        elif how == "a metric":
            del record["metrics"]["domains"]["math"]["speedup"]
        else:
            record |= change[how]
        path.write_text(json.dumps(record))


@pytest.mark.parametrize(
    "how",
    [
        "cut", "empty", "not utf-8", "a list", "no outcomes", "outcomes cut", "outcomes of fewer problems",
        "outcomes of another shape", "schema", "fingerprint", "status", "metrics", "policy", "a key", "a metric",
    ],
)  # fmt: skip
def test_corrupt_is_set_aside_and_never_trusted(tmp_path: Path, how: str) -> None:
    run = SyntheticRun(problems=4)
    good, bad = run.add("none"), run.add("fixed_k", {"k": 4}, kept=4.0)
    points = run.write(tmp_path) / "points"
    path = points / f"{bad['fingerprint']}.json"
    corrupt(path, how)
    content = path.read_bytes()
    with pytest.raises(CorruptRecord, match=path.name):
        read_point(path)
    loaded, set_aside = load_points(points)
    assert [record["fingerprint"] for record in loaded] == [good["fingerprint"]]
    assert [p.name for p in set_aside] == [f"{path.name}.corrupt"] and set_aside[0].read_bytes() == content
    assert load_points(points) == (loaded, [])  # reported once


def test_failed_points_have_a_reason_and_no_metrics(tmp_path: Path) -> None:
    run = SyntheticRun(problems=4)
    run.add("none")
    run.add("pick", {"boost": 1}, status="failed", reason="out of memory")
    loaded, set_aside = load_points(run.write(tmp_path) / "points")
    assert set_aside == [] and {record["status"] for record in loaded} == {"done", "failed"}
    row = points_frame(loaded).filter(pl.col("status") == "failed").to_dicts()
    assert len(row) == 1 and row[0]["reason"] == "out of memory" and row[0]["accuracy"] is None


@pytest.mark.parametrize("change", [{"status": "maybe"}, {"fingerprint": "../x"}, {"metrics": None}, {"policy": {}}])
def test_refuses_to_write_what_it_would_not_read(tmp_path: Path, point: Any, change: dict[str, Any]) -> None:
    record, outcomes = point
    with pytest.raises(ValueError):
        write_point(tmp_path, {**record, **change}, outcomes)
    assert list(tmp_path.iterdir()) == []


def test_refuses_missing_outcomes_and_nan(tmp_path: Path, point: Any) -> None:
    record, outcomes = point
    for rows in (None, outcomes[:-1]):
        with pytest.raises(ValueError, match="outcomes"):
            write_point(tmp_path, record, rows)
    record["metrics"]["overall"]["speedup"] = float("nan")
    with pytest.raises(ValueError, match="JSON"):
        write_point(tmp_path, record, outcomes)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("full_at", [1, 2])
def test_disk_full_names_the_point_and_leaves_no_record(
    tmp_path: Path, point: Any, monkeypatch: pytest.MonkeyPatch, full_at: int
) -> None:
    """The disk fills up while flushing the outcomes (1) or the record (2)."""
    record, outcomes = point
    calls = 0
    flush = os.fsync

    def fsync(descriptor: int) -> None:
        nonlocal calls
        calls += os.path.isfile(f"/proc/self/fd/{descriptor}")
        if calls == full_at:
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match=r"No space left.*fixed_k k=4.*resume=") as caught:
        write_point(tmp_path, record, outcomes)
    assert caught.value.errno == errno.ENOSPC
    assert load_points(tmp_path) == ([], [])
    assert not [path for path in tmp_path.iterdir() if path.name.endswith((".json", ".tmp"))]


def test_a_crash_before_the_rename_keeps_the_old_record(
    tmp_path: Path, point: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, outcomes = point
    path = write_point(tmp_path, record, outcomes)

    def crash(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        write_point(tmp_path, {**record, "label": "new"}, outcomes)
    assert read_point(path)["label"] == record["label"]


def test_parquet_has_a_row_for_each_point_and_domain(tmp_path: Path) -> None:
    run = pick_strength(ladder(SyntheticRun(problems=20)))
    run.add("pick", {"boost": 9}, status="failed", reason="no")
    frame = pl.read_parquet(write_parquet(run.write(tmp_path)))
    assert frame.height == (len(run.points) - 1) * (1 + len(DOMAINS)) + 1
    record = run.points[3][0]
    row = frame.filter((pl.col("fingerprint") == record["fingerprint"]) & (pl.col("domain") == "code")).row(
        0, named=True
    )
    block = record["metrics"]["domains"]["code"]
    assert [row["accuracy_lo"], row["accuracy_hi"]] == block["accuracy_ci95"]
    assert [row["speedup_lo"], row["speedup_hi"]] == block["speedup_spread"]
    assert row["mean_kept_by_layer"] == block["mean_kept_by_layer"] and json.loads(row["knobs"]) == {"k": 5}
    assert points_frame([]).schema == frame.schema


def test_a_missing_folder_holds_no_points(tmp_path: Path) -> None:
    assert load_points(tmp_path / "none") == ([], [])
