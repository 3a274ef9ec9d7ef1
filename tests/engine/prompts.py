"""What the engine tests ask: real problems of the embedded model, some of them long enough for the prefix cache."""

from __future__ import annotations

import json
from typing import Any

from banpick_exp.models.tiny import ASSETS, DOMAINS

CHECKPOINT = str(ASSETS / "checkpoint")
NUM_LAYERS, NUM_EXPERTS, TOP_K = 4, 32, 8

POLICY_A: tuple[str, dict[str, Any]] = ("pick", {"mode": "range_add", "experts": {1: [3, 5], 2: [7]}})
POLICY_B: tuple[str, dict[str, Any]] = ("fixed_k", {"k": 2})
MAX_TOKENS = 16


def short_prompts(count: int, split: str = "test") -> list[str]:
    """`count` prompts, the domains in turn."""
    lines = [(ASSETS / "data" / f"{domain}_{split}.jsonl").read_text().splitlines() for domain in DOMAINS]
    return [json.loads(line)["prompt"] for row in zip(*lines, strict=False) for line in row][:count]


def long_prompts(count: int) -> list[str]:
    """Prompts of over 128 characters (one token each), so that a whole KV block of a CPU engine can be shared."""
    words = short_prompts(20 * count)
    joined = ["".join(words[20 * i : 20 * (i + 1)]) for i in range(count)]
    return [text[-170:] for text in joined]


def answers_with_logprobs(llm: Any, prompts: list[str], salt: str) -> list[dict[str, Any]]:
    """Greedy tokens and the five best log-probabilities of each, straight from vLLM; plain values, ready for JSON."""
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, logprobs=5)
    tokenizer = llm.get_tokenizer()
    inputs = [{"prompt_token_ids": tokenizer(text).input_ids, "cache_salt": salt} for text in prompts]
    return [
        {
            "tokens": list(output.outputs[0].token_ids),
            "logprobs": [sorted([token, entry.logprob] for token, entry in position.items()) for position in
                         output.outputs[0].logprobs],
        }
        for output in llm.generate(inputs, sampling, use_tqdm=False)
    ]  # fmt: skip
