"""What a run leaves behind holds no key, is writable by nobody else, and lies where it was told to."""

from __future__ import annotations

import os
import secrets
import stat
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest
from running_sweep import awaited
from synthetic_run import SyntheticRun
from wandb_runs import read_back

from banpick_exp.cluster.events import Events
from banpick_exp.cluster.plan import plan_run
from banpick_exp.cluster.pulse import beating
from banpick_exp.disk import create_folder
from banpick_exp.errors import UserError
from banpick_exp.manifest import Manifest
from banpick_exp.run_folder import RunFolder
from banpick_exp.run_lock import held

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "policy=fixed_k", "policy.k=4", "task.max_problems=4", "task.speed_seconds=0.1", "cluster=inline", "output_dir=out",
]  # fmt: skip
PLANTED = {
    "WANDB_API_KEY": secrets.token_hex(20),
    "HF_TOKEN": f"hf_{secrets.token_hex(17)}",
    "OPENAI_API_KEY": f"sk-{secrets.token_hex(24)}",
    "RAY_AUTH_TOKEN": secrets.token_urlsafe(32),
}
"""Made anew for each run of the tests: whoever reads this file learns no key, and neither does a scanner."""
IN_A_URL = secrets.token_hex(12)
KEYS = [*PLANTED.values(), IN_A_URL]


@dataclass(frozen=True)
class Done:
    """A finished command."""

    code: int
    said: str


