"""Pairs of requests contrasted on a real engine, where few of them run at once."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from prompts import CHECKPOINT, NUM_LAYERS, long_prompts, short_prompts

from banpick_exp.engine import contrast
from banpick_exp.engine.config import EngineConfig
from banpick_exp.engine.contrast import Contrast, Room, contrasted_ids
from banpick_exp.engine.engine import Engine, EngineError, PolicyOfRow
from banpick_exp.engine.types import Generation, Sampling
from banpick_exp.models.config import ModelConfig

HELD: list[PolicyOfRow] = [("none", {}), ("fixed_k", {"k": 1}), ("none", {})]
SHORT, LONG, MAX_TOKENS = 20, 3, 16
CONTRASTS = {
    "the paper's": Contrast(),
    "far away": Contrast(beta=3.0),
    "turned round, nothing dropped": Contrast(alpha=0.0, beta=1.0, strong_row=1, weak_row=0),
}
STEP = 300
"""Tokens of a step: a few prompts, of the long ones one twice."""
AT_ONCE = 13
"""Requests: one too few for a seventh pair."""
BLOCKS = 21
"""Of the KV cache, one of them vLLM's own: for five short pairs."""


PAGE = Path(__file__).parents[2] / "docs/scmoe.md"


def start() -> Engine:
    config = EngineConfig(
        cpus=1, max_model_len=256, kv_cache_blocks=BLOCKS, max_num_seqs=AT_ONCE, max_num_batched_tokens=STEP
    )
    model = ModelConfig(name="tiny", dtype="float32")
    engine = Engine(model, CHECKPOINT, config, NUM_LAYERS, rows=len(HELD), options={"max_logprobs": -1})
    engine.start()
    engine.verify()
    engine.set_policies(HELD)
    return engine


def prompts(engine: Engine) -> list[list[int]]:
    """The long ones in between, so that short and long prompts wait and run together."""
    sequences = engine.tokenize(short_prompts(SHORT))
    for place, sequence in enumerate(engine.tokenize([text[-140:] for text in long_prompts(LONG)])):
        sequences.insert(7 * place, sequence)
    return sequences


def plain(answers: Sequence[Generation]) -> list[dict[str, Any]]:
    return [{"ids": list(each.token_ids), "text": each.text, "end": each.finish_reason} for each in answers]


