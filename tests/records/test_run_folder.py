"""A run's folder: what is written is whole, what is read is checked, and names are no patterns."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from synthetic_run import DOMAINS, SyntheticRun, changed, ladder, pick_strength

from banpick_exp.analysis import points_frame
from banpick_exp.disk import read_table, write_atomically
from banpick_exp.errors import UserError
from banpick_exp.manifest import Manifest
from banpick_exp.records import CorruptRecord, MissingOutcomes, Outcome, PointRecord, outcomes_of, sealed
from banpick_exp.run_folder import RunFolder

Point = tuple[PointRecord, list[Outcome]]


@pytest.fixture
def point() -> Point:
    run = SyntheticRun(problems=5)
    run.add("fixed_k", {"k": 4}, kept=4.0)
    record, outcomes = run.points[0]
    assert outcomes is not None
    return record, outcomes


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "sweep" / "run")


def names(path: Path) -> list[str]:
    return sorted(each.name for each in path.iterdir()) if path.is_dir() else []


# ---------------------------------------------------------------- one point


def test_round_trip(folder: RunFolder, point: Point) -> None:
    record, outcomes = point
    path = folder.write_point(record, outcomes)
    assert path == folder.record_path(record.fingerprint) and path.name == f"{record.fingerprint}.json"
    table = folder.outcomes_path(record.fingerprint).read_bytes()
    assert folder.read_point(record.fingerprint) == record
    assert json.loads(path.read_bytes()) == sealed(record.plain(), table)
    assert outcomes_of(folder.outcomes(record.fingerprint)) == outcomes
    assert names(folder.points) == [path.name, f"{record.fingerprint}.outcomes.parquet"]


def test_the_order_of_the_names_on_disk_is_golden(folder: RunFolder, point: Point) -> None:
    """People read these files too: what it is stands above what was measured."""
    path = folder.write_point(*point)
    assert list(json.loads(path.read_text())) == [
        "schema_version", "finished_at", "fingerprint", "status", "reason", "label", "policy", "model", "engine",
        "task", "versions", "calibration", "metrics", "engagement", "timing", "command", "outcomes_sha256",
        "record_sha256",
    ]  # fmt: skip
    assert folder.outcomes(point[0].fingerprint).schema == {
        "problem_id": pl.String, "domain": pl.String, "task": pl.String, "correct": pl.Boolean,
        "truncated": pl.Boolean, "tokens": pl.Int32, "answer": pl.String, "found": pl.Boolean,
        "completion": pl.String, "finish_reason": pl.String,
    }  # fmt: skip


def test_optional_columns_are_kept_and_old_outcomes_have_none(folder: RunFolder, point: Point) -> None:
    record, outcomes = point
    told = [replace(outcome, repetitive=index == 1) for index, outcome in enumerate(outcomes)]
    folder.write_point(record, told)
    read = folder.outcomes(record.fingerprint)
    assert read["repetitive"].to_list() == [False, True] + [False] * 13 and outcomes_of(read) == told
    folder.write_point(record, outcomes)
    assert "repetitive" not in folder.outcomes(record.fingerprint).columns
    assert folder.load_points()[0] == [record]


def test_a_sampling_task_has_several_rows_a_problem(folder: RunFolder, point: Point) -> None:
    record, outcomes = point
    sampled = [replace(outcome, sample=n) for outcome in outcomes for n in range(3)]
    folder.write_point(record, sampled)
    assert folder.read_point(record.fingerprint) == record
    assert folder.outcomes(record.fingerprint)["sample"].to_list()[:4] == [0, 1, 2, 0]
    with pytest.raises(ValueError, match=r"repeat a problem: \(domain, problem_id, sample\)"):
        folder.write_point(record, [*sampled, sampled[0]])
    with pytest.raises(ValueError, match=r"repeat a problem: \(domain, problem_id\)"):
        folder.write_point(record, [*outcomes, outcomes[0]])
    with pytest.raises(ValueError, match="outcomes of 14 problems for n_problems=15"):
        folder.write_point(record, sampled[3:])


def test_outcomes_of_whatever_has_them(folder: RunFolder) -> None:
    run = SyntheticRun(problems=4)
    run.add("none")
    run.add("fixed_k", {"k": 4}, status="invalid", reason="measured 8")
    run.add("pick", {"boost": 1}, status="failed", reason="no")
    run.write(folder.path)
    found = folder.all_outcomes(folder.load_points()[0])
    assert sorted(found) == sorted(record.fingerprint for record in run.records[:2])
    assert all(frame.height == 12 for frame in found.values())


def test_failed_points_have_a_reason_and_no_metrics(folder: RunFolder) -> None:
    run = SyntheticRun(problems=4)
    run.add("none")
    run.add("pick", {"boost": 1}, status="failed", reason="out of memory")
    run.write(folder.path)
    loaded, set_aside = folder.load_points()
    assert set_aside == [] and {record.status for record in loaded} == {"done", "failed"}
    row = points_frame(loaded).filter(pl.col("status") == "failed").to_dicts()
    assert len(row) == 1 and row[0]["reason"] == "out of memory" and row[0]["accuracy"] is None


def test_a_missing_folder_holds_no_points(folder: RunFolder) -> None:
    assert folder.load_points() == ([], []) and folder.record_files() == []


# ---------------------------------------------------------------- corrupt


def seal_again(folder: RunFolder, name: str) -> None:
    """Make digests true again, as a program that writes wrong records would have them."""
    path, outcomes = folder.record_path(name), folder.outcomes_path(name)
    with contextlib.suppress(ValueError):  # no JSON has no seal
        plain = json.loads(path.read_bytes())
        if isinstance(plain, dict):
            path.write_text(json.dumps(sealed(without_seal(plain), outcomes.read_bytes())))


def without_seal(plain: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in plain.items() if not key.endswith("_sha256")}


def corrupt(folder: RunFolder, name: str, how: str) -> None:
    path, outcomes = folder.record_path(name), folder.outcomes_path(name)
    plain = json.loads(path.read_text())
    if how == "cut":
        path.write_bytes(path.read_bytes()[:200])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "not utf-8":
        path.write_bytes(b"\xff\xfe{}")
    elif how == "a list":
        path.write_text("[1]")
    elif how == "outcomes cut":
        outcomes.write_bytes(outcomes.read_bytes()[:-50])
    elif how == "outcomes of fewer problems":
        pl.read_parquet(outcomes).head(3).write_parquet(outcomes)
    elif how == "outcomes of another shape":
        pl.read_parquet(outcomes).drop("answer").write_parquet(outcomes)
    elif how == "a column of its own":
        pl.read_parquet(outcomes).with_columns(colour=1).write_parquet(outcomes)
    elif how == "outcomes of version 1":
        pl.read_parquet(outcomes).drop("found", "completion", "finish_reason").write_parquet(outcomes)
    else:
        change: dict[str, Any] = {
            "a later version": {"schema_version": 4}, "version 1 with outcomes of 2": {"schema_version": 1},
            "fingerprint": {"fingerprint": "0123456789abcdef"}, "status": {"status": "running"},
            "metrics": {"metrics": None}, "policy": {"policy": {}},
        }  # fmt: skip
        if how == "a key":
            del plain["command"]
        elif how == "a metric":
            del plain["metrics"]["domains"]["math"]["speedup"]
        else:
            plain |= change[how]
        if plain["schema_version"] == 1:
            plain = without_seal(plain)
        path.write_text(json.dumps(plain))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("cut", "not readable as JSON"),
        ("empty", "not readable as JSON"),
        ("not utf-8", "not readable as JSON"),
        ("a list", "the record: "),
        ("outcomes cut", "is not readable as Parquet"),
        ("outcomes of fewer problems", "outcomes of 3 problems for n_problems=12"),
        ("outcomes of another shape", "has the columns problem_id, domain"),
        ("a column of its own", "has the columns problem_id, domain"),
        ("outcomes of version 1", "schema_version is 3, but its outcomes lack the completions"),
        ("version 1 with outcomes of 2", "schema_version is 1, but its outcomes have found, completion, finish_reason"),
        ("a later version", "schema_version is 4, this version reads 1, 2, 3"),
        ("fingerprint", "is not the file name"),
        ("status", "status: "),
        ("metrics", "a point with status done has no metrics"),
        ("policy", "the policy has no name"),
        ("a key", "the record lacks command"),
        ("a metric", "the record lacks metrics.domains.math.speedup"),
    ],
)
def test_corrupt_is_left_out_and_never_trusted(folder: RunFolder, how: str, words: str) -> None:
    """Whatever its seal says; reading changes nothing, and who runs the point again keeps the bytes."""
    run = SyntheticRun(problems=4)
    good, bad = run.add("none"), run.add("fixed_k", {"k": 4}, kept=4.0)
    run.write(folder.path)
    path = folder.record_path(bad.fingerprint)
    corrupt(folder, bad.fingerprint, how)
    if how != "version 1 with outcomes of 2":
        seal_again(folder, bad.fingerprint)
    content, before = path.read_bytes(), names(folder.points)
    with pytest.raises(CorruptRecord) as caught:
        folder.read_point(bad.fingerprint)
    assert str(caught.value).startswith(f"{path}: ") and words in str(caught.value)
    loaded, left_out = folder.load_points()
    assert [record.fingerprint for record in loaded] == [good.fingerprint]
    assert [(each.file, each.whole) for each in left_out] == [(path, False)] and words in left_out[0].reason
    assert names(folder.points) == before and path.read_bytes() == content and folder.aside_files() == []
    folder.set_aside(left_out[0])
    (aside,) = folder.aside_files()
    assert aside.name == f"{path.name}.corrupt" and aside.read_bytes() == content
    assert folder.load_points() == (loaded, [])


def test_missing_outcomes_say_nothing_against_the_record(folder: RunFolder, point: Point) -> None:
    record, _ = point
    folder.write_point(*point)
    folder.outcomes_path(record.fingerprint).unlink()
    with pytest.raises(MissingOutcomes, match=r"outcomes\.parquet"):
        folder.read_point(record.fingerprint)
    found = folder.read_points()
    assert found.records == [] and found.outcomes == {}
    (left_out,) = found.left_out
    assert left_out.whole and left_out.reason == f"{record.fingerprint}.outcomes.parquet is not there"


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("metrics", "overall", "accuracy"), 0.99),
        (("metrics", "domains", "math", "speedup"), 1.0),
        (("label",), "pick boost=4"),
        (("engagement", "measured"), {"math": 1.0}),
        (("outcomes_sha256",), "0" * 64),
        (("record_sha256",), "0" * 64),
        (("record_sha256",), None),
    ],
)
def test_an_edited_record_is_not_believed(folder: RunFolder, point: Point, place: tuple[str, ...], value: Any) -> None:
    path = folder.write_point(*point)
    plain = json.loads(path.read_bytes())
    part = plain
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    path.write_text(json.dumps(plain))
    with pytest.raises(CorruptRecord, match=f"{path.name}: edited or damaged"):
        folder.read_point(point[0].fingerprint)


def test_a_record_may_be_laid_out_anew(folder: RunFolder, point: Point) -> None:
    """What counts is its content: another indentation, or another order of keys, is the same record."""
    path = folder.write_point(*point)
    path.write_text(json.dumps(json.loads(path.read_bytes()), sort_keys=True))
    assert folder.read_point(point[0].fingerprint) == point[0]


@pytest.mark.parametrize("number", [0.1 + 0.2, 1e-310, 1e22, 123456789.123456789, 2**70, 1 / 3])
def test_a_seal_holds_for_any_number_and_text(folder: RunFolder, point: Point, number: float) -> None:
    record = changed(point[0], engine={"number": number, "text": "é\u2028😀", "nested": {"2": [None, True]}})
    folder.write_point(record, point[1])
    assert folder.read_point(record.fingerprint) == record


def test_outcomes_of_two_points_cannot_be_swapped(folder: RunFolder) -> None:
    run = SyntheticRun(problems=4)
    points = run.add("none"), run.add("fixed_k", {"k": 4}, kept=4.0, churn=1.0)
    run.write(folder.path)
    one, other = (folder.outcomes_path(record.fingerprint) for record in points)
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    _, left_out = folder.load_points()
    assert len(left_out) == 2 and all("edited or damaged, or of another point" in each.reason for each in left_out)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"accuracy": 0.123}, "accuracy is 0.123 (overall), its outcomes say "),
        ({"n_problems": 14}, "outcomes of 15 problems for n_problems=14 (overall)"),
        ({"delta": 0.9}, "delta is 0.9 (overall), outside its own interval"),
        ({"speedup": 3.0}, "speedup is 3 (overall), outside its own interval"),
        ({"accuracy_ci95": [0.0, 0.01]}, "outside its own interval 0 to 0.01"),
    ],
)
@pytest.mark.parametrize("version", [2, 3])
def test_numbers_are_counted_again(
    folder: RunFolder, point: Point, change: dict[str, Any], words: str, version: int
) -> None:
    """Also where the seal is true, or of a version that has none."""
    record, outcomes = point
    path = folder.write_point(record, outcomes)
    plain = without_seal(json.loads(path.read_bytes())) | {"schema_version": version}
    plain["metrics"]["overall"] |= change
    path.write_text(json.dumps(plain))
    if version > 2:
        seal_again(folder, record.fingerprint)
    with pytest.raises(CorruptRecord) as caught:
        folder.read_point(record.fingerprint)
    assert words in str(caught.value) and "edited or damaged" in str(caught.value)
    domains = record.plain()["metrics"]["domains"]
    with pytest.raises(ValueError, match=r"outcomes|outside"):
        wrong = {"overall": record.plain()["metrics"]["overall"] | change, "domains": domains}
        folder.write_point(changed(record, metrics=wrong), outcomes)


@pytest.mark.parametrize("which", ["record", "outcomes"])
@pytest.mark.parametrize("how", ["a folder", "a link into the void"])
def test_what_cannot_be_opened_is_no_corrupt_record(folder: RunFolder, point: Point, which: str, how: str) -> None:
    """A disk that is away or a missing permission says nothing of the content: the record stays under its name."""
    record, outcomes = point
    folder.write_point(record, outcomes)
    name = record.fingerprint
    path = folder.record_path(name) if which == "record" else folder.outcomes_path(name)
    path.unlink()
    if how == "a folder":
        path.mkdir()
    else:
        path.symlink_to(folder.path / "unmounted" / path.name)
    before = names(folder.points)
    for read in (lambda: folder.read_point(name), folder.load_points):
        with pytest.raises(OSError, match=path.name):
            read()
    assert names(folder.points) == before and not any("corrupt" in each for each in before)


# ---------------------------------------------------------------- written whole or not at all


@pytest.mark.parametrize("change", [{"status": "maybe"}, {"fingerprint": "../x"}, {"metrics": None}, {"policy": 1}])
def test_a_record_that_would_not_be_read_cannot_be_made(point: Point, change: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        changed(point[0], **change)


def test_refuses_outcomes_that_it_would_not_read(folder: RunFolder, point: Point) -> None:
    record, outcomes = point
    extracted = [replace(outcome, completion=None, found=None, finish_reason=None) for outcome in outcomes]
    for rows in (None, outcomes[:-1], extracted, [*outcomes[:-1], extracted[-1]]):
        with pytest.raises(ValueError, match="outcomes"):
            folder.write_point(record, rows)
    with pytest.raises(ValueError, match="a failed point has outcomes"):
        folder.write_point(changed(record, status="failed", reason="no", metrics=None), outcomes)
    with pytest.raises(ValueError, match="schema_version is 1, but its outcomes have found, completion"):
        folder.write_point(changed(record, schema_version=1), outcomes)
    assert not folder.points.exists()


def test_refuses_nan(folder: RunFolder, point: Point) -> None:
    record, outcomes = point
    overall = record.measured.overall.model_copy(update={"speedup": float("nan")})
    bad = record.model_copy(update={"metrics": record.measured.model_copy(update={"overall": overall})})
    with pytest.raises(ValueError, match="JSON"):
        folder.write_point(bad, outcomes)
    assert not folder.points.exists()


@pytest.mark.parametrize("full_at", [1, 2])
def test_disk_full_names_the_point_and_leaves_no_record(
    folder: RunFolder, point: Point, monkeypatch: pytest.MonkeyPatch, full_at: int
) -> None:
    """The disk fills up while flushing the outcomes (1) or the record (2)."""
    calls = 0
    flush = os.fsync

    def fsync(descriptor: int) -> None:
        nonlocal calls
        calls += os.path.isfile(f"/proc/self/fd/{descriptor}")
        if calls == full_at:
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match=r"is full \(No space left.*fixed_k k=4.*Free some space") as caught:
        folder.write_point(*point)
    assert caught.value.errno == errno.ENOSPC
    assert folder.load_points() == ([], [])
    assert not [name for name in names(folder.points) if name.endswith((".json", ".tmp"))]


def test_a_crash_before_the_rename_keeps_the_old_record(
    folder: RunFolder, point: Point, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, outcomes = point
    folder.write_point(record, outcomes)
    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        folder.write_point(changed(record, label="new"), outcomes)
    assert folder.read_point(record.fingerprint).label == record.label


def crash(*_: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("at", ["fsync", "replace"])
def test_a_crash_while_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    path = tmp_path / "table.parquet"
    with monkeypatch.context() as patched:
        patched.setattr(os, at, crash)
        with pytest.raises(KeyboardInterrupt):
            write_atomically(path, b"new")
    assert names(tmp_path) == []
    write_atomically(path, b"old")
    monkeypatch.setattr(os, at, crash)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new")
    assert names(tmp_path) == [path.name] and path.read_bytes() == b"old"


def test_half_of_a_file_is_never_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the rename the path shows what was there before; then the folder is flushed too."""
    path = tmp_path / "run.json"
    seen: list[bytes | None] = []
    flush = os.fsync

    def fsync(descriptor: int) -> None:
        seen.append(path.read_bytes() if path.exists() else None)
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_atomically(path, b"whole")
    assert seen == [None, b"whole"]


