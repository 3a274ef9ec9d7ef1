"""Each guard on runs where the trouble is planted, and on runs where there is none."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from synthetic_run import DOMAINS, SyntheticRun, ladder

from banpick_exp.analysis import guards, subtasks

STOCK_BUDGET = {name: [8.0, 8.0] for name in DOMAINS}
ENGAGED = {"implied": {name: [3.0, 8.0] for name in DOMAINS}, "measured": {}}


def judge(run: SyntheticRun, outcomes: dict[str, pl.DataFrame] | None = None) -> pl.DataFrame:
    return guards(run.records, run.outcomes if outcomes is None else outcomes)


def rows_of(found: pl.DataFrame, guard: str, **where: str) -> list[dict[str, Any]]:
    return found.filter(pl.col("guard") == guard, **where).to_dicts()


def planted(
    column: str, extra: int, value: Any, problems: int = 400
) -> tuple[SyntheticRun, dict[str, pl.DataFrame], str]:
    """Stock and one policy whose last `extra` answers have `column` set to `value`."""
    run = SyntheticRun(problems=problems)
    run.add("none")
    name = run.add("ban", {"lambda": 0.5}, kept=5.0, churn=0.05).fingerprint
    outcomes = {
        key: frame.with_columns(truncated=pl.lit(False), repetitive=pl.lit(False))
        for key, frame in run.outcomes.items()
    }
    row = pl.int_range(pl.len())
    outcomes[name] = outcomes[name].with_columns(
        pl.when(row >= pl.len() - extra).then(value).otherwise(pl.col(column)).alias(column)
    )
    return run, outcomes, name


# ---------------------------------------------------------------- the frame


def test_a_healthy_sweep_raises_nothing_and_every_point_is_said_to_be_engaged() -> None:
    run = ladder(SyntheticRun(problems=300), ks=(7, 6))
    for boost in (0.5, 1.0, 2.0):
        run.add("pick", {"boost": boost}, churn=0.03)
    found = judge(run)
    assert found.columns == ["fingerprint", "label", "domain", "guard", "level", "value", "detail"]
    assert found.filter(pl.col("level") != "ok").height == 0
    engaged = found.filter(pl.col("guard") == "engaged")
    assert engaged["fingerprint"].to_list() == [record.fingerprint for record, _ in run.points]
    assert engaged["value"].to_list()[:3] == [8.0, 7.0, 6.0]


def test_no_records_give_an_empty_frame() -> None:
    assert guards([], {}).height == 0 and guards([], {}).columns[0] == "fingerprint"


def test_without_stock_the_paired_guards_say_that_they_could_not_look() -> None:
    run = SyntheticRun(problems=40)
    run.add("ban", {"lambda": 0.5}, kept=5.0)
    found = judge(run)
    unchecked = found.filter(pl.col("value").is_null() & pl.col("detail").str.contains("no finished stock point"))
    assert unchecked["guard"].to_list() == ["truncation", "length_drift", "subtask_drop"]
    assert set(unchecked["level"]) == {"ok"}


# ---------------------------------------------------------------- engaged


@pytest.mark.parametrize(
    ("kept", "level", "words"),
    [
        (8.0, "warning", "native K"), (7.97, "warning", "native K"),
        (3.0, "warning", "floor"), (3.04, "warning", "floor"),
        (5.0, "ok", "keeps 5.00"), (2.5, "invalid", "implies 3 to 8"),
    ],
)  # fmt: skip
def test_a_budget_at_an_end_is_no_pruning(kept: float, level: str, words: str) -> None:
    run = SyntheticRun(problems=20)
    run.change(run.add("none"), model={"top_k": 8})
    run.change(run.add("ban", {"lambda": 0.5}, kept=kept, engagement=ENGAGED), model={"top_k": 8})
    rows = rows_of(judge(run), "engaged", label="ban lambda=0.5")
    assert rows[0]["domain"] == "overall" and rows[0]["level"] == level and words in rows[0]["detail"]
    assert [row["domain"] for row in rows[1:]] == ([] if level == "ok" else list(DOMAINS))


def test_a_k_with_a_fraction_is_no_range_that_is_spent() -> None:
    """What it implies is k and what chance makes of it: the ends of that are no floor and no native K."""
    run = SyntheticRun(problems=20)
    run.change(run.add("none"), model={"top_k": 8})
    for k, kept, level in ((4.6, 4.61, "ok"), (7.95, 7.96, "ok"), (4.04, 4.03, "ok"), (4.6, 5.0, "invalid")):
        implied = {domain: (k - 0.1, k + 0.1) for domain in DOMAINS}
        record = run.add("fixed_k", {"k": k}, kept=kept, engine={"kept": kept}, engagement={"implied": implied})
        run.change(record, model={"top_k": 8})
        found = [row for row in rows_of(judge(run), "engaged", label=f"fixed_k k={k}") if row["domain"] == "overall"]
        assert found[-1]["level"] == level


def test_fixed_k_must_keep_k_even_where_nothing_else_is_recorded() -> None:
    run = SyntheticRun(problems=20)
    run.add("fixed_k", {"k": 4}, kept=8.0)
    assert rows_of(judge(run), "engaged")[0]["level"] == "invalid"


def test_invalid_and_failed_points_are_engaged_rows_with_their_reason() -> None:
    run = SyntheticRun(problems=20)
    run.add("fixed_k", {"k": 4}, kept=8.0, status="invalid", reason="measured 8")
    run.add("pick", {"boost": 1}, status="failed", reason="out of memory")
    rows = rows_of(judge(run), "engaged")
    assert [(r["level"], r["value"]) for r in rows] == [("invalid", 8.0), ("invalid", None)]
    assert rows[0]["detail"] == "measured 8" and "out of memory" in rows[1]["detail"]


# ---------------------------------------------------------------- truncation, length, repetition


@pytest.mark.parametrize(("guard", "column"), [("truncation", "truncated"), ("repetition", "repetitive")])
def test_answers_that_do_not_stop_are_seen(guard: str, column: str) -> None:
    run, outcomes, name = planted(column, 36, True)
    rows = rows_of(judge(run, outcomes), guard, fingerprint=name)
    assert [(r["domain"], r["level"]) for r in rows] == [("overall", "warning"), ("knowledge", "warning")]
    assert rows[0]["value"] == pytest.approx(36 / 1200) and rows[1]["value"] == pytest.approx(36 / 400)
    assert "stock 0.0%: +3.0 points [+" in rows[0]["detail"] and "noise" not in rows[0]["detail"]


def test_a_rise_that_may_be_noise_is_labelled_and_not_raised() -> None:
    run, outcomes, name = planted("truncated", 2, True, problems=50)
    rows = rows_of(judge(run, outcomes), "truncation", fingerprint=name)
    assert {row["level"] for row in rows} == {"ok"} and all("may be noise: p = 0.5" in row["detail"] for row in rows)
    below = planted("truncated", 5, True)  # 0.4 points of all, 1.25 of one domain
    rows = rows_of(judge(below[0], below[1]), "truncation", fingerprint=below[2])
    assert [row["domain"] for row in rows] == ["knowledge"]


def test_longer_answers_are_seen_and_have_an_interval() -> None:
    run, outcomes, name = planted("tokens", 400, pl.col("tokens") + 5 + pl.int_range(pl.len()) % 2)
    rows = rows_of(judge(run, outcomes), "length_drift", fingerprint=name)
    assert [(r["domain"], r["level"]) for r in rows] == [("overall", "warning"), ("knowledge", "warning")]
    ours, stock = (outcomes[key]["tokens"].mean() for key in (name, run.records[0].fingerprint))
    assert rows[0]["value"] == pytest.approx(ours / stock - 1)  # type: ignore[operator]


def test_old_records_say_that_repetition_was_not_recorded() -> None:
    run = SyntheticRun(problems=20)
    run.add("none")
    (row,) = rows_of(judge(run), "repetition")
    assert row["value"] is None and row["level"] == "ok" and "not recorded" in row["detail"]


# ---------------------------------------------------------------- duplicated scores


def duplicated(
    first: dict[str, Any], second: dict[str, Any], *, problems: int = 100, **change: Any
) -> list[dict[str, Any]]:
    """The guard's rows after `second`'s answers were overwritten with `first`'s."""
    run = SyntheticRun(problems=problems)
    run.add("none", engagement={"implied": STOCK_BUDGET})
    one, other = (run.add(churn=0.2, **point).fingerprint for point in (first, second))
    outcomes = run.outcomes
    outcomes[other] = outcomes[one].with_columns(**change) if change else outcomes[one]
    return rows_of(judge(run, outcomes), "duplicated_scores")


