"""How far scores move between repeats, in the terminal, in the numbers for W&B and on the page."""

from __future__ import annotations

import io
from itertools import product
from pathlib import Path

import polars as pl
import pytest
from rich.console import Console
from synthetic_run import SyntheticRun, ladder, three_times

from banpick_exp.report.files import write_report
from banpick_exp.report.repeats import repeats_sentence, repeats_summary
from banpick_exp.report.run import Run, read_run
from banpick_exp.report.terminal import print_pareto, print_repeats
from banpick_exp.run_folder import RunFolder


@pytest.fixture(scope="module")
def repeated(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Stock, a ladder and two Picks, three times."""
    run_dir = tmp_path_factory.mktemp("outputs") / "pick" / "repeated"
    return read_run(RunFolder(three_times().write(run_dir)))


def test_repeats_are_no_further_points(repeated: Run) -> None:
    assert set(repeated.frame["repeat"]) == {0} and len(repeated.records) == 15 and len(repeated.done) == 5
    assert set(repeated.frame.filter(on_front=True)["repeat"]) == {0}


def test_the_spread_is_shown_everywhere(repeated: Run) -> None:
    file = io.StringIO()
    print_pareto(repeated, Console(file=file))
    print_repeats(repeated, Console(file=file))
    printed = file.getvalue()
    assert printed.count("pick boost=1 ") >= 1 and "repeat=1" not in printed
    assert "Repeats: 5 points ran 3 times" in printed and "sampling error" in printed
    summary, overall = repeats_summary(repeated), repeated.repeats.filter(domain="overall")
    assert summary["repeat/points"] == 5 and summary["repeat/accuracy_sd_max"] == overall["accuracy_sd"].max()
    assert 0 < summary["repeat/unstable_median"] < 1
    write_report(repeated)
    page = repeated.folder.report.read_text()
    assert "Repeats: 5 points ran 3 times" in page and "repeat=0; repeat=1; repeat=2" in page


def test_repeats_that_all_score_alike_are_said_to(repeated: Run) -> None:
    """Three answers a problem, one of them right in each repeat, but not the same one."""
    points = [record for record in repeated.records if record.is_stock]

    def answers(right: int) -> pl.DataFrame:
        samples = product(("math", "code", "knowledge"), range(10), range(3))
        rows = [(domain, f"p{i}", n, n == right) for domain, i, n in samples]
        return pl.DataFrame(rows, schema=["domain", "problem_id", "sample", "correct"], orient="row")

    outcomes = {point.fingerprint: answers(right) for point, right in zip(points, (0, 1, 0), strict=True)}
    run = Run(folder=repeated.folder, records=points, outcomes=outcomes)
    assert "every problem scored alike" in repeats_sentence(run)


def test_without_repeats_nothing_is_said(tmp_path: Path) -> None:
    run = read_run(RunFolder(ladder(SyntheticRun(problems=20), ks=(4,)).write(tmp_path / "sweep" / "run")))
    file = io.StringIO()
    print_repeats(run, Console(file=file))
    assert file.getvalue() == "" and repeats_summary(run) == {}
