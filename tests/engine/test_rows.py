"""Sixteen policies in one batch answer and count as each alone on an engine that holds one (float32)."""

from __future__ import annotations

from typing import Any

import pytest
from own_process import findings
from prompts import NUM_LAYERS
from run_rows import HELD, LABELS

pytestmark = [pytest.mark.engine, pytest.mark.slow]

OWN_PROCESS = "run_rows.py"

COUNTED = ("tokens", "kept", "usage")


@pytest.fixture(scope="module")
def found(request: pytest.FixtureRequest) -> dict[str, Any]:
    return findings(OWN_PROCESS, request)


@pytest.mark.parametrize("turn", range(len(HELD)), ids=lambda row: LABELS[row])
def test_a_policy_among_sixteen_is_what_it_is_alone(found: dict[str, Any], turn: int) -> None:
    alone = found["one"]["alone"][turn]
    mixed = {
        "eager": found["eager"]["mixed"],
        "the same batch again": found["eager"]["again"],
        "in other rows": found["eager"]["turned"],
        "compiled": found["compiled"]["mixed"],
        "compiled, in other rows": found["compiled"]["turned"],
        "on two ranks": found["tensor"]["mixed"],
        "row 0 of an engine that holds sixteen": found["eager"]["row_0"],
    }
    for how, rows in mixed.items():
        assert rows[turn]["answers"] == alone["answers"], how
        assert {name: rows[turn][name] for name in COUNTED} == {name: alone[name] for name in COUNTED}, how


@pytest.mark.parametrize("turn", range(len(HELD)), ids=lambda row: LABELS[row])
def test_chunked_and_preempted_requests_keep_their_row(found: dict[str, Any], turn: int) -> None:
    assert found["tight"]["mixed"][turn]["answers"] == found["one"]["alone"][turn]["answers"]


@pytest.mark.parametrize("turn", range(len(HELD)), ids=lambda row: LABELS[row])
def test_demand_is_the_same_in_chunks_compiled_and_on_two_ranks(found: dict[str, Any], turn: int) -> None:
    """Prompts longer than a step: their tokens keep their order."""
    alone = found["one"]["demanded"][turn]
    assert max(alone["all_tokens"]) > 96 * NUM_LAYERS and alone["layers"] == NUM_LAYERS
    assert all(sum(found["one"]["demanded"][turn][name]) > 0 for name in ("kept", "steps", "touched"))
    for how in ("tight", "compiled", "tensor"):
        assert found[how]["demanded"][turn] == alone, how


def test_requests_were_preempted(found: dict[str, Any]) -> None:
    tokens = sum(row["tokens"][0] for row in found["tight"]["mixed"])
    assert found["tight"]["preemptions"] > 10
    assert tokens > sum(row["tokens"][0] for row in found["one"]["alone"]), "what was preempted is computed again"


def test_the_policies_differ(found: dict[str, Any]) -> None:
    """The control: with rows ignored, or all alike, nothing above would hold."""
    stock, *others = found["one"]["alone"]
    assert all(other["usage"] != stock["usage"] or other["answers"] != stock["answers"] for other in others)
    assert len({str(each["answers"]) for each in found["one"]["alone"]}) > len(HELD) // 2
    assert found["compiled"]["mode"] != 0


def test_no_keys_and_values_cross_policies(found: dict[str, Any]) -> None:
    """Prompts of more than a block, alike but for the policy that answers them, and what a common salt would do."""
    answers = {name: [row["answers"] for row in found["eager"][name]] for name in ("leak", "no_leak", "long_alone")}
    assert answers["no_leak"] == answers["long_alone"]
    assert answers["leak"] != answers["long_alone"]


def test_a_policy_has_one_salt_wherever_it_is_held(found: dict[str, Any]) -> None:
    assert found["eager"]["fingerprints"] == found["one"]["fingerprints"]
    assert len(set(found["one"]["fingerprints"])) == len(HELD)


def test_sixteen_policies_are_swapped_at_once(found: dict[str, Any]) -> None:
    assert found["eager"]["swap_seconds"] < 0.5


def test_two_ranks_contrast_alike(found: dict[str, Any]) -> None:
    """Their engine runs in a process of its own, which is held still while a pair comes in."""
    assert found["tensor"]["contrasted"] == found["eager"]["contrasted"]
    assert found["eager"]["contrasted"] != found["one"]["plain"]


def test_dummy_runs_read_row_0(found: dict[str, Any]) -> None:
    assert set(found["eager"]["rows_of_the_last_step"]) > {0}
    assert set(found["eager"]["rows_of_a_dummy_run"]) == {0}


def test_ranks_count_alike_and_hold_alike(found: dict[str, Any]) -> None:
    first, second = found["tensor"]["by_rank"]
    assert first == second and len(first) == len(HELD) and len(first[0]["tokens"]) == NUM_LAYERS
    assert "ranks hold different policies" in found["tensor"]["disagreeing"]


def test_what_is_not_held_is_refused(found: dict[str, Any]) -> None:
    assert "start it with rows=2" in found["one"]["too_many"]
    assert "rows=[16] for 1 prompts" in found["eager"]["no_such_row"]
    assert "routing_row=16, and this engine holds 16 policies" in found["eager"]["not_held"]
