"""Flips on the page: the right problems with what both wrote, as text whatever it says, and never too much."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import chromium
import polars as pl
import pytest
from synthetic_run import DOMAINS, SyntheticRun, ladder

from banpick_exp.analysis.flips import flips
from banpick_exp.report.maps import NOTHING
from banpick_exp.report.page import flips as section
from banpick_exp.report.page.beside_stock import MOST_BESIDE, beside_stock
from banpick_exp.report.page.page import LARGEST, page_html
from banpick_exp.report.run import Run
from banpick_exp.run_folder import RunFolder

HOSTILE = "</script><img src=x onerror=\"document.title='owned'\"></pre><b>&amp;</b>"


def a_run(folder: Path, columns: dict[str, pl.Expr] | None = None, *, problems: int = 60) -> Run:
    """Stock, a ladder, a policy that loses and one that wins; `columns` replace those of all outcomes."""
    drawn = ladder(SyntheticRun(seed=3, problems=problems), ks=(4,))
    drawn.add("pick", {"boost": 4}, churn=0.1, shift=dict.fromkeys(DOMAINS, -0.3))
    drawn.add("pick", {"boost": 1}, churn=0.05, shift=dict.fromkeys(DOMAINS, 0.15))
    outcomes = {name: frame.with_columns(**(columns or {})) for name, frame in drawn.outcomes.items()}
    return Run(folder=RunFolder(folder / "pick" / "run"), records=drawn.records, outcomes=outcomes)


def html_of(run: Run) -> str:
    return section.flips_html([run], [NOTHING])


def of(run: Run, label: str) -> pl.DataFrame:
    names = {record.label: record.fingerprint for record in run.records}
    return flips(run.outcomes[names[label]], run.outcomes[names["none"]])


def test_the_policies_of_the_verdict_are_told_the_gain_first_and_the_loser_last(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    chosen = beside_stock(run)
    assert [each.record.label for each in chosen] == ["pick boost=1", "pick boost=4"]
    assert chosen[0].why.startswith("gain: beats stock +") and chosen[1].why.startswith(
        "largest loss: loses to stock -"
    )
    assert all(each.stock.label == "none" for each in chosen)


def test_every_flip_is_there_with_both_sides(tmp_path: Path) -> None:
    run = a_run(tmp_path, {"truncated": pl.int_range(pl.len()) % 3 == 0})
    html = html_of(run)
    found = of(run, "pick boost=1")
    counts = {side: found.filter(pl.col("solved_by") == side).height for side in "ab"}
    assert f"{counts['b']} problems that stock solved are lost, {counts['a']} that it lost are solved" in html
    first = html.split("<b>pick boost=4</b>")[0]
    assert first.count('<details class="flip">') == found.height <= 2 * section.MOST_EACH_WAY
    for row in found.iter_rows(named=True):
        (line,) = re.findall(
            rf'<details class="flip"><summary><b>{row["domain"]} {row["problem_id"]}</b>.*?</details>', first
        )
        right, wrong = (
            (row["answer_a"], row["answer_b"]) if row["solved_by"] == "a" else (row["answer_b"], row["answer_a"])
        )
        assert wrong == "?" and f"<code>{right}</code>" in line and "<code>?</code>" in line
        texts = [unescape(re.sub("<.*?>", "", text)) for text in re.findall("<pre>(.*?)</pre>", line)]
        assert texts == [row["completion_b"], row["completion_a"]]
        assert ("cut off" in line.split("</summary>")[0]) == (row["truncated_a"] or row["truncated_b"])
    assert set(found["truncated_a"]) == {True, False}


def test_what_a_model_wrote_stays_text(tmp_path: Path) -> None:
    names = ("completion", "answer", "gold", "problem_id")
    run = a_run(tmp_path, {name: pl.lit(HOSTILE) + pl.int_range(pl.len()).cast(pl.String) for name in names})
    page = page_html([run], [NOTHING])
    assert "<img src=x" not in page and "&lt;img src=x onerror" in page
    assert page.count("<script") == page.count("</script>") == 2


def test_more_than_anyone_reads_is_cut_and_said(tmp_path: Path) -> None:
    long = pl.lit("x" * 5000) + pl.col("completion") + pl.lit("é" * 4000)
    run = a_run(tmp_path, {"completion": long}, problems=400)
    html = html_of(run)
    lost = of(run, "pick boost=4").filter(pl.col("solved_by") == "b")
    assert lost.height > 300 and len(html.encode()) < section.MOST_BYTES * 1.1
    told = re.search(rf"Stock solved, the policy lost: (\d+) of {lost.height:,} are here", html)
    assert told and int(told.group(1)) == section.MOST_EACH_WAY
    last = html.split("<b>pick boost=4</b>")[1].split("The policy solved")[0]
    problems = re.findall(r'class="flip"><summary><b>(\w+) ', last)
    assert {problems.count(name) for name in DOMAINS} <= {13, 14}, "no domain is missing"
    left = len("x" * 5000 + "=1;" + "é" * 4000) - section.HEAD - section.TAIL
    assert f"[{left:,} characters left out]" in html or f"[{left + 1:,} characters left out]" in html
    assert html.count("flips('pick boost=4')") == 1 or "flips(&#x27;pick boost=4&#x27;)" in html
    assert len(page_html([run], [NOTHING]).encode()) < LARGEST


def test_its_bytes_are_shared_by_all_policies_of_all_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [a_run(tmp_path / name, {"completion": pl.lit("word " * 200)}) for name in "ABC"]
    monkeypatch.setattr(section, "MOST_BYTES", 120_000)
    html = section.flips_html(runs, [NOTHING] * 3)
    assert len(html.encode()) < 135_000 and html.count('class="flip"') > 2 * 6
    assert html.count("<h3>") == 3 and "C: pick/run" in html


def test_records_of_old_say_that_they_hold_no_completions(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    old = {name: frame.drop("completion", "gold", strict=False) for name, frame in run.outcomes.items()}
    html = html_of(Run(folder=run.folder, records=run.records, outcomes=old))
    assert "they hold the extracted answers, not the completions" in html
    assert "<code>?</code>" in html and "<pre>" not in html and "right is <i>not recorded</i>" in html


def test_without_a_policy_there_is_a_sentence(tmp_path: Path) -> None:
    alone = ladder(SyntheticRun(problems=20), ks=(4,))
    run = Run(folder=RunFolder(tmp_path), records=alone.records, outcomes=alone.outcomes)
    assert html_of(run) == section.NOTHING


def test_of_hundreds_of_policies_a_few_are_told(tmp_path: Path) -> None:
    drawn = ladder(SyntheticRun(problems=20))
    for number in range(200):
        drawn.add("ban", {"lambda": number}, kept=2 + number % 6, churn=0.2)
    drawn.add("ban", {"lambda": 999}, kept=4, shift=dict.fromkeys(DOMAINS, -0.6))
    run = Run(folder=RunFolder(tmp_path), records=drawn.records, outcomes=drawn.outcomes)
    chosen = beside_stock(run)
    assert len(chosen) <= MOST_BESIDE and chosen[-1].record.label == "ban lambda=999"
    assert len({each.record.fingerprint for each in chosen}) == len(chosen) > 3
    best = [each.why.split(":")[0] for each in chosen[:-1] if not each.why.startswith("gain")]
    assert best == [f"best at about {k} experts" for k in sorted((int(w.split()[3]) for w in best), reverse=True)]


def test_budgets_between_two_experts_are_one(tmp_path: Path) -> None:
    """Each policy may have a fixed_k rival of its very budget; the best of all near four experts is told once."""
    drawn = ladder(SyntheticRun(problems=40))
    for number in range(1, 10):
        kept = 3.55 + number / 11
        drawn.add("fixed_k", {"k": round(kept, 2)}, kept=round(kept, 2), shift=dict.fromkeys(DOMAINS, -0.1))
        drawn.add(
            "ban",
            {"lambda": number},
            kept=round(kept, 2),
            churn=0.05,
            shift=dict.fromkeys(DOMAINS, -0.1 - 0.01 * number),
        )
    run = Run(folder=RunFolder(tmp_path), records=drawn.records, outcomes=drawn.outcomes)
    chosen = [each for each in beside_stock(run) if each.why.startswith("best")]
    assert [each.why.split(":")[0] for each in chosen] == ["best at about 4 experts"]
    assert all(each.record.label != "ban lambda=9" for each in chosen)


@pytest.mark.slow
@pytest.mark.skipif(chromium.find() is None, reason="no Chromium on this machine: apt-get install chromium")
def test_the_menu_and_the_search_show_and_hide(tmp_path: Path) -> None:
    run = a_run(tmp_path, {"completion": pl.lit(HOSTILE) + pl.col("completion")})
    path = tmp_path / "page.html"
    path.write_text(page_html([run], [NOTHING]))
    program = chromium.find()
    assert program is not None
    with chromium.browser(program) as tab:
        tab.open(path)
        shown = "[...document.querySelectorAll('#flips .flip')].filter((f) => f.getClientRects().length).length"
        assert tab.evaluate(shown) == of(run, "pick boost=1").height
        tab.evaluate(
            "(() => { const m = document.querySelector('#flips select'); m.value = '1';"
            " m.dispatchEvent(new Event('change')); })()"
        )
        lost = of(run, "pick boost=4")
        assert tab.evaluate(shown) == sum(
            min(count, section.MOST_EACH_WAY) for _, count in lost["solved_by"].value_counts().iter_rows()
        )
        name = lost.filter(pl.col("solved_by") == "b").row(0, named=True)["problem_id"]
        tab.evaluate(
            f"(() => {{ const s = document.querySelector('#flips input'); s.value = {name.upper()!r};"
            " s.dispatchEvent(new Event('input')); })()"
        )
        assert 1 <= tab.evaluate(shown) <= 3
        assert tab.evaluate("document.querySelector('#flips [data-counts]').textContent").endswith("found")
        assert tab.evaluate("document.title").startswith("Routing") and tab.errors == []
        assert tab.evaluate("document.querySelectorAll('#flips img').length") == 0
