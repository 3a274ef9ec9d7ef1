"""Who only reads a run changes nothing in it, and says what was left out and what to type."""

from __future__ import annotations

import contextlib
import errno
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from synthetic_run import SyntheticRun, ladder

from banpick_exp.errors import UserError
from banpick_exp.manifest import Manifest
from banpick_exp.report import choose, command, compare
from banpick_exp.report.run import read_run
from banpick_exp.report.sentences import closing
from banpick_exp.run_folder import RunFolder

TYPED = "python -m banpick_exp +sweep=pick_strength"


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(ladder(SyntheticRun(problems=12)).write(tmp_path / "pick" / "a run"))
    folder.write_manifest(Manifest(command=TYPED))
    return folder


def contents(folder: RunFolder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.points.iterdir()}


def damage(folder: RunFolder, count: int) -> list[Path]:
    """Edit that many records, the last ones by name."""
    files = folder.record_files()[-count:]
    for path in files:
        path.write_text(path.read_text().replace('"label": "', '"label": "x', 1))
    return files


@pytest.mark.parametrize(
    "reads",
    [
        lambda run, beside: command.run([str(run)]),
        lambda run, beside: compare.run([str(run), str(beside)]),
        lambda run, beside: choose.run([str(run)]),
    ],
    ids=["report", "compare", "choose"],
)
def test_no_command_that_reads_renames_a_record(
    reads: Callable[[Path, Path], int], folder: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    beside = RunFolder(shutil.copytree(folder.path, folder.path.with_name("beside")))
    (edited,) = damage(folder, 1)
    alone = next(path for path in folder.record_files() if path != edited)
    folder.outcomes_path(alone.stem).unlink()
    before = contents(folder)
    with contextlib.suppress(UserError):  # a front may need what was left out; it is told all the same
        reads(folder.path, beside.path)
    assert contents(folder) == before
    told = capsys.readouterr().err.splitlines()
    assert f"Left out: {alone}: {alone.stem}.outcomes.parquet is not there" in told
    assert any(line.startswith(f"Left out: {edited}: edited or damaged: ") for line in told)
    assert told[-1].endswith("to run the 2 point(s) again.")


def test_the_first_few_are_named_and_the_others_counted(folder: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    damage(folder, 6)
    assert command.run([str(folder.path)]) == 0
    *lines, more, remedy = capsys.readouterr().err.splitlines()
    assert len(lines) == 5 and all(line.startswith("Left out: ") for line in lines) and more == "Left out: 1 more"
    typed = shlex.split(remedy.split("or type ")[1].split(" to run the 6")[0])
    assert typed == [*shlex.split(TYPED), f'resume="{folder.path}"'], "the folder's name has a space"


def test_what_is_left_out_counts_among_the_points(folder: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    whole = len(folder.record_files())
    damage(folder, 1)
    assert command.run([str(folder.path)]) == 0
    said = f"{whole - 1} of {whole} points are done (1 left out: not readable as written)"
    assert said in folder.report.read_text()
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.endswith(" ".join(closing(read_run(folder)).split())), "the verdict is the last that is said"


def test_what_was_set_aside_earlier_is_told(folder: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    damage(folder, 2)
    for each in folder.load_points()[1]:
        folder.set_aside(each)
    assert command.run([str(folder.path)]) == 0
    assert capsys.readouterr().err.splitlines() == [
        f"2 records were set aside earlier (*.corrupt) in {folder.points}; 0 measured again since."
    ]


def test_a_whole_run_is_reported_without_a_word(folder: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.run([str(folder.path)]) == 0
    assert capsys.readouterr().err == ""


def test_a_file_that_cannot_be_opened_is_named(folder: RunFolder) -> None:
    path = folder.record_files()[0]
    path.unlink()
    path.symlink_to(folder.path / "unmounted" / path.name)
    with pytest.raises(UserError, match=rf"{path.name} cannot be opened .*Mount the disk"):
        command.run([str(folder.path)])


def test_a_run_does_not_stand_beside_itself(folder: RunFolder) -> None:
    typed = str(folder.path)
    for again in (typed, f"{typed}/", f"{typed}/../{folder.path.name}"):
        with pytest.raises(UserError, match=r"the same run twice.*Type it once: python -m") as caught:
            command.run([typed, again])
        assert shlex.split(str(caught.value).split("Type it once: ")[1])[-1] == typed
    assert not folder.report.exists()


def test_a_page_that_cannot_be_written_is_refused_before_anything_is_drawn(folder: RunFolder, tmp_path: Path) -> None:
    before = sorted(folder.path.iterdir())
    for output, words in (
        (tmp_path, f"it is a folder, and the page is a file. Type --output {tmp_path / 'report.html'}"),
        (tmp_path / "no" / "x.html", f"there is no folder {tmp_path / 'no'}"),
        (Path("/proc/x.html"), "cannot be written"),
    ):
        with pytest.raises(UserError, match="--output") as caught:
            command.run([str(folder.path), "--output", str(output)])
        assert words in str(caught.value)
    assert sorted(folder.path.iterdir()) == before


def test_a_disk_that_fills_up_is_one_sentence(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("banpick_exp.report.figures.front.draw_front", full)
    with pytest.raises(UserError, match=r"No space left on device.*The points are whole\. Make room"):
        command.run([str(folder.path)])


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_drawn(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(**_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", read_only)
    with pytest.raises(UserError, match=r"Read-only file system.* nothing was drawn.*cp -r") as caught:
        command.run([str(folder.path)])
    typed = shlex.split(str(caught.value).split("a copy of yours: ")[1].split(", then")[0])
    assert typed == ["cp", "-r", str(folder.path), "COPY"]


def test_a_run_that_was_stopped_before_its_first_point_says_how_to_go_on(folder: RunFolder) -> None:
    shutil.rmtree(folder.points)
    with pytest.raises(UserError, match="has no point yet") as caught:
        command.run([str(folder.path)])
    typed = str(caught.value).split("Type ")[1].removesuffix(" to go on with it.")
    assert shlex.split(typed) == [*shlex.split(TYPED), f'resume="{folder.path}"']
