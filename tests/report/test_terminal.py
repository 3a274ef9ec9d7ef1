"""What is printed at the end of a run says what was found, what did not finish and what is doubtful."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from rich.console import Console
from synthetic_run import SyntheticRun, ladder, pick_strength, three_times

from banpick_exp.report.files import write_report
from banpick_exp.report.repeats import repeats_sentence, repeats_summary
from banpick_exp.report.run import Run, read_run
from banpick_exp.report.terminal import print_pareto, print_repeats, print_verdict
from banpick_exp.run_folder import RunFolder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    synthetic = pick_strength(ladder(SyntheticRun(problems=300)))
    synthetic.add("pick", {"boost": 8}, status="failed", reason="the engine stopped [Errno 12] <cause>")
    synthetic.add("fixed_k", {"k": 1}, status="invalid", reason="measured 8.00 kept where k=1 implies 1", kept=8)
    return written(synthetic, tmp_path_factory.mktemp("outputs") / "pick_strength" / "first")


def written(synthetic: SyntheticRun, folder: Path) -> Run:
    return read_run(RunFolder(synthetic.write(folder)))


def printed(run: Run, **options: Any) -> str:
    stream = io.StringIO()
    print_pareto(run, Console(file=stream), **options)
    print_verdict(run, Console(file=stream))
    return stream.getvalue()


def test_table_tells_the_whole_run(run: Run) -> None:
    text = printed(run)
    overall = run.frame.filter((pl.col("domain") == "overall") & (pl.col("status") == "done"))
    for row in overall.iter_rows(named=True):
        (line,) = [line for line in text.splitlines() if re.search(rf"│ {re.escape(row['label'])} +│", line)]
        assert f"{100 * row['accuracy']:.1f} [{100 * row['accuracy_lo']:.1f}, {100 * row['accuracy_hi']:.1f}]" in line
        assert f"{row['speedup']:.2f} [{row['speedup_lo']:.2f}, {row['speedup_hi']:.2f}]" in line
        assert ("●" in line, "○" in line) == (row["sure"], row["on_front"] and not row["sure"])
        verdict = run.verdicts.filter((pl.col("fingerprint") == row["fingerprint"]) & (pl.col("domain") == "overall"))
        if verdict.height:
            assert f"{verdict['verdict'].item()} none [" in line
    assert "No gain: 16 of 16 pick points tie or lose" in text
    assert "failed pick boost=8: the engine stopped [Errno 12] <cause>" in text
    assert "invalid fixed_k k=1: measured 8.00 kept where k=1 implies 1" in text
    assert not re.search(r"│ fixed_k k=1 +│", text)  # an invalid point is not a row of the front


def test_table_of_one_domain(run: Run) -> None:
    text = printed(run, domain="math")
    assert "math, 300 problems" in text and "pick boost=1 key_experts=1" in text


def test_nothing_done_is_said_and_draws_nothing(tmp_path: Path) -> None:
    synthetic = SyntheticRun(problems=3)
    synthetic.add("none", status="failed", reason="no memory")
    run = written(synthetic, tmp_path)
    assert "No point finished" in printed(run) and "failed none: no memory" in printed(run)
    assert write_report(run) == []


def test_an_empty_run_is_said_too(tmp_path: Path) -> None:
    run = read_run(RunFolder(tmp_path))
    assert "No point finished" in printed(run) and write_report(run) == []


def test_uneven_budgets_are_starred(tmp_path: Path) -> None:
    synthetic = ladder(SyntheticRun(problems=60))
    synthetic.add("ban", {"lambda": 0.5}, kept=4.4)
    text = printed(written(synthetic, tmp_path))
    assert re.search(r"ban lambda=0\.5.*\+0\.40.*\*", text) and "* not at equal budget" in text


def test_a_run_without_timings_is_drawn_all_the_same(tmp_path: Path) -> None:
    synthetic = ladder(SyntheticRun(problems=20), ks=(4,))
    untimed = dict.fromkeys(("speedup", "speedup_spread", "tokens_per_second"))
    for record in synthetic.records:
        plain = record.measured.model_dump()
        domains = {name: metrics | untimed for name, metrics in plain["domains"].items()}
        synthetic.change(record, metrics={"overall": plain["overall"] | untimed, "domains": domains})
    run = written(synthetic, tmp_path)
    assert [path.name for path in write_report(run)] == ["pareto.png", "report.html"]
    assert "fixed_k k=4" in printed(run)


def test_alarms_and_possible_noise_are_printed(tmp_path: Path) -> None:
    """A policy that loses twenty problems of one sub-task and wins as many in another; all else is stock's."""
    synthetic = SyntheticRun(problems=400)
    synthetic.add("none")
    name = synthetic.add("ban", {"lambda": 0.5}, kept=5.0).fingerprint
    task = pl.lit("part") + (pl.int_range(pl.len()) // 100 % 4).cast(pl.String)
    outcomes = {key: frame.with_columns(task=task) for key, frame in synthetic.outcomes.items()}
    correct, math = outcomes[name]["correct"].to_numpy().copy(), outcomes[name]["domain"].to_numpy() == "math"
    part = outcomes[name]["task"].to_numpy()
    correct[np.flatnonzero(math & (part == "part1") & correct)[:20]] = False
    correct[np.flatnonzero(math & (part == "part2") & ~correct)[:20]] = True
    outcomes[name] = outcomes[name].with_columns(correct=correct)
    text = printed(Run(folder=RunFolder(tmp_path), records=synthetic.records, outcomes=outcomes))
    assert "guard subtask_drop ban lambda=0.5 (math): part1: " in text


def test_the_spread_of_repeats_is_printed(tmp_path: Path) -> None:
    run = written(three_times(), tmp_path)
    overall = run.repeats.filter(domain="overall")
    file = io.StringIO()
    print_pareto(run, Console(file=file))
    print_repeats(run, Console(file=file))
    text = file.getvalue()
    assert text.count("pick boost=1 ") >= 1 and "repeat=1" not in text
    assert "Repeats: 5 points ran 3 times" in text and "sampling error" in text
    summary = repeats_summary(run)
    assert summary["repeat/points"] == 5 and summary["repeat/accuracy_sd_max"] == overall["accuracy_sd"].max()
    assert 0 < summary["repeat/unstable_median"] < 1


def test_repeats_that_score_alike_are_said_to(tmp_path: Path) -> None:
    synthetic = ladder(SyntheticRun(problems=20), ks=())
    (stock,), (_, outcomes) = synthetic.records, synthetic.points[0]
    again = stock.model_copy(update={"fingerprint": f"{stock.fingerprint}-1", "label": "none repeat=1", "repeat": 1})
    synthetic.points.append((again, outcomes))
    assert "every problem scored alike" in repeats_sentence(written(synthetic, tmp_path))


def test_without_repeats_nothing_is_said(tmp_path: Path) -> None:
    run = written(ladder(SyntheticRun(problems=20), ks=(4,)), tmp_path)
    file = io.StringIO()
    print_repeats(run, Console(file=file))
    assert file.getvalue() == "" and repeats_summary(run) == {}
