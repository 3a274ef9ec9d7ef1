"""Expert demand on a real engine: what is recorded is what the router's logits say, token by token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from prompts import MAX_TOKENS, NUM_EXPERTS, NUM_LAYERS, POLICY_A, TOP_K, short_prompts

from banpick_exp.engine.engine import EngineError
from banpick_exp.evaluation.demand.record import Replay, record
from banpick_exp.evaluation.demand.sums import Asked, Sums, layer_sums

if TYPE_CHECKING:
    from banpick_exp.engine.engine import Engine

pytestmark = pytest.mark.engine

ASKED = Asked(windows=(1, 4, 8), caches=(4, 8), batches=(1, 3))


@pytest.fixture(scope="module")
def replays(tiny_engine: Engine) -> list[Replay]:
    tiny_engine.set_policy("none", {})
    answers = tiny_engine.generate(short_prompts(9), max_tokens=MAX_TOKENS)
    return [Replay((*a.prompt_token_ids, *a.token_ids), len(a.prompt_token_ids)) for a in answers]


def equal(ours: Sums, theirs: Sums) -> bool:
    plain, other = ours.plain(), theirs.plain()
    return all(np.allclose(plain[name], other[name], atol=1e-9) for name in plain)


@pytest.mark.parametrize("k", [1, 3, TOP_K])
def test_it_is_what_the_logits_say(tiny_engine: Engine, replays: list[Replay], k: int) -> None:
    logits: list[list[torch.Tensor]] = [[] for _ in range(NUM_LAYERS)]

    def listen(worker: Any) -> Any:
        return [
            layer.mlp.gate.register_forward_hook(lambda _, args, answer, own=own: own.append(answer[0].clone()))
            for layer, own in zip(worker.get_model().model.layers, logits, strict=True)
        ]

    tiny_engine.set_policy("fixed_k", {"k": k})
    (handles,) = tiny_engine.llm.collective_rpc(listen)
    found = record(tiny_engine, replays, ASKED)
    for handle in handles:
        handle.remove()
    lengths, begins = [len(each.ids) for each in replays], [each.begin for each in replays]
    total: Sums | None = None
    for parts in logits:
        best = torch.cat(parts).topk(k).indices
        assert len(best) == sum(lengths)
        kept_TE = torch.zeros(len(best), NUM_EXPERTS, dtype=torch.bool).scatter_(1, best, True).numpy()
        own = layer_sums(kept_TE, lengths, begins, ASKED)
        total = own if total is None else total + own
    assert total is not None and equal(found, total)
    assert found.layers == NUM_LAYERS and found.all_kept.sum() == k * found.all_tokens.sum()
    assert found.windows.sum(axis=0).tolist()[0] == found.tokens.sum() > 0


def test_banned_slots_are_not_demanded_and_inserted_ones_are(tiny_engine: Engine, replays: list[Replay]) -> None:
    """Held against the counters by `record` itself; here against what the policies do."""
    tiny_engine.set_policy("none", {})
    stock = record(tiny_engine, replays, ASKED)
    tiny_engine.set_policy(*POLICY_A)
    wide = record(tiny_engine, replays, ASKED)
    tiny_engine.set_policy("top_p", {"p": 0.6})
    pruned = record(tiny_engine, replays, ASKED)
    assert pruned.all_kept.sum() < stock.all_kept.sum() == TOP_K * stock.all_tokens.sum() < wide.all_kept.sum()
    assert (pruned.experts.sum(axis=0) < stock.experts.sum(axis=0)).all()
    assert (pruned.touched < stock.touched).all()
    tiny_engine.set_policy("none", {})
    assert equal(record(tiny_engine, replays[::-1], ASKED), _reversed(stock)), "each sequence by itself"


def _reversed(sums: Sums) -> Sums:
    plain = sums.plain()
    kept_as_is = ("layers", "steps", "touched")
    return Sums.of({name: value if name in kept_as_is else value[::-1] for name, value in plain.items()})


def test_the_engine_is_as_before(tiny_engine: Engine, replays: list[Replay]) -> None:
    tiny_engine.set_policy("fixed_k", {"k": 2})
    before = tiny_engine.generate(short_prompts(6), max_tokens=MAX_TOKENS, salt="before")
    record(tiny_engine, replays[:2], ASKED)
    assert tiny_engine.counters(reset=True).tokens == [0] * NUM_LAYERS
    assert tiny_engine.generate(short_prompts(6), max_tokens=MAX_TOKENS, salt="after") == before
    assert tiny_engine.counters(reset=True).mean_kept == 2


def test_a_sequence_that_was_not_told_is_refused(tiny_engine: Engine, replays: list[Replay]) -> None:
    tiny_engine.call("banpick_demand_start")
    tiny_engine.prefill([replays[0].ids])
    with pytest.raises(Exception, match=f"3 tokens were sent and .{len(replays[0].ids)}. were recorded"):
        tiny_engine.call("banpick_demand_finish", [3], [0], {"windows": [1], "caches": [1], "batches": [1]})
    assert record(tiny_engine, replays, ASKED).layers == NUM_LAYERS, "and the next is whole"


def test_other_counts_than_the_engines_are_refused(tiny_engine: Engine, replays: list[Replay]) -> None:
    """Counters that were reset in the middle: what was recorded is more."""
    prefill, number = tiny_engine.prefill, iter(range(len(replays)))

    def lossy(*arguments: Any, **named: Any) -> None:
        prefill(*arguments, **named)
        if next(number) == 1:
            tiny_engine.counters(reset=True)

    tiny_engine.prefill = lossy  # type: ignore[method-assign]
    try:
        with pytest.raises(EngineError, match="layer 0: other experts were recorded than the engine counts"):
            record(tiny_engine, replays, ASKED)
    finally:
        del tiny_engine.prefill
