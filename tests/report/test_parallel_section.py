"""Parallel coordinates: every point a line over its knobs, few enough to follow, to be told and kept by hand."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import chromium
import numpy as np
import pytest
from synthetic_run import DOMAINS, SyntheticRun, ladder, pick_strength

from banpick_exp.records import OVERALL
from banpick_exp.report.maps import NOTHING as NO_MAPS
from banpick_exp.report.page import parallel
from banpick_exp.report.page.page import LARGEST, page_html
from banpick_exp.report.page.parallel import MOST_LINES, NOTHING, parallel_html
from banpick_exp.report.run import Run
from banpick_exp.run_folder import RunFolder


def of(drawn: SyntheticRun, folder: Path) -> Run:
    return Run(folder=RunFolder(folder / "pick" / "run"), records=drawn.records, outcomes=drawn.outcomes)


def lines(html: str) -> list[dict[str, str]]:
    found = re.findall(r'<path class="line (.*?)" d="(.*?)" data-y="(.*?)" data-told="(.*?)"/>', html)
    return [dict(zip(("kind", "d", "y", "told"), map(unescape, each), strict=True)) for each in found]


def names(html: str) -> list[str]:
    return re.findall(r'<text class="name"[^>]*>(.*?)</text>', html)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    drawn = pick_strength(ladder(SyntheticRun(seed=1, problems=120)))
    drawn.add("pick", {"boost": 9, "key_experts": 1}, shift=dict.fromkeys(DOMAINS, 0.2))
    return of(drawn, tmp_path)


def test_each_point_is_a_line_over_its_knobs_coloured_by_its_verdict(run: Run) -> None:
    html = parallel_html(run)
    assert names(html) == ["boost", "key_experts", "measured budget", "difference, points"]
    found = {line["told"].partition(": kept")[0]: line for line in lines(html)}
    picks = [record for record in run.done if record.policy_name == "pick"]
    assert set(found) == {record.label for record in picks} and len(lines(html)) == len(picks) == 17
    colours = {"beats": "v-green", "loses": "v-red", "ties": "v-grey"}
    for record in picks:
        verdict = run.verdict_of[record.fingerprint, OVERALL]
        line = found[record.label]
        assert line["kind"] == colours[verdict["verdict"]]
        assert (
            f"kept 8.00, {verdict['verdict']}" in line["told"] and f"{100 * verdict['difference']:+.1f}" in line["told"]
        )
        assert line["d"].count("L") == 3 and len(line["y"].split()) == 4
    assert {line["kind"] for line in found.values()} == set(colours.values())
    places = [float(found[f"pick boost={boost} key_experts=1"]["y"].split()[0]) for boost in (0.5, 1, 2, 4, 9)]
    assert np.allclose(np.diff(places), places[1] - places[0]) and places[0] > places[-1], "few values stand evenly"
    differences = sorted(picks, key=lambda each: run.verdict_of[each.fingerprint, OVERALL]["difference"])
    heights = [float(found[record.label]["y"].split()[3]) for record in differences]
    assert heights == sorted(heights, reverse=True), "the higher the better"
    drawn_last = lines(html)[-1]["told"]
    assert drawn_last.startswith("pick boost=9 key_experts=1"), "what beats lies on top"


def test_the_table_says_the_same(run: Run) -> None:
    html = parallel_html(run)
    table = html.split("<caption>The lines of pick as a table</caption>")[1]
    assert table.count("<tr>") == 1 + 17
    assert '<th scope="row">pick boost=9 key_experts=1</th><td>9</td><td>1</td><td>8.00</td><td class="beats">' in table


def test_one_knob_needs_no_such_figure(tmp_path: Path) -> None:
    drawn = ladder(SyntheticRun(problems=30))
    for boost in (1, 2, 3):
        drawn.add("pick", {"boost": boost, "key_experts": 4})
    assert parallel_html(of(drawn, tmp_path)) == NOTHING
    assert parallel_html(of(ladder(SyntheticRun(problems=30)), tmp_path)) == NOTHING


def test_words_and_absent_knobs_have_their_places(tmp_path: Path) -> None:
    drawn = ladder(SyntheticRun(problems=30))
    for scope in ("own", "</text><script>"):
        for boost in ({"boost": 1}, {"boost": 2.5}, {}):
            drawn.add("pick", {"scope": scope, **boost}, churn=0.1)
    html = parallel_html(of(drawn, tmp_path))
    assert "<script>" not in html and ">&lt;/text&gt;&lt;script&gt;</text>" in html
    for name in ("own", "1", "2.5", "no boost"):
        assert f'text-anchor="end">{name}</text>' in html
    assert len(lines(html)) == 6


def test_many_numbers_have_their_scale(tmp_path: Path) -> None:
    drawn = ladder(SyntheticRun(problems=30))
    for number in range(30):
        drawn.add("ban", {"lambda": round(0.01 * number**2, 4), "k_min": 1 + number % 2}, kept=3 + number % 5)
    html = parallel_html(of(drawn, tmp_path))
    assert names(html)[:2] == ["lambda", "k_min"], "a value of its own for each point settles nothing"
    found = {line["told"].partition(":")[0]: line["y"].split() for line in lines(html)}
    at = [float(found[f"ban lambda={round(0.01 * n**2, 4)} k_min={1 + n % 2}"][0]) for n in (0, 10, 20)]
    assert (at[0] - at[2]) / (at[0] - at[1]) == pytest.approx(4, abs=0.1)


def test_of_hundreds_those_that_decide_are_drawn_and_the_others_counted(tmp_path: Path) -> None:
    drawn, rng = ladder(SyntheticRun(problems=20)), np.random.default_rng(0)
    for _ in range(300):
        knobs = {"boost": float(rng.uniform(0, 4)), "key_experts": int(rng.integers(1, 17))}
        drawn.add("pick", knobs, kept=float(rng.uniform(2, 8)), churn=0.2, shift={"math": float(rng.normal(0, 0.1))})
    drawn.add("pick", {"boost": 5, "key_experts": 1}, kept=4, shift=dict.fromkeys(DOMAINS, -0.6))
    run = of(drawn, tmp_path)
    html = parallel_html(run)
    assert len(lines(html)) == MOST_LINES and f"{MOST_LINES} of 301 points, those that decide the result" in html
    assert any(line["told"].startswith("pick boost=5 key_experts=1:") for line in lines(html)), "the largest effect"
    assert any(line["kind"].endswith(" far") for line in lines(html)), "measured between two rungs of the ladder"
    assert f"{301 - MOST_LINES} more points: points.parquet has them all" in html
    assert len(page_html([run], [NO_MAPS]).encode()) < LARGEST
    assert len(lines(parallel_html(run.showing(20)))) == 20


def test_many_rules_are_some(tmp_path: Path) -> None:
    drawn = ladder(SyntheticRun(problems=12))
    rules = ("pick", "ban", "ban_pick", "top_p", "naee", "diep", "rice", "modes")
    for rule in rules:
        for a in (1, 2):
            for b in (1, 2):
                drawn.add(rule, {"a": a, "b": b}, churn=0.1)
    html = parallel_html(of(drawn, tmp_path))
    assert html.count("<svg") == parallel.MOST_RULES and "Not drawn: modes, rice." in html


@pytest.mark.slow
@pytest.mark.skipif(chromium.find() is None, reason="no Chromium on this machine: apt-get install chromium")
def test_a_line_is_told_and_a_range_keeps_some(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(page_html([run], [NO_MAPS]))
    program = chromium.find()
    assert program is not None
    with chromium.browser(program) as tab:
        tab.call("Emulation.setDeviceMetricsOverride", width=390, height=900, deviceScaleFactor=1, mobile=False)
        tab.open(path)
        box = "document.querySelector('#knobs .scroll')"
        assert tab.evaluate(f"{box}.scrollWidth > {box}.clientWidth"), "it scrolls inside its box"
        assert tab.evaluate("document.getElementById('knobs').getBoundingClientRect().right") <= 390
        tab.call("Emulation.setDeviceMetricsOverride", width=1280, height=900, deviceScaleFactor=1, mobile=False)
        told = "document.querySelector('#knobs .told').textContent"
        best = "document.querySelector('#knobs .line.v-green')"
        tab.evaluate(f"{best}.scrollIntoView({{block: 'center'}})")
        x, y = tab.evaluate(
            f"(() => {{ const p = {best}; const at = p.getPointAtLength(p.getTotalLength() * 0.97)"
            ".matrixTransform(p.getScreenCTM()); return [at.x, at.y]; })()"
        )
        tab.mouse("mouseMoved", x, y)
        assert tab.evaluate(told).startswith("pick boost=9 key_experts=1: kept 8.00, beats")
        assert tab.evaluate(f"{best}.classList.contains('hot')")

        grip = tab.evaluate(
            "(() => { const b = document.querySelectorAll('#knobs .grip')[0].getBoundingClientRect();"
            " return [b.x + b.width / 2, b.y, b.height]; })()"
        )
        middle, top, height = grip
        tab.mouse("mouseMoved", middle, top + 1)
        tab.mouse("mousePressed", middle, top + 1)
        tab.call(
            "Input.dispatchMouseEvent", type="mouseMoved", x=middle, y=top + height * 0.15, button="left", buttons=1
        )
        tab.mouse("mouseReleased", middle, top + height * 0.15)
        left = "[...document.querySelectorAll('#knobs .line:not(.off)')].map((line) => line.dataset.told.split(':')[0])"
        assert tab.evaluate(left) == ["pick boost=9 key_experts=1"]
        assert tab.evaluate(told) == "1 of 17 lines pass there."
        tab.mouse("mousePressed", middle, top + height * 0.5)
        tab.mouse("mouseReleased", middle, top + height * 0.5)
        assert len(tab.evaluate(left)) == 17

        tab.mouse("mouseMoved", 1, 1)
        tab.evaluate("document.querySelector('#knobs .parallel').focus()")
        tab.call("Input.dispatchKeyEvent", type="keyDown", key="ArrowRight")
        first = tab.evaluate(told)
        tab.call("Input.dispatchKeyEvent", type="keyDown", key="ArrowRight")
        assert first.startswith("pick ") and tab.evaluate(told).startswith("pick ") and tab.evaluate(told) != first
        assert tab.errors == []
