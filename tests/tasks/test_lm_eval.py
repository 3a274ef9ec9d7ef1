"""Tasks of lm-eval: their problems are made once by its own code, and graded by it without their data."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from lm_eval_tasks import CAPITALS, CHOICES, GENERATION, LIKELIHOOD, SUMS, keep_to, write_task

from banpick_exp.cluster.commands import tasks as tasks_command
from banpick_exp.errors import UserError
from banpick_exp.sweep.plan import plan_sweep
from banpick_exp.tasks.config import TaskConfig
from banpick_exp.tasks.files import inspect_task
from banpick_exp.tasks.harness.building import build
from banpick_exp.tasks.harness.place import problems_path
from banpick_exp.tasks.harness.sources import package_folder, runs_code, sources_of
from banpick_exp.tasks.problem import Problem
from banpick_exp.tasks.registry import grader_of

pytest.importorskip("lm_eval")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Its data and what is made of it lie there, and nothing asks the Hub."""
    keep_to(tmp_path, monkeypatch)
    return tmp_path


def task_of(path: Path, **more: object) -> TaskConfig:
    usual = {"name": str(path), "source": "lm_eval", "answer_separator": None, "max_tokens": 24}
    return TaskConfig.model_validate(usual | more)


def problems_of(path: Path, **more: object) -> tuple[list[Problem], TaskConfig]:
    task = task_of(path, **more)
    (problems,) = inspect_task(task).loaded.values()
    return list(problems), task


def test_a_task_that_writes(folder: Path) -> None:
    path = write_task(folder, "sums", GENERATION, SUMS)
    built = build(str(path))
    assert built.problems == len(SUMS) and built.metrics == ("exact_match/last", "exact_match/first")
    problems, task = problems_of(path)
    assert [problem.prompt for problem in problems] == [row["question"] for row in SUMS]
    assert {problem.stop for problem in problems} == {("\n", "!")} and not problems[0].choices
    assert (task.domains, problems[0].answer, problems[0].problem_id) == (("sums",), "2", "small_sums-000000")
    grader = grader_of(task)
    given = [("so 2", problems[0]), ("2, no: 3", problems[0]), ("two", problems[0]), ("", problems[0])]
    grades = grader.grade_all(given, task)
    assert [(g.answer, g.found, g.correct) for g in grades] == [
        ("2", True, True), ("3", True, False), ("[invalid]", False, False), ("[invalid]", False, False),
    ]  # fmt: skip
    other = task_of(path, metric="exact_match/first")
    assert grader_of(other).grade("2, no: 3", problems[0], other).correct


def test_a_task_of_choices(folder: Path) -> None:
    path = write_task(folder, "capitals", CHOICES, CAPITALS)
    assert build(str(path)).metrics == ("acc/none", "acc_norm/none")
    problems, task = problems_of(path)
    norway = problems[0]
    assert [continuation for _, continuation in norway.choices] == [" Bergen", " Oslo"]
    assert norway.prompt.endswith("\n\nThe capital of Norway is") and norway.prompt == norway.choices[0][0]
    assert norway.answer == "Oslo" and norway.sequences[1].endswith("Norway is Oslo")
    told = json.dumps([[-3.0, False], [-2.5, True]])
    assert grader_of(task).grade(told, norway, task).correct
    # Bergen is likelier by the character, though not as a whole.
    by_length = task_of(path, metric="acc_norm")
    grade = grader_of(by_length).grade(told, norway, by_length)
    assert (grade.answer, grade.correct) == ("Oslo", False)


def test_a_task_of_one_continuation(folder: Path) -> None:
    path = write_task(folder, "word", LIKELIHOOD, SUMS[:3])
    assert build(str(path)).metrics == ("acc/none",), "perplexity says of no problem that it is right"
    (problem, *_), task = problems_of(path)
    assert problem.choices == (("m:1+1=", "2"),)
    grades = [grader_of(task).grade(json.dumps([[-0.5, written]]), problem, task) for written in (True, False)]
    assert [(g.answer, g.correct) for g in grades] == [("written", True), ("not written", False)]


