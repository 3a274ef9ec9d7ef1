"""The cluster jobs of sweeps/: linted, run against stand-ins of Slurm and Ray, and composed by the real program.

All come from one template each (tests/house/test_studies.py), so what runs is shown with the job of one study.
"""

from __future__ import annotations

import copy
import itertools
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from banpick_exp.sweep.compose import Composer
from banpick_exp.sweep.study import read_study, studies

ROOT = Path(__file__).resolve().parents[2]
STUDY = "pick_strength"
SBATCH = ROOT / "sweeps" / STUDY / "job.sbatch"
TOOLS = Path(sys.executable).parent


def test_every_sbatch_is_clean() -> None:
    jobs = [ROOT / "sweeps" / name / "job.sbatch" for name in studies()]
    found = subprocess.run([TOOLS / "shellcheck", "--severity=style", *jobs], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def gpus_of(model: str) -> int:
    """GPUs of the engine that model=`model` chooses."""
    return Composer().setting({"model": model}).engine.gpus


@pytest.mark.parametrize("name", studies())
def test_sbatch_has_whole_engines_on_each_node(name: str) -> None:
    lines = (ROOT / "sweeps" / name / "job.sbatch").read_text().splitlines()
    words = [line.split("--", 1)[1].partition("=") for line in lines if line.startswith("#SBATCH --")]
    directives = {key: value for key, _, value in words}
    study = read_study(name)
    assert int(directives["nodes"]) == study.nodes
    assert int(directives["gpus-per-node"]) % gpus_of(study.model) == 0


STAND_INS = {
    # Told to end, it kills its step, as srun does.
    "srun": """printf "srun %s\\n" "$*" >>"$CALLS"
        while [[ $1 == -* ]]; do shift; done
        setsid "$@" &
        trap "kill -KILL -- -$!" TERM
        wait $!""",
    "scontrol": """case "$*" in
        "show hostnames node[1-2]") printf "node1\\nnode2\\n" ;;
        "show node -o node1") echo "NodeName=node1 Arch=x86_64 NodeAddr=${NODE1:-10.77.0.1} NodeHostName=node1" ;;
        "show node -o node2") echo "NodeName=node2 Arch=x86_64 NodeAddr=10.77.0.2 NodeHostName=node2" ;;
        "show job -o 4711") echo "JobId=4711 JobName=banpick JobState=${JOB_STATE:-RUNNING} Reason=None" ;;
        "requeue 4711") printf "scontrol %s\\n" "$*" >>"$CALLS" ;;
        *) exit 1 ;;
    esac""",
    "ray": """mode=$(stat -c %a "$RAY_AUTH_TOKEN_PATH")
        printf "ray %s auth=%s mode=%s pid=%s\\n" "$*" "$RAY_AUTH_MODE" "$mode" $$ >>"$CALLS"
        [[ -z ${RAY_FAILS:-} ]] || { echo "no port left"; exit 1; }
        exec sleep 300""",
    "python": """case "$*" in
        "-m banpick_exp "*)
            printf "driver address=%s %s\\n" "$RAY_ADDRESS" "$*" >>"$CALLS"
            [[ -z ${DRIVER_EXIT:-} ]] || exit "$DRIVER_EXIT"
            [[ -z ${DRIVER_WAITS:-} ]] || exec sleep 300
            exec REAL "$@" dry_run=true ;;
        "- "[12]) [[ -z ${RAY_FAILS:-} ]] || exec sleep 300 ;;
        *) exec REAL "$@" ;;
    esac""",
}

Job = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """Starts the job file as Slurm would, in `tmp_path`; srun, scontrol, ray and the interpreter are stand-ins."""
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    for name, body in STAND_INS.items():
        (bin_dir / name).write_text(f"#!/usr/bin/env bash\n{body.replace('REAL', shlex.quote(sys.executable))}\n")
        (bin_dir / name).chmod(0o755)

    def start(*overrides: str, **environment: str) -> subprocess.Popen[str]:
        slurm = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_SUBMIT_DIR": str(tmp_path)}
        ours = {
            "BANPICK_PYTHON": str(bin_dir / "python"),
            "CALLS": str(tmp_path / "calls"),
            "PATH": f"{bin_dir}:{os.environ['PATH']}",
            "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}",
            "SLURM_CPUS_PER_TASK": "64",
        }
        return subprocess.Popen(
            ["bash", SBATCH, *overrides],
            env=os.environ | slurm | ours | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


def calls(tmp_path: Path, program: str) -> list[str]:
    return [line for line in (tmp_path / "calls").read_text().splitlines() if line.startswith(program + " ")]


def assert_nothing_is_left(tmp_path: Path) -> None:
    started, deadline = [int(line.rsplit("pid=", 1)[1]) for line in calls(tmp_path, "ray")], time.monotonic() + 90
    while left := [pid for pid in started if Path(f"/proc/{pid}").exists()]:  # what was killed is soon buried
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
    assert not (tmp_path / "outputs/slurm-4711/ray-token").exists()


def write_data(folder: Path) -> None:
    """The files that a study names, small."""
    (folder / "data").mkdir()
    for domain, split in itertools.product(("math", "general"), ("test", "calibration")):
        lines = (f'{{"prompt": "{domain} {split} {n}+1=", "answer": "{n + 1}"}}\n' for n in range(20))
        (folder / f"data/{domain}.{split}.jsonl").write_text("".join(lines))


def test_sbatch_starts_ray_on_both_nodes_and_its_sweep_composes(job: Job, tmp_path: Path) -> None:
    documented = next(line for line in SBATCH.read_text().splitlines() if "job.sbatch task." in line)
    typed = shlex.split(documented.split("   ")[1])[2:]
    write_data(tmp_path)
    process = job(*typed)
    output, _ = process.communicate(timeout=50)
    assert process.returncode == 0, output

    head, worker = sorted(calls(tmp_path, "ray"), key=lambda line: "--head" not in line)
    assert "--head --port=24711 --ray-client-server-port=34711 --include-dashboard=false" in head
    assert "--node-ip-address=10.77.0.1" in head
    assert "start --address=10.77.0.1:24711 --node-ip-address=10.77.0.2" in worker
    assert "dashboard" not in worker  # a worker refuses the option
    assert all("auth=token mode=600" in line for line in (head, worker))
    assert all("--overlap" in line and "--nodes=1" in line for line in calls(tmp_path, "srun"))
    (driver,) = calls(tmp_path, "driver")
    assert f"address=10.77.0.1:24711 -m banpick_exp study={STUDY} cluster.address=auto" in driver
    assert driver.endswith(" ".join([f"output_dir={tmp_path}/outputs", "run=slurm-4711", *typed]))
    assert f"{STUDY}: {read_study(STUDY).points.full} points" in output
    assert_nothing_is_left(tmp_path)


def test_sbatch_hands_on_the_exit_code_of_the_sweep(job: Job, tmp_path: Path) -> None:
    process = job(DRIVER_EXIT="7")
    process.communicate(timeout=30)
    assert process.returncode == 7
    assert_nothing_is_left(tmp_path)


def ended_by_slurm(job: Job, tmp_path: Path, **environment: str) -> list[str]:
    """How often the job asked to be queued again after Slurm's warning."""
    process = job(DRIVER_WAITS="1", **environment)
    for _ in range(300):
        if (tmp_path / "calls").exists() and calls(tmp_path, "driver"):
            break
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.1)
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == 143
    assert_nothing_is_left(tmp_path)
    return calls(tmp_path, "scontrol")


def test_sbatch_ends_cleanly_at_the_time_limit_and_is_queued_again(job: Job, tmp_path: Path) -> None:
    assert ended_by_slurm(job, tmp_path) == ["scontrol requeue 4711"]


@pytest.mark.parametrize(
    "environment",
    [{"SLURM_RESTART_COUNT": "20"}, {"BANPICK_REQUEUES": "0"}, {"JOB_STATE": "CANCELLED"}],
    ids=["often enough", "not wanted", "cancelled"],
)
def test_sbatch_is_not_queued_again(job: Job, tmp_path: Path, environment: dict[str, str]) -> None:
    assert ended_by_slurm(job, tmp_path, **environment) == []


def test_sbatch_leaves_the_runs_name_to_whoever_types_one(job: Job, tmp_path: Path) -> None:
    process = job("resume=20260131-093000", DRIVER_EXIT="0")
    process.communicate(timeout=30)
    (driver,) = calls(tmp_path, "driver")
    assert driver.endswith("/outputs resume=20260131-093000")


def test_sbatch_says_why_ray_did_not_start(job: Job, tmp_path: Path) -> None:
    process = job(RAY_FAILS="1")
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "The Ray cluster did not come up" in output and "no port left" in output
    assert "driver" not in (tmp_path / "calls").read_text()


def test_sbatch_refuses_a_head_nobody_can_reach(job: Job, tmp_path: Path) -> None:
    process = job(NODE1="127.0.1.1")
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "node1 resolves to 127.0.1.1" in output
    assert not (tmp_path / "calls").exists()


@pytest.mark.parametrize(
    ("environment", "message"),
    [({"SLURM_JOB_ID": ""}, "Type: sbatch sweeps/"), ({"BANPICK_PYTHON": "/nowhere/python"}, "make env-cuda")],
)
def test_sbatch_refuses_to_start_without_its_surroundings(job: Job, environment: dict[str, str], message: str) -> None:
    process = job(**environment)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 2
    assert message in output


@pytest.fixture(scope="module", params=studies())
def rayjob(request: pytest.FixtureRequest) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((ROOT / "sweeps" / request.param / "job.rayjob.yaml").read_text())
    return document


@pytest.fixture(scope="module")
def schema() -> jsonschema.Draft202012Validator:
    definition = json.loads((ROOT / "tests/house/schemas/rayjob.reduced.json").read_text())
    jsonschema.Draft202012Validator.check_schema(definition)
    return jsonschema.Draft202012Validator(definition)


def test_rayjob_has_the_structure_of_a_rayjob(rayjob: dict[str, Any], schema: jsonschema.Draft202012Validator) -> None:
    assert [error.message for error in schema.iter_errors(rayjob)] == []


def test_the_schema_refuses_a_misspelt_field(rayjob: dict[str, Any], schema: jsonschema.Draft202012Validator) -> None:
    wrong = copy.deepcopy(rayjob)
    workers = wrong["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    workers["replica"] = workers.pop("replicas")
    assert len(list(schema.iter_errors(wrong))) == 2  # unknown, and missing


def settings_of(rayjob: dict[str, Any]) -> dict[str, str]:
    """The settings of its entrypoint."""
    program, flag, module, *words = shlex.split(rayjob["spec"]["entrypoint"])
    assert (program, flag, module) == ("python", "-m", "banpick_exp")
    return dict(word.split("=", 1) for word in words)


def test_rayjob_has_whole_engines_in_each_pod(rayjob: dict[str, Any]) -> None:
    (workers,) = rayjob["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    settings = settings_of(rayjob)
    study = read_study(settings["study"])
    assert rayjob["metadata"]["name"] == f"banpick-{settings['study'].replace('_', '-')}"
    (container,) = workers["template"]["spec"]["containers"]
    assert int(container["resources"]["limits"]["nvidia.com/gpu"]) % gpus_of(study.model) == 0
    assert workers["replicas"] == workers["minReplicas"] == workers["maxReplicas"] == study.nodes
    mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert settings["output_dir"] in mounted
    data = {each["name"]: each.get("value", "") for each in container["env"]}["BANPICK_DATA"]
    assert data.startswith(f"{settings['output_dir']}/")
    own = any(word.startswith("task.data_files=") for word in study.full)
    assert settings.get("task.data_files", "").startswith(f'"{data}/') == own


def test_rayjob_tries_again_where_it_stopped(rayjob: dict[str, Any]) -> None:
    """Without a name of its own each attempt would begin a new run."""
    assert rayjob["spec"]["backoffLimit"] > 0 and settings_of(rayjob)["run"]


def test_rayjob_runs_the_locked_ray_as_the_user_of_the_image(rayjob: dict[str, Any]) -> None:
    cluster = rayjob["spec"]["rayClusterSpec"]
    assert f"\nray=={cluster['rayVersion']} \\\n" in (ROOT / "requirements-cuda.lock").read_text()
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    users = {group["template"]["spec"]["securityContext"]["runAsUser"] for group in groups}
    assert users == {10001}
    assert (ROOT / "Dockerfile").read_text().count("\nUSER 10001\n") == 2


def test_rayjob_has_the_operator_make_a_token(rayjob: dict[str, Any]) -> None:
    cluster = rayjob["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert tuple(map(int, cluster["rayVersion"].split("."))) >= (2, 52, 0), "the operator refuses it for older ones"
    assert "AUTH" not in json.dumps(rayjob), "nothing here may set or show it"


def test_every_volume_that_a_pod_mounts_is_there(rayjob: dict[str, Any]) -> None:
    cluster = rayjob["spec"]["rayClusterSpec"]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        mounted = {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}
