"""Figures answer what a sweep asked, stand at their size in a paper, and their names belong to their marks."""

from __future__ import annotations

import csv
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image
from synthetic_run import DOMAINS, SyntheticRun, ladder, pick_strength

from banpick_exp.analysis.pairing import REFERENCE_POLICIES
from banpick_exp.records import OVERALL
from banpick_exp.report import command
from banpick_exp.report.drawn import answers
from banpick_exp.report.equal_budget import at_equal_budget
from banpick_exp.report.figures.forest import foremost
from banpick_exp.report.figures.sheet import BESIDE, COLUMN, FOR_PAPERS, PAPER_SIZE, SCREEN
from banpick_exp.report.paper import ESCAPED, latex, table_rows, tex
from banpick_exp.report.question import cells, swept
from banpick_exp.report.run import Run, read_run
from banpick_exp.run_folder import RunFolder

pytestmark = pytest.mark.slow

GAIN = {"math": 0.12, "code": 0.12, "knowledge": 0.12}


def run_of(synthetic: SyntheticRun, folder: Path) -> Run:
    return Run(folder=RunFolder(folder / "sweep" / "run"), records=synthetic.records, outcomes=synthetic.outcomes)


def many_rules() -> SyntheticRun:
    run = ladder(SyntheticRun(problems=100))
    for policy in ("ban", "top_p", "naee"):
        for kept in (4.0, 5.02, 6.0):
            run.add(policy, {"k_min": 1, "goal": kept}, kept=kept, churn=0.05, shift=GAIN if policy == "ban" else None)
    return run


