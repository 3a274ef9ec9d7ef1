"""Makefile and .ci: when the environment is made again, what is told when it cannot be, and what the targets run."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("script", ["run", "venv", "lock"])
def test_scripts_are_clean(script: str) -> None:
    found = subprocess.run(
        [Path(sys.executable).parent / "shellcheck", ROOT / ".ci" / script], capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout
    assert os.access(ROOT / ".ci" / script, os.X_OK)


# Stands in for an interpreter: answers as Python $version, makes folders instead of environments, records pip's calls.
INTERPRETER = """#!/usr/bin/env bash
version=VERSION
case $1 in
    -) read -r _ lock project < <(exec REAL "$@"); echo "$version $version-$lock $project" ;;
    -c) ;;
    -m)
        [[ $2 != venv ]] || { mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; exit; }
        printf '%s\\n' "${*:3}" >>"$CALLS"
        case $FAIL in
            torch) [[ $* != *first.lock* || $* == *--extra-index-url* ]] || { echo "ERROR: no torch"; exit 1; } ;;
            ?*) [[ $* != *"$FAIL" ]] || { echo "ERROR: the disk is full"; exit 1; } ;;
        esac ;;
esac
"""

Venv = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with a lock file of four packages, and no interpreter but the stand-ins of `interpreters`."""
    root = tmp_path / "checkout"
    (root / ".ci").mkdir(parents=True)
    shutil.copy(ROOT / ".ci/venv", root / ".ci/venv")
    names = ("numpy", "setuptools", "torch", "wheel")
    (root / "requirements-cpu.lock").write_text("".join(f"{name}==1 \\\n    --hash=sha256:00\n" for name in names))
    (root / "pyproject.toml").write_text("[project]\n")
    interpreters(tmp_path, {"python3.11": "3.11", "python3.12": "3.12", "python3": "3.13"})
    return root


def interpreters(tmp_path: Path, versions: dict[str, str | None]) -> None:
    """Puts stand-ins first on PATH; None is a version manager's stand-in that exists and does not run."""
    (tmp_path / "bin").mkdir(exist_ok=True)
    for name, version in versions.items():
        text = INTERPRETER.replace("VERSION", version or "").replace("REAL", shlex.quote(sys.executable))
        path = tmp_path / "bin" / name
        path.write_text(text if version else "#!/usr/bin/env bash\necho 'command not found' >&2\nexit 127\n")
        path.chmod(0o755)


@pytest.fixture
def make_venv(tmp_path: Path, checkout: Path) -> Venv:
    def run(root: Path = checkout, **environment: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "calls").write_text("")
        defaults = {"CALLS": str(tmp_path / "calls"), "FAIL": "", "PYTHON": "", "TORCH_INDEX": "https://torch.test/cpu"}
        defaults["PATH"] = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        return subprocess.run(
            [root / ".ci/venv"], env=os.environ | defaults | environment, capture_output=True, text=True, cwd="/"
        )

    return run


def pip_calls(tmp_path: Path) -> list[str]:
    """What each call of pip installed, without the options that all of them share."""
    shared = (
        r"^--no-input --disable-pip-version-check install --no-deps |--require-hashes --no-compile --progress-bar off "
    )
    return [re.sub(shared, "", line) for line in (tmp_path / "calls").read_text().splitlines()]


FROM_NOTHING = [
    "-r .venv/first.lock",
    "--no-build-isolation -r requirements-cpu.lock",
    "--no-build-isolation --editable .",
]


def test_the_environment_is_made_once(make_venv: Venv, checkout: Path, tmp_path: Path) -> None:
    first = make_venv()
    assert first.returncode == 0 and pip_calls(tmp_path) == FROM_NOTHING
    assert "torch came from pip's own configuration" in first.stderr
    first_names = re.findall(r"^\w+", (checkout / ".venv/first.lock").read_text(), re.MULTILINE)
    assert first_names == ["setuptools", "torch", "wheel"]
    second = make_venv()
    assert (second.returncode, second.stderr, pip_calls(tmp_path)) == (0, "", [])


