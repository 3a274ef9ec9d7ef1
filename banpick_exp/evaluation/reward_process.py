"""A reward model as Transformers computes it: one score for each answer to a question, in a process of its own.

Run by `reward` as a file of its own (`python -P reward_process.py`), so it imports nothing of the package. One object
of JSON comes in on stdin ({folder, questions: [{messages, text}], answers: [[question, completion]]}) and one goes out
on stdout: {scores: [a number an answer], cut: [answers that were too long]}, or {problem}, one line in words.

On the CPU, in float32, without dropout. Answers of equal length (in tokens) share a batch and none is padded: which
token a model reads its score from hangs on no other answer. No code of the folder is run and no pickle opened.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

BATCH_TOKENS = 4096
"""Of a batch, at most, unless one answer is longer."""
NO_BOUND = 10**9
"""Tokens: what is no smaller is how a tokenizer says that it knows no longest text."""

Encoded = dict[str, list[int]]
"""What goes into the model of one text: input_ids, and what else its tokenizer gives, as long."""


def scores_of(asked: Mapping[str, Any]) -> dict[str, Any]:
    """{scores, cut}. Raises ValueError where the folder holds no such model, whatever Transformers raises elsewhere."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    own: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    tokenizer: Any = AutoTokenizer.from_pretrained(asked["folder"], truncation_side="left", **own)
    loaded: Any = AutoModelForSequenceClassification.from_pretrained(
        asked["folder"], dtype=torch.float32, use_safetensors=True, output_loading_info=True, **own
    )
    model, information = loaded
    if unset := sorted(information["missing_keys"]):
        raise ValueError(f"it leaves {len(unset)} weights unset, {unset[0]} for one")
    longest = longest_of(model.config, tokenizer)
    texts, cut = [], []
    for number, (question, completion) in enumerate(asked["answers"]):
        encoded, was_cut = encode(tokenizer, asked["questions"][question], completion, longest)
        texts.append(encoded)
        cut += [number] if was_cut else []
    # Transformers refuses to batch what has no padding token, whether or not anything is padded.
    single = model.config.get_text_config().pad_token_id is None
    scores = [0.0] * len(texts)
    parent = os.getppid()
    with torch.inference_mode():
        for batch in batches([len(text["input_ids"]) for text in texts], 1 if single else BATCH_TOKENS):
            if os.getppid() != parent:
                raise SystemExit(1)  # nobody is left to wait
            fields = {key: torch.tensor([texts[number][key] for number in batch]) for key in texts[batch[0]]}
            logits = model.eval()(**fields).logits.float()
            if logits.shape != (len(batch), 1):
                raise ValueError(f"it gives {tuple(logits.shape)} numbers for {len(batch)} texts, not one each")
            for number, score in zip(batch, logits[:, 0].tolist(), strict=True):
                scores[number] = score
    return {"scores": scores, "cut": cut}


def longest_of(config: Any, tokenizer: Any) -> int | None:
    """Tokens that the model reads at most; None where neither it nor its tokenizer says."""
    told = (getattr(config.get_text_config(), "max_position_embeddings", None), tokenizer.model_max_length)
    return min((int(n) for n in told if isinstance(n, int | float) and 0 < n < NO_BOUND), default=None)


def encode(tokenizer: Any, question: Mapping[str, Any], completion: str, longest: int | None) -> tuple[Encoded, bool]:
    """A question and an answer as tokens, and whether they were too long and lost their beginning.

    As a chat, by the tokenizer's template, where it has one; else as a pair of texts.
    """
    if tokenizer.chat_template:
        chat = [*question["messages"], {"role": "assistant", "content": completion}]
        text = tokenizer.apply_chat_template(chat, tokenize=False)
        whole = dict(tokenizer(text, add_special_tokens=False))  # the template has written them
        if longest is None or len(whole["input_ids"]) <= longest:
            return whole, False
        return {key: ids[-longest:] for key, ids in whole.items()}, True
    whole = dict(tokenizer(question["text"], completion))
    if longest is None or len(whole["input_ids"]) <= longest:
        return whole, False
    return dict(tokenizer(question["text"], completion, truncation="longest_first", max_length=longest)), True


def batches(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Which texts meet, by their numbers: of one length, the longest first, for memory is short at once or never."""
    equal: dict[int, list[int]] = {}
    for number, length in enumerate(lengths):
        equal.setdefault(length, []).append(number)
    for length in sorted(equal, reverse=True):
        size = max(1, tokens // max(1, length))
        yield from (equal[length][begin : begin + size] for begin in range(0, len(equal[length]), size))


def answer(asked: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return scores_of(asked)
    except Exception as error:  # whatever it is: who asked tells it in words
        said = str(error).strip().splitlines() or [""]
        return {"problem": f"{type(error).__name__}: {said[0]}"}


def main() -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    print(json.dumps(answer(json.load(sys.stdin))), file=out, flush=True)


if __name__ == "__main__":
    main()
