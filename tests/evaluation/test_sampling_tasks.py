"""A task that samples: what is refused, what its fingerprint says, and that avg@n is called so wherever it is shown."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from synthetic_run import SyntheticRun, changed, ladder

from banpick_exp.analysis import average_at_n, guards, verdicts
from banpick_exp.analysis.frame import points_frame
from banpick_exp.config import validated
from banpick_exp.errors import UserError
from banpick_exp.records import OVERALL, outcomes_frame
from banpick_exp.report.files import write_report
from banpick_exp.report.run import Run, read_run
from banpick_exp.report.terminal import print_pareto
from banpick_exp.run_folder import RunFolder
from banpick_exp.sweep.identity import point_fingerprint
from banpick_exp.sweep.plan import plan_sweep
from banpick_exp.tasks.config import GREEDY, TaskConfig

TASK = {"name": "tiny", "domains": ["math"]}


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ({"samples": 4}, "task.samples=4 at task.temperature=0 is greedy decoding all the same"),
        ({"top_p": 0.9}, "task.top_p=0.9 at task.temperature=0"),
        ({"samples": 4}, "Type task.temperature=0.6 beside it"),
        ({"samples": 0}, "task.samples=0 is below 1"),
        ({"temperature": -1.0}, "task.temperature=-1.0 is below 0"),
        ({"top_p": 0.0, "temperature": 1.0}, "task.top_p=0.0 is not above 0"),
        ({"top_p": 1.5, "temperature": 1.0}, "task.top_p=1.5 is above 1"),
    ],
)
def test_sampling_that_would_change_nothing_is_refused(typed: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        validated(TaskConfig, TASK | typed, "task")
    assert words in str(caught.value)
    assert validated(TaskConfig, TASK | {"samples": 4, "temperature": 0.6, "top_p": 0.95}, "task").samples == 4


def test_greedy_results_stay_valid_and_sampled_ones_are_others() -> None:
    def identity(**more: Any) -> str:
        task = TaskConfig(name="tiny", domains=("math",), **more)
        return point_fingerprint(
            policy={"name": "none"}, engine="e", task=task, data_identity="d", calibration=None, seed=0
        )

    greedy = TaskConfig(name="tiny", domains=("math",))
    assert {key: getattr(greedy, key) for key in GREEDY} == GREEDY
    found = [identity(), identity(temperature=0.6), identity(temperature=0.6, samples=2),
             identity(temperature=0.6, top_p=0.9), identity(temperature=0.7)]  # fmt: skip
    assert len(set(found)) == 5
    assert found[0] == identity(samples=1, temperature=0.0, top_p=1.0)


def test_samples_cost_their_tokens(tmp_path: Path) -> None:
    def planned(*more: str) -> Any:
        return plan_sweep(["policy=none", "task.max_problems=500", "dry_run=true", f"output_dir={tmp_path}", *more])

    once, four = planned(), planned("task.samples=4", "task.temperature=0.6")
    problems = sum(once.points[0].problems.values())
    more = four.estimate(1).max_generated_tokens - once.estimate(1).max_generated_tokens
    assert more == 3 * problems * once.points[0].task.max_tokens


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Each answer of a synthetic run given three times, the third one wrong: avg@3 is two thirds of the accuracy."""
    run_dir = tmp_path_factory.mktemp("outputs") / "ladder" / "sampled"
    run = ladder(SyntheticRun(problems=50), ks=(6, 4))
    run.add("pick", {"boost": 1}, churn=0.05)
    for index, (record, once) in enumerate(run.points):
        assert once is not None
        answers = [
            dataclasses.replace(outcome, sample=n, correct=outcome.correct and n < 2)
            for outcome in once
            for n in range(3)
        ]
        metrics = record.measured.model_dump()
        for domain, *score, _, _ in average_at_n(outcomes_frame(answers)).iter_rows():
            part = metrics["overall"] if domain == OVERALL else metrics["domains"][domain]
            part |= {"accuracy": score[0], "accuracy_ci95": score[1:]}
        task = {"samples": 3, "temperature": 0.6, "top_p": 0.95}
        run.points[index] = changed(record, task=task, metrics=metrics), answers
    return read_run(RunFolder(run.write(run_dir)))


def test_avg_at_n_is_named_in_table_report_and_frame(sampled: Run) -> None:
    assert len(sampled.records) == 4, "three rows a problem are a good record"
    frame = points_frame(sampled.records)
    assert set(frame["samples"]) == {3} and set(frame.filter(domain="overall")["n_problems"]) == {150}
    file = io.StringIO()
    print_pareto(sampled, Console(file=file))
    assert "avg@3 % [95 %]" in file.getvalue() and "accuracy % [95 %]" not in file.getvalue()
    write_report(sampled)
    page = (sampled.folder.path / "report.html").read_text()
    assert '"fields":["avg@3 %"' in page and "avg@3 (%)" in page
    assert "Answers were sampled: 3 a problem at temperature 0.6, top-p 0.95." in page


def test_guards_read_samples(sampled: Run) -> None:
    found = guards(sampled.records, sampled.outcomes)
    assert set(found["guard"]) >= {"engaged", "repetition"} and (found["level"] != "invalid").all()
    row = verdicts(sampled.records, sampled.outcomes).filter(domain="overall").row(0, named=True)
    assert row["n_pairs"] == 150 and row["verdict"] == "ties"
