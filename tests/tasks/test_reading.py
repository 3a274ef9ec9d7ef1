"""What a file of problems says is what is asked and graded; whatever is not plain is refused with its line."""

from __future__ import annotations

import io
import json
import os
import shlex
import subprocess
import sys
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from banpick_exp.errors import UserError
from banpick_exp.tasks.benchmarks.jsonl import JSONL
from banpick_exp.tasks.config import TaskConfig
from banpick_exp.tasks.graders.registry import GRADERS
from banpick_exp.tasks.problem import Problem
from banpick_exp.tasks.reading import lists_note, read_problems

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
    for text in ("007", "1.50", "12:30", "2024-01-01T00:00:00Z", "true", "None", "nan", "1e5", "ü", "a\tb"):
        assert answers(row(answer=text)) == [(text,)]
    assert read(row(prompt="a\u2028b"))[0].prompt == "a\u2028b"
    mixed = row(answer="2024-01-01") + row(prompt="p", answer="not a date") + row(prompt="q", answer=3)
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
    lines = ["", row(answer="1").strip(), "  ", row(prompt="p").strip(), ""]
    found = read(mark + end.join(lines).encode())
    assert [problem.problem_id for problem in found] == ["math-test-000000", "math-test-000001"]


def test_ids_and_sub_tasks() -> None:
    found = read(
        row(id="a", task="add")
        + row(prompt="p", problem_id=7, id="x")
        + row(prompt="q", id=None, task="")
        + row(prompt="r", id=0)
    )
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
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer"),
        ((row() + "a\0b").encode(), "line 2 holds a zero byte"),
        ('{"\ufeffprompt": "p", "answer": "2"}'.encode(), "it has '\\ufeffprompt', \"answer\""),
        (b"", "is empty"),
        (b"\n \r\n\t", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
    ],
)
def test_a_file_of_another_kind_is_refused(data: bytes, words: str) -> None:
    assert words in refusal(data)


def test_the_first_few_wrong_lines_are_listed_and_the_rest_counted() -> None:
    message = refusal(row() + row(prompt="p") + row(answer="") * 7 + row(prompt="q"))
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


@pytest.mark.parametrize("name", ["a list.json", "it's a list.json"])
def test_the_remedy_for_a_json_list_works_as_typed(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(json.dumps([{"prompt": "p", "answer": 1}, {"prompt": "q", "answer": "é"}]))
    command = refusal(path.read_bytes(), str(path)).split("Type ")[1].removesuffix(".")
    with_python = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run(command, shell=True, check=True, cwd=tmp_path, env=with_python)
    assert [problem.answer for problem in read((tmp_path / "NEW.jsonl").read_bytes())] == ["1", "é"]
    assert shlex.split(command)[0] == "python"


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("p.txt", "prompt,answer\n1+1=,2\n", "mv p.txt p.csv"),
        ("p.jsonl", "id\tAnswer\tprompt\n", "mv p.jsonl p.tsv"),
        ("p.csv", row() * 2, "mv p.csv p.jsonl"),
        ("p.json", json.dumps({"prompt": "1", "answer": "2"}, indent=1), "jq -c . p.json"),
        ("p.json", json.dumps({"prompt": "1", "answer": "2"}, indent=1) * 2, "jq -c . p.json"),
        ("p.xlsx", b"PK\x03\x04rest", "is a spreadsheet"),
        ("p.ods", b"PK\x03\x04rest", "is a spreadsheet"),
    ],
)
def test_a_file_of_a_kind_that_its_name_does_not_say(name: str, data: bytes | str, words: str) -> None:
    assert words in refusal(data, name)


def test_a_chat_in_another_form_is_told_the_right_one() -> None:
    form = '[{"role": "user"'
    assert form in refusal(row(prompt=[{"from": "human", "value": "hi"}]), chat_template=True)
    assert form in refusal(row(prompt={"role": "user", "content": "hi"}), chat_template=True)
    assert form in refusal(row(prompt=[]), chat_template=True)
    for written in (json.dumps([{"role": "user", "content": "hi"}]), "[{'role': 'user', 'content': 'hi'}]"):
        assert "written as one text" in refusal(row(prompt=written), chat_template=True)
    assert "written as one text" in refusal("prompt,answer\n\"[{'role': 'user', 'content': 'hi'}]\",2\n", "p.csv")
    assert read(row(prompt="[1, 2] is a list of?"))[0].prompt == "[1, 2] is a list of?"
    assert read(row(prompt="[[[" * 9000 + "]"))[0].prompt.endswith("]")


