"""Every study of sweeps/: typed, planned at both sizes, and its job files are what the templates make of it."""

from __future__ import annotations

import itertools
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import yaml

from banpick_exp.cluster.plan import plan_run
from banpick_exp.sweep.compose import choices
from banpick_exp.sweep.study import Scale, read_study, studies
from banpick_exp.tasks.benchmarks.source import fetched_path
from banpick_exp.tasks.data_folder import FOLDER_VARIABLE
from banpick_exp.tasks.registry import BENCHMARKS

ROOT = Path(__file__).resolve().parents[2]
SWEEPS = ROOT / "sweeps"
FILES = {"study.yaml", "job.sbatch", "job.rayjob.yaml", "job.sky.yaml", "README.md"}
DOMAINS = ("math", "general", "math_by_general", "general_by_math")
SPLITS = ("calibration", "dev", "test")
FETCHED = (("aime24", "math"), ("math500", "math"), ("humaneval_plus", "code"))
"""Benchmarks that studies ask, with their domain."""
PROGRAMS = {"main_deepseek_v2_lite"}
"""Studies whose answers are programs."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data/ as a study names it, and fetched benchmarks: twelve problems a file, none of them twice."""
    folder = tmp_path_factory.mktemp("studies")
    (folder / "data").mkdir()
    for domain, split in itertools.product(DOMAINS, SPLITS):
        _write(folder / f"data/{domain}.{split}.jsonl", f"{domain} {split}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FOLDER_VARIABLE, str(folder / "fetched"))
        for (name, domain), split in itertools.product(FETCHED, ("calibration", "test")):
            source = BENCHMARKS[name].source
            assert source is not None
            _write(fetched_path(name, domain, split, source), f"{name} {split}")
    return folder


def _write(path: Path, what: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    material = {"kind": "call", "test": "assert f(1) == 2"}
    rows = ({"prompt": f"{what} {n}+1=", "answer": str(n + 1), "material": material} for n in range(12))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_folder_is_a_study_with_its_five_files() -> None:
    folders = [path for path in SWEEPS.iterdir() if path.is_dir()]
    assert sorted(path.name for path in folders) == studies() != []
    assert all({path.name for path in folder.iterdir()} == FILES for folder in folders)


def test_the_job_files_are_what_the_templates_make_of_the_studies() -> None:
    checked = subprocess.run([sys.executable, ROOT / ".ci/job_files.py", "--check"], capture_output=True, text=True)
    assert checked.returncode == 0, f"python .ci/job_files.py would write {checked.stdout or checked.stderr}"


def test_a_study_permits_code_only_where_it_is_asked() -> None:
    permitting = {name for name in studies() if "task.allow_code=true" in (SWEEPS / name / "study.yaml").read_text()}
    assert permitting == PROGRAMS and all("sandbox" in read_study(name).data for name in PROGRAMS)


@pytest.mark.parametrize("name", studies())
@pytest.mark.parametrize("scale", get_args(Scale))
def test_every_study_plans_the_points_that_it_promises(
    name: str, scale: Scale, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data)
    monkeypatch.setenv(FOLDER_VARIABLE, str(data / "fetched"))
    plan = plan_run([f"study={name}", f"scale={scale}", "dry_run=true", f"output_dir={tmp_path}"])
    study = read_study(name)
    assert len(plan.sweep.points) == getattr(study.points, scale)
    assert len(plan.sweep.by_engine()) == 1
    models = {point.model.name for point in plan.sweep.points}
    assert models == {study.model} if scale == "full" else models <= {"tiny", "tiny_control"}
    assert plan.folder.path.parent == tmp_path / (name if scale == "full" else f"{name}_tiny")
    assert not [note for note in plan.sweep.notes if "extra_slots" in note or "left out" in note or "idle" in note]
    assert plan.cluster.engines == "auto", "a job gives the number of its nodes, and no study that of its engines"


@pytest.mark.parametrize("name", studies())
def test_what_is_recorded_stays_true_without_the_study(
    name: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command in run.json names every setting, and planning it again gives the same points."""
    monkeypatch.chdir(data)
    monkeypatch.setenv(FOLDER_VARIABLE, str(data / "fetched"))
    first = plan_run([f"study={name}", "dry_run=true", f"output_dir={tmp_path}"])
    words = shlex.split(first.sweep.command)[3:]
    assert not [word for word in words if word.startswith(("study=", "scale="))]
    again = plan_run(words)
    assert [point.fingerprint for point in again.sweep.points] == [point.fingerprint for point in first.sweep.points]


TABLED = {"qwen3_30b_a3b", "qwen3_235b_a22b", "deepseek_v2_5", "deepseek_v2_lite"}
"""The models of conf/model/ that arXiv 2509.06346 has a main table of; the others ship without a study."""


def test_every_model_of_a_published_table_has_one() -> None:
    mains = [study for name in studies() if name.startswith("main_") for study in [read_study(name)]]
    assert sorted(study.model for study in mains) == sorted(TABLED) and set(choices("model")) >= TABLED
    assert all("main table of arXiv 2509.06346" in study.published for study in mains)


def test_a_study_file_has_no_key_twice() -> None:
    """YAML would take the last without a word."""
    for name in studies():
        node = yaml.compose((SWEEPS / name / "study.yaml").read_text())
        assert isinstance(node, yaml.MappingNode)
        keys = [key.value for key, _ in node.value]
        assert len(keys) == len(set(keys)), name
