"""A pruned checkpoint that names its base is told with it: one front, the base's stock and ladder as its rivals."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from rich.console import Console
from synthetic_run import SyntheticRun, ladder

from banpick_exp.analysis import difference_at_n, guards, pareto_front, verdicts
from banpick_exp.records import PointRecord
from banpick_exp.report.figures.styles import family_styles
from banpick_exp.report.maps import maps_of
from banpick_exp.report.page.page import page_html
from banpick_exp.report.run import Run, read_run
from banpick_exp.report.terminal import print_pareto
from banpick_exp.run_folder import RunFolder

BASE = {"identity": "base0", "num_experts": 32, "expert_bytes": 0.75}
WORSE, BETTER = dict.fromkeys(("math", "code", "knowledge"), -0.1), dict.fromkeys(("math", "code", "knowledge"), 0.1)


def put(run: SyntheticRun, record: PointRecord, *, declared: bool) -> None:
    """Its checkpoint has fewer experts, and says what it was made from where that is declared."""
    model: dict[str, Any] = {"identity": "pruned0", "num_experts": 24}
    made = {"made_from": "/models/base", "base": BASE} if declared else {}
    run.change(record, label=f"{record.label} on pruned", model=model | made)


def pruned_beside(*, shift: dict[str, float], declared: bool = True) -> SyntheticRun:
    """A base with its ladder; a pruned checkpoint with stock of its own, a rung, and a Ban."""
    run = ladder(SyntheticRun(problems=200), ks=(6, 4))
    for record in list(run.records):
        run.change(record, model={"name": "base", "identity": "base0", "num_experts": 32})
    for policy, knobs, kept, speed in (("none", {}, 8, 1.0), ("fixed_k", {"k": 4}, 4, 1.5), ("ban", {"x": 1}, 5, 1.3)):
        point = run.add(policy, knobs, kept=kept, churn=0.03, shift=shift, speedup=speed, model="pruned")
        put(run, point, declared=declared)
    return run


def read(run: SyntheticRun, folder: Path) -> Run:
    return read_run(RunFolder(run.write(folder / "sweep" / "run")))


def row_of(run: Run, series: str) -> dict[str, Any]:
    return run.done_rows().filter(pl.col("policy") == series).row(0, named=True)


def test_its_points_are_held_against_the_base_at_equal_budget() -> None:
    run = pruned_beside(shift=WORSE)
    found = verdicts(run.records, run.outcomes, against=("fixed_k", "stock")).filter(pl.col("domain") == "overall")
    said = {(row["policy"], row["against"]): (row["reference_label"], row["verdict"]) for row in found.to_dicts()}
    assert said == {
        ("none on pruned", "fixed_k"): ("none", "loses"),
        ("none on pruned", "stock"): ("none", "loses"),
        ("fixed_k on pruned", "fixed_k"): ("fixed_k k=4", "loses"),
        ("fixed_k on pruned", "stock"): ("none", "loses"),
        ("ban on pruned", "fixed_k"): ("fixed_k k=6", "loses"),
        ("ban on pruned", "stock"): ("none", "loses"),
        ("fixed_k", "stock"): said["fixed_k", "stock"],
    }


def test_without_a_declared_base_each_has_its_own_stock_and_front(tmp_path: Path) -> None:
    run = read(pruned_beside(shift=WORSE, declared=False), tmp_path)
    assert run.mixed_setups is not None and "model (base0, pruned0)" in run.mixed_setups
    assert set(run.frame["policy"]) == {"none", "fixed_k", "ban"}
    (verdict,) = run.verdicts.filter(pl.col("domain") == "overall").to_dicts()
    assert (verdict["policy"], verdict["reference_label"]) == ("ban", "fixed_k k=4 on pruned")
    assert run.frame["own_speedup"].is_null().all() and not run.frame["speedup"].is_null().any()


def test_one_front_takes_all_in_accuracy_and_experts_kept(tmp_path: Path) -> None:
    """The base's k=4 is fast over its own stock, and off all the same: no clock compared it with the pruned one."""
    run = read(pruned_beside(shift=BETTER), tmp_path)
    assert run.mixed_setups is None
    front = {row["label"]: row["on_front"] for row in run.done_rows().to_dicts()}
    assert front["fixed_k k=4 on pruned"] and not front["fixed_k k=4"] and not front["none"]
    worse = read(pruned_beside(shift=WORSE), tmp_path / "worse")
    front = {row["label"]: row["on_front"] for row in worse.done_rows().to_dicts()}
    assert front["none"] and front["fixed_k k=4"]
    assert not any(stands for label, stands in front.items() if "pruned" in label)


