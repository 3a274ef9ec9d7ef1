"""One of several answers counts: who is chosen, that records, pairs and reports agree on it, and choosing again."""

from __future__ import annotations

import dataclasses
import io
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from reward_checkpoint import reward_folder, reward_model
from rich.console import Console
from synthetic_run import DOMAINS, SyntheticRun, changed

from banpick_exp.analysis import average_at_n, guards, verdicts
from banpick_exp.analysis.flips import flips
from banpick_exp.analysis.frame import points_frame
from banpick_exp.cluster.commands.grade import run as grade
from banpick_exp.config import validated
from banpick_exp.errors import UserError
from banpick_exp.evaluation.choosing import with_chosen
from banpick_exp.manifest import Manifest
from banpick_exp.models.reward_model import reward_identity
from banpick_exp.records import OVERALL, Outcome, outcomes_frame, that_count, wrong_numbers
from banpick_exp.report.files import write_report
from banpick_exp.report.run import Run, read_run
from banpick_exp.report.terminal import print_pareto
from banpick_exp.run_folder import RunFolder
from banpick_exp.sweep.plan import plan_sweep
from banpick_exp.tasks.config import TaskConfig
from banpick_exp.tasks.files import inspect_task


def answers(*given: str, right: str = "7", problem: str = "p", domain: str = "math") -> list[Outcome]:
    """Samples of one problem; `?` is one in which no answer was found."""
    return [
        Outcome(
            problem_id=problem, domain=domain, task=domain, correct=text == right, truncated=False, tokens=3,
            answer="" if text == "?" else text, found=text != "?", sample=n, completion=text, gold=right,
        )
        for n, text in enumerate(given)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("choose", "given", "sample"),
    [
        ("majority", ("1", "7", "7", "2"), 1),
        ("majority", ("1", "7", "7", "1"), 0),  # a tie: the one that came first
        ("majority", ("?", "?", "?", "7"), 3),
        ("majority", ("?", "?", "?", "?"), 0),
        ("majority", ("2", "7", "1", "9"), 0),
        ("grader", ("1", "2", "7", "7"), 2),
        ("grader", ("1", "2", "1", "1"), 0),
    ],
)
def test_who_is_chosen(choose: str, given: tuple[str, ...], sample: int) -> None:
    for order in (1, -1):  # blocks may hand them over in another order
        chosen = with_chosen(answers(*given)[::order], choose)
        assert [each.sample for each in chosen if each.chosen] == [sample]
        assert [each.chosen for each in chosen].count(False) == len(given) - 1


