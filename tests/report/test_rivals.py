"""A policy without a fixed_k point at its budget: which k would be one, and what to type for it."""

from __future__ import annotations

import io
import shlex
from pathlib import Path

from rich.console import Console
from synthetic_run import SyntheticRun, ladder

from banpick_exp.manifest import Manifest
from banpick_exp.report.rivals import missing_rungs, rivals_command
from banpick_exp.report.run import Run, read_run
from banpick_exp.report.sentences import sentences
from banpick_exp.report.terminal import print_pareto
from banpick_exp.run_folder import RunFolder
from banpick_exp.sweep.plan import plan_sweep

TYPED = "python -m banpick_exp policy=naee 'policy.beta=choice(0.1,0.2)' policy.k_min=1 task.max_problems=20"


def written(synthetic: SyntheticRun, folder: Path, command: str = TYPED) -> Run:
    RunFolder(synthetic.write(folder)).write_manifest(Manifest(command=command))
    return read_run(RunFolder(folder))


def coarse() -> SyntheticRun:
    """Rungs 8, 6 and 4, and policies between them."""
    synthetic = ladder(SyntheticRun(problems=60), ks=(6, 4))
    for beta, kept in ((0.1, 5.384), (0.2, 4.6), (0.21, 4.66), (0.3, 4.2), (0.4, 7.21)):
        synthetic.add("naee", {"beta": beta}, kept=kept)
    return synthetic


def test_the_command_brings_the_rungs_that_are_missing(tmp_path: Path) -> None:
    run = written(coarse(), tmp_path / "run")
    assert missing_rungs(run) == [4.6, 5.38, 7], "4.2 is near 4, 4.66 near 4.6, and 7.21 near 7"
    typed = rivals_command(run)
    assert typed.endswith("""'sweep.reference=[["policy=fixed_k","policy.k=choice(4,4.6,5.38,6,7)"]]'""")
    places = [f"output_dir={tmp_path}", "dry_run=true"]
    labels = [point.label for point in plan_sweep([*shlex.split(typed)[3:], *places]).points]
    assert labels[:6] == ["none", *(f"fixed_k k={k}" for k in ("4", "4.6", "5.38", "6", "7"))]
    assert [label.split()[0] for label in labels[6:]] == ["naee", "naee"]

    stream = io.StringIO()
    print_pareto(run, Console(file=stream))
    assert f"rivals that keep as many: {typed}" in stream.getvalue()
    assert any(line.endswith(f"For rivals that keep as many, type: {typed}") for line in sentences(run))


def test_with_them_every_policy_is_compared_at_equal_budget(tmp_path: Path) -> None:
    synthetic = coarse()
    for k in (4.6, 5.38, 7):
        synthetic.add("fixed_k", {"k": k}, kept=k + 0.004 * (k % 1 > 0))
    run = written(synthetic, tmp_path / "run")
    rivals = {(row["label"], row["reference_label"]) for row in run.verdicts.iter_rows(named=True)}
    assert rivals == {
        ("naee beta=0.1", "fixed_k k=5.38"), ("naee beta=0.2", "fixed_k k=4.6"), ("naee beta=0.21", "fixed_k k=4.6"),
        ("naee beta=0.3", "fixed_k k=4"), ("naee beta=0.4", "fixed_k k=7"),
    }  # fmt: skip
    assert max(map(abs, run.verdicts["budget_gap"].to_list())) < 0.25 and rivals_command(run) == ""
    assert not any("Without a fixed_k point" in line for line in sentences(run))
    guards = run.guards.filter((run.guards["guard"] == "engaged") & (run.guards["level"] != "ok"))
    assert guards["label"].to_list() == [], "they lie between their neighbours"


def test_what_a_run_typed_itself_is_replaced(tmp_path: Path) -> None:
    run = written(coarse(), tmp_path / "run", f'{TYPED} \'sweep.reference=[["policy=fixed_k","policy.k=4"]]\' resume=x')
    typed = shlex.split(rivals_command(run))
    assert sum(word.startswith("sweep.reference=") for word in typed) == 1 and "resume=x" not in typed


def test_no_rung_above_the_checkpoints_own(tmp_path: Path) -> None:
    synthetic = ladder(SyntheticRun(problems=20), ks=(4,))
    adding = synthetic.add("pick", {"mode": "force_add"}, kept=8.9)
    for record in [*synthetic.records]:
        synthetic.change(record, model={"top_k": 8})
    run = written(synthetic, tmp_path / "run")
    assert adding.label in run.verdicts["label"] and missing_rungs(run) == [] and rivals_command(run) == ""
