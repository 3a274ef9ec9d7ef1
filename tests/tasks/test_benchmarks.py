"""Published benchmarks: rows in the form of their source become problems, and a planted right answer is graded right.

The rows are ours: the fields of the source, made-up content. Nothing here asks a network.
"""

from __future__ import annotations

import base64
import json
import pickle
import zlib
from pathlib import Path
from typing import Any

import pytest

from banpick_exp.cluster.commands import tasks as tasks_command
from banpick_exp.config import validated
from banpick_exp.errors import UserError
from banpick_exp.tasks.benchmarks.letters import shuffled
from banpick_exp.tasks.benchmarks.livecodebench import text_of_pickle
from banpick_exp.tasks.benchmarks.mathqa import choices_of
from banpick_exp.tasks.config import TaskConfig
from banpick_exp.tasks.fetching import SOURCES, fetch
from banpick_exp.tasks.files import inspect_task
from banpick_exp.tasks.load import load_problems
from banpick_exp.tasks.problem import Problem
from banpick_exp.tasks.registry import BENCHMARKS, grader_of


def packed(tests: list[dict[str, str]]) -> str:
    """Private tests as LiveCodeBench has them."""
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(tests)))).decode()


def gsm(number: int) -> dict[str, Any]:
    return {
        "question": f"Ann has {number} pens and buys 1,000. How many?",
        "answer": f"She has {number}+1000=<<{number}+1000=x>>.\n#### {number + 1000:,}",
    }


def gpqa(number: int) -> dict[str, Any]:
    wrong = {f"Incorrect Answer {n}": f"wrong {n}" for n in (1, 2, 3)}
    return {
        "Record ID": f"rec{number}",
        "Question": f"Which of {number}?",
        "Correct Answer": "the right one",
        "High-level domain": "Physics",
        **wrong,
    }


def mmlu(number: int) -> dict[str, Any]:
    return {
        "question_id": number,
        "question": f"What is {number}?",
        "options": ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"],
        "answer": "J",
        "category": "law",
        "cot_content": "A: Let's think step by step. It is ten. The answer is (J).",
    }


def mathqa(number: int) -> dict[str, Any]:
    return {
        "Problem": f"a train of {number} m passes",
        "Rationale": "scraped",
        "options": "a ) 38 , b ) 27.675 , c ) 1,030 , d ) none , e ) 5 a ) 6",
        "correct": "c",
        "category": "physics",
    }


def human(number: int) -> dict[str, Any]:
    return {
        "task_id": f"HumanEval/{number}",
        "prompt": f'def add{number}(a, b):\n    """Adds."""\n',
        "entry_point": f"add{number}",
        "canonical_solution": "    return a + b\n",
        "test": "def check(candidate):\n    assert candidate(2, 3) == 5\n",
    }


def mbpp(number: int) -> dict[str, Any]:
    name = f"double{number}"
    return {
        "task_id": number,
        "prompt": f"Write a function {name}.",
        "code": f"def {name}(a):\n    return 2 * a\n",
        "test_list": [f"assert {name}(2) == 4"],
        "test": f"assert {name}(3) == 6\n",
    }


def contest(number: int) -> dict[str, Any]:
    called = number % 2
    test = {"input": "[1, 2]\n3", "output": "[4, 5]", "testtype": "functional"}
    read = {"input": "1 2\n", "output": "3\n", "testtype": "stdin"}
    return {
        "question_id": f"abc{number}",
        "question_content": f"Problem {number}",
        "starter_code": "class Solution:\n    def shift(self, a, n):" if called else "",
        "difficulty": "easy",
        "public_test_cases": json.dumps([test if called else read]),
        "private_test_cases": packed([test if called else read]),
        "metadata": json.dumps({"func_name": "shift"} if called else {}),
    }


def aime(number: int) -> dict[str, Any]:
    return {"id": number, "problem": f"Find {number}.", "answer": "025", "solution": "It is 25."}


def math500(number: int) -> dict[str, Any]:
    return {
        "unique_id": f"test/algebra/{number}.json",
        "subject": "Algebra",
        "problem": f"Solve ${number}x = 1$.",
        "answer": "\\frac{1}{2}",
        "solution": "So $x = \\boxed{\\frac{1}{2}}$.",
    }


