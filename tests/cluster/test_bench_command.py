"""`bench` says what it would do and in which dtypes, and refuses before anything starts what could not end well."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from banpick_exp.cluster.commands import bench
from banpick_exp.errors import UserError
from banpick_exp.evaluation.bench import layer
from banpick_exp.models.dtype import Machine


@pytest.mark.parametrize("what", ["moe", "engine", "rows", "profile"])
@pytest.mark.parametrize(
    ("typed", "wanted"),
    [
        ([], "bfloat16 and float32"),
        (["--dtype", "both"], "bfloat16 and float32"),
        (["--dtype", "float32"], "float32,"),
        (["--dtype", "bfloat16"], "bfloat16,"),
    ],
)
def test_a_dry_run_names_the_dtypes(
    what: str, typed: list[str], wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.run([what, *typed, "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith(f"{what}: {wanted}")


def test_what_together_asks_and_no_more_than_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.run(["together", "--sizes", "3,2400", "--dry-run"]) == 0
    assert capsys.readouterr().out == "together: [3, 2400] problems, 15 rounds, 2 threads\n"
    with pytest.raises(UserError, match="--sizes=2401 exceeds the 2400 problems"):
        bench.run(["together", "--sizes", "2401", "--dry-run"])


def test_a_gpu_computes_in_the_checkpoints_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer, "versions", lambda: {"vllm": "0.32.0"})
    assert layer.dtypes_of(None) == ("bfloat16",)
    assert layer.dtypes_of("both") == ("bfloat16", "float32")


@pytest.mark.parametrize("dry", [["--dry-run"], []], ids=["dry", "real"])
@pytest.mark.parametrize("option", ["--output", "--picture"])
def test_what_could_not_be_written_is_refused_at_once(option: str, dry: list[str], tmp_path: Path) -> None:
    missing, folder, device = tmp_path / "no such" / "a", tmp_path / "folder", Path("/proc/a")
    folder.mkdir()
    for path, words in ((missing, "there is no folder"), (folder, "is a folder"), (device, "cannot be written")):
        with pytest.raises(UserError, match=words) as refused:
            bench.run(["engine", option, str(path), *dry])
        assert f"{option} {path}" in str(refused.value)


def test_the_remedy_for_a_missing_folder_works(tmp_path: Path) -> None:
    path = tmp_path / "no such" / "a"
    with pytest.raises(UserError) as refused:
        bench.run(["moe", "--output", str(path), "--dry-run"])
    make, parents, folder = shlex.split(str(refused.value).rpartition(": ")[2])
    assert (make, parents) == ("mkdir", "-p")
    Path(folder).mkdir(parents=True)
    assert bench.run(["moe", "--output", str(path), "--dry-run"]) == 0
    assert not list(path.parent.iterdir()), "a dry run writes nothing"


def test_a_file_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "earlier.jsonl"
    path.write_text("{}\n")
    assert bench.run(["engine", "--output", str(path), "--dry-run"]) == 0
    assert path.read_text() == "{}\n"


def test_an_engine_too_large_for_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "this_machine", lambda: Machine(None, 16 * 2**30))
    with pytest.raises(UserError, match="in float32 takes about 18 GiB and this machine has 16") as refused:
        bench.run(["engine", "--layers", "6", "--dry-run"])
    remedy = str(refused.value).rpartition("Type ")[2].split()
    assert bench.run(["engine", *remedy, "--dry-run"]) == 0
    assert bench.run(["engine", "--layers", "6", "--dtype", "bfloat16", "--dry-run"]) == 0


def test_a_picture_belongs_to_the_engine() -> None:
    with pytest.raises(UserError, match="--picture draws what `bench engine` measures"):
        bench.run(["moe", "--picture", "a.png", "--dry-run"])