def pick(boost: float, counts: str = "", table: str = "") -> dict[str, Any]:
    engagement = {"implied": STOCK_BUDGET, "key_expert_share": {"policy": 0.2, "stock": 0.1}}
    engagement |= {"routing_counts": {"math": counts}, "routing_table": {"math": table}} if counts else {}
    return {"policy": "pick", "knobs": {"boost": boost}, "engagement": engagement}


def test_replayed_answers_of_another_knob_are_an_alarm_for_both() -> None:
    rows = duplicated(pick(1.0), pick(2.0))
    assert [row["label"] for row in rows] == ["pick boost=1.0", "pick boost=2.0"]
    assert {row["level"] for row in rows} == {"warning"} and "all 300 answers equal those of pick boost=2.0" in rows[0][
        "detail"
    ]


def test_equal_counters_too_make_it_a_replay() -> None:
    rows = duplicated(pick(1.0, counts="a", table="x"), pick(2.0, counts="a", table="y"))
    assert {row["level"] for row in rows} == {"invalid"} and "cannot be told from a replay" in rows[0]["detail"]
    rows = duplicated(pick(1.0, counts="a", table="x"), pick(2.0, counts="b", table="y"))
    assert {row["level"] for row in rows} == {"warning"}


def test_the_ladder_replayed_is_an_alarm() -> None:
    fours = {"policy": "fixed_k", "knobs": {"k": 4}, "kept": 4.0}
    rows = duplicated(fours, {"policy": "fixed_k", "knobs": {"k": 5}, "kept": 5.0})
    assert len(rows) == 2 and rows[0]["value"] == 1.0