def test_a_list_written_as_one_text_is_one_answer_and_said() -> None:
    found = read('prompt,answer\na,"[""2"", ""two""]"\nb,"[1, 2]"\n', "p.csv")
    assert [problem.answer for problem in found] == ['["2", "two"]', "[1, 2]"]
    note = lists_note(Path("p.csv"), found)
    assert note is not None and "1 of 2 right answers of p.csv" in note
    assert lists_note(Path("p.csv"), found[1:]) is None


# ---------------------------------------------------------------- CSV and Parquet


def test_a_quote_that_is_never_closed_is_named_where_it_began() -> None:
    rows = [f"{number}+1=,{number + 1}" for number in range(40)]
    rows[15] = '"15+1=,16'
    assert "p.csv, line 17 (read on to line 41): " in refusal("prompt,answer\n" + "\n".join(rows) + "\n", "p.csv")
    assert "p.csv, line 3: " in refusal('prompt,answer\na,1\n"b"c,2\nd,3\n', "p.csv")


def test_csv_is_text_and_names_its_lines() -> None:
    data = 'id,prompt,answer\n7,"a, ""b""\nc",007\n\n8,q, 0.50 \n'
    found = read(data, "p.csv")
    assert [(p.problem_id, p.prompt, p.answer) for p in found] == [("7", 'a, "b"\nc', "007"), ("8", "q", "0.50")]
    assert read("prompt\tanswer\na,b\t2\n", "p.tsv")[0].prompt == "a,b"
    assert 'line 4 has an empty "answer"' in refusal('prompt,answer\n"a\nb",1\nc,\n', "p.csv")
    assert "line 3 has 3 columns, the first line 2" in refusal("prompt,answer\na,1\nb,1,2\n", "p.csv")
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
    assert 'row 2 has null as "answer"' in refusal(parquet(prompt=["a", "b"], answer=["1", None]), "p.parquet")
    assert "has no column 'answer' (it has 'prompt', 'gold')" in refusal(parquet(prompt=["a"], gold=["b"]), "p.parquet")
    assert "chat messages" in refusal(parquet(prompt=[[{"role": "user", "content": "p"}]], answer=["1"]), "p.parquet")
    assert "cannot be read as Parquet" in refusal(b"PAR1nonsense", "p.parquet")
    assert "cannot be read as Parquet" in refusal(b"", "p.parquet")


def after_typing(message: str, folder: Path, new: str) -> tuple[Problem, ...]:
    """The problems once the command at the end of `message` was typed in `folder`."""
    command = message.split(" type ")[-1].split(" Type ")[-1].removesuffix(".")
    here = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run(command, shell=True, check=True, cwd=folder, env=here)
    return read((folder / new).read_bytes(), new)


