"""What a file of problems says is what is asked and graded; whatever is not plain is refused with its line."""

from __future__ import annotations

import io
import json
import shlex
import subprocess
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from banpick_exp.errors import UserError
from banpick_exp.tasks.benchmarks.jsonl import JSONL
from banpick_exp.tasks.config import TaskConfig
from banpick_exp.tasks.problem import Problem
from banpick_exp.tasks.reading import read_problems

CASES = Path(__file__).parent / "cases"


def read(data: bytes | str, name: str = "math_test.jsonl", **settings: Any) -> tuple[Problem, ...]:
    task = TaskConfig(**{"name": "jsonl", "domains": ("math",), "answer_separator": ";"} | settings)
    content = data.encode() if isinstance(data, str) else data
    return read_problems(content, Path(name), JSONL, task, domain="math", split="test")


def answers(data: bytes | str, **settings: Any) -> list[tuple[str, ...]]:
    return [problem.answers for problem in read(data, **settings)]


def row(**fields: Any) -> str:
    return json.dumps({"prompt": "1+1=", "answer": "2"} | fields, ensure_ascii=False) + "\n"


def refusal(data: bytes | str, name: str = "math_test.jsonl", **settings: Any) -> str:
    with pytest.raises(UserError) as caught:
        read(data, name, **settings)
    return str(caught.value)


# ---------------------------------------------------------------- what is read


def test_numbers_stay_as_they_are_written() -> None:
    """Case A1: 116 beside 0.5 is 116."""
    found = [problem.answer for problem in read((CASES / "A1_int_and_float.jsonl").read_bytes())]
    assert found[0] == "19" and found[-1] == "0.5" and len(found) == 13
    for written in ("116", "116.0", "1e3", "1E+3", "-0", "0.10", "123456789012345678901234567890", "1" * 5000):
        assert answers(f'{{"prompt": "p", "answer": {written}}}') == [(written,)]


def test_text_stays_text() -> None:
    """Case A2: what looks like a date, a number or a truth value is what it is."""
    found = [problem.answer for problem in read((CASES / "A2_dates.jsonl").read_bytes())]
    assert found == [f"2024-01-0{day}" for day in range(1, 9)]
    for text in ("007", "1.50", "12:30", "2024-01-01T00:00:00Z", "true", "None", "nan", "1e5", "ü", "a\u2028b", "a\tb"):
        assert answers(row(answer=text)) == [(text,)]
    mixed = row(answer="2024-01-01") + row(answer="not a date") + row(answer=3)
    assert answers(mixed) == [("2024-01-01",), ("not a date",), ("3",)]


def test_gold_is_normalised_as_the_given_answer_is() -> None:
    """Case A5."""
    found = [problem.answer for problem in read((CASES / "A5_trailing_newline.jsonl").read_bytes())]
    assert found[0] == "19" and found[-1] == "87"
    assert answers(row(answer="\t 4 2 \r\n")) == [("4 2",)]


def test_several_right_answers_are_a_list_of_texts_and_numbers() -> None:
    assert answers(row(answer=["1/2", 0.5, " 0.5 ", "0,5"])) == [("1/2", "0.5", "0,5")]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_line_ends_blank_lines_and_a_byte_order_mark_mean_nothing(end: str, mark: bytes) -> None:
    lines = ["", row(answer="1").strip(), "  ", row(answer="2").strip(), ""]
    found = read(mark + end.join(lines).encode())
    assert [problem.problem_id for problem in found] == ["math-test-000000", "math-test-000001"]


def test_ids_and_sub_tasks() -> None:
    found = read(row(id="a", task="add") + row(problem_id=7, id="x") + row(id=None, task="") + row(id=0))
    assert [(problem.problem_id, problem.task) for problem in found] == [
        ("a", "add"),
        ("7", "math"),
        ("math-test-000002", "math"),
        ("0", "math"),
    ]


def test_fields_that_nothing_reads_may_hold_anything() -> None:
    assert answers('{"prompt": "p", "answer": "2", "score": NaN, "more": [{"a": null}, "\\ud83d"]}') == [("2",)]