def test_problems_are_told_apart_and_mean_chooses_none() -> None:
    two = [*answers("1", "7", "7"), *answers("7", "2", "2", domain="code")]
    chosen = with_chosen(two, "majority")
    assert [(each.domain, each.sample) for each in chosen if each.chosen] == [("math", 1), ("code", 1)]
    assert [dataclasses.replace(each, chosen=None) for each in chosen] == two == with_chosen(chosen, "mean")
    assert "chosen" not in outcomes_frame(two).columns and that_count(outcomes_frame(two)).height == 6
    assert that_count(outcomes_frame(chosen)).height == 2
    scores = average_at_n(outcomes_frame(chosen)).filter(domain=OVERALL).row(0, named=True)
    assert (scores["accuracy"], scores["n_problems"], scores["samples"]) == (0.5, 2, 1)


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ({"choose": "majority"}, "task.choose=majority with task.samples=1 has one answer to choose from"),
        ({"choose": "grader", "temperature": 0.7}, "Type task.samples=8 task.temperature=0.7 beside it"),
        ({"choose": "best"}, "task.choose=best is none of 'mean', 'majority', 'grader' or 'reward'"),
    ],
)
def test_what_means_nothing_is_refused(typed: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        validated(TaskConfig, {"name": "tiny", "domains": ["math"]} | typed, "task")
    assert words in str(caught.value)


def test_programs_are_not_counted(tmp_path: Path) -> None:
    typed = ["policy=none", "task.samples=4", "task.temperature=0.5", "dry_run=true", f"output_dir={tmp_path}"]
    plan_sweep([*typed, "task.choose=grader", "task.grader=exact_match"])
    with pytest.raises(UserError, match=r"task.choose=majority counts equal answers, and task.grader=code"):
        plan_sweep([*typed, "task.choose=majority", "task.grader=code", "task.allow_code=true"])


# ---------------------------------------------------------------- a whole run

SAMPLES, EACH = 3, 20


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stock and a policy, three answers a problem: the majority is what the synthetic answer was, the first and third
    sample say so; the second is right where the majority is wrong, in every other problem.
    """
    place = tmp_path_factory.mktemp("chosen")
    made = SyntheticRun(problems=EACH)
    made.add("none")
    made.add("fixed_k", {"k": 4}, kept=4, churn=0.1)
    made.add("top_p", {"p": 0.8}, kept=4, shift={"math": -0.3})
    for domain in DOMAINS:
        rows = [i for i, each in enumerate(made.domains) if each == domain]
        lines = (f'{{"id": "p{i:05d}", "prompt": "{i}?", "answer": "{i}"}}\n' for i in rows)
        (place / f"{domain}_test.jsonl").write_text("".join(lines))
    task = TaskConfig(
        name="mine", domains=DOMAINS, data_files=f"{place}/{{domain}}_{{split}}.jsonl", answer_separator=None,
        samples=SAMPLES, temperature=0.6, choose="majority",
    )  # fmt: skip
    identity = inspect_task(task).identity
    for index, (record, once) in enumerate(list(made.points)):
        assert once is not None
        several = [
            dataclasses.replace(each, sample=n, correct=text == str(i), answer=text, completion=text, gold=str(i))
            for i, each in enumerate(once)
            for n in range(SAMPLES)
            for text in [str(i) if each.correct or (n == 1 and i % 2) else "wrong"]
        ]
        several = with_chosen([dataclasses.replace(each, found=True) for each in several], "majority")
        metrics = record.measured.model_dump()
        for domain, *score, _, _ in average_at_n(outcomes_frame(several)).iter_rows():
            part = metrics["overall"] if domain == OVERALL else metrics["domains"][domain]
            part |= {"accuracy": score[0], "accuracy_ci95": score[1:]}
        used = {**task.model_dump(mode="json"), "identity": identity}
        made.points[index] = changed(record, task=used, metrics=metrics), several
    folder = place / "sweep" / "run"
    RunFolder(folder).write_manifest(Manifest(sweep="sweep", tasks={identity: "mine"}, command="python -m banpick_exp"))
    return made.write(folder)


@pytest.fixture
def read(chosen: Path, tmp_path: Path) -> Run:
    return read_run(RunFolder(Path(shutil.copytree(chosen, tmp_path / "sweep" / "run"))))


def test_records_pairs_and_flips_agree(read: Run) -> None:
    assert len(read.records) == 3 and not read.left_out
    for record in read.records:
        frame = read.outcomes[record.fingerprint]
        assert frame.height == SAMPLES * record.measured.overall.n_problems
        assert wrong_numbers(record.measured, frame) is None
        of_all = wrong_numbers(record.measured, frame.drop("chosen"))
        assert of_all is not None and "its outcomes say" in of_all, "the mean of all answers is another number"
        twice = frame.with_columns(chosen=frame["correct"].is_not_null())
        assert wrong_numbers(record.measured, twice) == "its outcomes do not choose one answer of each problem"
    row = verdicts(read.records, read.outcomes).filter(domain=OVERALL, policy="top_p").row(0, named=True)
    ours, rival = (next(r.fingerprint for r in read.records if r.policy_name == name) for name in ("top_p", "fixed_k"))
    flipped = flips(read.outcomes[ours], read.outcomes[rival])
    counts: list[int] = [int((flipped["solved_by"] == side).sum()) for side in ("a", "b")]
    assert counts == [row["wins"], row["losses"]] and any(counts) and set(flipped["share_a"]) == {0.0, 1.0}
    assert (guards(read.records, read.outcomes)["level"] != "invalid").all()


def test_tables_and_report_say_what_it_is(read: Run) -> None:
    assert set(points_frame(read.records)["choose"]) == {"majority"}
    file = io.StringIO()
    print_pareto(read, Console(file=file))
    assert "maj@3 % [95 %]" in file.getvalue()
    write_report(read)
    page = (read.folder.path / "report.html").read_text()
    assert '"fields":["maj@3 %"' in page
    assert "Of each problem the answer counts that most of them gave (task.choose=majority), intervals are" in page


def test_grade_chooses_again_without_an_engine(read: Run, capsys: pytest.CaptureFixture[str]) -> None:
    folder = read.folder.path
    assert grade([str(folder), "task.choose=grader", "--write"]) == 0
    assert "0 answer(s) right now, 0 wrong now" in capsys.readouterr().out
    again = read_run(RunFolder(folder.with_name("run-grader")))
    before = {record.label: record.measured.overall.accuracy for record in read.records}
    after = {record.label: record.measured.overall.accuracy for record in again.records}
    assert all(after[label] > before[label] for label in before), "the second sample is right where the others are not"
    assert set(points_frame(again.records)["choose"]) == {"grader"}
    assert not {r.fingerprint for r in again.records} & {r.fingerprint for r in read.records}
    write_report(again)
    page = (again.folder.path / "report.html").read_text()
    assert "pass@3 (upper bound) %" in page and "an oracle chose, so accuracy is an upper bound" in page
    assert grade([str(folder), "task.choose=mean", "--write"]) == 0
    of_all = read_run(RunFolder(folder.with_name("run-mean")))
    assert all("chosen" not in frame.columns for frame in of_all.outcomes.values())
    assert grade([str(again.folder.path), "task.choose=majority", "--write"]) == 0
    back = read_run(RunFolder(folder.with_name("run-grader-majority")))
    assert {record.label: record.measured.overall.accuracy for record in back.records} == before


@pytest.mark.slow
def test_grade_has_a_reward_model_choose(read: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The scores are kept: what is read is checked by them, and another grade needs no model."""
    folder, model = read.folder.path, reward_model(tmp_path / "model")
    chosen = ["task.choose=reward", f"task.reward_model={model}"]
    assert grade([str(folder), *chosen, "--write"]) == 0
    again = read_run(RunFolder(folder.with_name("run-reward")))
    assert len(again.records) == 3 and not again.left_out
    identity = reward_identity(str(model))
    for record in again.records:
        frame = again.outcomes[record.fingerprint]
        best = frame.sort("score", "sample", descending=[True, False]).unique(["domain", "problem_id"], keep="first")
        assert best["chosen"].all() and frame["chosen"].sum() == record.measured.overall.n_problems
        assert record.measured.overall.accuracy == pytest.approx(best["correct"].mean())
        assert (record.task.choose, record.task.reward_identity) == ("reward", identity)
        assert record.task.plain()["reward_model"] == str(model)
    asked = {key: frame.select("domain", "problem_id", "completion", "score") for key, frame in again.outcomes.items()}
    every = pl.concat(asked.values()).unique()
    assert every.height == every.select("domain", "problem_id", "completion").unique().height > 60, "one score a text"
    file = io.StringIO()
    print_pareto(again, Console(file=file))
    assert "rm@3 % [95 %]" in file.getvalue()
    write_report(again)
    page = (again.folder.path / "report.html").read_text()
    assert '"fields":["rm@3 %"' in page and "the answer counts that a reward model scored highest" in page

    model.rename(tmp_path / "elsewhere")
    assert grade([str(again.folder.path), "task.grader=math_verify", "--write"]) == 0
    kept = read_run(RunFolder(folder.with_name("run-reward-math_verify")))
    for record in kept.records:
        frame, label = kept.outcomes[record.fingerprint], record.label
        first = next(again.outcomes[each.fingerprint] for each in again.records if each.label == label)
        assert frame.select("score", "chosen").equals(first.select("score", "chosen"))
        assert record.task.reward_identity == identity
    assert grade([str(again.folder.path), "task.choose=majority", "--write"]) == 0
    back = read_run(RunFolder(folder.with_name("run-reward-majority")))
    before = {record.label: record.measured.overall.accuracy for record in read.records}
    assert {record.label: record.measured.overall.accuracy for record in back.records} == before
    assert all("score" not in frame.columns for frame in back.outcomes.values())
    assert {record.task.reward_identity for record in back.records} == {None}
    capsys.readouterr()
    with pytest.raises(UserError, match="is no folder here"):
        grade([str(folder), *chosen])


def test_a_reward_model_needs_the_questions(read: Run, tmp_path: Path) -> None:
    model = reward_folder(tmp_path / "model")
    place = Path(str(read.records[0].task.plain()["data_files"])).parent
    files = {path: path.read_text() for path in place.glob("*_test.jsonl")}
    try:
        for path in files:
            path.write_text('{"id": "p00000", "prompt": "other?", "answer": "0"}\n')
        with pytest.raises(UserError, match="a reward model scores a question and its answer: nothing was graded"):
            grade([str(read.folder.path), "task.choose=reward", f"task.reward_model={model}"])
    finally:
        for path, text in files.items():
            path.write_text(text)
