"""The SkyPilot file of each study: its fields, its scripts, and the run of two nodes against a stand-in of Ray.

SkyPilot itself is not locked: the fields are those that its documentation of a task's YAML names. Where it is installed
beside the tests (`pip install skypilot`), its own schema is asked too.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from banpick_exp.sweep.compose import Composer
from banpick_exp.sweep.study import read_study, studies

ROOT = Path(__file__).resolve().parents[2]
STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["name", "num_nodes", "resources", "workdir", "volumes", "envs", "setup", "run"],
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"},
        "num_nodes": {"type": "integer", "minimum": 1},
        "resources": {
            "type": "object",
            "additionalProperties": False,
            "required": ["accelerators"],
            "properties": {
                "infra": {"type": "string"},
                "accelerators": {"type": "string", "pattern": "^[A-Za-z0-9-]+:[0-9]+$"},
                "memory": {"type": "string", "pattern": r"^[0-9]+\+?$"},
            },
        },
        "workdir": {"type": "string"},
        "volumes": STRINGS | {"propertyNames": {"pattern": "^/"}},
        "envs": STRINGS,
        "setup": {"type": "string"},
        "run": {"type": "string"},
    },
}
"""Of the documented fields those that the template uses; every other is a mistake."""


@pytest.fixture(params=studies())
def task(request: pytest.FixtureRequest) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((ROOT / "sweeps" / request.param / "job.sky.yaml").read_text())
    return document


def test_its_fields_are_documented_ones(task: dict[str, Any]) -> None:
    jsonschema.validate(task, SCHEMA)
    with pytest.raises(jsonschema.ValidationError, match="num_node"):
        jsonschema.validate(task | {"num_node": 2}, SCHEMA)


def test_it_fits_skypilots_own_schema(task: dict[str, Any]) -> None:
    schemas = pytest.importorskip("sky.utils.schemas", reason="skypilot is not installed, and not locked")
    jsonschema.validate(task, schemas.get_task_schema())
    jsonschema.validate(task["resources"], schemas.get_resources_schema())


def test_it_is_one_page_and_has_whole_engines_on_each_node(task: dict[str, Any]) -> None:
    name = task["name"].removeprefix("banpick-").replace("-", "_")
    study = read_study(name)
    assert len((ROOT / "sweeps" / name / "job.sky.yaml").read_text().splitlines()) <= 60
    assert task["num_nodes"] == study.nodes
    gpus = Composer().setting({"model": study.model}).engine.gpus
    assert int(task["resources"]["accelerators"].partition(":")[2]) % gpus == 0
    words = shlex.split(task["run"].rpartition("-m banpick_exp ")[2])
    settings = dict(word.split("=", 1) for word in words if "=" in word)
    assert settings["study"] == name and settings["run"], "without a name each attempt would begin a new run"
    assert settings["output_dir"] in task["volumes"]
    data = task["envs"]["BANPICK_DATA"]
    assert data.startswith(f"{settings['output_dir']}/")
    own = any(word.startswith("task.data_files=") for word in study.full)
    assert settings.get("task.data_files", "").startswith(f'"{data}/') == own
    assert task["envs"]["HF_HOME"] in task["volumes"]


def test_its_script_is_clean(task: dict[str, Any], tmp_path: Path) -> None:
    script = tmp_path / "run.sh"
    script.write_text("#!/usr/bin/env bash\n" + task["run"])
    shellcheck = Path(sys.executable).parent / "shellcheck"
    found = subprocess.run([shellcheck, "--severity=style", script], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


# ---------------------------------------------------------------- two nodes, without Ray

RAY = """#!/usr/bin/env bash
printf "%s mode=%s auth=%s pid=%s\\n" "$*" "$(stat -c %a "$RAY_AUTH_TOKEN_PATH")" "$RAY_AUTH_MODE" $$ >>"$CALLS.ray"
[[ -z ${RAY_FAILS:-} ]] || exit 1
exec sleep 300
"""
PYTHON = """#!/usr/bin/env bash
case "$*" in
    *secrets*) exec REAL "$@" ;;
    "-c import ray"*) wc -l <"$CALLS.ray" ;;
    "-m banpick_exp "*)
        printf "%s|" "$RAY_ADDRESS" "$@" >"$CALLS.driver"
        exit "${DRIVER_EXIT:-0}" ;;
    *) exit 99 ;;
esac
"""
Node = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """Starts the run of a node of two as SkyPilot would; /outputs is a folder below `tmp_path`."""
    bin_dir = tmp_path / ".venv-cuda/bin"
    bin_dir.mkdir(parents=True)
    for name, body in {"ray": RAY, "python": PYTHON.replace("REAL", shlex.quote(sys.executable))}.items():
        (bin_dir / name).write_text(body)
        (bin_dir / name).chmod(0o755)
    task = yaml.safe_load((ROOT / "sweeps/pick_strength/job.sky.yaml").read_text())
    script = tmp_path / "run.sh"
    script.write_text(task["run"].replace("/outputs", str(tmp_path / "outputs")))

    def start(rank: int, **environment: str) -> subprocess.Popen[str]:
        told = {"SKYPILOT_TASK_ID": "sky-4711_banpick_1", "SKYPILOT_NODE_RANK": str(rank), "SKYPILOT_NUM_NODES": "2"}
        told |= {"SKYPILOT_NODE_IPS": "10.77.0.1\n10.77.0.2", "CALLS": str(tmp_path / "calls")}
        return subprocess.Popen(
            ["bash", script],
            env=os.environ | task["envs"] | told | environment,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


def assert_nothing_is_left(folder: Path) -> list[str]:
    """What Ray was called with on each node; its processes and the token are gone."""
    assert not list(folder.rglob("ray-token"))
    lines = (folder / "calls.ray").read_text().splitlines()
    for line in lines:
        with pytest.raises(ProcessLookupError):
            os.kill(int(line.rpartition("pid=")[2]), 0)
    return lines


@pytest.mark.parametrize("code", [0, 7])
def test_the_first_node_drives_and_all_end_with_it(node: Node, tmp_path: Path, code: int) -> None:
    arguments = {"ARGUMENTS": "task.max_problems=50 tracking=none", "DRIVER_EXIT": str(code)}
    worker, head = node(1, **arguments), node(0, **arguments)
    output, _ = head.communicate(timeout=50)
    assert head.returncode == code, output
    output, _ = worker.communicate(timeout=50)
    assert worker.returncode == 0, output
    lines = sorted(assert_nothing_is_left(tmp_path), key=lambda line: "--head" not in line)
    assert "--head --port=16379 --include-dashboard=false --node-ip-address=10.77.0.1" in lines[0]
    assert "--address=10.77.0.1:16379 --node-ip-address=10.77.0.2" in lines[1]
    assert all("mode=600 auth=token" in line for line in lines)
    address, *words = (tmp_path / "calls.driver").read_text().rstrip("|").split("|")
    assert address == "10.77.0.1:16379" and words[:3] == ["-m", "banpick_exp", "study=pick_strength"]
    assert words[-2:] == ["task.max_problems=50", "tracking=none"]


def test_a_node_whose_ray_ends_early_says_so(node: Node, tmp_path: Path) -> None:
    head = node(0)
    worker = node(1, RAY_FAILS="1")
    assert worker.wait(50) == 1
    assert head.wait(50) == 0  # the stand-in counts the call as a node
    assert_nothing_is_left(tmp_path)
