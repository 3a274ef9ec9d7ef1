"""The table says what was found, and the figures are there, legible in size, offline and complete."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from matplotlib import image
from rich.console import Console
from synthetic_run import SyntheticRun, ladder, pick_strength

from banpick_exp.analysis import points_frame
from banpick_exp.plots import family_styles, side_by_side
from banpick_exp.report import heat_map, load_run, print_pareto, write_report


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = pick_strength(ladder(SyntheticRun(problems=300)))
    run.add("pick", {"boost": 8}, status="failed", reason="the engine stopped [Errno 12] <cause>")
    run.add("fixed_k", {"k": 1}, status="invalid", reason="measured 8.00 kept where k=1 implies 1", kept=8)
    return run.write(tmp_path_factory.mktemp("outputs") / "pick_strength" / "first")


@pytest.fixture(scope="module")
def written(run_dir: Path) -> list[Path]:
    return write_report(run_dir)


def printed(source: Path | pl.DataFrame, **options: str) -> str:
    stream = io.StringIO()
    print_pareto(source, console=Console(file=stream), **options)  # type: ignore[arg-type]
    return stream.getvalue()


def test_table_tells_the_whole_run(run_dir: Path) -> None:
    text = printed(run_dir)
    frame, found = load_run(run_dir)
    overall = frame.filter((pl.col("domain") == "overall") & (pl.col("status") == "done"))
    for row in overall.iter_rows(named=True):
        (line,) = [line for line in text.splitlines() if re.search(rf"│ {re.escape(row['label'])} +│", line)]
        assert f"{100 * row['accuracy']:.1f} [{100 * row['accuracy_lo']:.1f}, {100 * row['accuracy_hi']:.1f}]" in line
        assert f"{row['speedup']:.2f} ({row['speedup_lo']:.2f}-{row['speedup_hi']:.2f})" in line
        assert ("●" in line) == row["on_front"]
        verdict = found.filter((pl.col("fingerprint") == row["fingerprint"]) & (pl.col("domain") == "overall"))
        if verdict.height:
            assert f"{verdict['verdict'].item()} none [" in line
    assert "No gain: 16 of 16 pick points tie or lose" in text
    assert "failed pick boost=8: the engine stopped [Errno 12] <cause>" in text
    assert "invalid fixed_k k=1: measured 8.00 kept where k=1 implies 1" in text
    assert not re.search(r"│ fixed_k k=1 +│", text)  # an invalid point is not a row of the front


def test_table_of_one_domain_and_of_a_bare_frame(run_dir: Path) -> None:
    assert "math, 300 problems" in printed(run_dir, domain="math")
    text = printed(load_run(run_dir)[0])
    assert "pick boost=1 key_experts=1" in text and "ties" not in text.replace("ties none", "ties")


def test_nothing_done_is_said_and_draws_nothing(tmp_path: Path) -> None:
    run = SyntheticRun(problems=3)
    run.add("none", status="failed", reason="no memory")
    run.write(tmp_path)
    assert "No point finished" in printed(tmp_path) and "failed none: no memory" in printed(tmp_path)
    assert write_report(tmp_path) == []


def test_uneven_budgets_are_starred(tmp_path: Path) -> None:
    run = ladder(SyntheticRun(problems=60))
    run.add("ban", {"lambda": 0.5}, kept=4.4)
    text = printed(run.write(tmp_path))
    assert re.search(r"ban lambda=0\.5.*\+0\.40.*\*", text) and "* not at equal budget" in text


def test_a_run_without_timings_is_drawn_all_the_same(tmp_path: Path) -> None:
    run = ladder(SyntheticRun(problems=20), ks=(4,))
    for record, _ in run.points:
        for block in [record["metrics"]["overall"], *record["metrics"]["domains"].values()]:
            block |= {"speedup": None, "speedup_spread": None, "tokens_per_second": None}
    run.write(tmp_path)
    assert [path.name for path in write_report(tmp_path)] == ["pareto.png", "pareto.html"]
    assert "fixed_k k=4" in printed(tmp_path)


def test_picture_is_print_quality(written: list[Path]) -> None:
    picture = image.imread(written[0])
    assert written[0].name == "pareto.png" and picture.shape[1] >= 3000 and picture.shape[0] >= 1400
    ink = (picture[..., :3].min(axis=2) < 0.9).mean()
    assert 0.01 < ink < 0.25  # neither blank nor black
    blue = np.abs(picture[..., :3] - np.array([0x00, 0x72, 0xB2]) / 255).max(axis=2) < 0.02
    assert blue.sum() > 5000  # pick's points are drawn


def test_page_is_self_contained_and_complete(written: list[Path], run_dir: Path) -> None:
    page = written[1].read_text()
    assert written[1].name == "pareto.html" and len(page) < 8_000_000
    body = re.sub(r"(?s)<script.*?</script>", "", page)
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=", page.split("<script")[0] + body)  # nothing fetched
    for row in load_run(run_dir)[0].filter(pl.col("status") == "done").iter_rows(named=True):
        assert f"<td>{row['label']}</td>" in body and f"<code>{row['command']}</code>" in body
    assert "run it again" in page and "python -m banpick_exp policy=pick policy.boost=1" in page
    for domain in ("overall", "math", "code", "knowledge"):
        assert f'"label":"{domain}"' in page
    assert "Errno 12" not in body


def test_families_differ_in_marker_and_in_grey() -> None:
    styles = family_styles(["none", "fixed_k", "pick", "ban", "ban_pick"])
    assert len({style[1] for style in styles.values()}) == len({style[0] for style in styles.values()}) == 5
    assert len(family_styles(["top_p", "naee", "pick"])) == 3  # families to come have styles too


def test_points_of_one_budget_stand_side_by_side() -> None:
    run = pick_strength(ladder(SyntheticRun(problems=30)))
    frame = points_frame([record for record, _ in run.points]).filter(pl.col("domain") == "overall")
    placed = side_by_side(frame)
    assert placed["x"].n_unique() == frame.height and placed["x"].max() < 8.9  # type: ignore[operator]
    reference = placed.filter(pl.col("policy").is_in(["none", "fixed_k"]))
    assert reference["x"].to_list() == reference["mean_kept"].to_list()
    others = placed.filter(pl.col("policy") == "pick").sort("x")
    assert others["accuracy"].is_sorted(descending=True) and set(others["beside"]) == {17}


def test_heat_map(tmp_path: Path) -> None:
    matrix = np.random.default_rng(0).random((4, 32)).tolist()
    matrix[1][2] = float("nan")
    path = heat_map(matrix, tmp_path / "influence.png", "Influence (math)", "KL, nats")
    picture = image.imread(path)
    assert picture.shape[1] > 1500 and np.ptp(picture[..., :3]) > 0.9
    with pytest.raises(ValueError, match="layer x expert"):
        heat_map([1.0, 2.0], tmp_path / "x.png", "", "")
    with pytest.raises(ValueError, match="finite"):
        heat_map([[float("nan")]], tmp_path / "x.png", "", "")
