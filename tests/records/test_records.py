"""Records: golden on disk, strict where they are read, and plain to ask."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import polars as pl
import pytest
from pydantic import ValidationError
from synthetic_run import SyntheticRun, changed

from banpick_exp import records
from banpick_exp.records import (
    Counters,
    Outcome,
    PointRecord,
    added_counters,
    count_problems,
    outcomes_frame,
    outcomes_of,
    read_record,
    sealed,
    wrong_version,
)

BUDGET = {
    "target": 5.0,
    "knob": "beta",
    "value": 0.334,
    "measured": 4.98,
    "probes": [[0.5, 3.4], [0.334, 4.98]],
    "sample_problems": 15,
    "cached": False,
    "corrected": False,
}


@pytest.fixture
def record() -> PointRecord:
    return SyntheticRun(problems=5).add("fixed_k", {"k": 4}, kept=4.0)


def as_json(plain: dict[str, Any]) -> bytes:
    return json.dumps(plain).encode()


def stored(plain: dict[str, Any]) -> bytes:
    """As it stands on disk."""
    return as_json(sealed(plain, b"outcomes"))


# ---------------------------------------------------------------- on disk


def test_schema_is_golden(record: PointRecord) -> None:
    """Readers outside this repository rely on these names; a change here is a new schema_version."""
    plain = record.plain()
    assert (records.SCHEMA_VERSION, records.READABLE_VERSIONS) == (3, (1, 2, 3)) and plain["schema_version"] == 3
    assert list(plain) == [
        "schema_version", "finished_at", "fingerprint", "status", "reason", "label", "policy", "model", "engine",
        "task", "versions", "calibration", "metrics", "engagement", "timing", "command",
    ]  # fmt: skip
    assert list(plain["metrics"]) == ["overall", "domains"]
    assert list(plain["metrics"]["overall"]) == list(plain["metrics"]["domains"]["math"]) == [
        "accuracy", "accuracy_ci95", "delta", "delta_ci95", "n_problems", "tokens_per_second", "speedup",
        "speedup_ci95", "speed", "mean_kept", "mean_kept_by_layer", "truncated_fraction",
    ]  # fmt: skip


def test_every_name_of_the_schema_is_golden() -> None:
    """Those that only some records have, and those of the parts that a program of another version may add to."""
    assert list(PointRecord.model_fields) == [
        "schema_version", "finished_at", "fingerprint", "status", "reason", "label", "seed", "repeat", "policy",
        "model", "engine", "task", "versions", "calibration", "score", "calibration_overlap", "metrics", "engagement",
        "timing", "budget", "failed_problems", "command",
    ]  # fmt: skip
    assert list(records.BudgetAccount.model_fields) == [
        "target", "knob", "value", "measured", "probes", "sample_problems", "cached", "corrected",
    ]  # fmt: skip
    assert list(records.Engagement.model_fields) == [
        "implied", "measured", "measured_by_row", "routing_table", "routing_counts", "key_expert_share", "key_experts",
        "counters", "stock_counters",
    ]  # fmt: skip
    assert list(records.Timing.model_fields) == [
        "swap_seconds", "stock_seconds", "solve_seconds", "accuracy_seconds", "block_seconds", "throughput_seconds",
        "timed_tokens", "overhead_seconds",
    ]  # fmt: skip
    assert records.OUTCOME_COLUMNS == (
        "problem_id", "domain", "task", "correct", "truncated", "tokens", "answer", "repetitive", "sample", "found",
        "completion", "finish_reason", "gold", "pattern_timeout", "grader_timeout", "chosen", "score",
        "score_cut",
    )  # fmt: skip


def test_what_is_read_is_written_again(record: PointRecord) -> None:
    solved = changed(record, budget=BUDGET, seed=0, repeat=1, timing={"of_a_later_version": 1.5})
    for each in (record, solved):
        plain = each.plain()
        read, seal = read_record(stored(plain))
        assert read == each and read.plain() == plain and seal == hashlib.sha256(b"outcomes").hexdigest()
    assert solved.plain()["timing"]["of_a_later_version"] == 1.5
    failed = [{"domain": "math", "problem_id": "7", "reason": "ActorDiedError: killed"}]
    with_failed = changed(record, failed_problems=failed)
    assert read_record(stored(with_failed.plain()))[0].failed_problems == with_failed.failed_problems
    assert with_failed.plain()["failed_problems"] == failed
    assert record.failed_problems == () and "failed_problems" not in record.plain(), "as in records of old"
    assert set(solved.settings()) == {"versions", "model", "engine", "task"}
    assert all(values == solved.plain()[section] for section, values in solved.settings().items())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema_version": 0}, "schema_version is 0, this version reads 1, 2, 3"),
        ({"schema_version": 4}, "schema_version is 4, this version reads 1, 2, 3"),
        ({"status": "running"}, "status: "),
        ({"status": "failed"}, "a failed point has metrics"),
        ({"metrics": None}, "a point with status done has no metrics"),
        ({"policy": None}, "policy: "),
        ({"fingerprint": "../x"}, "fingerprint: "),
        ({"unknown": 1}, "unknown: Extra inputs are not permitted"),
        ({"budget": {"target": 5.0}}, "the record lacks budget.knob"),
    ],
)
def test_what_does_not_hold_together_is_refused_in_one_line(
    record: PointRecord, change: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError) as caught:
        read_record(as_json(record.plain() | change))
    assert words in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ValidationError):
        PointRecord.model_validate(record.plain() | change)


def test_a_missing_name_is_named(record: PointRecord) -> None:
    plain = record.plain()
    del plain["metrics"]["domains"]["math"]["speedup"]
    with pytest.raises(ValueError, match=r"^the record lacks metrics\.domains\.math\.speedup$"):
        read_record(as_json(plain))
    with pytest.raises(ValueError, match=r"^the policy has no name$"):
        read_record(as_json(record.plain() | {"policy": {}}))
    with pytest.raises(ValueError, match="not readable as JSON"):
        read_record(as_json(record.plain())[:200])


def test_a_record_cannot_be_changed(record: PointRecord) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        record.label = "another"
    with pytest.raises(ValidationError, match="frozen"):
        record.measured.overall.accuracy = 1.0


def test_no_metric_is_nan(record: PointRecord) -> None:
    plain = record.plain()
    plain["metrics"]["overall"]["speedup"] = float("nan")
    with pytest.raises(ValidationError, match="finite number"):
        PointRecord.model_validate(plain)


# ---------------------------------------------------------------- asked


def test_the_metrics_of_a_domain(record: PointRecord) -> None:
    assert record.measured.of("overall") is record.measured.overall
    assert record.measured.of("code") is record.measured.domains["code"]
    assert list(record.measured.all()) == ["overall", "math", "code", "knowledge"]
    assert record.mean_kept == 4.0 and not record.is_stock
    failed = changed(record, status="failed", reason="no", metrics=None)
    with pytest.raises(AssertionError, match="fixed_k k=4 failed: it has no metrics"):
        _ = failed.mean_kept


def test_a_solved_knob_gives_way_to_its_budget(record: PointRecord) -> None:
    assert (record.budget_target, record.solved_knob, record.asked_policy()) == (None, None, record.policy)
    solved = changed(record, policy={"name": "naee", "beta": 0.334}, budget=BUDGET)
    assert solved.budget_target == 5.0 and solved.solved_knob == "beta=0.334"
    assert solved.asked_policy() == {"name": "naee", "k": 4, "budget": 5.0}
    assert solved.policy_name == "naee" and solved.knobs == {"beta": 0.334, "k": 4}
    unsolved = changed(record, policy={"name": "naee", "budget": 5.0})
    assert unsolved.budget_target == 5.0 and unsolved.solved_knob is None


def test_counters_add_up() -> None:
    one, other = Counters([2, 2], [8, 4], [[8, 0], [2, 2]]), Counters([1, 1], [1, 1], [[0, 1], [1, 0]])
    total = added_counters([one, other])
    assert total == Counters([3, 3], [9, 5], [[8, 1], [3, 2]]) and total.mean_kept == 14 / 6
    assert Counters([0], [0], [[0]]).mean_kept == 0.0


# ---------------------------------------------------------------- outcomes


def outcome(number: int, **more: Any) -> Outcome:
    told: dict[str, Any] = {"correct": True, "truncated": False, "tokens": 3, "answer": "7"} | more
    return Outcome(problem_id=f"p{number}", domain="math", task="sums", **told)


def test_only_what_an_outcome_tells_becomes_a_column() -> None:
    plain = outcomes_frame([outcome(0), outcome(1)])
    assert plain.schema == {
        "problem_id": pl.String, "domain": pl.String, "task": pl.String, "correct": pl.Boolean,
        "truncated": pl.Boolean, "tokens": pl.Int32, "answer": pl.String,
    }  # fmt: skip
    rows = [outcome(0, sample=0, repetitive=False), outcome(0, sample=1, completion="= 7;", found=True)]
    frame = outcomes_frame(rows)
    assert frame.schema["sample"] == pl.Int32 and frame.schema["found"] == pl.Boolean
    assert "finish_reason" not in frame.columns and outcomes_of(frame) == rows
    assert outcomes_frame([]).schema == plain.schema


def test_each_answer_to_a_problem_counts_once() -> None:
    sampled = [outcome(number, sample=n) for number in range(4) for n in range(3)]
    assert count_problems(outcomes_frame(sampled)) == 4 == count_problems(outcomes_frame(sampled[::3]))
    with pytest.raises(ValueError, match=r"repeat a problem: \(domain, problem_id, sample\)"):
        count_problems(outcomes_frame([*sampled, sampled[0]]))
    with pytest.raises(ValueError, match=r"repeat a problem: \(domain, problem_id\)"):
        count_problems(outcomes_frame([outcome(0), outcome(0)]))


def test_half_of_each_version_is_neither() -> None:
    extracted, whole = outcome(0), outcome(1, completion="= 7;", found=True)
    assert wrong_version(1, outcomes_frame([extracted])) is None and wrong_version(2, outcomes_frame([whole])) is None
    assert wrong_version(1, outcomes_frame([whole])) == (
        "schema_version is 1, but its outcomes have found, completion, which only version 2 has"
    )
    for frame in (outcomes_frame([extracted]), outcomes_frame([whole, extracted])):
        assert wrong_version(2, frame) == (
            "schema_version is 2, but its outcomes lack the completions, as those of version 1 do"
        )
