"""The page's first screen, and its tables: what stands there without a script, and what a browser makes of it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import chromium
import pytest
from synthetic_run import SyntheticRun, ladder

from banpick_exp.__main__ import main
from banpick_exp.cli.commands import COMMANDS
from banpick_exp.manifest import Manifest
from banpick_exp.records import OVERALL
from banpick_exp.report.best import MOST, best_per_budget
from banpick_exp.report.maps import NOTHING
from banpick_exp.report.page import first_screen as first_screen_module
from banpick_exp.report.page.overview import overview_html
from banpick_exp.report.page.page import page_html
from banpick_exp.report.run import Run, read_run
from banpick_exp.report.sentences import closing
from banpick_exp.report.text import points, speed_text
from banpick_exp.report.what_next import what_next, what_next_of_several
from banpick_exp.run_folder import RunFolder

LONG = "adapmoe/ban/ban_pick/diep/expert_sample/modes/naee/pick/rice/steer/top_p"


def written(run: SyntheticRun, folder: Path) -> Run:
    made = RunFolder(folder)
    made.write_manifest(
        Manifest(sweep=folder.parent.name, command=f"python -m banpick_exp +sweep={folder.parent.name}")
    )
    run.write(folder)
    return read_run(made)


def two_knobs(*, gain: float = 0.0) -> SyntheticRun:
    run = ladder(SyntheticRun(problems=200))
    for boost in (0.25, 0.5, 1.0):
        for count in (1, 4):
            shift = dict.fromkeys(("math", "code", "knowledge"), gain) if boost == 0.5 else {}
            run.add("pick", {"boost": boost, "key_experts": count}, churn=0.03, shift=shift)
    return run


def many_rules() -> SyntheticRun:
    run = ladder(SyntheticRun(problems=100))
    for policy in ("ban", "top_p", "naee", "diep", "modes", "rice"):
        for kept in (3.1, 4.0, 5.1, 6.0):
            run.add(policy, {"knob": kept, "another_knob_with_a_long_name": 4}, kept=kept, churn=0.1)
    return run


def first_screen_of(page: str) -> str:
    """The verdict's section up to its facts."""
    return page.split('<section id="verdict">')[1].split('<ul class="facts">')[0]


def text_of(html: str) -> str:
    return unescape(re.sub("<.*?>", "", html))


# ---------------------------------------------------------------- what stands there


def test_the_sentence_is_the_terminals_and_nothing_stands_before_it(tmp_path: Path) -> None:
    run = written(two_knobs(gain=0.1), tmp_path / "pick" / "one")
    head = first_screen_of(page_html([run], [NOTHING]))
    sentence = re.search('<p class="headline">(.*?)</p>', head)
    assert sentence is not None and text_of(sentence.group(1)) == closing(run)
    assert closing(run).startswith("Gain: pick boost=0.5") and "It keeps 8.00 experts a token" in closing(run)
    assert head.index("headline") < head.index("<figure") < head.index("<table") < head.index('id="next"')


def test_an_alarm_stands_before_the_sentence_and_once(tmp_path: Path) -> None:
    synthetic = SyntheticRun(problems=60, accuracy=0.0)
    synthetic.add("none")
    synthetic.add("fixed_k", {"k": 4}, kept=4.0)
    page = page_html([written(synthetic, tmp_path / "pick" / "zero")], [NOTHING])
    head = first_screen_of(page)
    assert head.index("Read this first:") < head.index('<p class="headline">')
    assert page.count("Read this first:") == head.count("Read this first:") >= 1


def test_the_best_policy_of_each_budget_with_its_numbers(tmp_path: Path) -> None:
    run = written(many_rules(), tmp_path / "iso" / "one")
    rows = best_per_budget(run)
    assert [row["reference_label"] for row in rows] == [f"fixed_k k={k}" for k in (6, 5, 4, 3)]
    speeds = {row["fingerprint"]: speed_text(row) for row in run.done_rows().iter_rows(named=True)}
    table = first_screen_of(page_html([run], [NOTHING])).split("<tbody>")[1].split("</tbody>")[0]
    for row, line in zip(rows, table.split("</tr>"), strict=False):
        told = text_of(line).replace("\u00a0", " ")
        assert row["label"] in told and f"{row['mean_kept']:.2f}" in told and speeds[row["fingerprint"]] in told
        assert points(row, simultaneous=True) in told and row["verdict"] in told
        same = run.verdicts.filter(domain=OVERALL, reference_label=row["reference_label"])
        assert row["lo_simultaneous"] == same["lo_simultaneous"].max()
    assert len(best_per_budget(run, most=2)) == 2 < MOST
    alone = written(two_knobs(), tmp_path / "pick" / "one")
    assert len(best_per_budget(alone)) == 4, "of one budget the next best too"


