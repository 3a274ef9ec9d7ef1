"""Points that were asked with other settings stand in one table: it is said which, once, and before the verdict."""

from __future__ import annotations

import io
import shlex
from pathlib import Path

import polars as pl
import pytest
from rich.console import Console
from synthetic_run import SyntheticRun, changed, ladder

from banpick_exp.analysis import guards
from banpick_exp.records import PointRecord
from banpick_exp.report.run import read_run
from banpick_exp.report.sentences import sentences
from banpick_exp.report.terminal import print_pareto, print_verdict
from banpick_exp.run_folder import RunFolder
from banpick_exp.setups import numbered, setup_of_record
from banpick_exp.sweep.plan import plan_sweep


def mixed(part: str, key: str, values: tuple[object, object]) -> SyntheticRun:
    """A ladder and a Pick, under each of two values of a setting; the second answers fewer problems."""
    run = SyntheticRun(problems=40)
    for value, problems in zip(values, (40, 20), strict=True):
        start = len(run.points)
        part_of = SyntheticRun(problems=problems)
        ladder(part_of, ks=(6, 4)).add("pick", {"boost": 1})
        for record, outcomes in part_of.points:
            named = {"fingerprint": f"{record.fingerprint}-{problems}", "label": f"{record.label} {key}={value}"}
            run.points.append((changed(record, **named, **{part: {key: value}}), outcomes))
        assert len(run.points) == start + 4
    return run


@pytest.mark.parametrize(
    ("part", "key", "named"),
    [
        ("task", "max_tokens", "task.max_tokens (12, 24)"),
        ("engine", "max_num_seqs", "engine.max_num_seqs (12, 24)"),
        ("versions", "vllm", "vLLM (12, 24)"),
    ],
)
def test_it_is_said_once_which_settings_differ(part: str, key: str, named: str) -> None:
    values: tuple[object, object] = ("12", "24") if part == "versions" else (12, 24)
    run = mixed(part, key, values)
    found = guards(run.records, run.outcomes)
    (row,) = found.filter(found["guard"] == "mixed_setups").iter_rows(named=True)
    assert row["level"] == "warning" and named in row["detail"] and row["value"] == 2
    assert row["fingerprint"] == run.records[0].fingerprint


def test_one_set_up_and_its_repeats_are_not_mixed() -> None:
    run = ladder(SyntheticRun(problems=40), ks=(6,))
    run.points.append((changed(run.records[0], fingerprint="again", repeat=1), run.points[0][1]))
    assert "mixed_setups" not in guards(run.records, run.outcomes)["guard"].to_list()


def test_the_table_claims_no_number_of_problems_for_all(tmp_path: Path) -> None:
    folder = RunFolder(mixed("task", "max_problems", (40, 20)).write(tmp_path / "sweep" / "run"))
    file = io.StringIO()
    print_pareto(read_run(folder), Console(file=file, width=250))
    print_verdict(read_run(folder), Console(file=file, width=250))
    said = file.getvalue()
    assert said.index("task.max_problems (20, 40)") < said.index("No gain")
    assert said.count("mixed_setups") == 1
    table = said[: said.index("on the front for sure")]
    assert "Pareto table (overall)" in table and "problems)" not in table
    rows = [line for line in table.splitlines() if "max_problems=20" in line and "│" in line]
    assert rows and all("│  60 │" in line for line in rows)


def test_each_set_up_has_a_front_of_its_own(tmp_path: Path) -> None:
    """The same as if each had been a run alone: over both, points of one would push those of the other off."""
    folder = RunFolder(mixed("task", "max_tokens", (12, 24)).write(tmp_path / "both" / "run"))
    both = read_run(folder)
    rows = both.done_rows()
    assert rows["label"].to_list() == both.frame_of_all.filter(pl.col("domain") == "overall")["label"].to_list()
    for value in (12, 24):
        synthetic = SyntheticRun()
        synthetic.points = [point for point in mixed("task", "max_tokens", (12, 24)).points if told(point[0], value)]
        alone = read_run(RunFolder(synthetic.write(tmp_path / f"{value}" / "run"))).done_rows()
        here = rows.filter(pl.col("fingerprint").is_in(alone["fingerprint"].implode()))
        assert here.select("label", "on_front", "sure").equals(alone.select("label", "on_front", "sure"))
        assert here["on_front"].any()
    assert both.hypervolume == [], "one number would be over both"


def told(record: PointRecord, max_tokens: int) -> bool:
    return record.task.max_tokens == max_tokens


def test_what_only_some_tell_is_no_other_set_up(tmp_path: Path) -> None:
    """Records made before a setting was there, in a run that went on with it."""
    run = ladder(SyntheticRun(problems=40), ks=(6, 4))
    run.change(run.records[1], engine={"later": None})
    assert len(set(numbered(map(setup_of_record, run.records)))) == 1


def test_the_page_says_it_before_the_verdict(tmp_path: Path) -> None:
    run = read_run(RunFolder(mixed("task", "max_problems", (40, 20)).write(tmp_path / "sweep" / "run")))
    first, *others = sentences(run)
    assert first.startswith("Read this first: mixed_setups") and "task.max_problems (20, 40)" in first
    assert any("60 to 120 problems a point" in line for line in others)


def test_a_ladder_alone_is_told_what_to_add(tmp_path: Path) -> None:
    folder = RunFolder(ladder(SyntheticRun(problems=20), ks=(6, 4)).write(tmp_path / "sweep" / "run"))
    said = read_run(folder).headline
    assert said.startswith("No verdict") and "itself the rival" in said
    typed = shlex.split(said.rpartition("e.g. ")[2])[3:]
    points = plan_sweep([*typed, "dry_run=true", f"output_dir={tmp_path}"]).points
    assert {"fixed_k", "top_p"} <= {point.rule.name for point in points}
