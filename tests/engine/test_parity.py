"""vLLM in float32 under each policy, against Transformers with the same rule written independently (`oracle.py`)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracle import Oracle, kl, policy_rule, probe_rule
from own_process import findings
from parity_policies import BLOCKS_OF_PROBE, CALIBRATION, POLICIES, RANGE_FACTOR
from prompts import CHECKPOINT, TOP_K

pytestmark = pytest.mark.engine

OWN_PROCESS = "run_fresh.py"

TOLERANCE = 1e-4
"""Nats; measured: a few 1e-6."""


@pytest.fixture(scope="module")
def precise(request: pytest.FixtureRequest) -> dict[str, Any]:
    found: dict[str, Any] = findings(OWN_PROCESS, request)["precise"]
    return found


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    return Oracle(CHECKPOINT)


@pytest.mark.parametrize("label", POLICIES)
def test_log_probabilities_match_transformers(precise: dict[str, Any], oracle: Oracle, label: str) -> None:
    rule = policy_rule(*POLICIES[label], CALIBRATION, TOP_K)
    compared, change = 0, 0.0
    for sequence, ours, stock in zip(
        precise["sequences"], precise["scores"][label], precise["scores"]["none"], strict=True
    ):
        theirs, tie = oracle.log_probabilities(sequence, rule)
        if tie:
            continue  # two experts closer than float32 tells apart: either order is right
        compared += 1
        difference = float((torch.tensor(ours) - theirs).abs().max())
        assert difference < TOLERANCE, f"{difference:.1e} nats off"
        change = max(change, float((torch.tensor(stock) - theirs).abs().max()))
    assert compared >= 20, f"only {compared} of 30 sequences route without ties"
    if label != "none":
        assert change > 100 * TOLERANCE, "the policy changes next to nothing here, so agreement would prove nothing"


def test_measured_budgets_of_the_compared_policies(precise: dict[str, Any]) -> None:
    kept = precise["kept"]
    for label in ("none", "boost", "force_replace", "range_replace", "steer", "rice"):
        assert kept[label] == TOP_K, label
    assert kept["fixed_k 1"] == 1 and kept["fixed_k 3"] == 3
    assert 3 < kept["ban"] < TOP_K
    assert 2 < kept["diep"] < TOP_K
    assert 2 < kept["ban_pick"] < TOP_K
    assert TOP_K < kept["range_add"] < kept["force_add"] <= TOP_K + 3 / 4


def test_banned_slots_were_skipped_in_this_comparison(precise: dict[str, Any]) -> None:
    runs = precise["pair_runs"]
    for label in ("ban", "ban_pick", "force_add", "range_add", "diep"):
        assert runs[label] > 0, label
    for label in ("none", "boost", "fixed_k 3", "steer", "rice"):
        assert runs[label] == 0, label


@pytest.fixture(scope="module")
def unchanged(precise: dict[str, Any], oracle: Oracle) -> list[Any]:
    """Next-token logits [T, V] of each sequence under stock routing."""
    rule = policy_rule("none", {}, {}, TOP_K)
    return [oracle.logits(sequence, rule)[0] for sequence in precise["sequences"]]


@pytest.mark.parametrize("index", range(len(BLOCKS_OF_PROBE)), ids=lambda i: " ".join(map(str, BLOCKS_OF_PROBE[i])))
def test_probe_equals_an_independent_kl(
    precise: dict[str, Any], oracle: Oracle, unchanged: list[Any], index: int
) -> None:
    rule = probe_rule(BLOCKS_OF_PROBE[index], TOP_K, RANGE_FACTOR)
    values = []
    for sequence, prompt_length, before in zip(precise["sequences"], precise["prompt_lengths"], unchanged, strict=True):
        after, _ = oracle.logits(sequence, rule)
        values.append(kl(before[prompt_length - 1 :], after[prompt_length - 1 :], top_vocab=20))
    expected = torch.cat(values)
    assert precise["probe"]["positions"] == len(expected)
    assert precise["probe"]["kl"][index] == pytest.approx(float(expected.mean()), rel=1e-3)
    assert precise["probe"]["self_kl"] == 0.0