def test_another_model_with_the_same_answers_is_an_alarm() -> None:
    assert len(duplicated(pick(1.0), pick(1.0) | {"model": "other"})) == 2


@pytest.mark.parametrize(
    "second",
    [
        pick(1.0) | {"engine": {"max_num_seqs": 256}},  # the same policy, batched otherwise
        pick(2.0, counts="a", table="x"),  # the same table of router values
    ],
)
def test_policies_that_are_equal_by_definition_may_answer_alike(second: dict[str, Any]) -> None:
    assert duplicated(pick(1.0, counts="a", table="x"), second) == []


def test_policies_that_equal_stock_may_answer_like_it() -> None:
    run = SyntheticRun(problems=100)
    run.change(run.add("none"), model={"top_k": 8})
    run.change(run.add("fixed_k", {"k": 8}), model={"top_k": 8})
    run.change(run.add("ban", {"lambda": 2}, engagement=ENGAGED), model={"top_k": 8})  # keeps 8 everywhere
    run.change(run.add("ban", {"lambda": 1.9}, engagement=ENGAGED, kept=7.5), model={"top_k": 8})
    found = judge(run)
    (row,) = rows_of(found, "duplicated_scores", label="ban lambda=1.9")
    assert row["level"] == "warning" and row["value"] == 3.0
    for label in ("none", "fixed_k k=8", "ban lambda=2"):
        (row,) = rows_of(found, "duplicated_scores", label=label)
        assert row["value"] == 1.0 and "ban lambda=1.9" in row["detail"], "only the one that should differ"
    assert rows_of(found, "engaged", label="ban lambda=2")[0]["level"] == "warning"


def test_chance_and_new_generations_are_no_alarm() -> None:
    few = duplicated(pick(1.0), pick(2.0), problems=10)
    assert {row["level"] for row in few} == {"ok"} and "by chance" in few[0]["detail"]
    anew = duplicated(pick(1.0), pick(2.0), tokens=pl.col("tokens") + 1)
    assert {row["level"] for row in anew} == {"ok"} and "generated anew" in anew[0]["detail"]


# ---------------------------------------------------------------- sub-tasks


