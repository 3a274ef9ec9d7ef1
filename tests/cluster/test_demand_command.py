"""`demand` on a run that an engine has measured: figures of the record's own budget, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from loaded_backend import LoadedBackend
from rich.console import Console
from synthetic_run import SyntheticRun, ladder

from banpick_exp.__main__ import main
from banpick_exp.cluster import demanding
from banpick_exp.cluster.plan import plan_run
from banpick_exp.cluster.run import Run
from banpick_exp.errors import UserError
from banpick_exp.evaluation.demand.found import DemandFile
from banpick_exp.report.run import opened_run
from banpick_exp.run_folder import RunFolder

if TYPE_CHECKING:
    from banpick_exp.engine.engine import Engine
    from banpick_exp.sweep.point import Point

TYPED = [
    'sweep.blocks=[["policy=fixed_k","policy.k=choice(1,4)"],["policy=top_p","policy.p=0.6"]]',
    "search.ladder=none", "task.max_problems=40", "task.speed_seconds=0", "cluster=inline", "tracking=none",
]  # fmt: skip


@pytest.fixture(scope="module")
def measured(tiny_engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Stock, two rungs and a rule, 40 problems of each domain."""
    outputs = tmp_path_factory.mktemp("outputs")
    plan = plan_run([*TYPED, f'output_dir="{outputs}"'])
    plan.folder.write_manifest(plan.sweep.manifest())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("banpick_exp.cluster.summary.write_report", lambda run: [])
        assert Run(plan, Console(quiet=True), LoadedBackend(tiny_engine)).run() == 0
    return plan.folder


