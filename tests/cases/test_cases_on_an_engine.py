"""Inputs that gave a wrong number or failed late, on a real engine that is loaded once."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from commands import on, statuses

from banpick_exp.__main__ import main
from banpick_exp.models.tiny import ASSETS
from banpick_exp.run_folder import RunFolder

if TYPE_CHECKING:
    from banpick_exp.engine.engine import Engine

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.usefixtures("no_pages")]

BOTH = {"none": "done", "fixed_k k=4": "done"}
CASES = Path(__file__).resolve().parents[1] / "tasks" / "cases"
DATA = ASSETS / "data"


def rows(domain: str, split: str, count: int) -> list[dict[str, str]]:
    """Shipped problems that stock answers, with the fields that a user's file has."""
    lines = (DATA / f"{domain}_{split}.jsonl").read_text().splitlines()[:count]
    return [{key: json.loads(line)[key] for key in ("prompt", "answer")} for line in lines]


def write_rows(folder: Path, found: list[dict[str, object]] | list[dict[str, str]]) -> list[str]:
    """The rows as a task of the user's own; returns what to type."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("test", "calibration"):
        (folder / f"math_{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    return own_task(folder)


def own_task(folder: Path) -> list[str]:
    files = f'task.data_files="{folder}/{{domain}}_{{split}}.jsonl"'
    plain = ["task.chat_template=false", 'task.answer_separator=";"', "task.max_tokens=24", "task.max_problems=null"]
    return ["task=jsonl", "task.domains=[math]", *plain, files]


# ---------------------------------------------------------------- J1: nothing measured would mean anything


@pytest.mark.parametrize(
    ("typed", "guard"),
    [
        ('task.answer_pattern="nomatch (.+)"', "nothing_found"),
        ('task.answer_pattern="(?m)^ANSWER: (.+)$"', "nothing_found"),
        ('task.answer_separator="####"', "nothing_found"),
        ("task.max_tokens=1", "nothing_found"),
    ],
)
def test_a_sweep_stops_after_a_stock_that_means_nothing(
    typed: str, guard: str, tiny_engine: Engine, tmp_path: Path
) -> None:
    """J1: 0.0 % at every point, and 'No guard was raised'."""
    settings = ["task.max_problems=12", "task.domains=[math]", typed]
    done, folder = on(tiny_engine, tmp_path, *settings)
    assert done.code == 1 and statuses(folder) == {"none": "done"}
    assert "Stopped after stock" in done.text and guard in done.text and "task.allow_zero=true" in done.text
    assert done.text.count("gold '") >= 2, "two completions beside what is right"
    assert "No guard was raised" not in done.text
    done, folder = on(tiny_engine, tmp_path / "all the same", *settings, "task.allow_zero=true")
    assert statuses(folder) == BOTH or done.code == 1
    assert set(statuses(folder)) == set(BOTH) and guard in done.text and "No guard was raised" not in done.text


def test_gold_in_another_format_stops_too(tiny_engine: Engine, tmp_path: Path) -> None:
    """Found, never right: `$54` and `54.0` are not what the model writes."""
    for number, form in enumerate(["${}", "{}.0", "{} apples", "\\boxed{{{}}}"]):
        found = [row | {"answer": form.format(row["answer"])} for row in rows("math", "test", 12)]
        done, folder = on(tiny_engine, tmp_path / str(number), *write_rows(tmp_path / f"data{number}", found))
        assert done.code == 1 and statuses(folder) == {"none": "done"}
        assert "stock_at_zero" in done.text and f"gold '{found[0]['answer']}'" in done.text.replace("\\\\", "\\")


def test_a_good_task_raises_none(tiny_engine: Engine, tmp_path: Path) -> None:
    done, folder = on(tiny_engine, tmp_path, "task.max_problems=12", "task.domains=[math]")
    assert statuses(folder) == BOTH and "Stopped after stock" not in done.text
    assert "nothing_found" not in done.text and "stock_at_zero" not in done.text


# ---------------------------------------------------------------- A: the file is what is asked


def test_numbers_beside_others_are_graded_as_they_are_written(tiny_engine: Engine, tmp_path: Path) -> None:
    """A1: gold became 19.0 and 0 % was measured. Others of the kind: in scientific notation, text beside numbers."""
    for number, answer in enumerate(["0.5", "1e3", '"none"', "-0.0"]):
        odd = f'{{"prompt": "x=", "answer": {answer}}}'
        lines = "".join(f'{{"prompt": "{r["prompt"]}", "answer": {r["answer"]}}}\n' for r in rows("math", "test", 12))
        folder = tmp_path / f"data{number}"
        folder.mkdir()
        for split in ("test", "calibration"):
            (folder / f"math_{split}.jsonl").write_text(lines + odd + "\n")
        _, run = on(tiny_engine, tmp_path / str(number), *own_task(folder))
        (stock,) = (record for record in run.load_points()[0] if record.is_stock)
        gold = run.outcomes(stock.fingerprint)["gold"].to_list()
        assert gold[:12] == [r["answer"] for r in rows("math", "test", 12)]
        assert gold[12] == json.loads(odd, parse_int=str, parse_float=str)["answer"]
        assert stock.measured.overall.accuracy > 0.5


def test_a_case_of_numbers_is_measured_as_its_text_would_be(tiny_engine: Engine, tmp_path: Path) -> None:
    accuracies = []
    for name in ("A1_int_and_float", "A5_trailing_newline"):
        folder = tmp_path / name
        folder.mkdir()
        for split in ("test", "calibration"):
            shutil.copy(CASES / f"{name}.jsonl", folder / f"math_{split}.jsonl")
        _, run = on(tiny_engine, tmp_path / f"out {name}", *own_task(folder))
        accuracies += [record.measured.overall.accuracy for record in run.load_points()[0] if record.is_stock]
    assert min(accuracies) > 0.5


@pytest.mark.parametrize("name", ["p [1]", "q::x", "a*b", "c?d", "é 日本", "it's", "{{x}}"])
def test_a_folder_is_its_name(name: str, tiny_engine: Engine, tmp_path: Path) -> None:
    """A9: brackets and `::` failed after the engine had loaded; `a*b` read aXb as well."""
    write_rows(tmp_path / "aXb", [{"prompt": "1+1=", "answer": "2"}] * 3)
    folder = tmp_path / name.format(x="x")
    found = rows("math", "test", 9)
    write_rows(folder, found)
    _, run = on(tiny_engine, tmp_path / "out", *own_task(Path(str(tmp_path), name)))
    assert statuses(run) == BOTH
    (record, *_) = run.load_points()[0]
    assert record.measured.overall.n_problems == len(found)


def test_a_file_that_is_replaced_within_its_time_is_another_point(tiny_engine: Engine, tmp_path: Path) -> None:
    """A7: the old problems were asked under the new identity."""
    seen = {}
    for answer in ("11", "22"):
        typed = write_rows(tmp_path / "data", [{"prompt": f"{n}+{n}=", "answer": answer} for n in range(9)])
        for file in (tmp_path / "data").iterdir():
            os.utime(file, (1_700_000_000, 1_700_000_000))
        _, run = on(tiny_engine, tmp_path / f"out{answer}", *typed, "task.allow_zero=true")
        for record in run.load_points()[0]:
            seen[record.fingerprint] = set(run.outcomes(record.fingerprint)["gold"].to_list())
    assert sorted(map(sorted, seen.values())) == [["11"], ["11"], ["22"], ["22"]]


# ---------------------------------------------------------------- B: a run is its folder's name


@pytest.mark.parametrize("name", ["x[1]", "a*b", "out [a]", "[!x]", "?", "q::x", "{a,b}"])
def test_a_finished_run_is_reported_under_any_name(
    name: str, tiny_engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """B1: every record was renamed to .corrupt, and the report died."""
    done, run = on(tiny_engine, tmp_path / name)
    assert done.code in (0, 1) and statuses(run) == BOTH and "Traceback" not in done.output
    copy = RunFolder(shutil.copytree(run.path, tmp_path / "copies" / name))
    before = sorted(path.name for path in copy.points.iterdir())
    assert main(["report", str(copy.path)]) == 0
    assert copy.report.is_file() and statuses(copy) == BOTH
    assert sorted(path.name for path in copy.points.iterdir()) == before
    assert "Traceback" not in capsys.readouterr().err


# ---------------------------------------------------------------- H1: what a terminal cannot show


@pytest.mark.parametrize("width", [20, 40, 300])
def test_a_narrow_terminal_gets_all_of_it(width: int, tiny_engine: Engine, tmp_path: Path) -> None:
    done, run = on(tiny_engine, tmp_path, width=width)
    assert statuses(run) == BOTH and "2 done" in done.text and done.code in (0, 1)