@pytest.mark.parametrize(
    ("answer", "words", "gold"),
    [
        ([116.0, 5.0], "is Float64", ["116", "5"]),
        ([116.0, 0.5], "is Float64", ["116.0", "0.5"]),
        ([[0.5], [1.5, 2.5]], "is List(Float64)", ["0.5", "1.5"]),
        ([date(2024, 1, 2), date(2024, 1, 3)], "is Date", ["2024-01-02", "2024-01-03"]),
        ([Decimal("1.50"), Decimal("2.25")], "is Decimal", ["1.50", "2.25"]),
        ([b"a", b"b"], "is Binary", ["a", "b"]),
    ],
    ids=str,
)
def test_a_column_without_a_text_of_its_own_says_how_to_write_it(
    tmp_path: Path, answer: list[Any], words: str, gold: list[str]
) -> None:
    path = tmp_path / "it's.parquet"
    path.write_bytes(parquet(prompt=["p", "q"], answer=answer))
    message = refusal(path.read_bytes(), str(path))
    assert f"its column 'answer' {words}" in message
    assert [problem.answer for problem in after_typing(message, tmp_path, "NEW.parquet")] == gold


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prompt;answer\np;2\n", "separated by ';', but .csv means ','"),
        ("prompt; answer\np; 2\n", "separated by ';', but .csv means ','"),
        ('"prompt";"answer"\n"p";"2"\n', "separated by ';', but .csv means ','"),
        ('"id";"prompt"; "answer"\n"1"; "p";"2"\n', "separated by ';', but .csv means ','"),
        ("sep=,\nprompt,answer\np,2\n", "first line 'sep=,' is a spreadsheet's note"),
        ('sep=,\n"prompt","answer"\n"p","2"\n', "a spreadsheet's note"),
        ("prompt\tanswer\np\t2\n", "separated by tabs"),
        ("Prompt,Answer\np,2\n", "the columns 'Prompt', 'Answer', and 'prompt' and 'answer' are wanted"),
        ("prompt, answer\np,2\n", "' answer'"),
        ("\nin/out & \\1,Prompt,Answer\n\n1,p,2\n", "'Prompt'"),
        ('Prompt,Answer,"a, ""b"" c"\np,2,x\n', "'Prompt'"),
        ("id,\u200bprompt,ANSWER\n1,p,2\n", "'\\u200bprompt'"),
    ],
)
def test_a_first_line_that_names_other_columns_is_told_from_the_wanted_one(
    tmp_path: Path, text: str, words: str
) -> None:
    path = tmp_path / "it's a.csv"
    path.write_text(text)
    message = refusal(path.read_bytes(), str(path))
    assert words in message and message.count("\n") == 0
    assert [(p.prompt, p.answer) for p in after_typing(message, tmp_path, "NEW.csv")] == [("p", "2")]


def test_a_first_line_without_the_columns_says_how_it_should_begin() -> None:
    message = refusal("question,gold\np,2\n", "p.csv")
    assert "'question', 'gold'" in message and "the line prompt,answer" in message
    message = refusal("prompt,answer\np,2\n", "p.tsv")
    assert "p.tsv" in message and "separated by ',', but .tsv means tabs" in message
    assert "separated by ';'" in refusal("prompt;gold\np;2\n", "p.csv"), "one thing at a time"


def test_empty_columns_of_a_spreadsheet_are_none() -> None:
    assert read("prompt,answer,,\np,2,,\n", "p.csv")[0].answers == ("2",)


def test_parquet_columns_of_another_spelling_are_renamed_by_what_is_printed(tmp_path: Path) -> None:
    path = tmp_path / "it's.parquet"
    path.write_bytes(parquet(**{"Prompt": ["p"], " answer": ["2"], "x": [1]}))
    message = refusal(path.read_bytes(), str(path))
    assert "it has 'Prompt', ' answer', 'x'" in message
    assert [(p.prompt, p.answer) for p in after_typing(message, tmp_path, "NEW.parquet")] == [("p", "2")]


def test_a_float_that_is_no_number_does_not_become_an_answer(tmp_path: Path) -> None:
    """Cast to text as it is, NaN would be gold."""
    path = tmp_path / "p.parquet"
    path.write_bytes(parquet(prompt=["p", "q"], answer=[116.0, float("nan")]))
    with pytest.raises(UserError, match=r'1 of 2 rows .*\n.*row 2 has null as "answer"'):
        after_typing(refusal(path.read_bytes(), str(path)), tmp_path, "NEW.parquet")


# ---------------------------------------------------------------- a problem counts once, and can be answered


def test_one_prompt_with_two_answers_is_refused_with_both_lines() -> None:
    message = refusal(row() + row(prompt="p") + row(answer="3"))
    assert "line 3 has the prompt of line 1 but another answer ('3', not '2')" in message and '["2", "3"]' in message
    assert answers(row(answer=["2", "3"]) + row(prompt="p")) == [("2", "3"), ("2",)]


@pytest.mark.parametrize("same", ["p?", "p? ", "\n p?"])
def test_a_prompt_is_the_same_whatever_is_around_it(same: str) -> None:
    assert "line 2 has the prompt of line 1" in refusal(row(prompt="p?") + row(prompt=same, answer="3"))
    accents = row(prompt="caf\u00e9?") + row(prompt="cafe\u0301?", answer="3")
    assert "line 2 has the prompt of line 1" in refusal(accents)
    assert [p.prompt for p in read(row(prompt=" a") + row(prompt="A"))] == [" a", "A"]