ROWS = {
    "gsm8k": ("test.jsonl", gsm, "1,003 pens. The final answer is $1,003.", "The final answer is 1004"),
    "math500": ("test.jsonl", math500, "<think>2?</think>It is \\boxed{0.5}.", "\\boxed{2}"),
    "aime24": ("train.jsonl", aime, "\\boxed{25}", "\\boxed{26}"),
    "aime25": ("test.jsonl", aime, "Thus \\boxed{025}.", "25 or \\boxed{26}"),
    "mathqa": ("train.jsonl", mathqa, "\\boxed{C}", "The answer is (B)."),
    "mmlu_pro": ("test.jsonl", mmlu, "so the answer is (J).", "the answer is (A)."),
}
"""Name -> (file, a row, a right completion of row 3, a wrong one)."""
CODE = {"humaneval": human, "humaneval_plus": human, "mbpp_plus": mbpp, "livecodebench": contest}
FILES = {"humaneval": "HumanEval.jsonl", "livecodebench": "test6.jsonl"}


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BANPICK_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def asked(name: str, split: str = "test") -> list[Problem]:
    task = tasks_command.task_of(name)
    return load_problems(task, split)[task.domains[0]]


@pytest.mark.parametrize("name", ROWS)
def test_a_planted_right_answer_counts_and_a_wrong_one_does_not(name: str, tmp_path: Path) -> None:
    file, row, right, wrong = ROWS[name]
    given = written(tmp_path / "from" / file, [row(n) for n in range(1, 5)]).parent
    (fetched, *_) = fetch(name, given=given)
    assert fetched.rows == 4 and not fetched.left_out
    task = tasks_command.task_of(name)
    problem = asked(name, "calibration" if name == "mathqa" else "test")[2]
    grader = grader_of(task)
    assert grader.refused(task) is None
    grades = grader.grade_all([(right, problem), (wrong, problem), ("", problem), ("<think>25 C J", problem)], task)
    assert [grade.correct for grade in grades] == [True, False, False, False]


@pytest.mark.parametrize("name", CODE)
def test_code_comes_with_its_tests_and_a_solution_that_passes_them(name: str, tmp_path: Path) -> None:
    given = written(tmp_path / FILES.get(name, "test.jsonl"), [CODE[name](n) for n in range(4)])
    fetch(name, given=given)
    benchmark = BENCHMARKS[name]
    task = tasks_command.task_of(name)
    file = next(iter(benchmark.files(task, "test").values()))
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == 4 and benchmark.grader == "code"
    for row in rows:
        material = row["material"]
        if material["kind"] == "call":
            space: dict[str, Any] = {}
            exec(row["answer"] + "\n" + material["test"], space)
            if material["entry_point"]:
                space["check"](space[material["entry_point"]])
            assert row["answer"] in row["response"] and "```" in row["prompt"]
        else:
            assert [message["role"] for message in row["prompt"]] == ["system", "user"]
    if name == "livecodebench":
        assert rows[0]["material"]["cases"] == [{"input": "1 2\n", "output": "3\n"}] * 2
        assert rows[1]["material"]["cases"] == [{"input": [[1, 2], 3], "output": [4, 5]}] * 2
        assert rows[1]["material"]["entry_point"] == "shift"


def test_gpqa_shuffles_by_the_id_alone_and_calibrates_on_what_is_not_asked(tmp_path: Path) -> None:
    written(tmp_path / "gpqa_diamond.jsonl", [gpqa(n) for n in range(40)])
    written(tmp_path / "gpqa_main.jsonl", [gpqa(n) for n in range(60)])
    fetch("gpqa_diamond", given=tmp_path)
    problems = asked("gpqa_diamond")
    assert len(problems) == 40 and {p.answer for p in problems} == set("ABCD")
    for problem in problems:
        assert f"{problem.answer}) the right one" in problem.prompt
    assert len(asked("gpqa_diamond", "calibration")) == 20
    assert shuffled("rec1", "abcd") == shuffled("rec1", "abcd")
    task = tasks_command.task_of("gpqa_diamond")
    assert grader_of(task).grade(f"Answer: {problems[0].answer}", problems[0], task).correct


def test_reasoning_gym_is_made_and_its_own_verifier_judges() -> None:
    made = fetch("reasoning_gym", domains=("chain_sum", "syllogism"), size=6)
    assert [each.rows for each in made] == [6] * 4
    task = tasks_command.task_of("reasoning_gym").model_copy(update={"domains": ("chain_sum", "syllogism")})
    grader = grader_of(task)
    for problems in load_problems(task, "test").values():
        problem = problems[0]
        assert grader.grade(f"<answer>no</answer> or <answer>{problem.answer}</answer>", problem, task).correct
        assert not grader.grade("<answer>neither</answer>", problem, task).correct
        assert not grader.grade("", problem, task).correct
    tests, others = (load_problems(task, split)["chain_sum"] for split in ("test", "calibration"))
    assert not {p.question for p in tests} & {p.question for p in others}
    with pytest.raises(UserError, match=r"Did you mean chain_sum\?"):
        fetch("reasoning_gym", domains=("chain_sun",), size=2)
    with pytest.raises(UserError, match="gives no answer of its own full score"):
        fetch("reasoning_gym", domains=("rubiks_cube",), size=2)