@pytest.fixture(scope="module")
def two_knobs(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_of(pick_strength(ladder(SyntheticRun(problems=100)), gain=0.1), tmp_path_factory.mktemp("two"))


# ---------------------------------------------------------------- which figure


def test_two_knobs_are_a_map_with_each_verdict_in_its_cell(two_knobs: Run) -> None:
    asked = swept(two_knobs)
    assert asked is not None and sorted(knob.name for knob in asked.knobs) == ["boost", "key_experts"]
    assert list(answers(two_knobs)) == ["knobs", "pareto"]
    for domain in (OVERALL, *DOMAINS):
        found = cells(two_knobs, asked, domain)
        assert found.difference.shape == (4, 4) and found.near.all()
        for (across, down), fingerprint in asked.places.items():
            row = two_knobs.verdict_of[fingerprint, domain]
            assert math.isclose(found.difference[down, across], 100 * row["difference"], abs_tol=1e-9)
            assert found.verdict[down, across] == row["verdict"]


def test_a_knob_that_another_settles_is_no_axis(tmp_path: Path) -> None:
    run = ladder(SyntheticRun(problems=20), ks=(4,))
    for experts in (1, 4):
        for boost in (0.5, 1.0):
            run.add("pick", {"mode": "boost", "boost": boost, "key_experts": experts})
        run.add("pick", {"mode": "range_replace", "range_factor": 2.0, "key_experts": experts})
    asked = swept(run_of(run, tmp_path))
    assert asked is not None
    assert [(knob.name, knob.words) for knob in asked.knobs] == [
        ("key_experts", ("1", "4")), ("boost", ("0.5", "1", "range_replace")),
    ]  # fmt: skip


def test_one_knob_is_a_curve_and_many_rules_a_forest(tmp_path: Path) -> None:
    one = ladder(SyntheticRun(problems=20), ks=(4,))
    for boost in (0.25, 1, 4):
        one.add("pick", {"boost": boost})
    asked = swept(run_of(one, tmp_path))
    assert asked is not None and asked.knobs[0].values == (0.25, 1, 4)
    rules = run_of(many_rules(), tmp_path)
    assert swept(rules) is None and list(answers(rules)) == ["budget", "pareto"]
    references = ladder(SyntheticRun(problems=20), ks=(4,))
    assert list(answers(run_of(references, tmp_path))) == ["pareto"]


def test_accuracy_needs_no_more_room_when_names_move_its_limits(tmp_path: Path) -> None:
    few = ladder(SyntheticRun(problems=33), ks=(4,))
    few.add("top_p", {"p": 0.6}, kept=4.1)
    figure = answers(run_of(few, tmp_path))["budget"](BESIDE)
    for span in range(6, 40):  # steps of 2.5 would write 72.5 where the layout left room for 72
        figure.axes[0].set_ylim(60, 60 + span)
        assert not [each for each in figure.axes[0].get_yticklabels() if "." in each.get_text()]


def test_a_forest_is_sorted_by_budget_and_keeps_what_decides(tmp_path: Path) -> None:
    run = run_of(many_rules(), tmp_path)
    compared = at_equal_budget(run.verdicts)
    rows = foremost(compared, 4)
    assert rows["reference_mean_kept"].is_sorted(descending=True)
    assert set(rows["policy"]) == {"ban", "top_p", "naee"}  # the best of each rule is never left out
    assert foremost(compared, 40).height == compared.height == 9


# ---------------------------------------------------------------- what is ringed, and what stands where


def test_only_a_gain_is_ringed_and_never_a_reference(tmp_path: Path) -> None:
    null = run_of(pick_strength(ladder(SyntheticRun(problems=100))), tmp_path)
    assert not null.ringed and null.frame["on_front"].any()
    gain = run_of(many_rules(), tmp_path)
    ringed = gain.done_rows().filter(gain.done_rows()["fingerprint"].is_in(list(gain.ringed)))
    assert ringed.height and set(ringed["policy"]) == {"ban"}
    assert not set(ringed["policy"]) & set(REFERENCE_POLICIES)


def test_points_stand_at_their_measured_budget(two_knobs: Run) -> None:
    axes = answers(two_knobs)["pareto"](SCREEN).axes[0]
    (pick,) = [each for each in axes.containers if each.get_label() == "pick"]
    x, y = pick.lines[0].get_data()
    rows = two_knobs.done_rows().filter(two_knobs.done_rows()["policy"] == "pick")
    assert np.allclose(x, rows["mean_kept"]) and np.allclose(y, 100 * rows["accuracy"])


def _boxes(axes: Any) -> dict[str, Any]:
    renderer = axes.figure.canvas.get_renderer()
    return {text.get_text(): text.get_window_extent(renderer) for text in axes.texts if text.get_text()}


@pytest.mark.parametrize("sheet", [SCREEN, COLUMN], ids=lambda sheet: sheet.name)
def test_names_cover_no_mark_and_no_other_name_and_only_on_the_budget_panel(tmp_path: Path, sheet: Any) -> None:
    run = run_of(many_rules(), tmp_path)
    figure = answers(run)["pareto"](sheet)
    budget, speed = figure.axes[:2]
    boxes = _boxes(budget)
    assert "stock" in boxes and "fixed_k ladder" in boxes and not _boxes(speed)
    assert all(name.replace("\n", " ").split()[0] in ("stock", "fixed_k", "ban", "top_p", "naee") for name in boxes)
    rows = run.done_rows()
    marks = budget.transData.transform(np.column_stack([rows["mean_kept"], 100 * rows["accuracy"]]))
    for name, box in boxes.items():
        assert not any(box.x0 < x < box.x1 and box.y0 < y < box.y1 for x, y in marks), name
        assert not any(box.overlaps(other) for rest, other in boxes.items() if rest != name), name


# ---------------------------------------------------------------- for papers


def test_paper_figures_have_the_width_and_the_type_they_are_named_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = pick_strength(ladder(SyntheticRun(problems=30))).write(tmp_path / "sweep" / "run_17")
    assert command.run([str(folder), "--paper"]) == 0
    printed = capsys.readouterr().out.splitlines()
    paper = RunFolder(folder).paper
    kinds = [f"{name}_{sheet.name}" for name in ("knobs", "pareto") for sheet in FOR_PAPERS]
    files = [f"{kind}{suffix}" for kind in kinds for suffix in (".pdf", ".svg", ".png")]
    assert sorted(path.name for path in paper.iterdir()) == sorted([*files, "points.csv", "points.tex"])
    assert {str(path) for path in paper.iterdir()} <= set(printed)
    for kind in kinds:
        inches = {"column": 3.3, "page": 6.75}[kind.rpartition("_")[2]]
        box = re.search(rb"/MediaBox \[ ?([\d. ]+)\]", (paper / f"{kind}.pdf").read_bytes())
        assert box is not None and abs(float(box.group(1).split()[2]) / 72 - inches) < 0.005
        width = re.search(r'<svg [^>]*width="([\d.]+)pt"', (paper / f"{kind}.svg").read_text())
        assert width is not None and abs(float(width.group(1)) / 72 - inches) < 0.005
        with Image.open(paper / f"{kind}.png") as picture:
            assert abs(picture.width / 300 - inches) < 0.01 and round(picture.info["dpi"][0]) == 300
    for draw in answers(read_run(RunFolder(folder))).values():
        for sheet in FOR_PAPERS:
            texts = [text for text in draw(sheet).findobj(Text) if text.get_text().strip() and text.get_visible()]
            assert {text.get_fontsize() for text in texts} == {PAPER_SIZE}
            assert not any("run_17" in text.get_text() or "No gain" in text.get_text() for text in texts)


def test_the_tables_hold_every_point_with_its_verdict(two_knobs: Run, tmp_path: Path) -> None:
    rows = table_rows(two_knobs)
    text = latex(rows, two_knobs.measure)
    lines = [line for line in text.splitlines() if line.endswith(r"\\")][1:]
    assert len(lines) == len(two_knobs.done) == len(rows) and r"pick boost=1 key\_experts=4" in text
    assert text.count("{tabular}") == 2 and all(line.count(" & ") == 6 for line in lines)
    folder = pick_strength(ladder(SyntheticRun(problems=30))).write(tmp_path / "sweep" / "run")
    assert command.run([str(folder), "--paper"]) == 0
    run = read_run(RunFolder(folder))
    with (run.folder.paper / "points.csv").open() as file:
        for line in csv.DictReader(file):
            verdict = run.verdict_of.get((line["fingerprint"], OVERALL))
            assert line["verdict"] == (verdict["verdict"] if verdict else "")
            assert not verdict or float(line["difference_lo"]) == verdict["lo_simultaneous"]


def test_latex_takes_nothing_of_a_label_for_a_command() -> None:
    escaped = tex("a_b & 50% {x} #1 $y$ ~ ^ \\input{/etc/passwd}")
    assert escaped.startswith(r"a\_b \& 50\% \{x\} \#1 \$y\$") and r"\input" not in escaped
    rest = escaped
    for text in sorted(ESCAPED.values(), key=len, reverse=True):
        rest = rest.replace(text, "")
    assert not set(rest) & set("&%$#_{}~^\\")
