"""Points that were asked with other settings stand in one table: it is said which, once, and before the verdict."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from synthetic_run import SyntheticRun, changed, ladder

from banpick_exp.analysis import guards
from banpick_exp.report.run import read_run
from banpick_exp.report.terminal import print_pareto
from banpick_exp.run_folder import RunFolder


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
    said = file.getvalue()
    assert said.index("task.max_problems (40, 20)") < said.index("No gain")
    assert said.count("mixed_setups") == 1
    table = said[: said.index("on the front for sure")]
    assert "Pareto table (overall)" in table and "problems)" not in table
    rows = [line for line in table.splitlines() if "max_problems=20" in line and "│" in line]
    assert rows and all("│  60 │" in line for line in rows)
