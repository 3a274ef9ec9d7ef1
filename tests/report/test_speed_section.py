"""Speed as it is told: ties in words, one section by batch size, the noise of the clock beside it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from synthetic_run import DOMAINS, SyntheticRun, changed, ladder

from banpick_exp.report.page.speed import MOST_DRAWN, speed_html
from banpick_exp.report.run import Run
from banpick_exp.report.sentences import hypervolume_sentence, sentences
from banpick_exp.report.text import speed_words
from banpick_exp.run_folder import RunFolder


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ((1.08, 1.05, 1.11), "1.08 [1.05, 1.11]"),
        ((1.01, 0.98, 1.03), "1.01 [0.98, 1.03] tie"),
        ((0.93, 0.90, 0.95), "0.93 [0.90, 0.95]"),
        ((1.0, 1.0, 1.02), "1.00 [1.00, 1.02] tie"),
        ((1.05, None, None), "1.05"),
        ((1.05, 1.05, 1.05), "1.05"),
    ],
)
def test_a_speed_up_whose_interval_holds_1_is_a_tie(
    numbers: tuple[float, float | None, float | None], words: str
) -> None:
    assert speed_words(*numbers) == words


@pytest.fixture
def run(tmp_path: Path) -> Run:
    drawn = ladder(SyntheticRun(seed=2, problems=200))
    drawn.add("ban", {"lambda": 1.0}, kept=4.5, speedup=1.2)
    return Run(folder=RunFolder(tmp_path / "sweep" / "run"), records=drawn.records, outcomes=drawn.outcomes)


def test_every_phase_and_batch_has_its_column_and_the_front_its_picture(run: Run) -> None:
    html = speed_html(run)
    for name in ("decode 1", "decode 8", "decode 64", "prefill, 1,024 tokens"):
        assert f'<th scope="col">{name}</th>' in html
    ban = next(record for record in run.records if record.policy_name == "ban").measured.overall.speed[1]
    cell = f'{speed_words(ban.speedup, *ban.ci95)} <span class="small">18.0 (32.0)</span>'
    assert cell in html, "distinct experts of the policy, and stock's in brackets"
    assert html.count('class="panel"') == 1 and ">64</text>" in html


def test_the_picture_has_what_the_verdict_is_about_and_rings_a_gain(tmp_path: Path) -> None:
    drawn = ladder(SyntheticRun(seed=2, problems=200))
    for number in range(12):
        drawn.add("ban", {"lambda": number}, kept=6, churn=0.05, shift=dict.fromkeys(DOMAINS, -0.03))
    drawn.add("pick", {"boost": 1}, kept=4, shift=dict.fromkeys(DOMAINS, 0.15), speedup=0.9)
    run = Run(folder=RunFolder(tmp_path / "sweep" / "run"), records=drawn.records, outcomes=drawn.outcomes)
    html = speed_html(run)
    named = re.findall(r"</svg>([^<]+)</li>", html)
    assert named[:2] == ["stock", "pick boost=1 (a gain: ringed)"] and 3 <= len(named) <= 1 + MOST_DRAWN
    assert html.count('href="#ring"') == 3, "at each of its three batches"
    assert html.count('class="ladder ') == len(named) + 1 and 'class="ladder one"' in html, "and a line at 1"
    places = re.findall(r'class="point [^"]*" x="([\d.]+)"', html)
    assert len(places) == len(set(places)) == 3 * len(named), "an interval hides no other"


def test_where_nothing_was_compared_it_has_the_front(tmp_path: Path) -> None:
    drawn = ladder(SyntheticRun(seed=2, problems=200))
    html = speed_html(Run(folder=RunFolder(tmp_path), records=drawn.records, outcomes=drawn.outcomes))
    named = re.findall(r"</svg>([^<]+)</li>", html)
    assert named[0] == "stock" and named[1:] and all(name.startswith("fixed_k") for name in named[1:])


def test_a_run_without_batches_says_so(run: Run) -> None:
    bare = [
        changed(record, metrics={"overall": record.measured.overall.model_copy(update={"speed": ()}).model_dump()})
        for record in run.records
    ]
    assert "Nothing was timed" in speed_html(Run(folder=run.folder, records=bare, outcomes=run.outcomes))


def test_the_sentences_give_the_noise_of_the_clock_and_one_number(run: Run) -> None:
    said = sentences(run)
    assert any("stock timed against itself gives" in line and "decoding 64 sequences at once" in line for line in said)
    assert hypervolume_sentence(run) in said and "over budgets 2 to 8" in hypervolume_sentence(run)


def test_without_a_policy_there_is_no_one_number(tmp_path: Path) -> None:
    alone = ladder(SyntheticRun(seed=2, problems=200))
    bare = Run(folder=RunFolder(tmp_path), records=alone.records, outcomes=alone.outcomes)
    assert hypervolume_sentence(bare) == ""
