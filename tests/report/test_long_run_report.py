"""A run of thousands of points ends with a page that can be mailed, and what cannot be drawn costs that alone."""

from __future__ import annotations

import io
import json
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import chromium
import polars as pl
import pytest
from many_points import many_points
from rich.console import Console
from synthetic_run import SyntheticRun, ladder

from banpick_exp.cluster.summary import Totals, finish
from banpick_exp.report import command
from banpick_exp.report.figures.front import draw_front
from banpick_exp.report.figures.sheet import SCREEN, save
from banpick_exp.report.maps import NOTHING, maps_of
from banpick_exp.report.page import page
from banpick_exp.report.page.page import LARGEST, page_html, write_page
from banpick_exp.report.page.section import Section
from banpick_exp.report.page.sections import SECTIONS
from banpick_exp.report.run import Run, read_run
from banpick_exp.report.shown import MOST_PRINTED, MOST_SHOWN
from banpick_exp.report.terminal import print_pareto
from banpick_exp.run_folder import RunFolder

POINTS = 1500
CPU_SECONDS = 30
"""For the end of a run of 1,500 points; it takes 8, whatever else the machine does."""
TOTALS = Totals(seconds=1, engine_loads=0, engine_slots=0, engine_load_seconds=0, points_computed=0)


def embedded(text: str) -> dict[str, Any]:
    """What the page's script reads."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text)
    assert found is not None
    return cast(dict[str, Any], json.loads(found[1]))


def ended(folder: RunFolder) -> tuple[int, str]:
    """The exit code of a run whose points are all there, and what is printed."""
    output = io.StringIO()
    plan = SimpleNamespace(folder=folder, sweep=SimpleNamespace(calibrations=dict))
    tracker = SimpleNamespace(finish=lambda *_: [], to_publish=list)
    code = finish(cast(Any, plan), cast(Any, tracker), Console(file=output, width=200), TOTALS)
    return code, output.getvalue()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return RunFolder(many_points(POINTS).write(tmp_path_factory.mktemp("outputs") / "many" / "run"))


@pytest.fixture
def small(tmp_path: Path) -> RunFolder:
    return RunFolder(ladder(SyntheticRun(problems=12), ks=(4,)).write(tmp_path / "pick" / "run"))


# ---------------------------------------------------------------- many points


@pytest.mark.slow
def test_a_run_of_many_points_ends_with_a_page_that_can_be_mailed(large: RunFolder) -> None:
    begin = time.process_time()
    code, printed = ended(large)
    assert time.process_time() - begin < CPU_SECONDS
    assert code == 1 and "15 failed" in printed, "the exit code is that of the points"
    text = large.report.read_text()
    assert len(text.encode()) < LARGEST and 'class="failed"' not in text
    run = read_run(large)
    data = embedded(text)
    whole, (rest,) = {point["label"] for point in data["points"]}, data["rest"]
    assert len(whole) == MOST_SHOWN
    front = run.done_rows().filter("on_front")
    sure = set(front.filter("sure")["label"])
    assert sure and sure < whole and {"none", *(f"fixed_k k={k}" for k in (2, 3, 4, 5, 6, 7))} <= whole
    listed = {row[0]: row for row in rest["rows"]}
    assert whole | set(listed) == set(run.done_rows()["label"]) and not whole & set(listed)
    for row in front.iter_rows(named=True):
        assert row["label"] in whole or listed[row["label"]][1] in "●○"
    best = run.done_rows().sort("accuracy", descending=True)["label"][0]
    assert best in whole and f'<span data-row="{[p["label"] for p in data["points"]].index(best)}">' in text
    assert f"{MOST_SHOWN} of {len(run.done):,} points of many/run" in text and "points.parquet" in text
    assert f"{MOST_PRINTED} of {len(run.done):,} points" in printed and printed.count("│ pick") < 2 * MOST_PRINTED
    assert pl.read_parquet(large.path / "points.parquet")["fingerprint"].n_unique() == POINTS
    assert (large.path / "pareto.png").stat().st_size > 100_000


@pytest.mark.slow
def test_the_report_command_leaves_the_tables_that_the_page_names(large: RunFolder) -> None:
    for name in ("points", "guards"):
        large.table_path(name).unlink(missing_ok=True)
    assert command.run([str(large.path)]) == 0
    assert pl.read_parquet(large.table_path("points"))["fingerprint"].n_unique() == POINTS
    assert large.table_path("guards").is_file()


@pytest.mark.slow
@pytest.mark.skipif(chromium.find() is None, reason="no Chromium on this machine: apt-get install chromium")
def test_the_other_points_unfold_to_a_table(large: RunFolder) -> None:
    write_page([read_run(large)], [NOTHING], large.report)
    rows = embedded(large.report.read_text())["rest"][0]["rows"]
    program = chromium.find()
    assert program is not None
    with chromium.browser(program) as tab:
        tab.open(large.report)
        assert tab.evaluate("document.querySelectorAll('details.rest table').length") == 0, "only on demand"
        tab.evaluate("document.querySelector('details.rest').open = true")
        tab.evaluate("new Promise((done) => setTimeout(done, 300))")
        count = "[...document.querySelectorAll('details.rest tbody tr')].filter((row) => !row.hidden).length"
        assert tab.evaluate(count) == len(rows) > 1000
        assert tab.evaluate("document.querySelector('details.rest tbody tr').innerText").split("\t") == rows[0]
        label = rows[-1][0]
        tab.evaluate(
            f"(() => {{ const asked = document.querySelector('details.rest input'); asked.value = {label.upper()!r};"
            " asked.dispatchEvent(new Event('input')); })()"
        )
        assert tab.evaluate(count) == 1
        assert tab.errors == []


def test_a_run_that_fits_is_told_whole(small: RunFolder) -> None:
    run = read_run(small)
    assert run.unshown == 0 and [record.fingerprint for record in run.shown_done] == [r.fingerprint for r in run.done]
    text = page_html([run], [maps_of(run)])
    assert "rest" not in embedded(text) and "<details" not in text and "more points" not in text
    assert run.other_rows().height == 0 and run.shown_rows().equals(run.done_rows())


def test_what_is_told_one_by_one_is_what_decides(tmp_path: Path) -> None:
    synthetic = many_points(60)
    worst = synthetic.add("mask", {"experts": 1}, kept=2.4, shift=dict.fromkeys(("math", "code", "knowledge"), -0.5))
    run = Run(folder=RunFolder(tmp_path), records=synthetic.records, outcomes=synthetic.outcomes)
    told = run.foremost(40)
    rows = run.done_rows()
    assert len(told) == 40 and run.foremost(1000) == {record.fingerprint for record in run.done}
    assert set(rows.filter(pl.col("policy").is_in(["none", "fixed_k"]))["fingerprint"]) <= told
    assert set(rows.filter("sure")["fingerprint"]) <= told
    assert worst.fingerprint in told, "the only point of its rule, and the largest effect"
    left = rows.filter(~pl.col("fingerprint").is_in(list(told)))
    assert left.height and not left["sure"].any()


def test_the_table_on_demand_and_the_dots_hold_the_others(tmp_path: Path) -> None:
    synthetic = many_points(60)
    run = Run(folder=RunFolder(tmp_path / "many" / "run"), records=synthetic.records, outcomes=synthetic.outcomes)
    fewer = run.showing(20)
    text = page_html([fewer], [NOTHING])
    data = embedded(text)
    assert len(data["points"]) == 20 and len(data["rest"][0]["rows"]) == len(run.done) - 20
    assert text.count('class="bar dots ') >= 4 and 'class="bar dots ' not in page_html([run], [NOTHING])
    marks = re.findall(r'data-p="(\d+)"', text)
    assert set(map(int, marks)) <= set(range(20))
    assert f"{len(run.done) - 20} more points" in text
    figure = draw_front(fewer.shown_rows(), SCREEN, title="t", text="s", others=fewer.other_rows())
    drawn = save(figure, tmp_path / "x.png")
    assert drawn.stat().st_size > 50_000


# ---------------------------------------------------------------- always below the limit


def test_whatever_it_holds_the_page_stays_below_its_limit(small: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    run = read_run(small)
    whole = page_html([run], [NOTHING])
    monkeypatch.setattr(page, "LARGEST", len(whole.encode()) - 1)
    cut = page_html([run], [NOTHING])
    assert len(cut.encode()) < len(whole.encode()) and cut.count("This section is left out") == 1
    assert '<section id="verdict">' in cut and "No verdict" in cut


def test_fewer_points_are_told_before_a_section_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synthetic = many_points(120)
    run = Run(folder=RunFolder(tmp_path / "many" / "run"), records=synthetic.records, outcomes=synthetic.outcomes)
    whole = page_html([run], [NOTHING])
    monkeypatch.setattr(page, "LARGEST", len(whole.encode()) * 3 // 4)
    text = page_html([run], [NOTHING])
    assert len(text.encode()) <= page.LARGEST and "left out" not in text
    assert len(embedded(text)["points"]) == 50 and run.unshown == 0, "the run itself stays as it was"


# ---------------------------------------------------------------- what fails costs itself alone


def failing(name: str) -> Any:
    def fails(*_: object, **__: object) -> None:
        raise ZeroDivisionError(f"{name} <divides> by zero")

    return fails


def test_a_section_that_raises_costs_neither_the_page_nor_the_exit_code(
    small: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = Section(key="speed", title="Speed by batch", html=failing("speed"))
    sections = [broken if section.key == "speed" else section for section in SECTIONS]
    monkeypatch.setattr(page, "SECTIONS", sections)
    code, printed = ended(small)
    assert code == 0 and "2 done" in printed and str(small.report) in printed
    text = small.report.read_text()
    said = "The section 'Speed by batch' could not be drawn (ZeroDivisionError: speed <divides> by zero)"
    assert said.replace("'", "&#x27;").replace("<", "&lt;").replace(">", "&gt;") in text
    assert all(f'<section id="{section.key}">' in text for section in SECTIONS) and text.count('class="failed"') == 1
    told = capsys.readouterr().err.splitlines()
    (line,) = (each for each in told if "the bill" not in each)  # the plan of these tests has no engine to bill
    assert line.startswith("banpick: the section 'Speed by batch' could not be drawn") and "Its trace: " in line
    trace = Path(line.split("Its trace: ")[1]).read_text()
    assert "Traceback" in trace and trace.rstrip().endswith("ZeroDivisionError: speed <divides> by zero")


@pytest.mark.parametrize(
    ("at", "named", "missing"),
    [
        ("report.figures.front.draw_front", "the figure pareto.png", ["pareto.png"]),
        ("report.files.maps_of", "the heat maps", []),
        ("report.page.page.page_data", "what marks tell", []),
        ("report.files.write_page", "report.html", ["report.html"]),
        ("cluster.summary.print_pareto", "the table of the points", []),
        ("report.run.guards", "guards.parquet", ["guards.parquet", "pareto.png"]),
        ("report.run.repeat_spread", "repeats.parquet", []),
    ],
)
def test_so_does_whatever_else_is_drawn(
    at: str, named: str, missing: list[str], small: RunFolder, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(f"banpick_exp.{at}", failing("it"))
    code, printed = ended(small)
    assert code == 0 and "2 done" in printed
    told = capsys.readouterr().err
    assert f"banpick: {named} could not be drawn (ZeroDivisionError: it <divides> by zero)" in told
    assert "Traceback" not in told
    files = ("pareto.png", "report.html", "points.parquet", "guards.parquet")
    assert [name for name in files if not (small.path / name).is_file()] == [name for name in files if name in missing]


def test_a_failed_point_is_still_the_exit_code_where_the_guards_cannot_judge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synthetic = ladder(SyntheticRun(problems=12), ks=(4,))
    synthetic.add("pick", {"boost": 8}, status="failed", reason="the engine stopped")
    monkeypatch.setattr("banpick_exp.report.run.guards", failing("guards"))
    assert ended(RunFolder(synthetic.write(tmp_path / "pick" / "run")))[0] == 1


# ---------------------------------------------------------------- whole or not at all


def test_a_page_and_a_figure_are_replaced_whole_or_stay(small: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ended(small)[0] == 0
    before = {name: (small.path / name).read_bytes() for name in ("report.html", "pareto.png")}

    def torn(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", torn)
    code, printed = ended(small)
    assert code == 1 and "The report cannot be written" in printed
    assert {name: (small.path / name).read_bytes() for name in before} == before
    assert not [path for path in small.path.iterdir() if path.name.endswith(".tmp")]


def test_a_page_at_a_link_leaves_the_link(small: RunFolder, tmp_path: Path) -> None:
    run, target, link = read_run(small), tmp_path / "kept.html", tmp_path / "link.html"
    target.write_text("old")
    link.symlink_to(target)
    assert write_page([run], [NOTHING], link) == link
    assert link.is_symlink() and "<html" in target.read_text()


def test_what_is_no_file_is_written_to_and_not_replaced(small: RunFolder) -> None:
    null = Path("/dev/null")
    write_page([read_run(small)], [NOTHING], null)
    assert null.is_char_device()


def test_the_printed_table_is_cut_and_all_prints_it_whole(tmp_path: Path) -> None:
    synthetic = many_points(MOST_PRINTED + 40)
    run = Run(folder=RunFolder(tmp_path / "many" / "run"), records=synthetic.records, outcomes=synthetic.outcomes)
    rows = {}
    for everything in (False, True):
        file = io.StringIO()
        print_pareto(run, Console(file=file), everything=everything)
        rows[everything] = len(
            re.findall(r"(?m)^│[^│]*│ (?:none|fixed_k|pick|ban|ban_pick|top_p|naee)\b", file.getvalue())
        )
        assert ("--all[/dim]" in file.getvalue() or "--all" in file.getvalue()) != everything
    assert rows == {False: MOST_PRINTED, True: len(run.done)}
