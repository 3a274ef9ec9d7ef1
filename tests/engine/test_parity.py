"""vLLM in float32 under each policy, against Transformers with the same rule written independently (`oracle.py`)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracle import Oracle, kl, policy_rule, probe_rule
from own_process import findings
from parity_policies import BOOST, CALIBRATION, POLICIES, PROBED, RANGE_FACTOR, as_policy
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
    """Next-token logits [T, V] of each sequence under stock routing, and whether some routing hangs on a tie."""
    rule = policy_rule("none", {}, {}, TOP_K)
    return [oracle.logits(sequence, rule) for sequence in precise["sequences"]]


ABSOLUTE = 2e-4
"""Nats over all positions of a sequence, beside one in a thousand; measured: up to 5e-5."""
LEAST = 15
"""Of 30 sequences, how many at least route without a tie under both."""


@pytest.mark.parametrize("index", range(len(PROBED)), ids=lambda i: " ".join(map(str, PROBED[i])))
def test_the_probe_finds_what_transformers_does(
    precise: dict[str, Any], oracle: Oracle, unchanged: list[Any], index: int
) -> None:
    """KL and gain of each change on each sequence; and 0, not by rounding, where no token is routed otherwise."""
    rule, stock = probe_rule(PROBED[index], TOP_K, RANGE_FACTOR, BOOST), policy_rule("none", {}, {}, TOP_K)
    found = {objective: precise["probe"][objective] for objective in ("kl", "gain")}
    sequences, starts = precise["sequences"], precise["prompt_lengths"]
    compared, moved = 0, 0.0
    for number, (sequence, start) in enumerate(zip(sequences, starts, strict=True)):
        before, unchanged_tie = unchanged[number]
        after, tie = oracle.logits(sequence, rule)
        assert found["kl"]["positions"][number] == len(sequence) - start + 1
        assert found["gain"]["positions"][number] == len(sequence) - start
        if tie or unchanged_tie:
            continue
        compared += 1
        targets = torch.tensor(sequence[start:])[:, None]
        likely_before, likely_after = (
            logits[start - 1 : -1].double().log_softmax(-1).gather(1, targets).sum() for logits in (before, after)
        )
        expected = {
            "kl": float(kl(before[start - 1 :], after[start - 1 :], top_vocab=20).sum()),
            "gain": float(likely_after - likely_before),
        }
        for objective, value in expected.items():
            assert found[objective]["values"][index][number] == pytest.approx(value, rel=1e-3, abs=ABSOLUTE), objective
        if not oracle.differs(sequence, stock, rule):
            assert found["kl"]["values"][index][number] == found["gain"]["values"][index][number] == 0
        moved = max(moved, abs(expected["gain"]))
    assert compared >= LEAST and moved > 20 * ABSOLUTE, "agreement on nothing would prove nothing"


def test_the_unchanged_model_is_itself(precise: dict[str, Any]) -> None:
    for found in precise["probe"].values():
        assert found["itself"] == 0.0


def test_some_sequences_are_out_of_reach_of_some_changes(precise: dict[str, Any]) -> None:
    """As many for both objectives; more may be 0: a token that nobody judges or looks back at was routed otherwise."""
    kl_found, gain_found = precise["probe"]["kl"], precise["probe"]["gain"]
    zeros = sum(value == 0 for values in kl_found["values"] for value in values)
    assert 0 < kl_found["out_of_reach"] == gain_found["out_of_reach"] <= zeros


@pytest.mark.parametrize("change", [each for each in PROBED if as_policy(*each)], ids=lambda c: " ".join(map(str, c)))
def test_a_gain_is_the_difference_of_log_likelihoods_under_the_policy(precise: dict[str, Any], change: Any) -> None:
    """The engine's own `score` under Pick with that expert alone, less the same under stock."""
    gains = precise["probe"]["gain"]["values"][PROBED.index(change)]
    under, stock = precise["as_policies"][" ".join(map(str, change))], precise["scores"]["none"]
    for number, start in enumerate(precise["prompt_lengths"]):
        difference = sum(under[number][start - 1 :]) - sum(stock[number][start - 1 :])
        assert gains[number] == pytest.approx(difference, abs=ABSOLUTE)
    assert max(map(abs, gains)) > 20 * ABSOLUTE
