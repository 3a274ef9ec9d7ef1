"""A run that was copied elsewhere, or whose calibration is gone, draws what it drew before."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from measured_arrays import measured, scored
from synthetic_run import DOMAINS, LAYERS, SyntheticRun, ladder

from banpick_exp.evaluation.calibration import arrays
from banpick_exp.report.files import write_tables
from banpick_exp.report.followed import keep_followed
from banpick_exp.report.maps import maps_of
from banpick_exp.report.page.heat_maps import heat_maps_html
from banpick_exp.report.page.provenance import provenance_html
from banpick_exp.report.run import Run, read_run
from banpick_exp.run_folder import RunFolder

CALIBRATION = "0123456789abcdef"
VALUES = {name: np.random.default_rng(i).random((LAYERS, 32)) for i, name in enumerate(DOMAINS)}


def calibrated(folder: Path) -> Path:
    """An artifact with one score, whose similarity is what makes artifacts large."""
    domains = {name: measured(LAYERS, 32) for name in DOMAINS}
    header = {"model": {"name": "tiny", "identity": "x"}, "settings": {}}
    arrays.save_artifact(folder, CALIBRATION, domains, header)
    arrays.save_scores(folder, "insertion_kl", {name: scored(each) for name, each in VALUES.items()}, {})
    return folder


def a_run(folder: Path, calibration: str = CALIBRATION) -> Run:
    drawn = ladder(SyntheticRun(problems=30), ks=(4,))
    drawn.change(drawn.add("pick", {"boost": 1}, churn=0.1), calibration=calibration, score="insertion_kl")
    return read_run(RunFolder(drawn.write(folder)))


def influence(run: Run) -> dict[str, np.ndarray]:
    return maps_of(run).influence


def test_a_copy_without_the_calibration_keeps_its_figures(tmp_path: Path) -> None:
    artifact = calibrated(tmp_path / "out" / "calibrations" / CALIBRATION)
    run = a_run(tmp_path / "out" / "pick" / "first")
    before = heat_maps_html(run, maps_of(run))
    write_tables(run)
    copy = read_run(RunFolder(shutil.copytree(run.folder.path, tmp_path / "elsewhere" / "pick" / "first")))
    shutil.rmtree(artifact)
    for moved in (copy, read_run(run.folder)):
        assert all(np.array_equal(influence(moved)[name], VALUES[name]) for name in DOMAINS)
        assert heat_maps_html(moved, maps_of(moved)) == before and "<img" in before.split("Influence")[1]
        assert f"{CALIBRATION}, scores insertion_kl" in provenance_html(moved)
    kept = run.folder.followed_path(CALIBRATION)
    assert kept.stat().st_size < 3 * LAYERS * 32 * 8 + 1000, "the scores alone"
    assert [path.name for path in kept.parent.iterdir()] == [kept.name], "nothing half written"


def test_a_calibration_from_elsewhere_is_kept_too(tmp_path: Path) -> None:
    elsewhere = calibrated(tmp_path / "given")
    run = a_run(tmp_path / "out" / "pick" / "first")
    assert influence(run) == {}
    write_tables(run, {CALIBRATION: elsewhere})
    assert np.array_equal(influence(read_run(run.folder))["math"], VALUES["math"])


def test_a_score_that_was_added_later_is_kept_when_a_point_follows_it(tmp_path: Path) -> None:
    artifact = calibrated(tmp_path / "out" / "calibrations" / CALIBRATION)
    run = a_run(tmp_path / "out" / "pick" / "first")
    keep_followed(run.folder, run.records)
    arrays.save_scores(artifact, "boost_kl", {name: scored(2 * each) for name, each in VALUES.items()}, {})
    assert set(read_run(run.folder).calibrations[CALIBRATION]) == {"insertion_kl"}
    later = SyntheticRun(problems=30)
    later.change(later.add("pick", {"boost": 2}), calibration=CALIBRATION, score="boost_kl")
    later.write(run.folder.path)
    again = read_run(run.folder)
    assert set(again.calibrations[CALIBRATION]) == {"insertion_kl", "boost_kl"}, "read where it lies"
    keep_followed(again.folder, again.records)
    shutil.rmtree(artifact)
    assert set(read_run(run.folder).calibrations[CALIBRATION]) == {"insertion_kl", "boost_kl"}


def test_a_damaged_copy_is_made_again(tmp_path: Path) -> None:
    calibrated(tmp_path / "out" / "calibrations" / CALIBRATION)
    run = a_run(tmp_path / "out" / "pick" / "first")
    keep_followed(run.folder, run.records)
    path = run.folder.followed_path(CALIBRATION)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert np.array_equal(influence(read_run(run.folder))["code"], VALUES["code"])
    keep_followed(run.folder, run.records)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("name", ["../../../calibrations/0123456789abcdef", "/etc/passwd", "a b"])
def test_what_is_no_name_is_neither_read_nor_written(tmp_path: Path, name: str) -> None:
    calibrated(tmp_path / "out" / "calibrations" / CALIBRATION)
    run = a_run(tmp_path / "out" / "pick" / "first", name)
    keep_followed(run.folder, run.records)
    assert run.calibrations == {} and not (run.folder.path / "followed").exists()