def command(folder: Path, *typed: str, umask: int = 0o022) -> Done:
    """`python -m banpick_exp`, typed in `folder` with the planted keys in the environment."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    done = subprocess.run(
        [sys.executable, "-m", "banpick_exp", *typed],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=folder, timeout=300, umask=umask,
        env=clean | PLANTED | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])},
    )  # fmt: skip
    return Done(done.returncode, done.stdout.decode(errors="replace"))


def only_run(folder: Path) -> Path:
    (manifest,) = folder.glob("*/*/run.json")
    return manifest.parent


def texts(folder: Path) -> Iterator[tuple[str, str]]:
    """All that stands below a folder, by name: what compressed files hold is taken out."""
    for path in sorted(folder.rglob("*")):
        yield "name", str(path)
        if path.is_symlink() or not path.is_file():
            continue
        yield str(path), path.read_bytes().decode("latin-1")
        if path.suffix == ".parquet":
            yield str(path), pl.read_parquet(path.read_bytes()).write_ndjson()


def holding(needles: Iterable[str], found: Iterable[tuple[str, str]]) -> list[str]:
    return sorted({where for where, text in found if any(needle in text for needle in needles)})


def writable_by(who: int, folder: Path) -> list[str]:
    """Files and folders below `folder` that grant one of the bits `who`."""
    paths = [folder, *folder.rglob("*")]
    return [str(path) for path in paths if not path.is_symlink() and stat.S_IMODE(path.stat().st_mode) & who]


# ------------------------------------------------------------ a whole run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    folder = tmp_path_factory.mktemp("keys")
    done = command(folder, *SMALL, "tracking=wandb", "tracking.mode=offline")
    assert done.code == 0, done.said
    return folder, done


@pytest.mark.engine
@pytest.mark.slow
def test_no_key_of_the_environment_is_left_anywhere(whole: tuple[Path, Done]) -> None:
    folder, done = whole
    run = only_run(folder / "out")
    mirrored = [("W&B", each["text"]) for each in read_back(run).values()]
    assert len(mirrored) == 3
    everything = [("said", done.said), *mirrored, *texts(folder)]
    assert holding(KEYS, everything) == []
    # What is there is found, in whatever form it is kept.
    found = holding(["policy.k=4"], everything)
    assert {"W&B", str(run / "run.json"), str(run / "report.html"), str(run / "points.parquet")} <= set(found)


@pytest.mark.engine
@pytest.mark.slow
def test_a_run_is_writable_by_its_owner_alone(whole: tuple[Path, Done]) -> None:
    folder, _ = whole
    assert writable_by(0o022, folder / "out") == []
    assert len(list(only_run(folder / "out").rglob("*"))) > 10


@pytest.mark.engine
@pytest.mark.slow
def test_a_strict_umask_is_honoured_and_names_stay_below_the_output_folder(tmp_path: Path) -> None:
    """A model may have any name: it stands in records and labels, and no file is called so."""
    deep = tmp_path / "a" / "b" / "c"
    deep.mkdir(parents=True)
    done = command(deep, *SMALL, "model.name=../../evil", "tracking=wandb", "tracking.mode=offline", umask=0o077)
    assert done.code == 0, done.said
    assert writable_by(0o077, deep / "out") == []
    outside = {path for path in tmp_path.rglob("*") if not path.is_relative_to(deep / "out")}
    assert outside == {deep, deep.parent, deep.parent.parent}
    assert holding(["evil"], (("name", str(path)) for path in tmp_path.rglob("*"))) == []


# ------------------------------------------------------------ what is typed


LINES = {
    "the address of a model": f"model.path=https://reader:{IN_A_URL}@models.example.org/qwen",
    "the address of problems": f"task.data_files=https://reader:{IN_A_URL}@example.org/{{domain}}.jsonl",
    "the address of a cluster": f"cluster.address=ray://reader:{IN_A_URL}@head:10001",
    "the value of a variable": f"model.revision={PLANTED['HF_TOKEN']}",
    "the value of a variable in a text": f"task.answer_pattern=x{PLANTED['OPENAI_API_KEY']}(.)",
}


@pytest.mark.parametrize("dry_run", ["true", "false"])
@pytest.mark.parametrize("typed", LINES.values(), ids=LINES)
def test_a_key_on_the_command_line_is_refused_and_not_repeated(typed: str, dry_run: str, tmp_path: Path) -> None:
    """It would stand in the manifest, in every record, in the report and in W&B: the whole line is kept there."""
    words = [word for word in SMALL if not word.startswith(typed.partition(".")[0])]
    done = command(tmp_path, *words, typed, "tracking=none", f"dry_run={dry_run}")
    assert done.code == 2, done.said
    assert holding(KEYS, [("said", done.said), *texts(tmp_path)]) == []
    assert typed.partition("=")[0] in done.said and list(tmp_path.iterdir()) == []


def test_a_dry_run_beside_keys_prints_none_and_writes_nothing(tmp_path: Path) -> None:
    done = command(tmp_path, *SMALL, "tracking=wandb", "dry_run=true")
    assert done.code == 0 and "fixed_k" in done.said
    assert holding(KEYS, [("said", done.said)]) == [] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../../evil", "/tmp/evil", "..", "a/b", "calibrations"])
def test_a_sweep_is_named_by_one_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"sweep\.name="):
        plan_run(["policy=fixed_k", "policy.k=4", f'sweep.name="{name}"', "tracking=none", f"output_dir={tmp_path}"])


# ------------------------------------------------------------ what the run's folder writes


@pytest.fixture
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o022, 0o077], indirect=True, ids=oct)
def test_nobody_else_writes_what_the_run_folder_makes(umask: int, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "out" / "sweep" / "run")
    run.write_manifest(Manifest(sweep="sweep"))
    drawn = SyntheticRun(problems=4)
    drawn.add("none")
    drawn.write(run.path)
    run.write_trace("x", "trace")
    run.write_table("points", pl.DataFrame({"a": [1]}))
    Events(run).write("note", text="x")
    with held(run), beating(run, "engine"):
        signs = (run.lock, run.pulse_path("engine"))
        awaited(lambda: True if all(path.exists() for path in signs) else None)
        assert [stat.S_IMODE(path.stat().st_mode) for path in signs] == [0o664 & ~umask] * 2
    assert len(list(run.path.rglob("*"))) >= 6
    assert writable_by(0o002 | umask, tmp_path / "out") == []
    for path in run.path.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o775 if path.is_dir() else 0o664) & ~umask


def test_a_run_that_is_a_link_to_elsewhere_is_refused(tmp_path: Path) -> None:
    """One that was moved to another disk and linked is a run, and gone on with."""
    elsewhere, link = tmp_path / "elsewhere", tmp_path / "out" / "custom" / "mine"
    elsewhere.mkdir()
    link.parent.mkdir(parents=True)
    link.symlink_to(elsewhere)
    words = ["policy=fixed_k", "policy.k=4", "run=mine", "tracking=none", f"output_dir={tmp_path / 'out'}"]
    with pytest.raises(UserError, match=r"run=mine is a link to .*elsewhere"):
        plan_run(words)
    assert list(elsewhere.iterdir()) == []
    plan = plan_run([word for word in words if word != "run=mine"])
    RunFolder(elsewhere).write_manifest(plan.sweep.manifest())
    assert plan_run(words).sweep.resume


def test_a_zero_byte_names_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"output_dir=.*zero byte"):
        plan_run(["policy=fixed_k", "policy.k=4", "tracking=none", f'output_dir="{tmp_path}/a\0b"'])


def test_a_folder_that_is_there_keeps_its_mode(tmp_path: Path) -> None:
    tmp_path.chmod(0o711)
    create_folder(tmp_path / "a" / "b")
    create_folder(tmp_path / "a" / "b")
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o711 and (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        create_folder(tmp_path / "file")