def test_another_lock_file_makes_all_of_it_again(make_venv: Venv, checkout: Path, tmp_path: Path) -> None:
    make_venv()
    (checkout / ".venv/left-over").touch()
    with (checkout / "requirements-cpu.lock").open("a") as lock:
        lock.write("zict==1 \\\n    --hash=sha256:00\n")
    make_venv()
    assert pip_calls(tmp_path) == FROM_NOTHING
    assert not (checkout / ".venv/left-over").exists()


def test_another_pyproject_installs_the_project_alone(make_venv: Venv, checkout: Path, tmp_path: Path) -> None:
    make_venv()
    (checkout / "pyproject.toml").write_text("[project]\nversion = '2'\n")
    make_venv()
    assert pip_calls(tmp_path) == FROM_NOTHING[-1:]


def test_a_moved_checkout_makes_all_of_it_again(make_venv: Venv, checkout: Path, tmp_path: Path) -> None:
    make_venv()
    moved = checkout.rename(tmp_path / "elsewhere")
    make_venv(moved)
    assert pip_calls(tmp_path) == FROM_NOTHING


def test_another_python_makes_all_of_it_again(make_venv: Venv, tmp_path: Path) -> None:
    make_venv()
    assert "with Python 3.12" in make_venv(PYTHON="python3.12").stderr
    assert pip_calls(tmp_path) == FROM_NOTHING
    make_venv()  # without PYTHON= the environment in use stays
    assert pip_calls(tmp_path) == []


@pytest.mark.parametrize(
    ("fails_at", "afterwards"), [("requirements-cpu.lock", FROM_NOTHING), ("--editable .", FROM_NOTHING[-1:])]
)
def test_an_interrupted_install_is_done_again(
    make_venv: Venv, tmp_path: Path, fails_at: str, afterwards: list[str]
) -> None:
    broken = make_venv(FAIL=fails_at)
    assert broken.returncode == 2
    assert "ERROR: the disk is full" in broken.stderr and ".venv is unfinished" in broken.stderr
    assert make_venv().returncode == 0
    assert pip_calls(tmp_path) == afterwards


def test_torch_falls_back_to_the_public_index(make_venv: Venv, tmp_path: Path) -> None:
    ended = make_venv(FAIL="torch")
    assert ended.returncode == 0
    assert "torch came from https://torch.test/cpu" in ended.stderr
    with_index = "--extra-index-url https://torch.test/cpu -r .venv/first.lock"
    assert pip_calls(tmp_path) == [FROM_NOTHING[0], with_index, *FROM_NOTHING[1:]]


def test_a_python_that_does_not_run_is_passed_over(make_venv: Venv, tmp_path: Path) -> None:
    interpreters(tmp_path, {"python3.11": None})
    ended = make_venv()
    assert ended.returncode == 0 and "with Python 3.12 (python3.12)" in ended.stderr


def test_without_a_usable_python_the_message_names_each(make_venv: Venv, checkout: Path, tmp_path: Path) -> None:
    interpreters(tmp_path, {"python3.11": None, "python3.12": None})
    ended = make_venv()
    assert ended.returncode == 2 and not (checkout / ".venv").exists()
    for part in (
        "python3.11 (does not run",
        "python3.12 (does not run",
        "python3 (is Python 3.13)",
        "make sweep PYTHON=",
    ):
        assert part in ended.stderr
    assert "python-of-mine (not found)" in make_venv(PYTHON="python-of-mine").stderr


def test_an_activated_environment_does_not_replace_itself(make_venv: Venv, checkout: Path, tmp_path: Path) -> None:
    make_venv()
    shutil.copy(checkout / ".venv/bin/python", checkout / ".venv/bin/python3.11")
    (checkout / "requirements-cpu.lock").write_text("torch==2 \\\n    --hash=sha256:00\n")
    ended = make_venv(PATH=f"{checkout / '.venv/bin'}:{tmp_path / 'bin'}:{os.environ['PATH']}")
    assert ended.returncode == 0 and pip_calls(tmp_path) == FROM_NOTHING