# ---------------------------------------------------------------- names, not patterns


@pytest.mark.parametrize("name", ["x[1]", "out*", "q::x", "a?b", "{a,b}", "%5B", "a b", "**"])
def test_a_name_is_no_pattern(tmp_path: Path, name: str) -> None:
    run = ladder(SyntheticRun(problems=4), ks=(4,))
    folder = RunFolder(tmp_path / name / "sweep" / name)
    decoys = [tmp_path / decoy / "sweep" / decoy for decoy in ("x1", "output", "a1b", "a")]
    for decoy in decoys:  # what a pattern would find instead, or besides
        SyntheticRun(problems=2).write(decoy)
        (decoy / "points").mkdir(parents=True, exist_ok=True)
    run.write(folder.path)
    records, set_aside = folder.load_points()
    assert set_aside == [] and sorted(records, key=label) == sorted(run.records, key=label)
    assert folder.all_outcomes(records).keys() == run.outcomes.keys()
    assert all(frame.equals(run.outcomes[each]) for each, frame in folder.all_outcomes(records).items())
    table = folder.write_table("points", points_frame(records))
    assert table == folder.table_path("points") and read_table(table).equals(points_frame(records))
    folder.write_manifest(Manifest(sweep="pick"))
    assert folder.manifest().sweep == "pick" and folder.name == f"sweep/{name}"
    assert all(names(decoy) == ["points"] and names(decoy / "points") == [] for decoy in decoys)