def test_humaneval_is_in_its_package() -> None:
    (fetched,) = fetch("humaneval")
    assert fetched.rows == 164 and not fetched.left_out
    rows = [json.loads(line) for line in fetched.path.read_text().splitlines()]
    assert rows[0]["problem_id"] == "HumanEval/0" and rows[0]["material"]["entry_point"] == "has_close_elements"


def test_what_is_not_here_says_how_to_fetch_it_once_and_where_it_lies(data: Path) -> None:
    task = tasks_command.task_of("gsm8k")
    with pytest.raises(UserError) as error:
        inspect_task(task)
    assert "\n" not in str(error.value) and str(data / "gsm8k" / "math_test.jsonl") in str(error.value)
    assert "python -m banpick_exp tasks fetch gsm8k" in str(error.value)
    with pytest.raises(UserError, match="tasks fetch mathqa"):
        inspect_task(tasks_command.task_of("aime24"), "calibration")
    with pytest.raises(UserError, match=r"Did you mean math\?"):
        inspect_task(task.model_copy(update={"domains": ("maths",)}))
    with pytest.raises(UserError, match="--domains chain_sum"):
        inspect_task(tasks_command.task_of("reasoning_gym"))


def test_rows_that_cannot_be_graded_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [mathqa(n) for n in range(6)] + [mathqa(0), mathqa(1) | {"correct": "a"}]
    (fetched,) = fetch("mathqa", given=written(tmp_path / "train.jsonl", rows).parent)
    assert fetched.rows == 5 and sum(fetched.left_out.values()) == 3
    written(tmp_path / "gsm" / "test.jsonl", [gsm(1), gsm(2) | {"answer": "#### "}])
    with pytest.raises(UserError, match="1 of 2 rows"):
        fetch("gsm8k", given=tmp_path / "gsm")


def test_files_of_another_kind_are_refused_in_words(tmp_path: Path) -> None:
    written(tmp_path / "other" / "test.jsonl", [{"prompt": "1+1"}])
    with pytest.raises(UserError, match=r"row 1 of test is not as its source has it \(KeyError"):
        fetch("gsm8k", given=tmp_path / "other")
    with pytest.raises(UserError, match="there is no file of it there"):
        fetch("gsm8k", given=written(tmp_path / "empty" / "notes.jsonl", [{}]).parent)
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "test.jsonl").write_text(json.dumps(gsm(1)) + "\n{")
    with pytest.raises(UserError, match=r"test\.jsonl: line 2 is no JSON"):
        fetch("gsm8k", given=tmp_path / "half")


