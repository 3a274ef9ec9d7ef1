"""`report` of hundreds of runs: a line each, from their tables, with the verdicts of their own reports."""

from __future__ import annotations

import re
import shutil
from html import unescape
from pathlib import Path

import pytest
from synthetic_run import SyntheticRun, ladder, pick_strength

from banpick_exp.__main__ import main
from banpick_exp.manifest import Manifest
from banpick_exp.report.files import write_tables
from banpick_exp.report.page.overview import MOST_DRAWN, overview_html
from banpick_exp.report.run import Run, read_run
from banpick_exp.report.text import points
from banpick_exp.run_folder import RunFolder


def a_run(folder: Path, *, gain: float = 0.0) -> Run:
    run = RunFolder(folder)
    run.write_manifest(Manifest(sweep=folder.parent.name, models={"id0": "tiny <1>"}, tasks={"id1": "mathqa"}))
    pick_strength(ladder(SyntheticRun(problems=300 if gain else 60)), gain=gain).write(folder)
    return read_run(run)


def rows(page: str) -> list[list[str]]:
    found = re.findall(r'<tr><th scope="row">(.*?)</tr>', page, re.DOTALL)
    return [[unescape(re.sub("<.*?>", "", cell)) for cell in re.split(r"</t[hd]>", row)] for row in found]


def test_a_line_says_what_the_runs_own_report_says(tmp_path: Path) -> None:
    first, second = a_run(tmp_path / "pick" / "first", gain=0.12), a_run(tmp_path / "pick" / "second")
    write_tables(first)
    first.folder.report.write_text("<html>")
    page = overview_html([first.folder, second.folder], tmp_path)
    one, two = rows(page)
    assert one[:5] == ["pick/first", "tiny <1>", "mathqa", "23 of 23", first.headline] and two[4] == second.headline
    assert page.count('<a href="pick/first/report.html">') == 1 and "<a" not in page.split("pick/second")[1]
    best = first.verdicts.filter(domain="overall").sort("difference", descending=True).row(0, named=True)
    assert one[5].startswith(f"{best['label']} ") and one[5].endswith(points(best, simultaneous=True))
    assert "1 × Gain, 1 × No gain" in page


def test_hundreds_are_read_without_a_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = a_run(tmp_path / "s" / "0")
    write_tables(run)
    for path in run.folder.points.iterdir():
        path.write_bytes(b"whoever reads this fails")
    for number in range(1, 100):
        shutil.copytree(run.folder.path, tmp_path / "s" / str(number))
    folders = [str(tmp_path / "s" / str(number)) for number in range(100)]
    page = tmp_path / "all.html"
    assert main(["report", *folders, "--output", str(page)]) == 0
    assert capsys.readouterr().out == f"{page}\n"
    told = rows(page.read_text(encoding="utf-8"))
    assert [row[0] for row in told] == [f"s/{number}" for number in range(100)]
    assert {row[4] for row in told} == {run.headline}


def test_few_runs_and_a_folder_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [tmp_path / "s" / str(number) for number in range(MOST_DRAWN + 1)]
    for folder in folders[:-1]:
        (folder / "points").mkdir(parents=True)
    assert main(["report", *map(str, folders)]) == 2
    assert f"{folders[-1]} is no folder" in capsys.readouterr().err
    assert main(["report", *map(str, folders[:-1])]) == 2, "as few are read whole, and hold no point"
    assert "none is done" in capsys.readouterr().err