@pytest.mark.parametrize(("own", "on_front"), [(2.0, True), (1.0, False)])
def test_speed_counts_between_two_points_of_one_checkpoint_alone(own: float, on_front: bool) -> None:
    """Of one checkpoint the faster of two points is on, the slower and worse off; the base's own speed is no rival."""
    rows = [
        {"policy": "none", "model": "base", "accuracy": 0.5, "mean_kept": 8.0, "speedup": 9.0, "own_speedup": None},
        {"policy": "a on p", "model": "p", "accuracy": 0.9, "mean_kept": 6.0, "speedup": None, "own_speedup": 1.5},
        {"policy": "b on p", "model": "p", "accuracy": 0.8, "mean_kept": 6.0, "speedup": None, "own_speedup": own},
    ]
    front = pareto_front(pl.DataFrame(rows))["on_front"].to_list()
    assert front == [False, True, on_front]


def test_its_speed_is_no_speed_of_the_base_and_its_difference_is_to_the_base(tmp_path: Path) -> None:
    made = pruned_beside(shift=WORSE)
    run = read(made, tmp_path)
    row = row_of(run, "none on pruned")
    assert row["speedup"] is None and row["own_speedup"] == pytest.approx(1, abs=0.05)
    stock, own = (run.outcomes[row_of(run, series)["fingerprint"]] for series in ("none", "none on pruned"))
    wanted = difference_at_n(own, stock).row(0, named=True)
    assert wanted["difference"] < -0.05
    assert (row["delta"], row["delta_lo"], row["delta_hi"]) == (wanted["difference"], wanted["lo"], wanted["hi"])
    assert all(gain.axis == "mean_kept" or gain.high < 1.3 for gain in run.hypervolume), "1.3 is the pruned one's"


def test_a_base_that_is_not_there_is_no_other_reference(tmp_path: Path) -> None:
    made = pruned_beside(shift=WORSE)
    made.points = [point for point in made.points if point[0].model.base is not None]
    run = read(made, tmp_path)
    assert set(run.verdicts["verdict"]) == {"unmatched"} and run.frame["delta"].is_null().all()
    found = guards(made.records, made.outcomes).filter(pl.col("guard") == "truncation")
    assert found["detail"].str.contains("no finished stock point").all()


def test_another_task_is_a_mixed_set_up_still(tmp_path: Path) -> None:
    made = pruned_beside(shift=WORSE)
    for record in [record for record in made.records if record.model.base is not None]:
        made.change(record, task={"max_tokens": 9})
    for record in [record for record in made.records if record.model.base is None]:
        made.change(record, task={"max_tokens": 7})
    run = read(made, tmp_path)
    assert run.mixed_setups is not None and "task.max_tokens (7, 9)" in run.mixed_setups
    assert set(run.verdicts["verdict"]) == {"unmatched"}


def test_the_printed_table_says_what_is_left_and_how_it_is_compared(tmp_path: Path) -> None:
    run, file = read(pruned_beside(shift=WORSE), tmp_path), io.StringIO()
    print_pareto(run, Console(file=file, width=250))
    said = file.getvalue()
    assert "mixed_setups" not in said and "none on pruned" in said
    assert "pruned was made from another checkpoint: 24 of 32 experts a layer are left, 75% of the bytes" in said
    (line,) = [line for line in said.splitlines() if "fixed_k k=4 on pruned" in line and "│" in line]
    assert "(1.49 [1.47, 1.52])" in line and "loses fixed_k k=4" in line


def test_the_page_draws_all_of_them(tmp_path: Path) -> None:
    run = read(pruned_beside(shift=WORSE), tmp_path)
    page = page_html([run], [maps_of(run)])
    assert page.count('href="#m-none-on-pruned" class="point ink"') >= 1
    assert "24 of 32 experts a layer are left" in page


def test_a_checkpoint_has_a_marker_and_a_policy_a_colour() -> None:
    styles = family_styles(["none", "pick", "none on a", "pick on a", "pick on b"])
    assert list(styles) == ["none", "pick", "none on a", "pick on a", "pick on b"]
    assert styles["pick"][0] == styles["pick on a"][0] == styles["pick on b"][0] != styles["none on a"][0]
    assert styles["none on a"][1] == styles["pick on a"][1] != styles["pick on b"][1]
    assert len({str(style[1]) for style in styles.values()}) == 4
