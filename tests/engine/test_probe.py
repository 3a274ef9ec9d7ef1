"""The calibration probe on the live engine: it measures, and leaves no trace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from own_process import findings
from prompts import MAX_TOKENS, NUM_EXPERTS, NUM_LAYERS, POLICY_A, short_prompts

from banpick_exp.evaluation.calibration import passes
from banpick_exp.evaluation.calibration.kl_probe import Candidate, Suffix
from banpick_exp.evaluation.calibration.passes import ChangeScores

if TYPE_CHECKING:
    from banpick_exp.engine.engine import Engine

pytestmark = pytest.mark.engine

OWN_PROCESS = "run_fresh.py"

CANDIDATES: list[Candidate] = [("remove", 1, e) for e in range(NUM_EXPERTS)] + [
    ("insert", 1, 3),
    ("limit", 1, 3),
    ("limit", 1, 8),
]


def answered(engine: Engine, salt: str = "") -> tuple[list[list[int]], list[int]]:
    generations = engine.generate(short_prompts(40), max_tokens=MAX_TOKENS, salt=salt)
    sequences = [[*g.prompt_token_ids, *g.token_ids[:-1]] for g in generations]
    return sequences, [len(g.prompt_token_ids) for g in generations]


Sequences = list[list[int]]


def probe(engine: Engine, sequences: Sequences, lengths: list[int], candidates: list[Candidate]) -> ChangeScores:
    return passes.probe(engine, sequences, lengths, candidates, top_vocab=1000, range_factor=2.0)


def test_probe_of_the_healthy_model(tiny_engine: Engine) -> None:
    tiny_engine.set_policy("none", {})
    sequences, lengths = answered(tiny_engine)
    found = probe(tiny_engine, sequences, lengths, CANDIDATES)
    assert found.self_kl == 0.0
    assert found.positions == sum(len(s) - n + 1 for s, n in zip(sequences, lengths, strict=True))
    removals, (insertion, limit, whole) = found.kl[:NUM_EXPERTS], found.kl[NUM_EXPERTS:]
    assert min(removals) >= 0 and max(removals) > 1e-3
    assert insertion >= 0 and limit > 1e-3
    assert whole == 0.0, "keeping all 8 experts changes nothing"


def test_a_rerun_from_the_changed_layer_on_is_the_whole_rerun_to_the_bit(
    tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_engine.set_policy("none", {})
    sequences, lengths = answered(tiny_engine)
    entered: list[int] = []
    layers = tiny_engine.llm.apply_model(lambda model: list(model.model.layers))[0]
    handles = [
        layer.mlp.gate.register_forward_pre_hook(lambda *_, n=n: entered.append(n)) for n, layer in enumerate(layers)
    ]
    found, works = {}, {}
    for way in ("suffix", "whole"):
        if way == "whole":
            monkeypatch.setattr(Suffix, "run", lambda self, run: run())
        for changed in range(NUM_LAYERS):
            entered.clear()
            candidates: list[Candidate] = [("remove", changed, 5), ("insert", changed, 3), ("limit", changed, 3)]
            found[way, changed] = probe(tiny_engine, sequences, lengths, candidates)
            works[way, changed] = [entered.count(layer) for layer in range(NUM_LAYERS)]
    for handle in handles:
        handle.remove()
    for changed in range(NUM_LAYERS):
        assert found["suffix", changed] == found["whole", changed], "equal to the bit"
        # The pass and the unchanged rerun reach every layer, the three candidates those from the changed one on.
        assert works["suffix", changed] == [2 if layer < changed else 5 for layer in range(NUM_LAYERS)]
        assert works["whole", changed] == [5] * NUM_LAYERS
    assert answered(tiny_engine, "after suffixes") == (sequences, lengths)


@pytest.mark.parametrize("policy", [("none", {}), POLICY_A], ids=lambda p: p[0])
def test_probing_leaves_the_engine_as_it_was(tiny_engine: Engine, policy: tuple[str, dict[str, Any]]) -> None:
    tiny_engine.set_policy("none", {})
    sequences, lengths = answered(tiny_engine)
    expected = probe(tiny_engine, sequences, lengths, CANDIDATES[:2])
    tiny_engine.set_policy(*policy)
    before = answered(tiny_engine, "before")
    tiny_engine.counters(reset=True)
    found = probe(tiny_engine, sequences, lengths, CANDIDATES[:2])
    assert tiny_engine.counters(reset=False).tokens == [0, 0, 0, 0], "the probe's own forward passes were counted"
    assert found == expected, "the probe measures against stock routing, whatever policy is set"
    assert answered(tiny_engine, "after") == before
    assert tiny_engine.counters(reset=True).tokens[0] > 0, "counting goes on afterwards"


def test_a_sequence_split_over_steps_is_refused(tiny_engine: Engine) -> None:
    """70 sequences of 127 tokens exceed the 8192 tokens of one step: one arrives in two parts.

    The second part may follow a whole sequence, which then counts as unseen as well.
    """
    tiny_engine.set_policy("none", {})
    before = answered(tiny_engine, "unsplit before")
    sequences = [[10 + i] * 127 for i in range(70)]
    with pytest.raises(RuntimeError, match=r"6[89] of 70 sequences whole.*max_num_batched_tokens"):
        probe(tiny_engine, sequences, [100] * len(sequences), [])
    assert answered(tiny_engine, "unsplit after") == before
    tiny_engine.counters(reset=True)
    answered(tiny_engine, "unsplit counted")
    assert tiny_engine.counters(reset=True).tokens[0] > 0


def test_long_sequences_can_be_probed_again_and_may_share_a_beginning(request: pytest.FixtureRequest) -> None:
    """Over one KV block long, so the prefix cache would hold back what the probe has to see."""
    first, again, shared, fewer = findings(OWN_PROCESS, request)["swaps"]["probe_again"]
    assert first == again
    assert shared[0] > 0 and fewer[0] > 0
