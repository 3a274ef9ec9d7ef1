"""The calibration probe on the live engine: it measures, and leaves no trace."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from own_process import findings
from prompts import MAX_TOKENS, NUM_EXPERTS, NUM_LAYERS, POLICY_A, short_prompts

from banpick_exp.evaluation.calibration import passes
from banpick_exp.evaluation.calibration.passes import Changed
from banpick_exp.evaluation.calibration.probe import Candidate, Judging, Scored
from banpick_exp.evaluation.calibration.reach import Reach

if TYPE_CHECKING:
    from banpick_exp.engine.engine import Engine

pytestmark = pytest.mark.engine

OWN_PROCESS = "run_fresh.py"

CANDIDATES = [Candidate("remove", 1, expert) for expert in range(NUM_EXPERTS)] + [
    Candidate("add", 1, 3),
    Candidate("limit", 1, 3),
    Candidate("limit", 1, 8),
]
EVERY_CHANGE = [
    Candidate(change, layer, value)
    for layer in (2, 0, 3, 1)
    for change, value in (("remove", 5), ("add", 3), ("replace", 3), ("boost", 20), ("limit", 3), ("skip", 0))
]


def answered(engine: Engine, salt: str = "") -> list[Scored]:
    answers = engine.generate(short_prompts(40), max_tokens=MAX_TOKENS, salt=salt)
    return [Scored([*a.prompt_token_ids, *a.token_ids[:-1]], len(a.prompt_token_ids), a.token_ids[-1]) for a in answers]


def probe(engine: Engine, sequences: list[Scored], candidates: list[Candidate], **judging: Any) -> Changed:
    asked = {"objective": "kl", "last_only": False, "top_vocab": 1000, "range_factor": 2.0, "boost": 0.5}
    return passes.probe(engine, sequences, candidates, Judging(**{**asked, **judging}))


def test_probe_of_the_healthy_model(tiny_engine: Engine) -> None:
    tiny_engine.set_policy("none", {})
    sequences = answered(tiny_engine)
    found = probe(tiny_engine, sequences, CANDIDATES)
    assert found.itself == 0.0
    assert found.positions == [len(each.ids) - each.start + 1 for each in sequences]
    sums = [sum(values) for values in found.values]
    removals, (adding, limit, whole) = sums[:NUM_EXPERTS], sums[NUM_EXPERTS:]
    assert min(removals) >= 0 and max(removals) > 0.1
    assert adding >= 0 and limit > 0.1
    assert whole == 0.0, "keeping all 8 experts changes nothing"


def test_a_removal_is_out_of_reach_where_no_token_selects_the_expert(tiny_engine: Engine) -> None:
    """By what the engine counts of each sequence alone."""
    tiny_engine.set_policy("none", {})
    sequences = answered(tiny_engine)
    found = probe(tiny_engine, sequences, CANDIDATES[:NUM_EXPERTS])
    unused = 0
    for number, sequence in enumerate(sequences):
        tiny_engine.counters(reset=True)
        tiny_engine.prefill([sequence.ids], salt="alone")
        usage_E = tiny_engine.counters(reset=True).usage[1]
        for expert, used in enumerate(usage_E):
            unused += used == 0
            assert used or found.values[expert][number] == 0
    assert 0 < found.out_of_reach == unused


def test_every_shortcut_finds_the_same(tiny_engine: Engine) -> None:
    """Reruns from the changed layer on: to the bit, several layers in one call. What cannot change: to rounding, and
    the gate of each layer is entered by as many tokens as the work that is counted says."""
    tiny_engine.set_policy("none", {})
    sequences = answered(tiny_engine)
    tokens = sum(len(each.ids) for each in sequences)
    entered: list[int] = []
    layers = tiny_engine.llm.apply_model(lambda model: list(model.model.layers))[0]
    handles = [layer.mlp.gate.register_forward_pre_hook(lambda _, a: entered.append(len(a[0]))) for layer in layers]
    found, work = {}, {}
    for way in ("none", "suffix", "all"):
        for objective in ("kl", "gain"):
            entered.clear()
            found[way, objective] = probe(tiny_engine, sequences, EVERY_CHANGE, objective=objective, shortcuts=way)
            work[way, objective] = sum(entered)
    for handle in handles:
        handle.remove()
    # Besides: the pass itself, and one rerun that must be itself.
    reruns = {"none": len(EVERY_CHANGE) * NUM_LAYERS, "suffix": sum(NUM_LAYERS - c.layer for c in EVERY_CHANGE)}
    for objective in ("kl", "gain"):
        none, suffix, everything = (found[way, objective] for way in ("none", "suffix", "all"))
        assert none.values == suffix.values and none.itself == suffix.itself == 0, "equal to the bit"
        for way, count in reruns.items():
            assert found[way, objective].layer_tokens == work[way, objective] == (2 * NUM_LAYERS + count) * tokens
            assert found[way, objective].out_of_reach == 0
        assert everything.layer_tokens == work["all", objective] <= suffix.layer_tokens
        assert everything.out_of_reach > 0
        for ours, all_S in zip(everything.values, none.values, strict=True):
            for value, expected in zip(ours, all_S, strict=True):
                assert value == expected or (value == 0 and abs(expected) < ROUNDING), "0 by definition, else equal"
    assert answered(tiny_engine, "after suffixes") == sequences


ROUNDING = 0.05
"""Nats a sequence, in bfloat16: what a change elsewhere in a step does to how sums round (0.021 with AMX)."""


def test_whatever_ties_with_the_last_of_the_window_is_within_reach() -> None:
    """Equal logits are common in bfloat16, and which of them the router ranks first is not for the probe to say.

    By hand: K = 2 of 6 experts, window 4. Token 0 ranks 5, 4 and then 0 to 3, all equal; token 1 has 0, 1, 2 and 3
    before 4 and 5; token 2 belongs to no sequence.
    """
    spec = SimpleNamespace(corrected=False, grouped=False)
    layer: Any = SimpleNamespace(spec=spec, top_k=2, num_experts=6, observer=None)
    judging = Judging(objective="kl", last_only=False, top_vocab=10, range_factor=2.0, boost=0.5)
    reach = Reach([layer], [0], judging)
    reach.watch(torch.tensor([0, 1, -1]), 2)
    logits_TE = torch.tensor([[1.0, 1, 1, 1, 2, 3], [6, 5, 4, 3, 2, 1], [9, 9, 9, 9, 9, 9]])
    layer.observer(torch.ones(3, 2), torch.tensor([[5, 4], [0, 1], [2, 3]]), torch.zeros(3, 1), logits_TE)
    reach.stop()
    assert layer.observer is None

    def reached(change: str) -> list[list[bool]]:
        """[E][S]"""
        by_expert = [reach.of(Candidate(change, 0, expert)) for expert in range(6)]
        return [[] if reached_S is None else reached_S.tolist() for reached_S in by_expert]

    yes, no = True, False
    assert reached("add") == [[yes, no], [yes, no], [yes, yes], [yes, yes], [no, no], [no, no]]
    assert reached("replace") == reached("add")
    assert reached("remove") == [[no, yes], [no, yes], [no, no], [no, no], [yes, no], [yes, no]]
    assert reached("boost") == reached("remove"), "half a logit lifts nobody over the next, who is a whole one above"
    assert reach.of(Candidate("limit", 0, 1)) is None and reach.of(Candidate("add", 1, 0)) is None


def test_what_nobody_can_change_is_not_run(tiny_engine: Engine) -> None:
    """One sequence and the experts of layer 3 that it does not select: two passes of the whole model, none more."""
    tiny_engine.set_policy("none", {})
    (sequence, *_) = answered(tiny_engine)
    tiny_engine.counters(reset=True)
    tiny_engine.prefill([sequence.ids], salt="alone")
    unused = [e for e, used in enumerate(tiny_engine.counters(reset=True).usage[3]) if not used]
    assert unused
    found = probe(tiny_engine, [sequence], [Candidate("remove", 3, expert) for expert in unused])
    assert found.layer_tokens == 2 * NUM_LAYERS * len(sequence.ids) and found.out_of_reach == len(unused)
    assert found.values == [[0.0]] * len(unused)


def test_the_last_position_alone(tiny_engine: Engine) -> None:
    """As if everything before it were the prompt; and with what comes before, the whole."""
    tiny_engine.set_policy("none", {})
    sequences = answered(tiny_engine)
    last = probe(tiny_engine, sequences, EVERY_CHANGE, last_only=True)
    from_there = probe(tiny_engine, [Scored(e.ids, len(e.ids), e.end) for e in sequences], EVERY_CHANGE)
    assert last.positions == [1] * len(sequences) and last.values == from_there.values
    whole = probe(tiny_engine, sequences, EVERY_CHANGE)
    assert all(one <= other + 1e-5 for ones, others in zip(last.values, whole.values, strict=True)
               for one, other in zip(ones, others, strict=True))  # fmt: skip


def test_a_gain_judges_what_should_follow_the_last_token_only_where_that_is_known(tiny_engine: Engine) -> None:
    tiny_engine.set_policy("none", {})
    sequences = answered(tiny_engine)
    ended = probe(tiny_engine, sequences, EVERY_CHANGE, objective="gain")
    open_ended = probe(tiny_engine, [e._replace(end=None) for e in sequences], EVERY_CHANGE, objective="gain")
    the_end = probe(tiny_engine, [e._replace(start=len(e.ids)) for e in sequences], EVERY_CHANGE, objective="gain")
    assert ended.positions == [count + 1 for count in open_ended.positions]
    for whole, before, end in zip(ended.values, open_ended.values, the_end.values, strict=True):
        assert whole == pytest.approx([a + b for a, b in zip(before, end, strict=True)], abs=1e-4)


@pytest.mark.parametrize("policy", [("none", {}), POLICY_A], ids=lambda p: p[0])
def test_probing_leaves_the_engine_as_it_was(tiny_engine: Engine, policy: tuple[str, dict[str, Any]]) -> None:
    tiny_engine.set_policy("none", {})
    sequences = answered(tiny_engine)
    expected = probe(tiny_engine, sequences, EVERY_CHANGE)
    tiny_engine.set_policy(*policy)
    before = answered(tiny_engine, "before")
    tiny_engine.counters(reset=True)
    found = probe(tiny_engine, sequences, EVERY_CHANGE)
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
    sequences = [Scored([10 + i] * 127, 100, None) for i in range(70)]
    with pytest.raises(RuntimeError, match=r"6[89] of 70 sequences whole.*max_num_batched_tokens"):
        probe(tiny_engine, sequences, [Candidate("remove", 1, 3)])
    assert answered(tiny_engine, "unsplit after") == before
    tiny_engine.counters(reset=True)
    answered(tiny_engine, "unsplit counted")
    assert tiny_engine.counters(reset=True).tokens[0] > 0


def test_long_sequences_can_be_probed_again_and_may_share_a_beginning(request: pytest.FixtureRequest) -> None:
    """Over one KV block long, so the prefix cache would hold back what the probe has to see."""
    first, again, shared, fewer = findings(OWN_PROCESS, request)["swaps"]["probe_again"]
    assert first == again
    assert sum(shared[0]) > 0 and sum(fewer[0]) > 0