@pytest.mark.parametrize(("make", "title"), [(two_knobs, "key_experts and boost"), (many_rules, "Rules on tiny")])
def test_the_figure_is_one_drawing_in_the_pages_colours(make: Any, title: str, tmp_path: Path) -> None:
    run = written(make(), tmp_path / "s" / "one")
    figure = first_screen_of(page_html([run], [NOTHING])).split("<figure", 1)[1].split("</figure>")[0]
    assert title in figure.split("</figcaption>")[0] and figure.count("<svg") == 2
    told = re.findall(r'role="img" aria-label="([^"]+)"', figure)
    assert len(told) == 2 and all(run.headline in unescape(text) for text in told)
    assert "var(--ink)" in figure or "var(--soft)" in figure
    assert not re.search("#(000000|ffffff|111111|595959|0072b2)", figure, re.IGNORECASE), "not seen on dark paper"
    ids = re.findall(r'\bid="([^"]+)"', figure)
    assert len(ids) == len(set(ids)) and set(re.findall(r'(?:url\(|href=")#([^")]+)', figure)) <= set(ids)
    assert run.showing(1).pictures is run.pictures, "it is drawn once, however often the page is put together"


def test_a_figure_that_fails_costs_itself_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: Run) -> str:
        raise ZeroDivisionError("no figure")

    monkeypatch.setattr(first_screen_module, "answer_html", fails)
    head = first_screen_of(page_html([written(two_knobs(), tmp_path / "pick" / "one")], [NOTHING]))
    assert 'class="failed"' in head and "no figure" in head and "What to type next" in head and "<table" in head


# ---------------------------------------------------------------- what to type next


def test_what_is_to_be_typed_exists(tmp_path: Path) -> None:
    synthetic = two_knobs()
    synthetic.add("pick", {"boost": 9, "key_experts": 1}, status="failed", reason="the engine stopped")
    run = written(synthetic, tmp_path / "pick" / "a run")
    other = written(two_knobs(), tmp_path / "pick" / "other")
    for steps in (what_next(run), what_next_of_several([run, other])):
        for step in steps:
            python, flag, package, first, *_ = shlex.split(step.command)
            assert (python, flag, package) == ("python", "-m", "banpick_exp")
            assert "=" in first or first in COMMANDS, step.command
    steps = what_next(run)
    assert shlex.split(steps[0].command)[3:] == ["retry", str(run.folder.path)]
    assert shlex.split(steps[-1].command)[3:] == ["report", str(run.folder.path), "--paper"]
    assert any(step.command.endswith(" repeats=3") and "policy=pick" in step.command for step in steps)
    assert main(shlex.split(steps[0].command)[3:]) == 0, "the failed point is set aside"
    assert not any("retry" in step.command for step in what_next(read_run(run.folder)))


def test_a_part_of_the_problems_is_followed_by_all_of_them(tmp_path: Path) -> None:
    synthetic = two_knobs()
    for record in synthetic.records:
        synthetic.change(record, task={**record.task.model_dump(), "max_problems": 200}, command=None if record.is_stock
                         else f"{record.command} task.max_problems=200")  # fmt: skip
    (step,) = [step for step in what_next(written(synthetic, tmp_path / "s" / "one")) if "all problems" in step.why]
    assert shlex.split(step.command)[-1] == "task.max_problems=null" and "=200" not in step.command


# ---------------------------------------------------------------- in a browser

needs_chromium = pytest.mark.skipif(
    chromium.find() is None, reason="no Chromium on this machine: apt-get install chromium"
)


@pytest.fixture(scope="module")
def tab() -> Iterator[chromium.Tab]:
    program = chromium.find()
    assert program is not None
    with chromium.browser(program) as found:
        yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    rules = many_rules()
    rules.add("ban", {"knob": 1}, status="failed", reason="/".join([LONG] * 3))
    one, two = written(rules, folder / "iso" / "one"), written(two_knobs(), folder / "pick" / "two")
    made = {
        "one": page_html([one], [NOTHING]),
        "two": page_html([two], [NOTHING]),
        "both": page_html([one, two], [NOTHING, NOTHING]),
        "many": overview_html([one.folder, two.folder] * 13, folder),
    }
    for name, text in made.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in made}


def seen(tab: chromium.Tab, page: Path, width: int, height: int = 800, scheme: str = "light") -> None:
    tab.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
    tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    tab.open(page)


@needs_chromium
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", ["one", "two", "both", "many"])
def test_nothing_reaches_beyond_the_window(tab: chromium.Tab, pages: dict[str, Path], name: str, width: int) -> None:
    seen(tab, pages[name], width)
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    wide = "[...document.querySelectorAll('.scroll:has(> table)')].filter((e) => e.scrollWidth > e.clientWidth + 1)"
    told = tab.evaluate(f"{wide}.map((e) => e.getAttribute('aria-label'))")
    if width == 1280 and name != "both":  # a column of each run for every number: as wide as there are runs
        assert told == []
    assert not any(label.startswith("Best polic") for label in told), "the first screen's table fits a phone"
    assert tab.errors == []


