"""Whatever became of a run's files, they are read, left out, or refused in words; what is read can be reported."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fuzzing import JSON, examples, in_time
from hypothesis import given
from hypothesis import strategies as st
from synthetic_run import SyntheticRun, ladder

from banpick_exp.__main__ import main
from banpick_exp.errors import UserError
from banpick_exp.evaluation.blocks import block_file, read_block
from banpick_exp.evaluation.calibration.artifact import METADATA, TENSORS, USAGE, check_artifact
from banpick_exp.evaluation.calibration.config import CalibrationConfig
from banpick_exp.evaluation.cut import Cut
from banpick_exp.manifest import MANIFEST, Manifest
from banpick_exp.models.shape import MoeShape
from banpick_exp.records import outcomes_frame
from banpick_exp.report.run import read_run
from banpick_exp.run_folder import RunFolder

pytestmark = pytest.mark.slow

CUT = Cut(shares=(0.5, 1.0), seed=0)
SHAPE = MoeShape(num_layers=2, num_experts=4, top_k=2)


def places_of(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where in nested JSON something could be something else."""
    yield path
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in entries:
        yield from places_of(item, (*path, key))


def with_other(value: Any, path: tuple[Any, ...], other: Any) -> Any:
    """A copy with `other` at the place; without what is there where it is a Gone."""
    if not path:
        return None if other is GONE else other
    copy = dict(value) if isinstance(value, dict) else list(value)
    if len(path) == 1 and other is GONE:
        del copy[path[0]]
    else:
        copy[path[0]] = with_other(value[path[0]], path[1:], other)
    return copy


GONE = object()
OTHERS = st.just(GONE) | st.sampled_from([None, 0, -1, 1, 2**70, 1.5, "", "x", True, [], {}, [1], {"a": 1}]) | JSON
EDITS = st.tuples(st.integers(0, 10**6), OTHERS)
DAMAGES = st.one_of(
    st.builds(lambda edit: ("edit", *edit), EDITS),
    st.builds(lambda at: ("cut", at, b""), st.integers(0, 10**6)),
    st.builds(lambda at, data: ("swap", at, data), st.integers(0, 10**6), st.binary(min_size=1, max_size=6)),
    st.builds(lambda data: ("whole", 0, data), st.binary(max_size=20)),
)


def damaged(content: bytes, damage: tuple[str, int, Any]) -> bytes:
    """A file's bytes, cut, swapped in part, or with another value somewhere in its JSON."""
    how, at, what = damage
    if how == "edit":
        plain = json.loads(content)
        places = list(places_of(plain))
        text = json.dumps(with_other(plain, places[at % len(places)], what), ensure_ascii=False)
        return text.encode("utf-8", "surrogatepass")
    if how == "cut":
        return content[: at % (len(content) + 1)]
    if how == "swap":
        start = at % (len(content) + 1)
        return content[:start] + what + content[start + len(what) :]
    return bytes(what)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = ladder(SyntheticRun(problems=4), ks=(4,))
    run.add("pick", {"boost": 8}, status="failed", reason="out of memory")
    folder = RunFolder(run.write(tmp_path_factory.mktemp("outputs") / "sweep" / "run"))
    folder.write_manifest(Manifest(sweep="sweep", models={"a": "m"}, tasks={"b": "t"}, command="python -m banpick_exp"))
    return folder.path


