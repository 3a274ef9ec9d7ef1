"""The end of a run at 80, 120 and 160 columns and in a pipe: one line a point, nothing cut that decides."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from many_points import many_points
from rich.cells import cell_len
from rich.console import Console
from synthetic_run import DOMAINS, SyntheticRun, ladder, pick_strength

from banpick_exp.report.one_line import cut, fitted_table
from banpick_exp.report.repeats import HEAD
from banpick_exp.report.run import Run
from banpick_exp.report.shown import MOST_LISTED
from banpick_exp.report.spelling import IN_ASCII
from banpick_exp.report.terminal import print_pareto, print_verdict
from banpick_exp.report.text import points
from banpick_exp.run_folder import RunFolder

LONG = "[link=x]/models/" + "very/long/" * 12 + "gemma 名前"


def run_of(synthetic: SyntheticRun, tmp_path: Path) -> Run:
    return Run(folder=RunFolder(tmp_path / "s" / "r"), records=synthetic.records, outcomes=synthetic.outcomes)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    synthetic = pick_strength(ladder(SyntheticRun(problems=300)), gain=0.05)
    synthetic.add("ban", {"lambda": 0.5}, kept=4.4)
    synthetic.add("steer", {"offsets": LONG}, kept=5.1, speedup=1.1)
    return run_of(synthetic, tmp_path)


def printed(run: Run, width: int | None, encoding: str = "utf-8", **options: Any) -> str:
    """On a terminal of that width, None: in a pipe. A character that the encoding lacks raises UnicodeEncodeError."""
    stream = io.BytesIO()
    file = io.TextIOWrapper(stream, encoding=encoding, newline="\n")
    console = Console(
        file=file, width=width or 80, force_terminal=width is not None, **{"color_system": None} | options
    )
    print_pareto(run, console)
    print_verdict(run, console)
    file.flush()
    return stream.getvalue().decode(encoding)


def table(text: str) -> list[str]:
    """The lines of points, without the head."""
    lines = text.splitlines()
    begin = next(n for n, line in enumerate(lines) if line.startswith("policy "))
    end = next(n for n, line in enumerate(lines) if line.startswith("verdict: "))
    return lines[begin + 1 : end]


@pytest.mark.parametrize("width", [80, 120, 160])
def test_one_line_a_point_holds_what_decides(run: Run, width: int) -> None:
    text = printed(run, width)
    lines = table(text)
    assert len(lines) == len(run.done) and max(map(cell_len, text.splitlines()[: len(lines) + 2])) <= width
    for row in run.done_rows().iter_rows(named=True):
        verdict = run.verdict_of.get((row["fingerprint"], "overall"))
        if verdict is None or LONG in row["label"]:
            continue
        rival = {"none": "stock"}.get(verdict["reference_label"], verdict["reference_label"].removeprefix("fixed_k "))
        star = r"\*" if abs(verdict["budget_gap"]) > 0.25 else ""
        difference = re.escape(points(verdict, simultaneous=True))
        said = rf"{verdict['verdict']} {rival}{star} +{difference} +{row['mean_kept']:.2f} "
        (line,) = [line for line in lines if line.startswith(f"{row['label']} ")]
        assert re.match(rf"{re.escape(row['label'])} +{said} *(tie|[\d.]+)", line)
    (long,) = [line for line in lines if line.startswith("steer off")]
    assert "名前 " in long and "…" in long, "its begin and its end"
    assert re.search(r"k=5 .*\] +5\.10 +1\.1", long)


def test_with_room_the_speed_has_its_interval(tmp_path: Path) -> None:
    run = run_of(pick_strength(ladder(SyntheticRun(problems=60))), tmp_path)
    assert re.search(r"fixed_k k=4 .* 1\.\d\d \[1\.\d\d, 1\.\d\d\]", "\n".join(table(printed(run, 120))))
    assert re.search(r"fixed_k k=4 .* 4\.00 +1\.\d\dx", "\n".join(table(printed(run, 80))))


def test_what_only_loses_is_near_to_nothing(tmp_path: Path) -> None:
    synthetic = ladder(SyntheticRun(problems=300))
    synthetic.add("top_p", {"p": 0.1}, kept=4.02, shift=dict.fromkeys(DOMAINS, -0.3))
    assert "Nearest" not in printed(run_of(synthetic, tmp_path), 80)


@pytest.mark.parametrize("width", [20, 40, 60])
def test_a_terminal_with_hardly_any_room_keeps_the_verdict(run: Run, width: int) -> None:
    lines = table(printed(run, width).replace("verdict: ", "\nverdict: "))
    assert (
        sum(bool(re.search(r" (beats|ties|loses|unmatched)\b", line)) for line in lines)
        == run.verdicts.filter(domain="overall").height
    )


@pytest.mark.parametrize("width", [80, 160, 240, None])
def test_the_verdict_with_its_budget_and_speed_is_last(run: Run, width: int | None) -> None:
    text = printed(run, width)
    last = " ".join(text.rpartition("\n\n")[2].split())
    assert last.startswith(run.headline)
    assert re.fullmatch(
        r"It keeps 8\.00 experts a token(, and its speed ties with stock's \(|, at )[\d.]+x .*\[.*\]\)?\.",
        last.removeprefix(run.headline).strip(),
    )


def test_without_a_gain_the_nearest_to_one_is_named(tmp_path: Path) -> None:
    synthetic = ladder(SyntheticRun(problems=300))
    synthetic.add("top_p", {"p": 0.5}, kept=4.02, churn=0.02, shift=dict.fromkeys(DOMAINS, -0.064), speedup=1.2)
    synthetic.add("top_p", {"p": 0.1}, kept=4.02, churn=0.02, shift=dict.fromkeys(DOMAINS, -0.3), speedup=1.2)
    last = " ".join(printed(run_of(synthetic, tmp_path), 80).rpartition("\n\n")[2].split())
    assert last.startswith("No gain: 2 of 2 top_p points tie or lose")
    near = (
        r"Nearest to one by its lower bound: "
        r"top_p p=0\.5, [-+.\d]+ \[.*\] points to fixed_k k=4, keeps 4\.02 experts a token, at 1\.\d\dx"
    )
    assert re.search(near, last)


def test_a_pipe_wraps_nothing(run: Run) -> None:
    text = printed(run, None)
    rows = [line for line in text.splitlines() if line.startswith("│")]
    assert len(rows) == len(run.done) and sum(LONG in row for row in rows) == 1
    assert all(f"{100 * row['accuracy']:.1f} [" in text for row in run.done_rows().iter_rows(named=True))
    assert run.headline in text.splitlines()[-1]


def test_three_hundred_points_are_the_front_and_the_best(tmp_path: Path) -> None:
    run = run_of(many_points(300), tmp_path)
    for width in (80, 160):
        text = printed(run, width)
        lines = table(text.replace(f"\n{MOST_LISTED} of ", "\nverdict: "))
        assert len(lines) == MOST_LISTED and f"{MOST_LISTED} of {len(run.done)} points" in text and "--all" in text
        assert any(line.startswith("stock ") for line in lines), "the references are there"
        assert sum("●" in line or "○" in line for line in lines) >= MOST_LISTED // 5


@pytest.mark.parametrize("width", [80, 240, None])
def test_a_terminal_without_unicode_gets_ascii(run: Run, tmp_path: Path, width: int | None) -> None:
    synthetic = ladder(SyntheticRun(problems=60))
    synthetic.add("pick", {"boost": 2}, shift={"math": -0.5})
    text = printed(run_of(synthetic, tmp_path), width, encoding="ascii")
    assert "?" not in text
    spelled = printed(run_of(synthetic, tmp_path), width).translate(IN_ASCII)
    assert text.splitlines()[-3:] == spelled.splitlines()[-3:]
    assert "# on the front for sure, o within noise" in " ".join(text.split()) and "pick boost=2" in text


def test_no_color_says_the_same(run: Run) -> None:
    coloured = printed(run, 80, color_system="standard")
    plain = printed(run, 80, color_system="standard", no_color=True)
    assert "\x1b[32m" in coloured and not re.search(r"\x1b\[[\d;]*3\dm", plain)
    strip = re.compile(r"\x1b\[[\d;]*m")
    assert strip.sub("", coloured) == strip.sub("", plain)


@pytest.mark.parametrize("room", [1, 2, 5, 19, 20])
def test_what_is_cut_fits(room: int) -> None:
    for text in ("ban_pick lambda=0.5 key_experts=16", "名前" * 12, "ab"):
        assert cell_len(cut(text, room)) <= max(room, 0)


def test_a_narrow_terminal_names_few_findings(tmp_path: Path) -> None:
    synthetic = ladder(SyntheticRun(problems=400))
    for number in range(8):
        synthetic.add("pick", {"boost": number}, shift={"math": -0.3, "code": -0.3})
    run = run_of(synthetic, tmp_path)
    found = {width: printed(run, width).count("guard subtask_drop") for width in (80, None)}
    assert found[80] == 3 < found[None] and "more like these" in printed(run, 80)


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_tables_of_repeats_and_of_dev_have_a_line_a_row(width: int) -> None:
    label = "ban_pick lambda=0.5 key_experts=16 boost=0.25"
    for head, row in (
        (HEAD, [label, "3", "70.1", "0.12", "70.0 to 70.3", "1.2", "0.94"]),
        (["group", "candidate", "accuracy on dev %", "vs stock, points", ""], ["own", label, "70.3", "+1.2", "chosen"]),
    ):
        out = io.StringIO()
        Console(file=out, width=width).print(
            fitted_table("The title of it, which may be longer", head, [row] * 3, width)
        )
        lines = out.getvalue().splitlines()
        told = [line for line in lines if line.rstrip().endswith(lines[-1].rstrip()[-6:])]
        assert len(told) == 3 and "ban_p" in told[0] and max(map(len, lines)) <= width
        assert (label in told[0]) == (width >= (120 if "chosen" not in row else 80))
        assert ("chosen" in told[0]) == (row[-1] == "chosen" and width >= 60)