@pytest.fixture
def loaded(tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def opened(point: Point, log: Path, say: object) -> Iterator[Engine]:
        yield tiny_engine

    monkeypatch.setattr(demanding, "opened_engine", opened)


@pytest.mark.engine
@pytest.mark.usefixtures("loaded")
def test_what_a_policy_demands_beside_stock(measured: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name: path.read_bytes() for path in measured.points.iterdir()}
    line = [str(measured.path), "--problems", "30", "--batches", "1,8", "--windows", "1,4"]
    assert main(["demand", *line]) == 0
    printed = capsys.readouterr()
    found = DemandFile.model_validate_json(measured.demand_path.read_bytes())
    (group,) = found.groups
    records = {record.fingerprint: record for record in measured.read_points().records}
    assert {point.label for point in group.points} == {"fixed_k k=1", "fixed_k k=4", "top_p p=0.6 k_min=1"}
    assert records[group.stock].is_stock and group.model.top_k == 8 and group.settings.caches == (8, 16)
    for point in group.points:
        whole, record = point.overall, records[point.fingerprint]
        assert point.invalid is None and whole.problems == 90 and list(point.domains) == ["math", "code", "knowledge"]
        assert whole.all_kept.policy.value == pytest.approx(record.mean_kept, rel=0.03)
        assert whole.kept.stock.value == whole.all_kept.stock.value == 8
        one, eight = whole.steps
        assert one.sequences == 1 and one.experts.stock.value == pytest.approx(8)
        assert eight.experts.policy.value < eight.experts.stock.value < 32
        single, four = whole.windows
        assert single.experts.policy.value == pytest.approx(whole.kept.policy.value) and single.srp.stock.value == 1
        assert single.caches[0].hit_rate.stock.value == 1, "K experts hold what one token keeps"
        assert four.caches[0].misses.policy.value < four.caches[0].misses.stock.value
    by_label = {point.label: point.overall for point in group.points}
    assert by_label["fixed_k k=1"].kept.policy.value == 1
    assert by_label["fixed_k k=4"].all_kept.policy.ci95 == (4, 4)
    assert "fixed_k k=4: keeps 4.00 of 8 experts; a decode step of 8 sequences touches" in " ".join(printed.out.split())
    assert "demand.json" in printed.err and "banpick_exp report" in printed.err
    assert measured.figure_path("demand").stat().st_size > 10_000
    assert {path.name: path.read_bytes() for path in measured.points.iterdir()} == before


@pytest.mark.engine
@pytest.mark.usefixtures("loaded")
def test_named_points_as_json(measured: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    (rule,) = (each for each in measured.read_points().records if each.policy_name == "top_p")
    words = [
        "top_p p=0.6 k_min=1",
        rule.fingerprint[:6],
        "--json",
        "--problems",
        "4",
        "--batches",
        "2",
        "--caches",
        "0.5",
    ]
    assert main(["demand", str(measured.path), *words]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [point["label"] for point in told["groups"][0]["points"]] == ["top_p p=0.6 k_min=1"], (
        "named twice, measured once"
    )
    assert told["groups"][0]["settings"] == {"problems": 4, "windows": [4, 16, 64], "caches": [4], "batches": [2]}
    assert told == json.loads(measured.demand_path.read_text())


@pytest.mark.engine
@pytest.mark.usefixtures("loaded")
def test_a_budget_that_is_not_the_records_gives_no_figure(
    measured: RunFolder, tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The engine takes over another policy than it is told."""
    told = tiny_engine.set_policy
    monkeypatch.setattr(
        tiny_engine, "set_policy", lambda name, params, key="": told(name, {"k": 6} if "k" in params else params, key)
    )
    words = ["demand", str(measured.path), "fixed_k k=4", "--problems", "8", "--batches", "2"]
    assert main(words) == 1
    assert "fixed_k k=4: no result. math: the replayed answers keep 6.00" in capsys.readouterr().out


@pytest.mark.engine
def test_a_dry_run_says_what_would_be_read(measured: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    measured.demand_path.unlink(missing_ok=True)
    assert main(["demand", str(measured.path), "fixed_k k=4", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "240 answers would be read (math 40, code 40, knowledge 40 a point)" in printed
    assert "fixed_k k=4 (" in printed and "top_p" not in printed and "Nothing was started." in printed
    assert not measured.demand_path.exists()


@pytest.mark.engine
def test_what_is_another_point_now_is_refused(measured: RunFolder) -> None:
    (stock,) = (record for record in measured.read_points().records if record.is_stock)
    assert demanding.planned_again(stock).fingerprint == stock.fingerprint
    with pytest.raises(UserError, match="is another point here than the stock of the run"):
        demanding.planned_again(
            stock.model_copy(update={"command": "python -m banpick_exp policy=none task.max_problems=3"})
        )


@pytest.fixture(scope="module")
def unmeasured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = ladder(SyntheticRun(problems=20), ks=(4,))
    made.add("top_p", {"p": 0.5}, status="failed", reason="out of memory")
    return made.write(tmp_path_factory.mktemp("runs") / "ladder" / "first")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["fixed_k k=5"], "fixed_k k=5 is no point of"),
        (["none"], "none is stock, which stands beside every point"),
        (["top_p p=0.5"], "is failed (out of memory)"),
        (["--problems", "1"], "--problems=1: an interval needs two problems"),
        (["--problems", "8"], "--batches=1,8,32: a step of 32 sequences needs more problems than --problems=8"),
        (["--problems", "8"], "Type --problems 64, or smaller --batches, e.g. --batches 1."),
        (["--windows", "0,4"], "--windows=0,4: a window has 1 to 4096 tokens"),
        (["--batches", "0"], "--batches=0: a step has one sequence or more"),
        (["--batches", "x"], "'x' is no list of whole numbers such as 1,8,32: nothing was done. Type python"),
        (["--caches", "0,1"], "--caches=0,1: a cache holds more than 0 times K"),
        (["--caches", "x"], "'x' is no list of numbers such as 1,1.5,2"),
        (["--window", "4"], "Did you mean --windows?"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_says_what_to_type(
    unmeasured: Path, words: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demand", str(unmeasured), *words]) == 2
    assert reason in " ".join(capsys.readouterr().err.split())


def test_of_several_rows_is_measured_only_what_is_named(tmp_path: Path) -> None:
    """Nobody typed it, and it cannot be measured: the others are, all the same."""
    made = ladder(SyntheticRun(problems=20), ks=(4,))
    rows = {"measured_by_row": {"math": (8.0, 1.0)}}
    made.add("scmoe", {"beta": 0.5}, kept=9, shift={"math": 0.3}, engagement=rows)
    opened = opened_run(str(made.write(tmp_path / "ladder" / "first")))
    assert "scmoe" in {record.policy_name for record in opened.done}
    assert [record.label for record in demanding._foremost(opened, opened.done)] == ["fixed_k k=4"]
    alone = [record for record in opened.done if record.policy_name == "scmoe"]
    assert demanding._foremost(opened, alone) == alone, "then the refusal says why"


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demand", str(tmp_path)]) == 2
    assert "is no run" in capsys.readouterr().err
