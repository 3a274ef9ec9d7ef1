"""The Dockerfile really built and run: by buildah, on a base made by debootstrap in place of the pulled one.

What this proves: every instruction of the CPU image works, its lock installs from this machine's package index, and as
the image's user `verify` holds and a sweep writes into a mounted folder. What it does not: the pulled base, Docker
itself, the CUDA image. It needs root, buildah and debootstrap, about 16 GB of disk for a while and as many minutes:

    apt-get install --no-install-recommends buildah debootstrap
    python -m pytest -m long tests/house/test_image.py

BANPICK_IMAGE_DIR names a folder to work in, on a disk with room; else it is pytest's.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD_SECONDS, RUN_SECONDS = 5400, 2400
DISK_BYTES = 20 * 2**30
USER = 10001
MISSING = [program for program in ("buildah", "debootstrap") if shutil.which(program) is None]

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(2 * BUILD_SECONDS),
    pytest.mark.skipif(os.geteuid() != 0, reason="buildah and debootstrap build a root file system as root"),
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
]


@dataclass(frozen=True)
class Buildah:
    """buildah with a store of its own below `folder`, which goes with it."""

    folder: Path

    def __call__(self, *words: str, seconds: float = 600, cwd: Path | None = None) -> str:
        """Returns what it printed; AssertionError with the end of it where it fails."""
        store = ["--root", str(self.folder / "store"), "--runroot", str(self.folder / "run")]
        environment = os.environ | {"BUILDAH_ISOLATION": "chroot", "TMPDIR": str(self.folder)}
        command = ["buildah", *store, *words]
        done = subprocess.run(
            command,
            env=environment,
            cwd=cwd,
            timeout=seconds,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout[-6000:]}"
        return done.stdout


@dataclass(frozen=True)
class Container:
    buildah: Buildah
    name: str
    outputs: Path
    """On this machine, and /work/outputs inside."""

    def run(self, *words: str) -> str:
        """What a command prints in the image, as its user and with its environment, the folder of results mounted."""
        mounted = f"{self.outputs}:/work/outputs"
        return self.buildah("run", "--volume", mounted, self.name, "--", *words, seconds=RUN_SECONDS)


def pip_configuration(folder: Path) -> dict[Path, str]:
    """Files of this machine that a build needs to find packages as pip does here: path here -> path in the build.

    Its settings as one file, and what they point to. Mounted while building, so that no layer holds them.
    """
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    told: dict[str, dict[str, str]] = {"global": {}, "install": {}, ":env:": {}}  # the later win
    for line in listed.stdout.splitlines():
        key, _, value = line.partition("=")
        section, _, name = key.partition(".")
        told.setdefault(section, {})[name] = value.strip("'").replace("\\n", "\n")
    settings = told["global"] | told["install"] | told[":env:"]
    file = folder / "pip.conf"
    lines = [f"{name} = {' '.join(value.split())}" for name, value in settings.items()]
    file.write_text("\n".join(["[global]", *lines, ""]))
    named = {Path(word.removeprefix("file://")) for value in settings.values() for word in value.split()}
    found = {path for path in named if path.is_absolute() and path.exists()}
    # Of an index in a folder, `.../simple`, the files lie around it.
    mounted = {path.parent if path.name == "simple" else path for path in found}
    return {file: "/etc/pip.conf", **{path: str(path) for path in sorted(mounted)}}


def debian(buildah: Buildah, folder: Path) -> str:
    """A minimal Debian with Python as an image. Returns its name."""
    root = folder / "debian"
    packages = "--include=ca-certificates,python3,python3-dev,python3-venv"
    made = subprocess.run(
        ["debootstrap", "--variant=minbase", packages, "bookworm", root],
        capture_output=True,
        text=True,
        timeout=BUILD_SECONDS,
    )
    assert made.returncode == 0, made.stdout[-4000:] + made.stderr[-2000:]
    container = buildah("from", "scratch").strip()
    buildah("add", container, f"{root}/", "/", seconds=BUILD_SECONDS)
    buildah("commit", container, "debian-with-python", seconds=BUILD_SECONDS)
    buildah("rm", container)
    shutil.rmtree(root)
    return "localhost/debian-with-python"


def build(buildah: Buildah, base: str, volumes: Mapping[Path, str], arguments: Mapping[str, str]) -> str:
    """The CPU image of this tree's Dockerfile. Returns its name."""
    mounts = [word for here, there in volumes.items() for word in ("--volume", f"{here}:{there}:ro")]
    values = [word for name, value in arguments.items() for word in ("--build-arg", f"{name}={value}")]
    target = ["--target", "cpu", "--build-arg", f"CPU_BASE={base}", "--format", "docker"]
    buildah("build", *target, *values, *mounts, "--tag", "banpick-cpu", ".", seconds=BUILD_SECONDS, cwd=ROOT)
    return "localhost/banpick-cpu"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    named = os.environ.get("BANPICK_IMAGE_DIR")
    folder = Path(named) / "image" if named else tmp_path_factory.mktemp("image")
    folder.mkdir(exist_ok=True, parents=True)
    if shutil.disk_usage(folder).free < DISK_BYTES:
        pytest.skip(f"{folder} has less than {DISK_BYTES / 2**30:.0f} GiB free")
    buildah = Buildah(folder)
    outputs = folder / "outputs"
    outputs.mkdir(exist_ok=True)
    os.chown(outputs, USER, USER)
    try:
        arguments = {"TORCH_INDEX": os.environ["TORCH_INDEX"]} if "TORCH_INDEX" in os.environ else {}
        name = build(buildah, debian(buildah, folder), pip_configuration(folder), arguments)
        yield Container(buildah, buildah("from", name, seconds=BUILD_SECONDS).strip().splitlines()[-1], outputs)
    finally:
        subprocess.run(["buildah", "--root", folder / "store", "--runroot", folder / "run", "rm", "--all"], check=False)
        shutil.rmtree(folder, ignore_errors=True)


def test_it_runs_as_its_user_and_holds_no_configuration_of_the_machine_that_built_it(image: Container) -> None:
    who = image.run("sh", "-c", "id -u; pwd; command -v python; cat /etc/pip.conf 2>/dev/null | wc -c; env")
    uid, folder, python, size, *environment = who.split("\n")
    assert (uid, folder, python, size.strip()) == (str(USER), "/work", "/opt/venv/bin/python", "0")
    assert not [line for line in environment if line.startswith("PIP_")]


def test_the_health_check_holds(image: Container) -> None:
    """`verify`, as HEALTHCHECK has it: the engine of the image routes, skips and counts as it should."""
    inspected = image.buildah("inspect", "--type", "image", "localhost/banpick-cpu")
    assert '"verify"' in inspected and '"Healthcheck"' in inspected
    report = image.run("python", "-m", "banpick_exp", "verify")
    assert "everything that applies holds" in report and "FAILED" not in report


def test_a_sweep_writes_into_the_mounted_folder(image: Container) -> None:
    sweep = ["policy=fixed_k", "policy.k=4", "task.max_problems=8", "task.speed_seconds=0", "sweep.name=image"]
    image.run("python", "-m", "banpick_exp", *sweep, "cluster.engines=1", "output_dir=/work/outputs")
    (manifest,) = image.outputs.glob("image/*/run.json")
    assert manifest.stat().st_uid == USER
    assert len(list(manifest.parent.glob("points/*.json"))) >= 2 and (manifest.parent / "report.html").is_file()
