"""repeats=3: what is planned, in which batches it is asked, what is paired with what, and how the spread is told."""

from __future__ import annotations

import io
import shlex
from itertools import chain, product
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from rich.console import Console
from synthetic_run import SyntheticRun, ladder

from banpick_exp.analysis import choose, guards, headline, repeat_spread, verdicts
from banpick_exp.analysis.pairing import setup
from banpick_exp.cluster.actor import describe
from banpick_exp.cluster.dispatch import _stock_fingerprints
from banpick_exp.errors import UserError
from banpick_exp.evaluation.answer import batches
from banpick_exp.evaluation.metrics import all_metrics
from banpick_exp.records import load_outcomes, load_points, write_parquet
from banpick_exp.report import load_run, print_pareto, print_repeats, repeats_summary, write_report
from banpick_exp.report.page.repeats import repeats_sentence
from banpick_exp.report.run import read_run
from banpick_exp.sweep.plan import SweepPlan, plan_sweep
from banpick_exp.sweep.rerun import rerun_command
from banpick_exp.sweep.search import strategy as spend

SWEEP = ("+sweep=ban_threshold", "policy.lambda=0.5", "policy.k_min=3")


@pytest.fixture
def plan(tmp_path: Path) -> Any:
    def planned(*arguments: str) -> SweepPlan:
        return plan_sweep([*arguments, f"output_dir={tmp_path}", "dry_run=true"])

    return planned


# ---------------------------------------------------------------- planning


def test_every_point_is_planned_once_a_repeat(plan: Any) -> None:
    once, thrice = plan(*SWEEP).points, plan(*SWEEP, "repeats=3").points
    assert len(once) == 9 and len(thrice) == 27
    assert [point.fingerprint for point in thrice[:9]] == [point.fingerprint for point in once], "what was is kept"
    assert [point.label for point in thrice[:9]] == [point.label for point in once]
    assert [point.repeat for point in thrice] == [0] * 9 + [1] * 9 + [2] * 9
    assert [point.label for point in thrice[9:18]] == [f"{point.label} repeat=1" for point in once]
    assert len({point.fingerprint for point in thrice}) == 27
    assert len({point.engine_fingerprint for point in thrice}) == 1
    assert len({point.calibration_fingerprint for point in thrice} - {None}) == 1


def test_a_repeat_is_paired_with_its_own_stock(plan: Any) -> None:
    found = plan(*SWEEP, "repeats=3", "seed=choice(0,1)")
    stock = _stock_fingerprints(found)
    assert len(stock) == 6
    by_fingerprint = {point.fingerprint: point for point in found.points}
    for point in found.points:
        paired = by_fingerprint[stock[spend.setup(point)]]
        assert (paired.rule.name, paired.repeat, paired.seed) == ("none", point.repeat, point.seed)
    setups = {setup(describe(point, "")) for point in found.points}
    assert len(setups) == 6, "the analysis pairs as the runner does"


def test_a_repeat_can_be_typed_alone_and_its_command_says_so(plan: Any) -> None:
    planned = plan(*SWEEP, "repeats=2")
    commands = {point.label: rerun_command(planned, point) for point in planned.points}
    for point in planned.points:
        command = commands[point.label]
        assert ("repeat=1" in command) == bool(point.repeat) and "repeats" not in command
        again = plan(*shlex.split(command)[3:])
        assert point.fingerprint in {other.fingerprint for other in again.points}


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["repeats=0"], "repeats=0 is below 1"),
        (["repeats=choice(1,2)"], "one value only"),
        (["repeat=-1"], "repeat=-1 is no repeat"),
        (["repeats=2", "repeat=1"], "both say which repeats to run"),
    ],
)
def test_repeats_that_mean_nothing_are_refused(plan: Any, typed: list[str], words: str) -> None:
    with pytest.raises(UserError) as caught:
        plan(*SWEEP, *typed)
    assert words in str(caught.value)


def test_a_repeat_costs_no_timed_runs(plan: Any) -> None:
    once, twice = plan(*SWEEP).estimate, plan(*SWEEP, "repeats=2").estimate
    assert once.max_generated_tokens < twice.max_generated_tokens < 2 * once.max_generated_tokens


# ---------------------------------------------------------------- asking


