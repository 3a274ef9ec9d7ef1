"""A started engine driven step by step, so that something may change between two steps of one running batch."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from banpick_exp.engine.engine import Engine, EngineError


def can_step(engine: Engine) -> bool:
    """Whether one call of a step is one step of the model: the engine lives in this process and runs none ahead.

    So it is on a CPU (vLLM 0.32's platform turns async scheduling off there), in one rank.
    """
    config = engine.llm.llm_engine.vllm_config
    return engine.settings.in_process and not config.scheduler_config.async_scheduling


class Stepper:
    """Requests of an engine, advanced one engine step at a time.

    A policy that is swapped in between two steps routes what is computed from then on; keys and values of before stay
    as they are. That is for timing: answers of such a mixture are nobody's, and none are handed out.
    """

    def __init__(self, engine: Engine) -> None:
        """`engine`: started, one that `can_step`, and asked for nothing else while requests of this are unfinished."""
        self.engine, self._numbers = engine, itertools.count()
        self._core: Any = engine.llm.llm_engine

    def add(self, prompts: Sequence[Sequence[int]], *, max_tokens: int, rows: Sequence[int] | None = None) -> list[str]:
        """Queue one greedy request a prompt (token ids), which goes on to `max_tokens`. Returns their names.

        No request finds another's keys and values in the prefix cache. `rows` as in `Engine.generate`.
        """
        from vllm import SamplingParams

        names = [f"step-{next(self._numbers)}" for _ in prompts]
        for name, prompt, row in zip(names, prompts, rows or [0] * len(prompts), strict=True):
            sampling = SamplingParams(
                temperature=0.0,
                max_tokens=max_tokens,
                ignore_eos=True,
                detokenize=False,
                extra_args={"routing_row": row} if row else None,
            )
            self._core.add_request(name, {"prompt_token_ids": list(prompt), "cache_salt": name}, sampling)
        return names

    def step(self) -> float:
        """One engine step: a token of every running request, or the prefill of new ones. Returns seconds."""
        begin = time.perf_counter()
        self._core.step()
        return time.perf_counter() - begin

    def abort(self, names: Sequence[str]) -> None:
        """Take requests out, finished or not, and step until none is left unfinished."""
        self._core.abort_request(list(names))
        while self._core.has_unfinished_requests():
            self._core.step()

    @contextmanager
    def decoding(
        self, prompts: Sequence[Sequence[int]], *, steps: int, rows: Sequence[int] | None = None
    ) -> Iterator[None]:
        """A batch of these prompts past its prefill, with room for `steps` more; gone afterwards.

        Raises: EngineError where they never decode all at once: engine.max_num_seqs or the KV cache is too small.
        """
        prefill = self._prefill_steps(prompts)
        names = self.add(prompts, max_tokens=steps + prefill + 1, rows=rows)
        try:
            for _ in range(prefill):
                if len(self._core.step()) == len(names):  # each of them had a token
                    break
            else:
                raise EngineError(f"{len(names)} sequences never decode at once: engine.max_num_seqs or kv_cache_gib")
            yield
        finally:
            self.abort(names)

    def _prefill_steps(self, prompts: Sequence[Sequence[int]]) -> int:
        """The most steps that putting the prompts through can take; sequences that decode already take up room too."""
        tokens = sum(map(len, prompts))
        return 1 + -(-tokens // max(1, self.engine.settings.max_num_batched_tokens - len(prompts)))
