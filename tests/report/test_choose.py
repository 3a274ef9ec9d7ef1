"""`python -m banpick_exp choose`: what is typed, what is printed, and what is refused."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from synthetic_run import SyntheticRun, ladder

from banpick_exp.analysis import choose
from banpick_exp.cluster.plan import plan_run
from banpick_exp.errors import UserError
from banpick_exp.records import PointRecord
from banpick_exp.report.choose import help_page, run, test_command
from banpick_exp.report.run import require_run
from banpick_exp.sweep.plan import plan_sweep

test_command.__test__ = False  # type: ignore[attr-defined]
BOOSTS, LAMBDAS = (1, 2, 3), (0.5, 0.6)


def write(folder: Path, split: str, seed: int, boosts: tuple[int, ...] = BOOSTS, lambdas: Any = LAMBDAS) -> str:
    """A sweep of Pick and Ban: boost 2 is best on dev, and what dev finds is mostly noise."""
    synthetic = SyntheticRun(seed, problems=150)
    added = synthetic.add

    def add(*args: Any, **kwargs: Any) -> PointRecord:
        record = added(*args, split=split, **kwargs)
        command = f"{record.command} task.split={split} tracking=none"
        return synthetic.change(record, task={"identity": f"data of {split}"}, command=command)

    synthetic.add = add  # type: ignore[method-assign]
    ladder(synthetic, ks=(7, 6, 5, 4))
    for boost in boosts:
        synthetic.add("pick", {"mode": "boost", "boost": boost, "key_experts": 4}, churn=0.1,
                      shift={"math": 0.1} if boost == 2 and split == "dev" else None)  # fmt: skip
    for each in lambdas:
        synthetic.add("ban", {"lambda": each, "k_min": 3}, kept=5.1 if each == 0.5 else 4.1, churn=0.1)
    return str(synthetic.write(folder / split))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("outputs")
    return write(folder, "dev", 0), write(folder, "test", 1, boosts=(2,), lambdas=())


def test_dev_chooses_and_the_printed_command_runs_it_on_test(
    runs: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([runs[0]]) == 0
    out = capsys.readouterr().out
    assert re.search(r"any\s*│ pick mode=boost boost=2 key_experts=4 .*│\s+5 │", out), "the best of five"
    line = next(line.strip() for line in out.splitlines() if "task.split=test" in line)
    assert f"banpick_exp choose {runs[0]} TEST_RUN" in out
    plan = plan_run([*shlex.split(line)[3:], "dry_run=true", f"output_dir={tmp_path}"])
    planned = plan.sweep
    labels = [point.label for point in planned.points]
    assert labels == ["none", *(f"fixed_k k={k}" for k in range(1, 8)), "pick boost=2 key_experts=4"]
    assert {point.task.split for point in planned.points} == {"test"}
    assert planned.sweep_name == "chosen" and plan.tracking.name == "none"


def test_the_command_runs_all_that_were_chosen(runs: tuple[str, str], tmp_path: Path) -> None:
    dev = require_run(runs[0])
    chosen = choose(dev.records, dev.outcomes, per_policy=True)
    words = shlex.split(test_command(chosen))[3:]
    labels = [point.label for point in plan_sweep([*words, "dry_run=true", f"output_dir={tmp_path}"]).points]
    assert len(labels) == 10 and labels[8].startswith("ban lambda=") and labels[9] == "pick boost=2 key_experts=4"


def test_test_is_reported_beside_what_dev_promised(runs: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*runs]) == 0
    out = capsys.readouterr().out
    dev = require_run(runs[0])
    (chosen,) = choose(dev.records, dev.outcomes)
    assert chosen.dev_difference is not None and chosen.dev_difference > 0.02
    assert f"dev had promised {100 * chosen.dev_difference:+.1f}, test gives " in out
    assert "points against stock: it ties" in out and "It was the best of 5 on dev." in out
    assert re.search(r"│ overall\s+│ stock\s+│", out) and re.search(r"│ math\s+│ stock\s+│", out)


def test_budgets_and_rules_choose_each_their_own(runs: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([runs[0], "--budget", "4", "--budget=5", "--score", "difference"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"4 │ ban lambda=0.6 k_min=3", out) and re.search(r"5 │ ban lambda=0.5 k_min=3", out)
    assert "TEST_RUN --budget 4 --budget=5 --score difference" in out, "what to type again"
    assert run([runs[0], "--per-policy"]) == 0
    out = capsys.readouterr().out
    assert "pick mode=boost boost=2" in out and "ban lambda=" in out


def test_bad_input_ends_in_words(runs: tuple[str, str], tmp_path: Path) -> None:
    more = write(tmp_path, "test", 1, boosts=(2, 3), lambdas=())
    for typed, words in (
        ([], "required: DEV_RUN"),
        (["nowhere"], "is no folder"),
        ([runs[1]], "task.split=test, not dev"),
        ([runs[0], runs[0]], "not test"),
        ([runs[0], more], "was not chosen on dev"),
        ([*runs, "--per-policy"], "ban lambda=.* was chosen on dev but did not finish on test"),
        ([runs[0], "--budget", "2"], "no dev point was measured within 0.25"),
        ([runs[0], "--budget", "x"], "'x' is no budget"),
        (["nowhere", "--budget", "nan"], "'nan' is no budget, which is a number of experts a token"),
        (["nowhere", "--budget=-4"], "'-4' is no budget"),
        ([runs[0], "nowhere"], "nowhere is no folder"),
        ([runs[0], "--score", "speed"], "invalid choice: 'speed'"),
    ):
        with pytest.raises(UserError, match=words):
            run(typed)


def test_a_wrong_test_run_is_refused_before_anything_is_shown(
    runs: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    for wrong in ("nowhere", runs[0]):
        with pytest.raises(UserError):
            run([runs[0], wrong])
    assert capsys.readouterr().out == ""


def test_a_dev_run_without_a_candidate_is_told_what_to_add(tmp_path: Path) -> None:
    bare = write(tmp_path, "dev", 0, boosts=(), lambdas=())
    with pytest.raises(UserError, match=r"holds only stock and fixed_k.*nothing to choose") as caught:
        run([bare])
    typed = shlex.split(str(caught.value).rpartition("e.g. ")[2])[3:]
    points = plan_sweep([*typed, "dry_run=true", f"output_dir={tmp_path}"]).points
    assert {point.task.split for point in points} == {"dev"} and any(point.rule.name == "ban" for point in points)


def test_a_dev_run_whose_candidates_failed_is_to_be_finished(tmp_path: Path) -> None:
    synthetic = SyntheticRun(problems=20)
    for policy, status in (("none", "done"), ("ban", "failed")):
        synthetic.add(policy, split="dev", status=status, reason="no memory" if status == "failed" else None)
    folder = synthetic.write(tmp_path / "sweep" / "dev")
    with pytest.raises(UserError, match=r"1 policy point\(s\) and none is done.*no memory.*resume="):
        run([str(folder)])


def test_candidates_that_were_asked_differently_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    synthetic = SyntheticRun(problems=20)
    for max_tokens in (12, 24):
        record = synthetic.add("ban", {"lambda": max_tokens / 100}, split="dev", kept=5)
        synthetic.change(record, task={"max_tokens": max_tokens})
    assert run([str(synthetic.write(tmp_path / "sweep" / "dev"))]) == 0
    assert "Read this first: mixed_setups (overall): " in capsys.readouterr().out


def test_help_is_worth_reading() -> None:
    for word in ("task.split=dev", "TEST_RUN", "--budget", "--per-policy", "Exit code"):
        assert word in help_page()


def test_blocks_can_be_typed_without_a_sweep(tmp_path: Path) -> None:
    blocks = """sweep.blocks=[["policy=fixed_k","policy.k=choice(3,5)"],["policy=naee","policy.beta=0.1"]]"""
    found = plan_sweep([blocks, "dry_run=true", f"output_dir={tmp_path}"])
    assert [point.label.split()[0] for point in found.points] == ["none", "fixed_k", "fixed_k", "naee"]
    with pytest.raises(UserError, match=r"policy=ban and sweep\.blocks both choose the policies"):
        plan_sweep([blocks, "policy=ban", "dry_run=true", f"output_dir={tmp_path}"])