def test_a_repeat_asks_the_same_in_other_batches_and_order() -> None:
    assert batches(5, 1, 0, 256) == [[0, 1, 2, 3, 4]]
    assert batches(0, 1, 0, 256) == []
    for repeat, sizes in ((1, [4, 4, 2]), (2, [2] * 5), (4, [1] * 10)):
        found = batches(10, 1, repeat, 8)
        assert [len(batch) for batch in found] == sizes
        asked = list(chain.from_iterable(found))
        assert sorted(asked) == list(range(10)) and asked != list(range(10))
    assert batches(10, 1, 1, 8) == batches(10, 1, 1, 8) != batches(10, 1, 2, 8)
    assert [len(batch) for batch in batches(10, 1, 1, 256)] == [5, 5], "halved where fewer are asked than fit"
    together = list(chain.from_iterable(batches(10, 3, 1, 8)))
    assert all(together[i] // 3 == together[i + 1] // 3 for i in range(0, 30, 3)), "samples of a problem stay together"


def test_what_was_not_timed_has_no_speed() -> None:
    from test_evaluate import STOCK

    found = all_metrics({"math": STOCK}, {"math": STOCK}, {})
    assert found["overall"]["speedup"] is None and found["domains"]["math"]["speedup_spread"] is None


# ---------------------------------------------------------------- analysis and report


@pytest.fixture(scope="module")
def repeated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stock, a ladder and two Picks, three times; repeats answer 4 % of the problems anew and are not timed."""
    run_dir = tmp_path_factory.mktemp("outputs") / "pick" / "repeated"
    run = SyntheticRun(problems=60)
    for repeat in range(3):
        start = len(run.points)
        ladder(run, ks=(6, 4))
        run.add("pick", {"boost": 1}, churn=0.04)
        run.add("pick", {"boost": 2}, churn=0.04, shift={"math": 0.1})
        for record, _ in run.points[start:] if repeat else []:
            record["fingerprint"] = f"{record['fingerprint']}-{repeat}"
            record["label"] += f" repeat={repeat}"
            record["repeat"] = repeat
            for block in (record["metrics"]["overall"], *record["metrics"]["domains"].values()):
                block |= dict.fromkeys(("tokens_per_second", "speedup", "speedup_spread"))
        run.stock = run._answers(0.04, {})
    run.write(run_dir)
    write_parquet(run_dir)
    return run_dir


def read(run_dir: Path) -> tuple[list[dict[str, Any]], dict[str, pl.DataFrame]]:
    records, _ = load_points(run_dir / "points")
    return records, load_outcomes(run_dir / "points", records)


def test_repeats_are_no_further_policies(repeated: Path) -> None:
    records, outcomes = read(repeated)
    first = [record for record in records if not record.get("repeat")]
    assert len(records) == 15 and len(first) == 5
    found, alone = verdicts(records, outcomes), verdicts(first, outcomes)
    assert found.equals(alone) and headline(found) == headline(alone)
    frame, _ = load_run(repeated)
    assert set(frame["repeat"]) == {0} and set(frame.filter(on_front=True)["repeat"]) == {0}


def test_a_repeat_is_compared_with_its_own_stock_only(repeated: Path) -> None:
    """Each repeat's stock moved too: paired with the first one's, the repeats of stock itself would differ."""
    records, outcomes = read(repeated)
    again = [record for record in records if record.get("repeat") == 1]
    found = verdicts(again, outcomes, against=("stock",)).filter(domain="overall")
    assert set(found["reference_fingerprint"]) == {r["fingerprint"] for r in again if r["policy"]["name"] == "none"}
    assert guards(records, outcomes).filter(guard="engaged").height >= len(records)


def test_choosing_sees_each_policy_once(repeated: Path) -> None:
    records, outcomes = read(repeated)
    dev = [record | {"task": record["task"] | {"split": "dev"}} for record in records]
    (chosen,) = choose(dev, outcomes)
    assert chosen.candidates == 2 and "repeat" not in chosen.label


def test_the_spread_is_shown_everywhere(repeated: Path) -> None:
    records, outcomes = read(repeated)
    spread = repeat_spread(records, outcomes)
    overall = spread.filter(domain="overall")
    assert overall.height == 5 and set(overall["repeats"]) == {3} and (overall["accuracy_sd"] > 0).all()
    assert not any("repeat" in label for label in overall["label"])
    file = io.StringIO()
    print_pareto(repeated, Console(file=file))
    print_repeats(spread, Console(file=file))
    printed = file.getvalue()
    assert printed.count("pick boost=1 ") >= 1 and "repeat=1" not in printed
    assert "Repeats: 5 points ran 3 times" in printed and "sampling error" in printed
    summary = repeats_summary(spread)
    assert summary["repeat/points"] == 5 and summary["repeat/accuracy_sd_max"] == overall["accuracy_sd"].max()
    assert 0 < summary["repeat/unstable_median"] < 1
    write_report(repeated)
    page = (repeated / "report.html").read_text()
    assert "Repeats: 5 points ran 3 times" in page and "repeat=0; repeat=1; repeat=2" in page
    assert len(read_run(repeated).done) == 5


def test_a_problem_is_stable_where_as_many_of_its_samples_are_right(repeated: Path) -> None:
    """Three answers a problem, one of them right in each repeat, but not the same one; then one repeat has two."""
    records, _ = read(repeated)
    points = [record for record in records if record["policy"]["name"] == "none"]

    def answers(right: int, more: int = 0) -> pl.DataFrame:
        samples = product(("math", "code", "knowledge"), range(10), range(3))
        rows = [(domain, f"p{i}", n, n == right or (n == 2 and i < more)) for domain, i, n in samples]
        return pl.DataFrame(rows, schema=["domain", "problem_id", "sample", "correct"], orient="row")

    def spread(*frames: pl.DataFrame) -> pl.DataFrame:
        outcomes = dict(zip([point["fingerprint"] for point in points], frames, strict=True))
        return repeat_spread(points, outcomes).filter(domain="overall")

    still = spread(answers(0), answers(1), answers(0))
    assert still["unstable"].to_list() == [0.0] and "every problem scored alike" in repeats_sentence(still)
    assert spread(answers(0), answers(1), answers(0, more=4))["unstable"].to_list() == [0.4]


def test_without_repeats_nothing_is_said(tmp_path: Path) -> None:
    run = ladder(SyntheticRun(problems=20), ks=(4,))
    spread = repeat_spread([record for record, _ in run.points])
    file = io.StringIO()
    print_repeats(spread, Console(file=file))
    assert file.getvalue() == "" and repeats_summary(spread) == {}
