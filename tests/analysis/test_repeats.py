"""repeats=3: what is paired with what, and how far scores move."""

from __future__ import annotations

from itertools import product

import polars as pl
import pytest
from synthetic_run import SyntheticRun, changed, ladder, three_times

from banpick_exp.analysis import (
    choose,
    guards,
    headline,
    pareto_front,
    points_frame,
    repeat_spread,
    verdicts,
    without_repeats,
)


@pytest.fixture(scope="module")
def repeated() -> SyntheticRun:
    return three_times()


def test_repeats_are_no_further_policies(repeated: SyntheticRun) -> None:
    first = [record for record in repeated.records if not record.repeat]
    assert len(repeated.records) == 15 and len(first) == 5 and without_repeats(repeated.records) == first
    found, alone = verdicts(repeated.records, repeated.outcomes), verdicts(first, repeated.outcomes)
    assert found.equals(alone) and headline(found) == headline(alone)


def test_repeats_stand_on_no_front(repeated: SyntheticRun) -> None:
    front = pareto_front(points_frame(repeated.records)).filter(on_front=True)
    assert front.height and set(front["repeat"]) == {0}


def test_a_repeat_is_compared_with_its_own_stock_only(repeated: SyntheticRun) -> None:
    """Each repeat's stock moved too: paired with the first one's, the repeats of stock itself would differ."""
    again = [record for record in repeated.records if record.repeat == 1]
    found = verdicts(again, repeated.outcomes, against=("stock",)).filter(domain="overall")
    assert set(found["reference_fingerprint"]) == {record.fingerprint for record in again if record.is_stock}
    looked = guards(repeated.records, repeated.outcomes)
    assert looked.filter(guard="engaged").height >= len(repeated.records)


def test_choosing_sees_each_policy_once(repeated: SyntheticRun) -> None:
    dev = [changed(record, task={"split": "dev"}) for record in repeated.records]
    (chosen,) = choose(dev, repeated.outcomes)
    assert chosen.candidates == 2 and "repeat" not in chosen.label


def test_the_spread_of_each_repeated_point(repeated: SyntheticRun) -> None:
    overall = repeat_spread(repeated.records, repeated.outcomes).filter(domain="overall")
    assert overall.height == 5 and set(overall["repeats"]) == {3} and (overall["accuracy_sd"] > 0).all()
    assert not any("repeat" in label for label in overall["label"])
    assert overall["settings"].to_list() == [["repeat=0", "repeat=1", "repeat=2"]] * 5


def test_a_problem_is_stable_where_as_many_of_its_samples_are_right(repeated: SyntheticRun) -> None:
    """Three answers a problem, one of them right in each repeat, but not the same one; then one repeat has two."""
    points = [record for record in repeated.records if record.is_stock]

    def answers(right: int, more: int = 0) -> pl.DataFrame:
        samples = product(("math", "code", "knowledge"), range(10), range(3))
        rows = [(domain, f"p{i}", n, n == right or (n == 2 and i < more)) for domain, i, n in samples]
        return pl.DataFrame(rows, schema=["domain", "problem_id", "sample", "correct"], orient="row")

    def unstable(*frames: pl.DataFrame) -> list[float]:
        outcomes = dict(zip([point.fingerprint for point in points], frames, strict=True))
        return repeat_spread(points, outcomes).filter(domain="overall")["unstable"].to_list()

    assert unstable(answers(0), answers(1), answers(0)) == [0.0]
    assert unstable(answers(0), answers(1), answers(0, more=4)) == [0.4]


def test_without_repeats_there_is_no_spread() -> None:
    assert repeat_spread(ladder(SyntheticRun(problems=20), ks=(4,)).records).height == 0