def with_subtasks(lost: int, per_task: int) -> tuple[SyntheticRun, dict[str, pl.DataFrame]]:
    """A policy that loses `lost` problems of one sub-task and wins as many in another; all else is stock's."""
    run = SyntheticRun(problems=4 * per_task)
    run.add("none")
    name = run.add("ban", {"lambda": 0.5}, kept=5.0).fingerprint
    outcomes = {
        key: frame.with_columns(task=pl.lit("part") + (pl.int_range(pl.len()) // per_task % 4).cast(pl.String))
        for key, frame in run.outcomes.items()
    }
    correct = outcomes[name]["correct"].to_numpy().copy()
    math = outcomes[name]["domain"].to_numpy() == "math"
    task = outcomes[name]["task"].to_numpy()
    correct[np.flatnonzero(math & (task == "part1") & correct)[:lost]] = False
    correct[np.flatnonzero(math & (task == "part2") & ~correct)[:lost]] = True
    outcomes[name] = outcomes[name].with_columns(correct=correct)
    return run, outcomes


def test_a_subtask_that_fell_is_named_although_the_mean_ties() -> None:
    run, outcomes = with_subtasks(20, 100)
    found = judge(run, outcomes)
    (row,) = rows_of(found, "subtask_drop")
    assert row["level"] == "warning" and row["domain"] == "math" and row["value"] == pytest.approx(-0.2)
    assert (
        row["detail"].startswith("part1: ")
        and "-20.0 points [-" in row["detail"]
        and "on 100 problems" in row["detail"]
    )
    table = subtasks(run.records, outcomes)
    assert table.height == 12
    part = table.filter(pl.col("difference") < 0).row(0, named=True)
    assert part["task"] == "part1" and part["lo"] < -0.2 < part["hi"] < 0 and part["n_problems"] == 100
    overall = table.select(pl.col("difference").sum()).item()
    assert overall == pytest.approx(0)


def test_a_drop_on_few_problems_is_named_as_noise_and_five_points_are_not_enough() -> None:
    run, outcomes = with_subtasks(2, 20)
    (row,) = rows_of(judge(run, outcomes), "subtask_drop")
    assert row["level"] == "ok" and "-10.0 points" in row["detail"] and "may be noise: p = 0.5" in row["detail"]
    run, outcomes = with_subtasks(1, 20)
    assert rows_of(judge(run, outcomes), "subtask_drop") == []


def test_null_sweeps_raise_no_false_alarm() -> None:
    """20 policies x 12 sub-tasks where nothing changes but churn: 8 runs, each may err at 5 % for each guard."""
    erring = 0
    for seed in range(8):
        run = SyntheticRun(seed, problems=120)
        run.add("none")
        for boost in range(20):
            run.add("pick", {"boost": boost}, churn=0.15)
        task = pl.lit("part") + (pl.int_range(pl.len()) % 4).cast(pl.String)
        outcomes = {name: frame.with_columns(task=task) for name, frame in run.outcomes.items()}
        found = judge(run, outcomes)
        assert found.filter((pl.col("guard") == "subtask_drop") & (pl.col("level") == "ok")).height > 20  # the trap
        erring += found.filter(pl.col("level") != "ok").height > 0
    assert erring <= 2


# ---------------------------------------------------------------- problems that break engines


def test_problems_set_aside_are_named_once_and_where_a_point_lacks_more_than_stock() -> None:
    run = SyntheticRun(problems=60)
    stock, same, more = run.add("none"), run.add("fixed_k", {"k": 4}, kept=4), run.add("fixed_k", {"k": 2}, kept=2)
    whole = run.add("fixed_k", {"k": 6}, kept=6)
    lacks = [
        {"domain": "math", "problem_id": name, "reason": "ActorDiedError: killed"} for name in ("p00003", "p00009")
    ]
    stock = run.change(stock, failed_problems=lacks[:1])
    same, more = run.change(same, failed_problems=lacks[:1]), run.change(more, failed_problems=lacks)
    outcomes = {
        name: frame.filter(~pl.col("problem_id").is_in(gone))
        for record, gone in ((stock, ["p00003"]), (same, ["p00003"]), (more, ["p00003", "p00009"]), (whole, []))
        for name, frame in ((record.fingerprint, run.outcomes[record.fingerprint]),)
    }
    rows = rows_of(judge(run, outcomes), "failed_problems")
    assert [(row["label"], row["level"], row["value"]) for row in rows] == [
        ("none", "warning", 1.0),
        ("fixed_k k=4", "ok", 1.0),
        ("fixed_k k=2", "warning", 2.0),
    ]
    assert "math p00003 (ActorDiedError: killed)" in rows[0]["detail"] and "p00003" not in rows[2]["detail"]
    assert "1 problem(s) are set aside" in rows[2]["detail"] and "math p00009" in rows[2]["detail"]
