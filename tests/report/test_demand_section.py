"""What `demand` found, in words, as tables, as a figure and on the page; from sums that were drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from synthetic_run import SyntheticRun, ladder

from banpick_exp.evaluation.demand.estimates import compared
from banpick_exp.evaluation.demand.found import DemandFile, Group, ModelUsed, PointDemand, Settings
from banpick_exp.evaluation.demand.replay import completions_of, disagreement, sampled
from banpick_exp.evaluation.demand.sums import Asked, Sums, layer_sums
from banpick_exp.records import Outcome, outcomes_frame
from banpick_exp.report.demanded import WIDTH, demand_of, sentence, tables, told
from banpick_exp.report.figures.demand import demand_figure
from banpick_exp.report.figures.sheet import PHONE, SCREEN, save
from banpick_exp.report.page.demand import demand_html
from banpick_exp.report.run import Run
from banpick_exp.run_folder import RunFolder
from banpick_exp.tasks.problem import Problem

EXPERTS, PROBLEMS = 16, 12
ASKED = Asked(windows=(4, 16, 64), caches=(4, 8), batches=(1, 8, 32))


def drawn(rate: float, seed: int) -> Sums:
    """Answers of 20 tokens, none of 64, from 12 problems, of which 32 cannot be in one step."""
    rng = np.random.default_rng(seed)
    kept_TE = rng.random((PROBLEMS * 24, EXPERTS)) < rate
    return layer_sums(kept_TE, [24] * PROBLEMS, [4] * PROBLEMS, ASKED)


def point(label: str, rate: float, *, invalid: str | None = None) -> PointDemand:
    stock, policy = {"math": drawn(0.5, 0)}, {"math": drawn(rate, 1)}
    demand = compared(stock, policy, ASKED)
    return PointDemand(
        fingerprint=f"{label}-print",
        label=label,
        invalid=invalid,
        recorded_kept={"math": demand.kept.policy.value},
        overall=demand,
        domains={"math": demand},
    )


def file_of(*points: PointDemand, groups: int = 1) -> DemandFile:
    group = Group(
        model=ModelUsed(name="tiny", num_layers=1, num_experts=EXPERTS, top_k=8),
        task="tiny test",
        stock="stock-print",
        settings=Settings(problems=PROBLEMS, windows=ASKED.windows, caches=ASKED.caches, batches=ASKED.batches),
        points=points,
    )
    return DemandFile(run="ladder/first", made_at="2026-11-28", command="demand RUN", groups=(group,) * groups)


FEW, NONE = point("ban <k_min=2>", 0.2), point("pick boost=1", 0.3, invalid="math: the replayed answers keep 9")


def test_a_sentence_says_what_is_saved() -> None:
    (group,) = file_of(FEW).groups
    text = sentence(FEW, group)
    demand = FEW.overall
    step = demand.steps[1].experts
    assert step.ratio is not None and 0.2 < step.ratio.value < 1
    assert text.startswith(f"ban <k_min=2>: keeps {demand.kept.policy.value:.2f} of 8 experts; a decode step of 8")
    assert f"touches {step.policy.value:.1f} experts a layer in place of {step.stock.value:.1f}" in text
    assert "the best cache of 4 experts a layer that stays for 16 tokens hits 0." in text
    assert sentence(NONE, group) == "pick boost=1: no result. math: the replayed answers keep 9."


def test_tables_hold_stock_and_every_valid_point() -> None:
    (group,) = file_of(FEW, NONE).groups
    steps, four, sixteen = tables(group)
    assert [row[0] for row in steps[2]] == ["stock", FEW.label] and steps[1][-1] == "step of 8", "32 are not there"
    assert "Windows of 4 tokens" in four[0] and "Windows of 16 tokens" in sixteen[0], "no answer has 64"
    for caption, head, rows in (steps, four, sixteen):
        assert {len(row) for row in rows} == {len(head)}, caption
    assert rows[1][2].startswith(f"{FEW.overall.windows[1].srp.policy.value:.3f} -0.") or "+0." in rows[1][2]
    assert tables(file_of(NONE).groups[0]) == []


def test_the_terminal_is_not_left() -> None:
    wide = FEW.model_copy(update={"label": "steer count=2 direction=on epsilon=0.01 k=3 " + "x" * 20})
    lines = told(file_of(wide, NONE))
    assert max(map(len, lines)) <= WIDTH and any("misses of 8" in line for line in lines)
    assert sum(line.startswith("  stock") for line in lines) > 3, (
        "columns without room go below, with their rows' names"
    )


@pytest.mark.parametrize("sheet", [SCREEN, PHONE], ids=lambda sheet: sheet.name)
def test_the_figure_draws_each_group(tmp_path: Path, sheet: object) -> None:
    figure = demand_figure(file_of(FEW, NONE, groups=2), sheet)  # type: ignore[arg-type]
    panels = [axes for axes in figure.axes if axes.get_xlabel()]
    assert len(panels) == 6 and {len(axes.containers) for axes in panels} == {2}, "stock and the valid point"
    assert save(figure, tmp_path / "demand.png").stat().st_size > 10_000
    assert demand_figure(file_of(NONE), SCREEN) is None


def a_run(folder: Path) -> Run:
    made = ladder(SyntheticRun(problems=20), ks=(4,))
    return Run(folder=RunFolder(folder / "ladder" / "first"), records=made.records, outcomes=made.outcomes)


def test_the_page_says_what_to_type_until_it_was_measured(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    assert "python -m banpick_exp demand" in demand_html(run)
    run.folder.path.mkdir(parents=True)
    run.folder.demand_path.write_text(file_of(FEW, NONE).model_dump_json())
    assert demand_of(run.folder) == file_of(FEW, NONE)
    html = demand_html(run)
    assert "ban &lt;k_min=2&gt;" in html and "<k_min" not in html
    assert html.count("<svg") == 2 and html.count("<table>") == 3 and "no result. math" in html
    assert 'class="beside"' in html and 'class="phone"' in html and 'id="demand-beside-' in html


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"schema_version": 2}'])
def test_a_damaged_file_is_none(tmp_path: Path, content: str) -> None:
    run = a_run(tmp_path)
    run.folder.path.mkdir(parents=True)
    run.folder.demand_path.write_text(content)
    assert demand_of(run.folder) is None and "Not measured" in demand_html(run)
    newer = file_of(FEW).model_copy(update={"schema_version": 2})
    run.folder.demand_path.write_text(newer.model_dump_json())
    assert demand_of(run.folder) is None


def test_the_records_budget_lies_between_answers_and_all_tokens() -> None:
    """The run counted prompts too, those of a shared prefix once."""
    demand = FEW.overall
    low, high = sorted((demand.kept.policy.value, demand.all_kept.policy.value))
    assert disagreement("math", demand, low) is None and disagreement("math", demand, high) is None
    for wrong in (0.5 * low, 2 * high):
        text = disagreement("math", demand, wrong)
        assert text is not None and f"the record says {wrong:.2f}" in text and text.startswith("math: ")


def outcome(name: str, completion: str | None, sample: int | None = None) -> Outcome:
    told = {"problem_id": name, "domain": "math", "task": "t", "correct": True, "truncated": False, "tokens": 3}
    return Outcome(**told, answer="1", completion=completion, sample=sample)  # type: ignore[arg-type]


def test_the_sample_is_what_all_have_written() -> None:
    frame = outcomes_frame([outcome("a", "one", 0), outcome("a", "other", 1), outcome("b", "two", 0)])
    assert completions_of(frame) == {("math", "a"): "one", ("math", "b"): "two"}
    assert completions_of(outcomes_frame([outcome("a", None)])) == {}
    problems = [Problem(str(number), "math", "t", "1+1=", "2") for number in range(50)]
    scored = Problem("50", "math", "t", "", "", choices=(("q", "A"), ("q", "B")))
    first = {("math", str(number)): "text" for number in range(51)}
    second = {("math", str(number)): "text" if number != 7 else "" for number in range(40)}
    found = sampled({"math": [*problems, scored]}, [first, second], 64)["math"]
    assert [int(each.problem_id) for each in found] == [*range(7), *range(8, 40)], "no empty answer, and no scored one"
    few = sampled({"math": problems}, [first, second], 10)["math"]
    assert len(few) == 10 and few == sampled({"math": problems}, [first, second], 10)["math"]
    assert [int(each.problem_id) for each in few] == sorted(int(each.problem_id) for each in few)
    assert sampled({"math": problems[:1]}, [first, first], 10) == {}, "one leaves nothing when it is left out"