@pytest.fixture
def stub_checkout(tmp_path: Path) -> Path:
    """The real Makefile over an environment whose programs only record that they were called."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    programs = ("ruff", "mypy", "lint-imports", "mkdocs", "pre-commit", "python")
    for program in (".ci/venv", *(f".venv/bin/{name}" for name in programs)):
        path = tmp_path / program
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'#!/usr/bin/env bash\necho "{path.name} $*" >>calls\n[[ {path.name} != "${{BROKEN:-}}" ]]\n')
        path.chmod(0o755)
    return tmp_path


def make(folder: Path, *arguments: str, **environment: str) -> tuple[int, list[str]]:
    # Of the `make test` that may be running this; make hands on what was typed to it, such as ARGS="-n 0".
    hidden = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS", "ARGS", "SWEEP"}
    inherited = {name: value for name, value in os.environ.items() if name not in hidden}
    ended = subprocess.run(
        ["make", *arguments], cwd=folder, env=inherited | environment, capture_output=True, text=True
    )
    return ended.returncode, (folder / "calls").read_text().splitlines()


def test_make_sweep_is_the_documented_command(stub_checkout: Path) -> None:
    assert make(stub_checkout, "sweep") == (0, ["venv cpu", "python -m banpick_exp +sweep=pick_strength"])


LINT = ["ruff check .", "ruff format --check .", "mypy ", "lint-imports --no-logo"]
TESTS = "python -m pytest -n 2 --dist loadfile --no-loadscope-reorder"


@pytest.mark.parametrize("broken", ["", "ruff", "mypy", "lint-imports", "python"])
@pytest.mark.parametrize(
    ("target", "tests"),
    [
        ("test", [f"{TESTS} -m not long"]),
        ("check", [f"{TESTS} -q -m not slow and not engine and not gpu"]),
        ("lint", []),
    ],
)
def test_make_runs_every_check_whichever_fails(stub_checkout: Path, target: str, tests: list[str], broken: str) -> None:
    status, called = make(stub_checkout, target, BROKEN=broken)
    assert called == ["venv cpu", *LINT, *tests]
    assert (status != 0) == any(line.startswith(f"{broken} ") for line in called)


@pytest.mark.parametrize(
    ("target", "command"),
    [
        ("hooks", "pre-commit install"),
        ("long", "python -m pytest -n 0 -m long --durations=0 --durations-min=1"),
        ("docs", "mkdocs build --config-file .ci/mkdocs.yml"),
    ],
)
def test_make_hooks_and_docs_need_the_environment_alone(stub_checkout: Path, target: str, command: str) -> None:
    assert make(stub_checkout, target) == (0, ["venv cpu", command])


def test_make_help_names_every_target(stub_checkout: Path) -> None:
    text = (stub_checkout / "Makefile").read_text()
    targets = set(re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)[1].split()) - {"help"}  # type: ignore[index]
    assert targets == set(re.findall(r"@echo 'make ([\w-]+) ", text))


def test_make_stops_where_the_environment_cannot_be_made(stub_checkout: Path) -> None:
    status, called = make(stub_checkout, "sweep", BROKEN="venv")
    assert status != 0 and called == ["venv cpu"]


@pytest.mark.parametrize(("test", "long", "status"), [(0, 0, 0), (5, 0, 5), (0, 2, 2), (5, 2, 5)])
def test_ci_runs_every_test_and_hands_on_what_failed(tmp_path: Path, test: int, long: int, status: int) -> None:
    stand_ins = {"make": f'echo "$PWD make $*"; cat; [ $1 = test ] && exit {test}; exit {long}', "apt-get": "exit 0"}
    for name, body in stand_ins.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    ended = subprocess.run(
        [ROOT / ".ci/run"],
        cwd="/",
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        input="typed by nobody",
        capture_output=True,
        text=True,
    )
    assert ended.returncode == status
    first, *faults = ended.stdout.splitlines()
    assert first == f"{ROOT} make test" and len(faults) == (2 if long else 1), "what fails is done once more"
    named = re.findall(r"tests/\S+\.py", faults[0])
    assert named and all((ROOT / each).is_file() for each in named)
    assert faults[0] == f"{ROOT} make long ARGS=-n 2 --dist loadfile --no-loadscope-reorder {' '.join(named)}"
    assert faults[1:] in ([], [f"{ROOT} make long ARGS=--last-failed {' '.join(named)}"])