WRAPPED = 25
"""Pixels of one more line: the commands name the run's folder, and a test's may have a long name."""


@needs_chromium
def test_the_first_screen_is_one_screen(tab: chromium.Tab, pages: dict[str, Path]) -> None:
    for name in ("one", "two"):
        seen(tab, pages[name], 1280)
        for part in (".headline", ".answer svg.beside", ".best table", ".next li:last-child button"):
            bottom = tab.evaluate(f"document.querySelector({part!r}).getBoundingClientRect().bottom")
            assert 0 < bottom <= 800 + WRAPPED, (name, part)
        assert tab.evaluate("getComputedStyle(document.querySelector('svg.phone')).display") == "none"
        seen(tab, pages[name], 390, 844)
        assert tab.evaluate("getComputedStyle(document.querySelector('svg.beside')).display") == "none"
        assert tab.evaluate("document.querySelector('.answer svg.phone').getBoundingClientRect().top") < 844


@needs_chromium
def test_dark_paper_has_light_ink(tab: chromium.Tab, pages: dict[str, Path]) -> None:
    fills = {}
    for scheme in ("light", "dark"):
        seen(tab, pages["one"], 1280, scheme=scheme)
        ink = tab.evaluate("getComputedStyle(document.querySelector('svg.beside')).fill")
        paper = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        fills[scheme] = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ink, paper)]
    assert fills["light"][0] < 150 < 600 < fills["light"][1]
    assert fills["dark"][1] < 150 < 600 < fills["dark"][0]


@needs_chromium
def test_a_head_sorts_by_number_with_mouse_and_keyboard(tab: chromium.Tab, pages: dict[str, Path]) -> None:
    seen(tab, pages["one"], 1280)
    tab.evaluate(
        "window.t = [...document.querySelectorAll('#front table')][0];"
        "window.head = (name) => [...t.tHead.rows[0].cells].find((cell) => cell.textContent.startsWith(name));"
        "window.column = (name) => [...t.tBodies[0].rows].map((row) => row.cells[head(name).cellIndex].textContent)"
    )
    before = tab.evaluate("column('policy')")
    tab.evaluate("head('at equal budget').querySelector('button').click()")
    assert tab.evaluate("head('at equal budget').getAttribute('aria-sort')") == "descending"
    told = tab.evaluate("column('at equal budget')")
    numbers = [float(found.group(1)) for text in told if (found := re.search(r"([-+]\d+\.\d) \[", text))]
    assert len(numbers) == 24 and numbers == sorted(numbers, reverse=True) and min(numbers) < 0
    assert set(told[len(numbers) :]) == {"reference"}, "what has no number is last"
    tab.evaluate("head('experts kept').querySelector('button').focus()")
    for turn in ("descending", "ascending"):
        for kind in ("rawKeyDown", "char", "keyUp"):
            tab.call(
                "Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r"
            )
        assert tab.evaluate("head('experts kept').getAttribute('aria-sort')") == turn
        kept = list(map(float, tab.evaluate("column('experts kept')")))
        assert kept == sorted(kept, reverse=turn == "descending") and len(set(kept)) > 5
    assert tab.evaluate("head('at equal budget').getAttribute('aria-sort')") is None
    tab.evaluate("head('experts kept').querySelector('button').click()")
    assert tab.evaluate("column('policy')") == before, "the third time as it was written"


@needs_chromium
@pytest.mark.parametrize(
    ("name", "asked", "count"), [("one", "DIEP knob=9", 0), ("one", "diep knob=3.1", 1), ("many", "iso", 13)]
)
def test_a_box_asks_which_rows(tab: chromium.Tab, pages: dict[str, Path], name: str, asked: str, count: int) -> None:
    seen(tab, pages[name], 1280)
    where = "#front .tools input" if name == "one" else ".tools input"
    tab.evaluate(
        f"(() => {{ const box = document.querySelector({where!r}); box.value = {asked!r};"
        " box.dispatchEvent(new Event('input')); window.rows = [...box.closest('.tools').nextElementSibling"
        ".querySelectorAll('tbody tr')]; })()"
    )
    shown = tab.evaluate("rows.filter((row) => row.getClientRects().length).length")
    assert shown == count and tab.evaluate("rows.length") > 8


@needs_chromium
def test_few_rows_have_no_box_and_the_best_are_in_their_order(tab: chromium.Tab, pages: dict[str, Path]) -> None:
    seen(tab, pages["one"], 1280)
    assert tab.evaluate("document.querySelectorAll('.best button, .glance .tools').length") == 0
    few = "[...document.querySelectorAll('.scroll')].filter((e) => e.querySelectorAll('tbody tr').length <= 8)"
    assert tab.evaluate(f"{few}.length") > 1
    assert tab.evaluate(f"{few}.filter((e) => e.previousElementSibling?.matches('.tools:has(input)')).length") == 0