def test_a_sweep_of_it_is_planned_without_lm_eval(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_task(folder, "sums", GENERATION, SUMS)
    line = ["task=lm_eval", f"task.name={path}", "task.max_tokens=24", "policy=fixed_k", "policy.k=4"]
    before = plan_sweep([*line, "dry_run=true"])
    missing = before.points[0].data_missing
    assert (
        missing is not None
        and "python -m banpick_exp tasks fetch" in missing
        and str(problems_path(str(path))) in missing
    )
    assert tasks_command.run(["fetch", str(path)]) == 0
    said = capsys.readouterr().out
    assert "12 problems" in said and "task.metric takes exact_match/first too" in said
    plan = plan_sweep(line)
    assert plan.points[0].problems == {"sums": 12} and plan.points[0].data_missing is None
    assert any("right is what its exact_match/last says" in note for note in plan.notes)
    other = plan_sweep([*line, "task.metric=exact_match/first"])
    assert not {point.fingerprint for point in plan.points} & {point.fingerprint for point in other.points}
    shorter = plan_sweep([word.replace("=24", "=12") for word in line])
    assert any("says 24, and task.max_tokens=12 is what is asked" in note for note in shorter.notes)


def test_a_changed_task_asks_to_be_made_again(folder: Path) -> None:
    path = write_task(folder, "sums", GENERATION, SUMS)
    first = build(str(path)).path
    (folder / "sums.jsonl").write_text(json.dumps(SUMS[0]) + "\n")
    assert problems_path(str(path)) != first and inspect_task(task_of(path)).missing is not None
    second = build(str(path))
    assert second.problems == 1 and second.path != first
    problems, task = problems_of(path)
    path.write_text(path.read_text().replace("group_select: -1", "group_select: 0"))
    with pytest.raises(UserError, match=r"has changed since its problems were made"):
        grader_of(task).grade("2", problems[0], task)


def test_python_of_the_users_own(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "judge.py").write_text(
        "def judged(doc, results):\n"
        "    if results[0] == 'break': raise RuntimeError('broken')\n"
        "    return {'near': float(abs(len(results[0]) - len(doc['answer'])) < 2)}\n"
    )
    text = GENERATION.partition("filter_list")[0] + (
        "process_results: !function judge.judged\n"
        "metric_list: [{metric: near, aggregation: mean, higher_is_better: true}]\n"
    )
    path = write_task(folder, "near", text, SUMS)
    assert tasks_command.run(["fetch", str(path)]) == 0
    assert f"note: {folder / 'judge.py'} is your own Python" in capsys.readouterr().out
    problems, task = problems_of(path)
    assert grader_of(task).grade("99", problems[0], task).correct
    with pytest.raises(UserError, match=r"RuntimeError: broken.*no wrong answer"):
        grader_of(task).grade("break", problems[0], task)


@pytest.mark.parametrize(
    ("name", "why"), [("humaneval", "sandbox"), ("humaneval_instruct", "sandbox"), ("mbpp_plus", "task=mbpp_plus")]
)
def test_tasks_that_run_code_are_never_imported(name: str, why: str, folder: Path) -> None:
    with pytest.raises(UserError, match=why):
        build(name)
    assert not [module for module in sys.modules if module.startswith("lm_eval") and name in module]
    assert not list(folder.iterdir())


@pytest.mark.parametrize("name", ["humaneval/humaneval_plus", "mbpp/mbpp_instruct", "cruxeval/cruxeval_input",
                                  "humaneval_infilling/multi_line_infilling"])  # fmt: skip
def test_code_is_found_in_the_source_alone(name: str) -> None:
    root = package_folder()
    assert root is not None
    path = root / "tasks" / f"{name}.yaml"
    if not path.is_file():
        path = next((root / "tasks" / name.split("/")[0]).glob("*.yaml"))
    assert runs_code(sources_of(path)) is not None
    assert runs_code(sources_of(root / "tasks" / "gsm8k" / "gsm8k.yaml")) is None


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (("task: small_sums", "task: small_sums\nunsafe_code: true"), "unsafe_code.*sandbox.*task=humaneval"),
        (("task: small_sums", "task: small_sums\nrepeats: 3"), "asks each problem 3 times"),
        (("output_type: generate_until", "output_type: loglikelihood_rolling"), "perplexity"),
        (("task: small_sums", "class: !function own.Task"), "Python class"),
        (("exact_match,", "bleu,"), "no metric that says of one problem|cannot be loaded"),
        (("dataset_path: json", "dataset_path: nobody/nothing"), "cannot be loaded.*copy the file it writes to"),
    ],
)
def test_tasks_that_cannot_be_asked(change: tuple[str, str], why: str, folder: Path) -> None:
    path = write_task(folder, "sums", GENERATION.replace(*change), SUMS)
    with pytest.raises(UserError, match=f"(?s){why}"):
        build(str(path))
    assert not (folder / "made").exists()


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("if doc == {last!r}: raise ValueError('late')\n    return '?'", "ValueError: late"),
    ],
)
def test_python_of_the_users_own_that_fails(body: str, why: str, folder: Path) -> None:
    (folder / f"ask_{why[:5]}.py").write_text(f"def asked(doc):\n    {body.format(last=SUMS[-1])}\n")
    text = re.sub("doc_to_text: .*", f"doc_to_text: !function ask_{why[:5]}.asked", GENERATION)
    path = write_task(folder, "sums", text, SUMS)
    with pytest.raises(UserError, match=f"{why}.*Mend {path}, then type"):
        build(str(path))


