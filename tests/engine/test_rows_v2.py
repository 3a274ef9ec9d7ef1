"""On vLLM's V2 model runner, run on a CPU with its Triton kernels interpreted, each token goes the way of its row."""

from __future__ import annotations

from typing import Any

import pytest
from own_process import findings
from run_rows import HELD, LABELS

pytestmark = [pytest.mark.engine, pytest.mark.slow]

OWN_PROCESS = "run_rows_v2.py"

COUNTED = ("tokens", "kept", "usage")


@pytest.fixture(scope="module")
def found(request: pytest.FixtureRequest) -> dict[str, Any]:
    return findings(OWN_PROCESS, request)


@pytest.mark.parametrize("turn", range(len(HELD)), ids=lambda row: LABELS[row])
def test_a_policy_among_sixteen_is_what_it_is_alone_on_v1(found: dict[str, Any], turn: int) -> None:
    for kind in ("short", "long"):
        assert found["mixed"][kind][turn]["answers"] == found["alone"][kind][turn]["answers"], kind
    mixed, alone = found["mixed"]["short"][turn], found["alone"]["short"][turn]
    assert {name: mixed[name] for name in COUNTED} == {name: alone[name] for name in COUNTED}


def test_it_was_the_v2_runner_and_requests_were_preempted(found: dict[str, Any]) -> None:
    assert found["mixed"]["runner"].endswith(": vllm.v1.worker.gpu.model_runner")
    assert found["mixed"]["preempted, short"] == 0 < found["mixed"]["preempted, long"]
    computed = {name: sum(row["tokens"][0] for row in found[name]["long"]) for name in ("alone", "mixed")}
    assert computed["mixed"] > computed["alone"], "what was preempted is computed again"


def test_every_step_reads_the_rows_of_its_requests(found: dict[str, Any]) -> None:
    """By the scheduler's own table of requests and the tensors that the attention kernels read."""
    steps = [step for step in found["mixed"]["steps"] if step["read"]]
    wrong = [step for step in steps if not (step["right"] and step["present"] and step["tokens"])]
    assert steps and not wrong
    real = [step for step in steps if step["real"]]
    assert any(len(step["rows"]) > 5 for step in real)
    assert any(step["slots"] != sorted(step["slots"]) for step in real), "requests in the order of their slots alone"
    assert any(len(set(step["lengths"])) > 2 for step in real), "no prefill beside a decode"
    held = {(slot, name) for step in real for slot, name in zip(step["slots"], step["requests"], strict=True)}
    assert len({slot for slot, _ in held}) < len(held), "no request in the slot of one that is gone"


def test_the_watcher_sees_what_is_wrong(found: dict[str, Any]) -> None:
    """The control: steps for which nobody filled the rows, or all were taken for row 0."""
    left = [step for step in found["mixed"]["steps"] if not step["read"]]
    assert len(left) == 2 and not any(step["right"] or step["present"] for step in left)


@pytest.mark.parametrize("run", ["a dummy run", "a captured graph's inputs"])
def test_made_up_requests_are_of_row_0(found: dict[str, Any], run: str) -> None:
    """Though they take slots that requests of other rows hold."""
    assert found["mixed"][run] == [[0], [0], 0]
    dummy = [step for step in found["mixed"]["steps"] if not step["real"]]
    assert dummy and all(step["right"] and step["rows"] == [0] for step in dummy)


def test_a_benchmark_may_take_all_for_row_0(found: dict[str, Any]) -> None:
    assert found["mixed"]["all as of row 0"] == [[0], [0]]


def test_a_request_that_is_gone_leaves_no_row(found: dict[str, Any]) -> None:
    assert set(found["mixed"]["left"]) == {0}


def test_what_cannot_be_known_is_refused(found: dict[str, Any]) -> None:
    assert "prepared 3 tokens of 4 that were scheduled" in found["mixed"]["not the tokens that were scheduled"]
    said = found["mixed"]["another vLLM"]
    assert "DefaultModelState.prepare_inputs takes batch" in said["other parameters"]
    assert "req_states have no req_id_to_index" in said["no names"]
    assert all("Type engine.model_runner=v1" in text for text in said.values())
