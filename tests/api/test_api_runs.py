"""`bp.runs`: hundreds of runs as one lazy table, read from their tables where these tell all."""

from __future__ import annotations

import shutil
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal
from synthetic_run import SyntheticRun, ladder, pick_strength

import banpick_exp as bp
from banpick_exp.manifest import Manifest
from banpick_exp.report.files import write_tables
from banpick_exp.report.run import read_run
from banpick_exp.run_folder import RunFolder

MANY = 200


def a_run(folder: Path, synthetic: SyntheticRun) -> RunFolder:
    run = RunFolder(folder)
    run.write_manifest(Manifest(sweep=folder.parent.name))
    synthetic.write(folder)
    return run


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """Two runs with tables, and one whose driver has gone before it wrote any."""
    for name, synthetic in (("ladder/a", ladder(SyntheticRun(problems=30))), ("pick/b", pick_strength(small()))):
        write_tables(read_run(a_run(tmp_path / name, synthetic)))
    a_run(tmp_path / "pick" / "c[1]*", small())
    return tmp_path


def small() -> SyntheticRun:
    return ladder(SyntheticRun(problems=30), ks=(6, 4))


def test_runs_are_found_and_read_one_by_one(outputs: Path) -> None:
    runs = bp.runs(outputs)
    assert len(runs) == 3 and {run.name for run in runs} == {"ladder/a", "pick/b", "pick/c[1]*"}
    assert runs["pick/b"].points.height and runs[0].name == runs.listed[0].name
    assert [run.name for run in runs.of("ladder")] == ["ladder/a"] and len(runs[:2]) == 2
    with pytest.raises(bp.UserError, match="none of these 3 runs"):
        runs["pick/nothing"]
    table = runs.table
    assert table["recorded"].sum() == sum(run.points["fingerprint"].n_unique() for run in runs)
    assert dict(table.select("run", "headline").iter_rows())["pick/b"] == runs["pick/b"].headline
    assert "pick/b" in runs._repr_html_() and repr(runs).startswith("<Runs: 3, the newest ")


def test_one_lazy_table_has_the_points_and_verdicts_of_all(outputs: Path) -> None:
    runs = bp.runs(outputs)
    assert isinstance(runs.points, pl.LazyFrame)
    points, verdicts = runs.points.collect(), runs.verdicts.collect()
    for run in runs:
        own = points.filter(run=run.name).drop("run")
        assert_frame_equal(own, run.reported.frame_of_all), "with a table or without"
        assert_frame_equal(verdicts.filter(run=run.name).drop("run"), run.verdicts())
    best = runs.points.filter(domain="overall", status="done").group_by("run").agg(pl.col("accuracy").max()).collect()
    assert best.height == 3


def test_a_table_that_lacks_a_record_or_is_damaged_is_not_trusted(outputs: Path) -> None:
    more = SyntheticRun(problems=30)
    more.add("pick", {"boost": 9})
    more.write(outputs / "ladder" / "a")
    (outputs / "pick" / "b" / "points.parquet").write_bytes(b"PAR1 half a table")
    points = bp.runs(outputs).points.collect()
    assert points.filter(run="ladder/a", label="pick boost=9").height
    assert points.filter(run="pick/b")["fingerprint"].n_unique() == 19


def test_hundreds_are_read_without_their_records(outputs: Path) -> None:
    source = outputs / "pick" / "b"
    for path in (source / "points").iterdir():
        path.write_bytes(b"whoever reads this fails")
    for number in range(MANY):
        shutil.copytree(source, outputs / "many" / str(number))
    runs = bp.runs(outputs / "many")
    counted = runs.points.filter(domain="overall").group_by("run").len().collect()
    assert counted.height == MANY and counted["len"].unique().to_list() == [19]
    assert runs.verdicts.collect().filter(domain="overall")["run"].n_unique() == MANY


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert len(bp.runs(tmp_path)) == 0 and bp.runs(tmp_path).points.collect().height == 0
    with pytest.raises(bp.UserError, match="is no folder"):
        bp.runs(tmp_path / "nowhere")