def test_a_surrogate_pair_is_one_character() -> None:
    assert read('{"prompt": "\\ud83d\\ude00", "answer": "2"}')[0].prompt == "😀"


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("A3_missing_answer", 'line 5 has no "answer" (it has "prompt")'),
        ("A6_empty_answers", 'line 1 has an empty "answer"'),
        ("A10a_null_prompt", 'line 5 has null as "prompt"'),
        ("A10b_int_prompts", 'line 1 has the number 0 as "prompt", not text'),
        ("A10c_chat_list", 'line 1 has chat messages as "prompt"'),
        ("A10d_empty_prompt", 'line 5 has an empty "prompt"'),
        ("A11a_broken_row", "line 5 is no JSON object (Expecting value"),
        ("A11b_lone_surrogate", "line 1 has half a character ('\\ud83d') in \"prompt\""),
        ("A11c_utf16", "is not UTF-8 but, as it seems, UTF-16"),
    ],
)
def test_a_case_that_failed_late_is_refused_with_its_line(case: str, words: str) -> None:
    message = refusal((CASES / f"{case}.jsonl").read_bytes())
    assert words in message and message.startswith("math_test.jsonl")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"prompt": "p", "answer": null}', 'has null as "answer"'),
        ('{"prompt": "p", "answer": true}', 'has the truth value true as "answer"'),
        ('{"prompt": "p", "answer": {"a": 1}}', 'has an object as "answer"'),
        ('{"prompt": "p", "answer": []}', 'has an empty list as "answer"'),
        ('{"prompt": "p", "answer": ["a", null]}', 'has null within its list of "answer"'),
        ('{"prompt": "p", "answer": [["a"]]}', 'has a list within its list of "answer"'),
        ('{"prompt": "p", "answer": ["a", " "]}', 'has an empty "answer"'),
        ('{"prompt": "p", "answer": " \\n"}', 'has an empty "answer"'),
        ('{"prompt": "p", "answer": NaN}', 'has NaN as "answer"'),
        ('{"prompt": "p", "answer": -Infinity}', 'has -Infinity as "answer"'),
        ('{"prompt": "p", "answer": "\\udc00"}', "has half a character"),
        ('{"prompt": "p", "answer": "1;2"}', "holds task.answer_separator=';'"),
        ('{"prompt": " \\t\\n", "answer": "2"}', 'has an empty "prompt"'),
        ('{"prompt": false, "answer": "2"}', 'has the truth value false as "prompt"'),
        ('{"prompt": {"text": "p"}, "answer": "2"}', 'has an object as "prompt"'),
        ('{"prompt": ["a", "b"], "answer": "2"}', 'has a list as "prompt"'),
        ('{"prompt": 1.5, "answer": "2"}', 'has the number 1.5 as "prompt"'),
        ('{"question": "p", "answer": "2"}', 'has no "prompt" (it has "question", "answer")'),
        ('{"prompt": "p", "answer": "2", "answer": "3"}', "has the key 'answer' twice"),
        ('{"prompt": "p", "answer": "2", "id": [1]}', 'has a list as "id"'),
        ('{"prompt": "p", "answer": "2", "task": true}', 'has the truth value true as "task"'),
        ('{"prompt": "p", "answer": "2", "id": "\\ud800"}', "has half a character"),
        ('["p", "2"]', "is one JSON list"),
        ('"p"', "is no JSON object such as"),
        ("p,2", "is no JSON object such as"),
        ("{}", 'has no "prompt"'),
        ("{", "is no JSON object such as"),
        ('{"prompt": "p", "answer": "2"} {"prompt": "p", "answer": "2"}', "is no JSON object (Extra data"),
        ('{"prompt": "p", "answer": "2", "x": ' + "[" * 100_000, "is nested too deeply"),
        ('{"prompt": "a\tb", "answer": "2"}', "Invalid control character"),
    ],
)
def test_a_row_that_is_not_plain_is_refused(line: str, words: str) -> None:
    assert words in refusal(line)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("prompt: naïve".encode("latin-1"), "line 1: byte 0xef is not UTF-8"),
        ((row() + row(prompt="é")).encode() + b'{"prompt": "\xe9"}', "line 3: byte 0xe9 is not UTF-8"),
        (row().encode("utf-16"), "iconv -f UTF-16 -t"),
        (row().encode("utf-16-le"), "iconv -f UTF-16LE -t"),
        (row().encode("utf-16-be"), "iconv -f UTF-16BE -t"),
        (row().encode("utf-32"), "iconv -f UTF-32 -t"),
        (b"\x1f\x8b\x08rest", "gunzip math_test.jsonl"),
        (b"PAR1rest", "ends in .parquet"),
        (b"", "is empty"),
        (b"\n \r\n\t", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
    ],
)
def test_a_file_of_another_kind_is_refused(data: bytes, words: str) -> None:
    assert words in refusal(data)


def test_the_first_few_wrong_lines_are_listed_and_the_rest_counted() -> None:
    message = refusal(row() * 2 + row(answer="") * 7 + row())
    assert "7 of 10 rows" in message and "line 3 " in message and "line 7 " in message
    assert "line 8 " not in message and "and 2 more" in message


def test_doubled_ids_name_both_lines() -> None:
    assert "line 3 has the id 'a' of line 1" in refusal(row(id="a") + row(id="b") + row(id="a"))
    assert "has the id '1' of line 1" in refusal(row(id=1) + row(id="1"))