def label(record: PointRecord) -> str:
    return record.label


# ---------------------------------------------------------------- tables and the run


def test_a_table_has_a_row_for_each_point_and_domain(folder: RunFolder) -> None:
    run = pick_strength(ladder(SyntheticRun(problems=20)))
    run.add("pick", {"boost": 9}, status="failed", reason="no")
    run.write(folder.path)
    frame = read_table(folder.write_table("points", points_frame(folder.load_points()[0])))
    assert frame.height == (len(run.points) - 1) * (1 + len(DOMAINS)) + 1
    record = run.records[3]
    of_code = (pl.col("fingerprint") == record.fingerprint) & (pl.col("domain") == "code")
    row = frame.filter(of_code).row(0, named=True)
    metrics = record.measured.domains["code"]
    assert (row["accuracy_lo"], row["accuracy_hi"]) == metrics.accuracy_ci95
    assert (row["speedup_lo"], row["speedup_hi"]) == metrics.speedup_ci95
    assert row["mean_kept_by_layer"] == list(metrics.mean_kept_by_layer) and json.loads(row["knobs"]) == {"k": 5}
    assert points_frame([]).schema == frame.schema


def test_a_table_that_is_none_is_said_to_be(tmp_path: Path) -> None:
    path = tmp_path / "points.parquet"
    path.write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"points\.parquet is not readable as Parquet"):
        read_table(path)
    with pytest.raises(FileNotFoundError):
        read_table(tmp_path / "none.parquet")


def test_the_manifest_stays_what_it_was(folder: RunFolder) -> None:
    assert folder.manifest() == Manifest()
    first = Manifest(sweep="pick", models={"m1": "tiny"}, tasks={"t1": "tiny"}, command="python -m banpick_exp")
    folder.write_manifest(first)
    folder.write_manifest(Manifest(sweep="another"))
    assert folder.manifest() == first
    folder.check_manifest(first.model_copy(update={"models": {"m1": "renamed"}}))
    with pytest.raises(UserError, match=r"holds a run of the sweep pick, but this command is of the sweep ban"):
        folder.check_manifest(first.model_copy(update={"sweep": "ban"}))
