"""The passes over given sequences that a calibration asks an engine for; `influence.py` says which, and why.

Every pass is armed on all ranks (`worker_calibration.py`), fed the sequences, and disarmed; stock routing is on
meanwhile, and the policy set before is on again afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm import LLM


class CalibrationPasses:
    """Mixed into `engine.Engine`."""

    @property
    def llm(self) -> LLM:
        raise NotImplementedError

    def _rpc(self, method: str, *arguments: Any) -> list[Any]:
        raise NotImplementedError

    def _run(self, prompts: Sequence[Sequence[int]], sampling: Any, salt: str) -> Any:
        raise NotImplementedError

    def token_ids(self, texts: Sequence[str]) -> list[int]:
        """The ids of those texts that are one token of this model."""
        tokenizer: Any = self.llm.get_tokenizer()
        encoded = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
        return sorted({ids[0] for ids in encoded if len(ids) == 1})

    def observe(
        self, sequences: Sequence[Sequence[int]], *, markers: Sequence[int], k_min: int, hidden_states: int
    ) -> dict[str, Any]:
        """What the unchanged model does on these sequences (`engine/plugin/observation.py`)."""
        self._rpc("banpick_observe_start", sum(map(len, sequences)), list(markers), k_min, hidden_states)
        return self._fed(sequences, "banpick_observe_finish")

    def similarity(self, layer: int) -> list[list[list[float]]]:
        """Of each rank: CKA of each two experts of a layer, [E][E], on the hidden states kept by the last `observe`."""
        return self._rpc("banpick_similarity", layer)

    def probe(
        self,
        sequences: Sequence[Sequence[int]],
        prompt_lengths: Sequence[int],
        candidates: Sequence[Sequence[Any]],
        *,
        top_vocab: int,
        range_factor: float,
    ) -> dict[str, Any]:
        """Mean KL (nats) of each candidate change on these sequences, computed in the worker (see `probe.py`)."""
        plain = [list(s) for s in sequences]
        arguments = (plain, list(prompt_lengths), [list(c) for c in candidates], top_vocab, range_factor)
        self._rpc("banpick_probe_start", *arguments)
        return self._fed(plain, "banpick_probe_finish")

    def _fed(self, sequences: Sequence[Sequence[int]], finish: str) -> dict[str, Any]:
        from vllm import SamplingParams

        try:
            # A sequence must be computed whole, however often it or its beginning was seen before.
            self._run(sequences, SamplingParams(temperature=0.0, max_tokens=1, skip_reading_prefix_cache=True), "probe")
        finally:
            answers = self._rpc(finish)
        return answers[0]