def test_lists_that_differ_are_shown_whole() -> None:
    assert "('2', not '2' or 'two')" in refusal(row(answer=["two", "2"]) + row(answer="2"))


def test_answers_are_compared_as_they_are_graded() -> None:
    distinct = "".join(row(prompt=f"{n}") for n in range(40))
    assert len(read(distinct + row(answer=" 2\n") + row(answer=2))) == 42
    assert len(read(distinct + row(answer=["2", "3"]) + row(answer=["3", "2"]))) == 42


def test_many_repeats_are_refused_and_what_to_type_samples_instead() -> None:
    message = refusal(row() + row(prompt="p") * 9)
    assert "8 of 10 rows" in message and "line 3 repeats line 2" in message and "task.samples=N" in message
    assert "a calibration would weigh them double" in message


# The accent of "cafe\u0301" is a character of its own; NFC has one character for both.
@pytest.mark.parametrize(
    ("answer", "name"),
    [
        *(("4\u200b2", "U+200B ZERO WIDTH SPACE"), ("42\u200d", "U+200D"), ("\u200c42", "U+200C")),
        *(("\ufeff42", "U+FEFF"), ("4\u2060", "U+2060 WORD JOINER"), ("so\u00adso", "U+00AD SOFT HYPHEN")),
        *(("\u200e42", "U+200E"), ("\u202e42", "U+202E"), ("\u206642\u2069", "U+2066"), ("4\x002", "U+0000")),
        *(("4\x1b2", "U+001B"), ("10\u00a0000", "U+00A0 NO-BREAK SPACE"), ("10\u202f000", "U+202F")),
        *(("4\u034f2", "U+034F"), ("\u3164", "U+3164"), ("4\x7f", "U+007F"), ("a\r\nb", "U+000D")),
        *(("a\u2028b", "U+2028"), ("4\ufe0f2", "U+FE0F"), ("\ufe0f4", "U+FE0F"), ("4\U000e0041", "U+E0041")),
    ],
)
def test_an_answer_with_what_nobody_sees_is_refused(answer: str, name: str) -> None:
    message = refusal(row(prompt="p") + json.dumps({"prompt": "q", "answer": ["2", answer]}))
    assert f"line 2 has {name}" in message and "delete it" in message and answer not in message


SPELLED = ["1\ufe0f\u20e3", "葛\U000e0100", "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f"]
"""A keycap, a form of an ideograph, the flag of England."""


@pytest.mark.parametrize(
    "answer", ["می\u200cخواهم", "क्\u200dष", "👩\u200d🔬", "❤\ufe0f", "日本\u3000語", "\u06dd", "a\nb", *SPELLED]
)
def test_a_joiner_that_a_word_is_spelled_with_is_part_of_it(answer: str) -> None:
    assert answers(row(answer=answer)) == [(answer,)]


def test_an_answer_of_bytes_that_somebody_could_not_read_is_refused() -> None:
    message = refusal(row(answer="caf\ufffd"))
    assert "line 1 has U+FFFD" in message and "write what stood there" in message
    assert read(row(prompt="caf\ufffd?"))[0].prompt == "caf\ufffd?"


def test_a_prompt_of_nothing_that_is_seen_is_empty() -> None:
    assert 'has an empty "prompt"' in refusal(row(prompt="\u200b \ufeff"))
    assert read(row(prompt="a\u200bb"))[0].prompt == "a\u200bb"


def test_an_accent_is_the_same_in_both_of_its_encodings() -> None:
    task = TaskConfig(name="x", domains=("math",))
    for written in ("caf\u00e9", "cafe\u0301"):
        (problem,) = read(row(answer=written))
        assert problem.answer == "caf\u00e9"
        for given_text in ("caf\u00e9", "cafe\u0301"):
            assert GRADERS["exact_match"].grade(f"so;{given_text}", problem, task).correct


def test_a_byte_order_mark_within_a_file_is_named() -> None:
    message = refusal((row() + "\ufeff" + row(prompt="p")).encode())
    assert "line 2 begins with a byte order mark (U+FEFF)" in message and "delete it" in message


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
