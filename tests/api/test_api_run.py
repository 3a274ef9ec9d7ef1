"""`bp.Run`: a run in a notebook tells the very numbers that its report prints."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from matplotlib.text import Text
from polars.testing import assert_frame_equal
from rich.console import Console
from synthetic_run import SyntheticRun, ladder, pick_strength

import banpick_exp as bp
from banpick_exp.report.files import write_tables
from banpick_exp.report.run import Run as ReportedRun
from banpick_exp.report.run import read_run
from banpick_exp.report.terminal import print_pareto, print_verdict
from banpick_exp.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "vllm", "ray", "polars", "matplotlib", "rich", "pydantic")


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> ReportedRun:
    synthetic = pick_strength(ladder(SyntheticRun(problems=300)), gain=0.12)
    synthetic.add("pick", {"boost": 8, "mode": "boost"}, status="failed", reason="the engine stopped")
    folder = RunFolder(synthetic.write(tmp_path_factory.mktemp("outputs") / "pick_strength" / "first"))
    run = read_run(folder)
    write_tables(run)
    return run


@pytest.fixture
def run(reported: ReportedRun) -> bp.Run:
    return bp.Run(reported.folder.path)


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = f"import sys, banpick_exp; print([name for name in {HEAVY} if name in sys.modules], dir(banpick_exp))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment)
    assert done.stdout.startswith("[] ") and all(f"'{name}'" in done.stdout for name in bp.__all__), done.stderr


def test_points_are_those_of_the_table_with_knobs_as_a_struct(run: bp.Run, reported: ReportedRun) -> None:
    table = pl.read_parquet(reported.folder.table_path("points"))
    assert_frame_equal(run.points.drop("knobs"), table.drop("knobs"))
    columns = run.points.unnest("knobs")
    assert columns.schema["boost"] == pl.Float64 and columns.schema["key_experts"] == pl.Int64
    assert columns.schema["mode"] == pl.String and columns.schema["k"] == pl.Int64
    for knobs, policy, label in columns.select(
        pl.struct("boost", "key_experts", "mode"), "policy", "label"
    ).iter_rows():
        told = {name: value for name, value in knobs.items() if value is not None}
        assert (policy == "pick") == bool(told)
        assert all(f"{name}={value:g}" in label for name, value in told.items() if name != "mode")


def test_a_run_without_knobs_has_a_struct_too(tmp_path: Path) -> None:
    synthetic = SyntheticRun(problems=20)
    synthetic.add("none")
    assert bp.Run(synthetic.write(tmp_path)).points.unnest("knobs")["none"].is_null().all()


def test_the_front_and_the_verdicts_are_those_that_are_printed(run: bp.Run, reported: ReportedRun) -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=300)
    print_pareto(reported, console)
    print_verdict(reported, console)
    printed = stream.getvalue()
    front = run.front()
    assert 0 < front.height < run.points.filter(pl.col("domain") == "overall").height
    for row in front.iter_rows(named=True):
        sign = "●" if row["sure"] else "○"
        (line,) = [line for line in printed.splitlines() if f"│ {row['label']} " in line and sign in line]
        assert f"{100 * row['accuracy']:.1f} [{100 * row['accuracy_lo']:.1f}, {100 * row['accuracy_hi']:.1f}]" in line
    assert printed.count("●") + printed.count("○") == front.height + 2, "two in the legend"
    assert_frame_equal(run.verdicts(), pl.read_parquet(reported.folder.table_path("verdicts")))
    assert run.headline == reported.folder.found().headline and run.headline.startswith("Gain: pick")  # type: ignore[union-attr]
    assert run.headline in printed
    assert_frame_equal(run.guards(), reported.raised)


def test_the_front_of_a_domain(run: bp.Run) -> None:
    assert set(run.front("math")["domain"]) == {"math"}
    with pytest.raises(bp.UserError, match="overall, math, code, knowledge"):
        run.front("maths")


def test_flips_are_the_wins_and_losses_of_the_verdict(run: bp.Run, reported: ReportedRun) -> None:
    verdicts = run.verdicts().filter(domain="overall")
    assert verdicts["wins"].max() and verdicts["losses"].max()
    for row in verdicts.iter_rows(named=True):
        found = run.flips(row["fingerprint"], row["reference_fingerprint"])
        assert found.filter(solved_by="a").height == row["wins"] and found.filter(solved_by="b").height == row["losses"]
    label = verdicts.sort("wins")["label"][-1]
    first = run.flips(label).row(0, named=True)
    answers = {
        name: outcomes.filter(domain=first["domain"], problem_id=first["problem_id"]).row(0, named=True)
        for name, outcomes in reported.outcomes.items()
    }
    ours, stock = (
        answers[next(r.fingerprint for r in reported.records if r.label == name)] for name in (label, "none")
    )
    assert (ours["correct"], stock["correct"]) == (True, False) and first["solved_by"] == "a"
    assert (first["completion_a"], first["completion_b"]) == (ours["completion"], stock["completion"])


def test_flips_say_which_points_there_are(run: bp.Run) -> None:
    label = "pick boost=1 key_experts=2"
    assert run.flips(label, "stock").equals(run.flips(label, "none")), "figures and the terminal say stock"
    with pytest.raises(bp.UserError, match=r"Did you mean pick boost=1 key_experts=2\?"):
        run.flips("pick boost=1 key_expert=2")
    with pytest.raises(bp.UserError, match="the engine stopped"):
        run.flips("pick boost=8 mode=boost")


def test_a_notebook_shows_the_verdict_and_a_small_table(run: bp.Run) -> None:
    html = run._repr_html_()
    assert run.headline.split(" [")[0] in html and html.count("<tr>") == 1 + 8 and "the foremost 8 shown" in html
    console = Console(file=io.StringIO(), width=200)
    console.print(run)
    assert run.headline in console.file.getvalue() and "fixed_k k=" in console.file.getvalue()  # type: ignore[attr-defined]
    assert repr(run) == f"<Run pick_strength/first: {run.headline}>"


def test_the_figure_is_that_of_the_report(run: bp.Run) -> None:
    figure = run.plot()
    said = {text.get_text() for text in figure.findobj(Text)} | {figure.get_suptitle()}
    assert {"boost", "key_experts"} <= said and any("at equal budget" in each for each in said)
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_a_folder_that_is_no_run_is_refused_at_once(tmp_path: Path, run: bp.Run) -> None:
    with pytest.raises(bp.UserError, match="so it is no run"):
        bp.Run(tmp_path)
    failed = SyntheticRun(problems=20)
    failed.add("none", status="failed", reason="no memory")
    alone = bp.Run(failed.write(tmp_path / "failed"))
    assert alone.points["reason"].to_list() == ["no memory"] and alone.front().height == 0
    with pytest.raises(bp.UserError, match="nothing to draw"):
        alone.plot()


def test_a_policy_is_one_line() -> None:
    from banpick_exp.policy import build_policy

    policy = build_policy("fixed_k", {"k": 4}, num_layers=4, num_experts=32, top_k=8)
    assert repr(policy) == "<Policy fixed_k k=4: 4 layers, 32 experts, top 8, keeps at most 4>"


def test_the_room_of_sweeps_is_still_a_room() -> None:
    import banpick_exp.sweep.plan as plan
    from banpick_exp.sweep.plan import plan_sweep

    assert plan.plan_sweep is plan_sweep and bp.sweep.plan is plan  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("+sweep=pick_strength", "takes a list"),
        (["polcy=none"], "polcy"),
        (["policy=none", "task=tiny", "dry_run=true"], "no run to return"),
    ],
)
def test_a_sweep_that_cannot_work_is_refused_before_anything_starts(
    words: list[str], said: str, tmp_path: Path
) -> None:
    typed = words if isinstance(words, str) else [*words, f"output_dir={tmp_path}"]
    with pytest.raises(bp.UserError, match=said):
        bp.sweep(typed)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.engine
@pytest.mark.slow
def test_a_sweep_is_run_and_returned(tmp_path: Path) -> None:
    words = ["policy=fixed_k", "policy.k=choice(4,2)", "task=tiny", "task.max_problems=4", "cluster=inline"]
    found = bp.sweep([*words, "tracking=none", f"output_dir={tmp_path}"])
    done = found.points.filter(domain="overall", status="done")
    assert {"none", "fixed_k k=4", "fixed_k k=2"} <= set(done["label"])
    assert [run.name for run in bp.runs(tmp_path)] == [found.name]
