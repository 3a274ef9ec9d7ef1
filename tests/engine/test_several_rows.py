"""A sweep of rules of several rows on a real engine: samples of dynamic_experts were routed by their own k, requests of
scmoe by both rows, and records read back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from running_sweep import running

from banpick_exp.errors import UserError
from banpick_exp.records import OVERALL
from banpick_exp.report.export.built import built
from banpick_exp.report.run import Run, read_run

pytestmark = pytest.mark.engine

KS, SAMPLES, PROBLEMS = (1, 8, 11), 4, 12
"""Below, at and above the embedded model's top_k; the largest answers first, and the fourth sample again."""
CONTRASTS = [f"scmoe beta={beta} alpha=0 weak_rank=2" for beta in (0, 3)]
TYPED = (
    'sweep.params=["policy=dynamic_experts","policy.ks=[1,8,11]"]',
    'sweep.blocks=[["policy=scmoe","policy.alpha=0","policy.beta=choice(0,3)"]]',
    'sweep.reference=[["policy=fixed_k","policy.k=choice(1,11)"]]',
    f"task.samples={SAMPLES}", "task.temperature=1.5", "task.choose=majority", f"task.max_problems={PROBLEMS}",
    "task.domains=[math]", "task.speed_seconds=1", "engine.parity_check=false", "cluster=inline", "search.ladder=none",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    with running(tmp_path_factory.mktemp("several"), *TYPED) as sweep:
        assert sweep.ends() == 0, sweep.output
        yield read_run(sweep.run)


def outcomes(run: Run, policy: str, sample: int) -> pl.DataFrame:
    (record,) = [each for each in run.records if each.label == policy]
    return run.outcomes[record.fingerprint].filter(sample=sample).sort("problem_id")


def test_every_record_reads_back_and_none_is_invalid(run: Run) -> None:
    assert not run.left_out and {record.label for record in run.records if record.status == "done"} == {
        "none", "fixed_k k=1", "fixed_k k=11", "dynamic_experts ks=1,8,11", *CONTRASTS,
    }  # fmt: skip
    for record in run.records:
        frame = run.outcomes[record.fingerprint]
        assert frame.height == SAMPLES * PROBLEMS and frame["chosen"].sum() == PROBLEMS
        assert record.measured.overall.n_problems == PROBLEMS and record.task.choose == "majority"
        timed = record.measured.overall.speedup is not None
        assert timed == (record.policy_name not in ("dynamic_experts", "scmoe")), (
            "of several rows in a batch there is no speed"
        )
    row = run.verdicts.filter(policy="dynamic_experts", domain=OVERALL).row(0, named=True)
    assert row["n_pairs"] == PROBLEMS


def test_each_row_kept_its_own_k_to_the_token(run: Run) -> None:
    by_label = {record.label: record for record in run.records}
    for k in (1, 11):
        counters = by_label[f"fixed_k k={k}"].engagement.counters["math"]
        assert counters.kept == [k * tokens for tokens in counters.tokens]
    evidence = by_label["dynamic_experts ks=1,8,11"].engagement
    assert evidence.measured_by_row == {"math": KS[::-1]}
    counters, implied = evidence.counters["math"], evidence.implied["math"]
    assert [sum(used) for used in counters.usage] == counters.kept
    assert implied[0] == implied[1] == pytest.approx(counters.mean_kept)
    # Three rows, of which the first has two samples: 7.75 where all are as long.
    assert 6 < counters.mean_kept < 9
    of_one = [by_label[name].engagement.counters["math"].tokens[0] for name in ("fixed_k k=1", "fixed_k k=11")]
    assert min(of_one) / 2 < counters.tokens[0] < 2 * max(of_one)


@pytest.mark.parametrize(
    ("sample", "alone"), [(0, "fixed_k k=11"), (1, "none"), (2, "fixed_k k=1"), (3, "fixed_k k=11")]
)
def test_each_sample_is_what_its_k_alone_answers(run: Run, sample: int, alone: str) -> None:
    """The seeds are the same for every policy, so the same k draws the same text."""
    ours, theirs = outcomes(run, "dynamic_experts ks=1,8,11", sample), outcomes(run, alone, sample)
    assert ours["problem_id"].equals(theirs["problem_id"])
    # In another batch a logit's last bit may differ, and with it a draw that stood on it.
    assert (ours["completion"] == theirs["completion"]).sum() >= PROBLEMS - 1
    # Beyond top_k hardly an answer changes; with one expert most do.
    for other in ("none", "fixed_k k=11") if alone == "fixed_k k=1" else ("fixed_k k=1",):
        assert (ours["completion"] == outcomes(run, other, sample)["completion"]).sum() < PROBLEMS - 1


def test_a_contrast_costs_both_its_rows(run: Run) -> None:
    by_label = {record.label: record for record in run.records}
    stock = by_label["none"].engagement.counters["math"]
    for label in CONTRASTS:
        evidence = by_label[label].engagement
        assert evidence.measured_by_row == {"math": (8, 1)} and evidence.implied == {"math": (9, 9)}
        assert by_label[label].measured.overall.mean_kept == 9
    none = by_label[CONTRASTS[0]].engagement.counters["math"]
    assert none.tokens[0] >= stock.tokens[0], "the same answers; prompts are read for every sample"


@pytest.mark.parametrize("sample", range(SAMPLES))
def test_a_contrast_at_beta_0_is_stock(run: Run, sample: int) -> None:
    """Where no token is dropped, which would not be drawn then."""
    stock, none, far = (outcomes(run, label, sample) for label in ("none", *CONTRASTS))
    assert (none["completion"] == stock["completion"]).sum() >= PROBLEMS - 1
    assert (far["completion"] != stock["completion"]).sum() >= 2


def test_it_is_not_exported(run: Run, tmp_path: Path) -> None:
    (record,) = [each for each in run.records if each.policy_name == "dynamic_experts"]
    with pytest.raises(UserError, match=r"is a policy of several rows.*export it, e.g. policy=fixed_k policy.k=11\."):
        built(record, run.folder, None)
    (above,) = [each for each in run.records if each.label == "fixed_k k=11"]
    assert built(above, run.folder, None).policies["math"].max_kept == 11