@contextlib.contextmanager
def a_copy(whole: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as parent:
        yield Path(shutil.copytree(whole, Path(parent) / "sweep" / "run"))


def said(typed: list[str]) -> tuple[int, str]:
    """The exit code of a line and what it prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), in_time(60):
        code = main(typed)
    return code, out.getvalue()


@examples(150)
@given(which=st.integers(0, 2), damage=DAMAGES)
def test_a_damaged_record_is_read_or_left_out(whole: Path, which: int, damage: tuple[str, int, Any]) -> None:
    with a_copy(whole) as path, in_time():
        folder = RunFolder(path)
        files = folder.record_files()
        content = damaged(files[which].read_bytes(), damage)
        files[which].write_bytes(content)
        records, left_out = folder.load_points()
        assert len(records) + len(left_out) == 3
        for each in left_out:
            assert each.file == files[which] and each.reason and each.file.read_bytes() == content
        for record in records:
            assert record.fingerprint and record.policy_name and record.plain()
        try:
            run = read_run(folder)
            assert run.frame_of_all.height and run.guards is not None
        except UserError as error:
            assert str(error)


@examples(30)
@given(damage=st.one_of(DAMAGES.filter(lambda damage: damage[0] != "edit")))
def test_damaged_outcomes_are_read_or_their_record_is_left_out(whole: Path, damage: tuple[str, int, Any]) -> None:
    with a_copy(whole) as path, in_time():
        folder = RunFolder(path)
        outcomes = sorted(folder.points.glob("*.outcomes.parquet"))[0]
        outcomes.write_bytes(damaged(outcomes.read_bytes(), damage))
        records, left_out = folder.load_points()
        assert len(records) + len(left_out) == 3
        with contextlib.suppress(UserError):
            read_run(folder)


@examples(8)
@given(which=st.integers(0, 2), damage=DAMAGES)
def test_a_run_with_a_damaged_record_is_reported_in_words(
    whole: Path, which: int, damage: tuple[str, int, Any]
) -> None:
    with a_copy(whole) as path:
        file = RunFolder(path).record_files()[which]
        file.write_bytes(damaged(file.read_bytes(), damage))
        code, output = said(["report", str(path)])
        assert code in (0, 1, 2) and "Traceback" not in output and output


@examples(40)
@given(damage=DAMAGES)
def test_a_damaged_manifest_is_read_or_refused_in_words(whole: Path, damage: tuple[str, int, Any]) -> None:
    with a_copy(whole) as path, in_time():
        (path / MANIFEST).write_bytes(damaged((path / MANIFEST).read_bytes(), damage))
        folder = RunFolder(path)
        for read in (folder.manifest, lambda: folder.check_manifest(Manifest(sweep="sweep"))):
            with contextlib.suppress(UserError):
                read()
        code, output = said(
            ["policy=none", "tracking=none", "dry_run=true", f"resume={path}", f"output_dir={path.parents[1]}"]
        )
        assert code in (0, 2) and "Traceback" not in output


BLOCK = {
    "policy": {"math": {"name": "none"}},
    "seconds": 1.0, "swap_seconds": 0.1,
    "domains": {"math": {"outcomes": [{"problem_id": "a", "domain": "math", "task": "t", "correct": True,
    "truncated": False, "tokens": 3, "answer": "1", "found": True, "completion": ";1", "finish_reason": "stop"}],
    "counters": {"tokens": [3, 3], "kept": [6, 6], "usage": [[3, 3], [3, 3]]}}},
}  # fmt: skip


def test_the_block_to_damage_is_whole(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.block_path("f", 0).parent.mkdir()
    folder.block_path("f", 0).write_bytes(block_file("f", CUT, 0, BLOCK))
    assert read_block(folder, "f", CUT, 0) is not None
    folder.block_path("g", 0).write_bytes(block_file("f", CUT, 0, BLOCK))
    assert read_block(folder, "g", CUT, 0) is None, "another point's"


@examples(120)
@given(damage=DAMAGES)
def test_a_damaged_block_is_answered_again(damage: tuple[str, int, Any], tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    path = folder.block_path("f", 0)
    path.parent.mkdir(exist_ok=True)
    whole = block_file("f", CUT, 0, BLOCK)
    path.write_bytes(damaged(whole, damage))
    with in_time():
        if read_block(folder, "f", CUT, 0) is not None:
            assert json.loads(path.read_bytes()) == json.loads(whole)


@examples(120)
@given(damage=DAMAGES)
def test_a_block_that_is_sealed_and_yet_wrong_is_answered_again(damage: tuple[str, int, Any], tmp_path: Path) -> None:
    """What an older version, or a bug, may have written."""
    folder = RunFolder(tmp_path)
    path = folder.block_path("f", 0)
    path.parent.mkdir(exist_ok=True)
    content = damaged(json.dumps(BLOCK).encode(), damage)
    with contextlib.suppress(ValueError, TypeError):  # no JSON, or no object
        path.write_bytes(block_file("f", CUT, 0, json.loads(content)))
    with in_time():
        found = read_block(folder, "f", CUT, 0)
        for run in found.runs.values() if found is not None else ():
            assert run.counters.mean_kept >= 0 or run.counters.kept
            assert all(type(outcome.correct) is bool for outcome in run.outcomes)
            outcomes_frame(run.outcomes)


def artifact(header: bytes, tensors: bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / METADATA).write_bytes(header)
        (folder / TENSORS).write_bytes(struct.pack("<Q", len(tensors)) + tensors + bytes(8))

    return write


HEADER = json.dumps({
    "schema_version": 2, "fingerprint": "f", "model": {"name": "m", "identity": "i"}, "domains": ["math"],
    "settings": CalibrationConfig().model_dump(mode="json", exclude={"path"}),
}).encode()  # fmt: skip
SIZES = json.dumps({f"math.{USAGE}": {"dtype": "U8", "shape": [2, 4], "data_offsets": [0, 8]}}).encode()


@examples(150)
@given(which=st.sampled_from(["header", "tensors", "file"]), damage=DAMAGES)
def test_a_damaged_calibration_is_used_or_refused_in_words(
    which: str, damage: tuple[str, int, Any], tmp_path: Path
) -> None:
    header = damaged(HEADER, damage) if which == "header" else HEADER
    tensors = damaged(SIZES, damage) if which == "tensors" else SIZES
    artifact(header, tensors)(tmp_path)
    if which == "file" and damage[0] != "edit":
        (tmp_path / TENSORS).write_bytes(damaged((tmp_path / TENSORS).read_bytes(), damage))
    with in_time(), contextlib.suppress(UserError):
        found = check_artifact(
            CalibrationConfig(path=str(tmp_path)), model="m", identity="i", shape=SHAPE, domains=("math",)
        )
        assert found.fingerprint is not None
