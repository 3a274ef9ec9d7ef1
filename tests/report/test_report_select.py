"""What a run of search=select is told as: test is the result, and dev stands apart."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from synthetic_run import DOMAINS, SyntheticRun, changed, ladder

from banpick_exp.analysis import verdicts
from banpick_exp.manifest import Candidate, Manifest
from banpick_exp.report.page.verdict import verdict_html
from banpick_exp.report.run import Run, read_run
from banpick_exp.report.selected import against_stock, dev_rows, result_rows, selection_sentences
from banpick_exp.report.sentences import alarms, sentences
from banpick_exp.report.terminal import print_pareto, print_selection
from banpick_exp.run_folder import RunFolder

GAINS = {"own": {0.5: 0.1, 1.0: 0.04}, "merged": {0.5: -0.05, 1.0: -0.01}}
"""Scope -> boost -> gain in math."""


def written(folder: Path, *, gains: dict[str, dict[float, float]] = GAINS, tested: bool = True) -> Run:
    """Two scopes x two boosts on dev; what is best there on test, beside stock and a ladder."""
    test, dev = SyntheticRun(seed=1, problems=150), SyntheticRun(seed=2, problems=120)
    ladder(test, ks=(6, 4))
    dev.add("none", split="dev")
    candidates = []
    for scope, of_scope in gains.items():
        for boost, gain in of_scope.items():
            knobs = {"boost": boost, "scope": scope}
            on_dev = dev.add("pick", knobs, split="dev", churn=0.0, shift={"math": gain})
            best = max(of_scope, key=lambda each: of_scope[each])
            twin = f"{scope}-{boost}"
            if tested and boost == best and gain > 0:
                record = test.add("pick", knobs, shift={"math": gain})
                twin = record.fingerprint
            candidates.append(Candidate(group=f"scope={scope}", label=on_dev.label, dev=on_dev.fingerprint, test=twin))
    for synthetic in (test, dev):
        synthetic.write(folder)
    manifest = Manifest(search="select", candidates=tuple(candidates), command="python -m banpick_exp +sweep=pick_auto")
    RunFolder(folder).write_manifest(manifest)
    return read_run(RunFolder(folder))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return written(tmp_path_factory.mktemp("select") / "pick_auto" / "first")


def printed(run: Run) -> str:
    stream = io.StringIO()
    console = Console(file=stream, width=250)
    print_pareto(run, console)
    print_selection(run, console)
    return stream.getvalue()


def test_test_is_the_result_and_dev_stands_apart(run: Run) -> None:
    assert {record.task.split for record in run.records} == {"test"} and len(run.records) == 4
    assert {record.task.split for record in run.dev} == {"dev"} and len(run.dev) == 5
    assert set(run.frame["fingerprint"]) == {record.fingerprint for record in run.records}
    assert set(run.verdicts["fingerprint"]) <= {record.fingerprint for record in run.records}
    assert run.mixed_setups is None and alarms(run) == []
    assert "mixed_setups" not in printed(run)
    assert run.hypervolume, "a front of one set-up has an area"


def test_the_intervals_are_right_for_the_chosen_points_alone(run: Run) -> None:
    """The family is what was chosen, not the ladder beside it."""
    (pick, stock) = (next(r for r in run.done if r.policy_name == name) for name in ("pick", "none"))
    expected = verdicts([stock, pick], run.outcomes, against=("stock",))
    assert set(expected["comparisons"]) == {1, len(DOMAINS)}
    (group, cells), *others = against_stock(run).items()
    assert group == "scope=own" and others == []
    assert list(cells.values()) == expected.to_dicts()
    assert cells["overall"]["difference"] == pytest.approx(15 / 450) and cells["math"]["difference"] == 0.1


def test_the_tables(run: Run) -> None:
    head, rows = result_rows(run)
    assert head == ["", "chosen on dev", "overall", *DOMAINS]
    own, merged = rows
    assert own[:2] == ["scope=own", "pick boost=0.5 scope=own"] and own[2].startswith("▲ +3.3 [")
    assert own[3].startswith("▲ +10.0 [") and own[4].startswith("+0.0 [")
    assert merged == ["scope=merged", "stock", *["is stock"] * 4]
    head, rows = dev_rows(run)
    assert [row[-1] for row in rows] == ["chosen", "", "", ""]
    assert [row[3] for row in rows] == ["+3.3", "+1.1", "-1.7", "-0.3"], "a third of what math gains, in whole answers"


def test_the_last_sentences_say_what_dev_chose_and_what_test_says_of_it(run: Run) -> None:
    apart, own, merged = selection_sentences(run)
    assert own.startswith("scope=own: dev chose pick boost=0.5 scope=own of 2 candidates (")
    assert "; on test it beats stock, +3.3 [" in own and "; math +10.0 [" in own and ", knowledge +0.0 [" in own
    assert merged.startswith("scope=merged: dev chose stock, because none of 2 candidates is better there: the best is")
    assert "pick boost=1.0 scope=merged" in merged and "none of them was asked on test" in merged
    assert apart == "Dev holds 5 more points: their scores choose, and test alone holds the result."
    assert sentences(run)[-3:] == [apart, own, merged]
    lines = printed(run).rstrip().splitlines()
    assert lines[-3:] == [apart, own, merged]
    page = verdict_html([run], [])
    assert "What dev chose from" in page and "pick boost=0.5 scope=own" in page


def test_after_the_first_stage_it_says_how_to_go_on(tmp_path: Path) -> None:
    run = written(tmp_path / "pick_auto" / "second", tested=False)
    _, own, _ = selection_sentences(run)
    assert "it has no finished pair with stock on test. Type python -m banpick_exp +sweep=pick_auto 'resume=" in own
    assert result_rows(run)[1][0][2:] == ["not measured"] * 4


def test_stock_everywhere_is_a_result(tmp_path: Path) -> None:
    run = written(tmp_path / "pick_auto" / "third", gains={"own": {0.5: 0.0}, "merged": {0.5: -0.1}})
    assert run.headline.startswith("No verdict: on dev no candidate is better than stock")
    assert all("dev chose stock" in line for line in selection_sentences(run)[1:])
    assert "dev chose stock" in printed(run)


def test_domains_without_a_key_expert_are_named(tmp_path: Path) -> None:
    """As records of `policy.experts=auto` tell it."""
    run = written(tmp_path / "pick_auto" / "fourth")
    keys = {"math": {"2": [7]}, "code": {}, "knowledge": {}}
    dev = [changed(record, engagement={"key_experts": keys}) for record in run.dev]
    told = replace(run, dev=dev)
    _, own, merged = selection_sentences(told)
    for line in (own, merged):
        assert line.endswith("Nothing to reinforce in code, knowledge: the calibration names no expert there.")
    _, ((_, _, _, math, code, knowledge), stock) = result_rows(told)
    assert code.endswith("], no key experts") and knowledge.endswith(", no key experts") and math.endswith("]")
    assert stock[-1] == "is stock, no key experts"


def test_other_runs_have_nothing_of_it(tmp_path: Path) -> None:
    run = read_run(RunFolder(ladder(SyntheticRun(problems=30), ks=(4,)).write(tmp_path / "s" / "r")))
    assert run.picks == [] and run.dev == [] and selection_sentences(run) == []
    stream = io.StringIO()
    print_selection(run, Console(file=stream))
    assert stream.getvalue() == ""


def test_a_plain_sweep_on_dev_stays_whole(tmp_path: Path) -> None:
    synthetic = SyntheticRun(problems=30)
    synthetic.add("none", split="dev")
    run = read_run(RunFolder(synthetic.write(tmp_path / "s" / "r")))
    assert len(run.records) == 1 and run.dev == []