def forced(engine: Engine, row: int, sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> list[Any]:
    """Log-probabilities of every token, by one row alone, after each token from `starts` - 1 on but the last."""
    engine.set_policy(*HELD[row])
    inputs, parameters = engine.requests(
        sequences, [{"temperature": 0.0, "max_tokens": 1, "prompt_logprobs": -1}] * len(sequences), "forced"
    )
    outputs = engine.llm.generate(inputs, parameters, use_tqdm=False)
    engine.set_policies(HELD)
    return [
        [[entry[token].logprob for token in sorted(entry)] for entry in output.prompt_logprobs[start:]]
        for start, output in zip(starts, outputs, strict=True)
    ]


def refusal(act: Any) -> str:
    try:
        act()
    except (EngineError, RuntimeError) as error:
        return str(error)
    return ""


def contrasted() -> dict[str, Any]:
    engine = start()
    sequences = prompts(engine)
    stock = engine.generate_ids(sequences, max_tokens=MAX_TOKENS)
    scores = engine.score(sequences)
    found: dict[str, Any] = {"stock": plain(stock)}
    for name, how in CONTRASTS.items():
        answers = contrasted_ids(engine, sequences, how, max_tokens=MAX_TOKENS)
        whole = [[*prompt, *answer.token_ids] for prompt, answer in zip(sequences, answers, strict=True)]
        starts = [len(prompt) for prompt in sequences]
        found[name] = {"answers": plain(answers)} | {
            which: forced(engine, row, whole, starts)
            for which, row in (("strong", how.strong_row), ("weak", how.weak_row))
        }
    found["beta 0"] = plain(contrasted_ids(engine, sequences, Contrast(beta=0.0), max_tokens=MAX_TOKENS))
    found["against itself"] = plain(
        contrasted_ids(engine, sequences, Contrast(beta=2.0, weak_row=2), max_tokens=MAX_TOKENS)
    )
    found["not stopping"] = plain(
        contrasted_ids(engine, sequences[:9], CONTRASTS["far away"], max_tokens=MAX_TOKENS, ignore_eos=True)
    )
    found["scores"] = [scores, engine.score(sequences)]
    found["sampled"] = sampled(engine, sequences)
    found["stopped"] = plain(
        contrasted_ids(
            engine, sequences, CONTRASTS["far away"], max_tokens=MAX_TOKENS, stop=[["3", "a"]] * len(sequences)
        )
    )
    engine.counters(reset=True)
    contrasted_ids(engine, sequences[1:7], Contrast(), max_tokens=5, ignore_eos=True, salt="counted")
    counted = engine.counters_by_row(reset=True)
    found["counted"] = [[each.tokens[0], each.kept[0]] for each in counted]
    found["prompt tokens"] = sum(map(len, sequences[1:7]))
    found["page"] = page(engine)
    found["out of step"] = out_of_step(engine, sequences)
    found["after that"] = plain(contrasted_ids(engine, sequences, CONTRASTS["far away"], max_tokens=MAX_TOKENS))
    found["refused"] = refused(engine, sequences)
    engine.close()
    return found


def page(engine: Engine) -> list[dict[str, Any]]:
    """What docs/scmoe.md shows, on this engine in place of one of its own."""
    _, shown = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {"engine": engine, "Contrast": Contrast, "contrasted_ids": contrasted_ids}
    exec(shown, names)
    engine.set_policies(HELD)
    return plain(names["answers"])


def sampled(engine: Engine, sequences: list[list[int]]) -> dict[str, Any]:
    drawn = [Sampling(temperature=1.3, top_p=0.9, seed=100 + number) for number in range(len(sequences))]
    given: dict[str, Any] = {"max_tokens": MAX_TOKENS, "sampling": drawn}
    return {
        "stock": plain(engine.generate_ids(sequences, **given)),
        "beta 0": plain(contrasted_ids(engine, sequences, Contrast(alpha=0.0, beta=0.0), **given)),
        "far away": plain(contrasted_ids(engine, sequences, CONTRASTS["far away"], **given)),
        "again, one by one": [
            plain(
                contrasted_ids(
                    engine, [ids], CONTRASTS["far away"], max_tokens=MAX_TOKENS, sampling=[each], salt="again"
                )
            )[0]
            for ids, each in zip(sequences[:4], drawn, strict=False)
        ],
    }


def out_of_step(engine: Engine, sequences: list[list[int]]) -> dict[str, str]:
    """What is said where more is let in than the engine has room for."""
    measured, found = contrast._Pairs._measured_room, {}
    much = 10**6
    wide: dict[str, dict[str, Any]] = {
        "tokens": {"tokens": much},
        "requests": {"requests": AT_ONCE + 1, "blocks": much},
        "blocks": {"blocks": much},
    }
    for what, wrong in wide.items():

        def mistaken(pairs: Any, wrong: dict[str, Any] = wrong) -> Room:
            return replace(measured(pairs), **wrong)

        contrast._Pairs._measured_room = mistaken  # type: ignore[method-assign, assignment]
        long = 130 if what == "blocks" else 4
        found[what] = refusal(
            lambda long=long, what=what: contrasted_ids(
                engine, sequences, Contrast(), max_tokens=long, salt=what, ignore_eos=True
            )
        )
    contrast._Pairs._measured_room = measured  # type: ignore[method-assign]
    return found


def refused(engine: Engine, sequences: list[list[int]]) -> dict[str, str]:
    long = sequences[0][:100] * 2
    return {
        "too long": refusal(lambda: contrasted_ids(engine, [long], Contrast(), max_tokens=4)),
        "no such row": refusal(lambda: contrasted_ids(engine, sequences[:1], Contrast(weak_row=3), max_tokens=4)),
    }


def main(result: Path) -> None:
    result.write_text(json.dumps(contrasted()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