def test_a_part_of_a_benchmark_is_told_from_the_whole(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A download that ended early makes a file like any other, and its figures would stand beside published ones."""
    folder = written(
        tmp_path / "part" / "test.jsonl", [gsm(n) for n in range(3)] + [gsm(1) | {"answer": "#### 5"}]
    ).parent
    tasks_command.run(["fetch", "gsm8k", "--from", str(folder)])
    said = capsys.readouterr().out
    assert "4 problems of the 1,319 that its source states" in said and "not the whole benchmark" in said
    assert "left out" not in said
    rows = [{"id": n, "problem": f"p{n}", "solution": "s", "answer": str(n)} for n in range(30)]
    tasks_command.run(["fetch", "aime24", "--from", str(written(tmp_path / "whole" / "train.jsonl", rows).parent)])
    assert "not the whole" not in capsys.readouterr().out


def test_an_open_quote_in_a_csv_takes_no_rows_with_it(tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_text('question,answer\n1+1?,#### 2\n"1+2?,#### 3\n1+3?,#### 4\n')
    with pytest.raises(UserError, match=r"test\.csv: unexpected end of data, so nothing was fetched"):
        fetch("gsm8k", given=tmp_path)


def test_parquet_and_csv_are_read_like_json_lines(tmp_path: Path) -> None:
    import polars as pl

    (tmp_path / "parquet").mkdir()
    pl.DataFrame([gsm(n) for n in range(3)]).write_parquet(tmp_path / "parquet" / "test-00000-of-00001.parquet")
    pl.DataFrame([gsm(n) for n in range(3, 6)]).write_csv(tmp_path / "parquet" / "train.csv")
    assert [each.rows for each in fetch("gsm8k", given=tmp_path / "parquet")] == [3, 3]
    assert asked("gsm8k", "calibration")[0].response == "She has 3+1000=.\nThe final answer is 1003"


def test_mathematics_calibrates_on_mathqa_whoever_grades(tmp_path: Path) -> None:
    fetch("mathqa", given=written(tmp_path / "train.jsonl", [mathqa(n) for n in range(3)]).parent)
    for name in ("math500", "aime24", "aime25"):
        task = tasks_command.task_of(name)
        problem = asked(name, "calibration")[1]
        right, wrong = grader_of(task).grade_all([("\\boxed{C}", problem), ("\\boxed{D}", problem)], task)
        assert right.correct and not wrong.correct


def test_text_to_calibrate_on_is_one_document_a_line(data: Path, tmp_path: Path) -> None:
    rows = [{"text": "a b\n" * 4000}, {"text": "short"}]
    (fetched,) = fetch("c4", given=written(tmp_path / "c4-train.00000.jsonl", rows))
    assert fetched.rows == 1 and len(fetched.path.read_text().splitlines()) == 1


def test_a_pickle_that_is_more_than_a_text_is_refused() -> None:
    assert text_of_pickle(pickle.dumps("[1]")) == "[1]"
    for other in (pickle.dumps(print), pickle.dumps(["a"]), pickle.dumps(1)):
        with pytest.raises(ValueError, match=r"pickle|texts"):
            text_of_pickle(other)


def test_choices_of_mathqa_are_told_apart() -> None:
    assert choices_of("a ) 1,000 , b ) 2 , c ) rs . 5 , d ) 4 , e ) none of these") == [
        "1,000", "2", "rs . 5", "4", "none of these",
    ]  # fmt: skip
    assert choices_of("['a ) 38', 'b ) 2']") == ["38", "2"]


def test_the_table_lists_all_with_licence_cost_and_presence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (fetched, *_) = fetch("gsm8k", given=written(tmp_path / "from" / "test.jsonl", [gsm(1)]).parent)
    assert tasks_command.run([]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert set(SOURCES) <= set(lines)
    assert lines["gsm8k"].endswith("1 of them") and lines["aime24"].endswith("no")
    assert "CC (as its card" not in lines["livecodebench"], "half a remark"
    assert "5.8 M" in lines["aime24"] and "asks for consent" in lines["gpqa_diamond"]
    fetched.path.write_text(fetched.path.read_text() + "\n")
    tasks_command.run([])
    assert "changed since" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"Leave it out; a sweep asks the first N"):
        tasks_command.run(["fetch", "gsm8k", "--domains", "math"])
    with pytest.raises(UserError, match=r"Did you mean gsm8k\?"):
        tasks_command.run(["fetch", "gsm8"])


def test_every_benchmark_that_is_fetched_is_pinned_and_says_its_licence() -> None:
    for name, source in SOURCES.items():
        hub = source.package is None and source.generated is None
        assert not hub or (len(source.revision) == 40 and int(source.revision, 16)), name
        assert source.licence
    assert set(ROWS) | set(CODE) | {"gpqa_diamond", "reasoning_gym", "c4"} == set(SOURCES)


def test_a_chat_is_a_prompt_too(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "1+1?"}]
    written(tmp_path / "math_test.jsonl", [{"prompt": chat, "answer": "2"}])
    values = {"name": "jsonl", "domains": ["math"], "data_files": f"{tmp_path}/{{domain}}_{{split}}.jsonl"}
    task = validated(TaskConfig, {**values, "chat_template": True}, "task")
    (problem,) = load_problems(task, "test")["math"]
    assert problem.asked == chat and problem.prompt == "system: Be short.\n\nuser: 1+1?"
    with pytest.raises(UserError, match=r"line 1 has chat messages .*type task\.chat_template=true"):
        inspect_task(task.model_copy(update={"chat_template": False}))
    for wrong, says in [
        (
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
            "assistant as the role of its last",
        ),
        ([{"role": "tool", "content": "a"}], "'tool' as the role"),
        ([{"role": "user"}], "no role and content in message 1"),
        ([{"role": "user", "content": " "}], "an empty content"),
        ([{"role": "user", "content": 5}], "the number 5 as the content"),
    ]:
        written(tmp_path / "math_test.jsonl", [{"prompt": wrong, "answer": "2"}])
        with pytest.raises(UserError, match=says):
            inspect_task(task)