def test_an_answer_that_holds_the_separator_is_refused_only_where_it_is_cut_there() -> None:
    assert answers(row(answer="1;2"), answer_separator=None) == [("1;2",)]
    assert answers(row(answer="1;2"), answer_pattern="answer: (.+)") == [("1;2",)]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1"])
def test_the_remedy_for_an_encoding_works_as_typed(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "it's é.jsonl"
    path.write_bytes((row(prompt="x") + '{"prompt": "é", "answer": "ü"}').encode(encoding))
    command = refusal(path.read_bytes(), str(path)).split("type ")[1].removesuffix(".")
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    assert read((tmp_path / "NEW").read_bytes())[1].answer == "ü"


def test_the_remedy_for_a_json_list_works_as_typed(tmp_path: Path) -> None:
    path = tmp_path / "a list.json"
    path.write_text(json.dumps([{"prompt": "p", "answer": 1}, {"prompt": "q", "answer": "é"}]))
    command = refusal(path.read_bytes(), str(path)).split("Type ")[1].removesuffix(".")
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    assert [problem.answer for problem in read((tmp_path / "NEW.jsonl").read_bytes())] == ["1", "é"]
    assert shlex.split(command)[0] == "python"


# ---------------------------------------------------------------- CSV and Parquet


def test_csv_is_text_and_names_its_lines() -> None:
    data = 'id,prompt,answer\n7,"a, ""b""\nc",007\n\n8,q, 0.50 \n'
    found = read(data, "p.csv")
    assert [(p.problem_id, p.prompt, p.answer) for p in found] == [("7", 'a, "b"\nc', "007"), ("8", "q", "0.50")]
    assert read("prompt\tanswer\na,b\t2\n", "p.tsv")[0].prompt == "a,b"
    assert 'line 4 has an empty "answer"' in refusal('prompt,answer\n"a\nb",1\nc,\n', "p.csv")
    assert "line 3 has 3 columns, the first line 2" in refusal("prompt,answer\na,1\nb,1,2\n", "p.csv")
    assert 'has no "prompt" (it has "prompt;answer")' in refusal("prompt;answer\na;1\n", "p.csv")
    assert "the column 'answer' twice" in refusal("prompt,answer,answer\na,1,2\n", "p.csv")
    assert "cannot be told apart" in refusal('prompt,answer\n"a"b,1\n', "p.csv")
    assert "is empty" in refusal("prompt,answer\n", "p.csv")
    assert read("prompt,answer\n" + "x" * 200_000 + ",1\n", "p.csv")[0].answer == "1"


def parquet(**columns: Any) -> bytes:
    file = io.BytesIO()
    pl.DataFrame(columns).write_parquet(file)
    return file.getvalue()


def test_parquet_goes_through_the_same_checks() -> None:
    found = read(parquet(prompt=["a", "b"], answer=[2**60, 3], other=[1.5, 2.5]), "p.parquet")
    assert [problem.answer for problem in found] == [str(2**60), "3"]
    assert answers(parquet(prompt=["a"], answer=[["x", "y"]]), name="p.parquet") == [("x", "y")]
    floats = refusal(parquet(prompt=["a", "b"], answer=[116.0, 0.5]), "p.parquet")
    assert "row 1 has 116.0, a float" in floats and "store it as text" in floats
    assert 'row 2 has null as "answer"' in refusal(parquet(prompt=["a", "b"], answer=["1", None]), "p.parquet")
    assert 'has no "answer"' in refusal(parquet(prompt=["a"]), "p.parquet")
    dates = pl.Series(["2024-01-01"]).str.to_date()
    assert 'has a date as "answer"' in refusal(parquet(prompt=["a"], answer=dates), "p.parquet")
    assert "chat messages" in refusal(parquet(prompt=[[{"role": "user", "content": "p"}]], answer=["1"]), "p.parquet")
    assert "cannot be read as Parquet" in refusal(b"PAR1nonsense", "p.parquet")
    assert "cannot be read as Parquet" in refusal(b"", "p.parquet")


# ---------------------------------------------------------------- any bytes end in problems or in words

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
ROWS = st.dictionaries(st.sampled_from(["prompt", "answer", "id", "problem_id", "task", "x"]), VALUES, max_size=6)
TEXTS = st.lists(ROWS.map(json.dumps) | st.text(max_size=20), max_size=5).map("\n".join)


@settings(max_examples=150, deadline=None)
@given(data=TEXTS.map(lambda text: text.encode("utf-8", "surrogatepass")) | st.binary(max_size=60))
@pytest.mark.parametrize("name", ["p.jsonl", "p.csv", "p.parquet"])
def test_any_file_ends_in_problems_or_in_words(name: str, data: bytes) -> None:
    try:
        found = read(data, name)
    except UserError as error:
        assert "p." in str(error)
    else:
        assert all(problem.prompt.strip() and all(problem.answers) for problem in found)