def test_a_task_without_a_name() -> None:
    for name in (None, ""):
        with pytest.raises(ValueError, match=r"task.name does not say which.*Type e\.g\. task\.name=arc_easy"):
            TaskConfig.model_validate({"name": name, "source": "lm_eval"})


def test_names_that_lm_eval_does_not_have(folder: Path) -> None:
    with pytest.raises(UserError, match=r"Did you mean task.name=arc_easy"):
        build("arc_esy")
    with pytest.raises(UserError, match=r"several tasks.*task.name=choice"):
        build("mmlu")


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"samples": 2, "temperature": 0.5}, "task.samples=2.*nothing is written"),
        ({"chat_template": True}, "task.chat_template=True.*task.chat_template=false"),
        ({"grader": "exact_match"}, "task.grader=exact_match.*task.grader=null"),
        ({"metric": "f1"}, "no metric of.*Choices: acc/none, acc_norm/none"),
        ({"answer_separator": ";"}, "they would change nothing"),
        ({"domains": ["a", "b"]}, "is one"),
        ({"split": "calibration"}, "calibration.path=FOLDER"),
    ],
)
def test_settings_without_a_meaning(more: dict[str, object], why: str, folder: Path) -> None:
    path = write_task(folder, "capitals", CHOICES, CAPITALS)
    build(str(path))
    with pytest.raises(UserError, match=why):
        inspect_task(task_of(path, **more))


def test_the_grader_and_the_metric_are_of_lm_eval_alone() -> None:
    with pytest.raises(UserError, match=r"task.metric=acc.*task=lm_eval"):
        plan_sweep(["policy=fixed_k", "policy.k=4", "task.metric=acc"])
    with pytest.raises(UserError, match=r"task.grader=lm_eval judges lm-eval's own tasks"):
        plan_sweep(["policy=fixed_k", "policy.k=4", "task.grader=lm_eval"])


def test_tasks_are_published_as_they_are(folder: Path) -> None:
    """Rows that repeat another are asked as lm-eval asks them, and told of."""
    path = write_task(folder, "sums", GENERATION, [*SUMS, SUMS[0], SUMS[0] | {"answer": "3"}])
    build(str(path))
    found = inspect_task(task_of(path))
    assert found.problems == {"sums": 14} and any("2 of 14 problems" in note for note in found.notes)


def test_one_command_fetches_all(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Benchmarks of ours by their names, a task of lm-eval behind its own, a YAML by its path."""
    path = write_task(folder, "sums", GENERATION, SUMS)
    assert tasks_command.run(["fetch", str(path)]) == 0
    assert f"task=lm_eval task.name={path}" in capsys.readouterr().out
    for name, why in {
        "lm_eval:humaneval": r"sandbox",
        "lm_eval": r"tasks fetch lm_eval:arc_easy",
        "lm_eval:": r"tasks fetch lm_eval:arc_easy",
        "arc_easy": r"of lm-eval: python -m banpick_exp tasks fetch lm_eval:arc_easy",
        "nowhere.yaml": r"there is no such file",
        "jsonl": r"nothing is to be fetched.*task.data_files",
        "tiny": r"nothing is to be fetched.*task=tiny",
    }.items():
        with pytest.raises(UserError, match=f"(?s){why}"):
            tasks_command.run(["fetch", name])
    for typed, near in (["fetc", "gsm8k"], "Did you mean fetch"), (["fetch", "gsm8k", "--form", "x"], "mean --from"):
        with pytest.raises(UserError, match=near):
            tasks_command.run(typed)
    with pytest.raises(UserError, match=r"--from.*Leave it out"):
        tasks_command.run(["fetch", str(path), "--from", str(folder)])


def test_tasks_of_lm_eval_that_have_a_file_of_ours_go_by_their_names() -> None:
    shipped = {path.stem for path in (Path(__file__).parents[2] / "conf/task").glob("*.yaml")
               if "\nsource: lm_eval" in path.read_text() and "\nname: null" not in path.read_text()}  # fmt: skip
    assert shipped == set(tasks_command.OF_LM_EVAL)
