"""Answers by the contrast of two policies of one engine (SCMoE, 2405.14507): what the strong one says beyond the weak.

Each prompt becomes two requests, one of each policy's row, which get one token a step between them
(`plugin/contrast.py`). Both must stand at the same token in every step, from the one that ends their prompts on, and
nothing in vLLM knows of pairs. So a pair is let in only where the scheduler has no choice left (`Room`): its two
prompts and whatever else waits or runs fit into one step's tokens, all of them into one batch, and the KV cache holds
every request to its longest end, so that none is ever cut in chunks, left for the next step or preempted. The prefix
cache is not read: it may know the one prompt and not the other. Both end alike: they have the same tokens, limits and
texts to stop at.

That is held against what happened: every worker says how many steps of each pair it has contrasted and what it saw out
of step, and a call with a token that was not contrasted ends in an error. (Where an engine schedules ahead of the
tokens it knows, as on a GPU, a pair has a step more than its answer has tokens; that was never tried.)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from banpick_exp.engine.engine import Engine, EngineError
from banpick_exp.engine.plugin.twins import TWIN, Twin
from banpick_exp.engine.types import Generation, Sampling
from banpick_exp.errors import UserError

STRONG, WEAK = False, True


@dataclass(frozen=True, kw_only=True, slots=True)
class Contrast:
    """How two policies are contrasted; the defaults are the paper's."""

    alpha: float = 0.1
    """Tokens with less than this share of the likeliest one's probability, by the strong policy, are dropped."""
    beta: float = 0.5
    """How far to go from the strong policy's logits, away from the weak one's; 0 only drops what is unlikely."""
    strong_row: int = 0
    weak_row: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise UserError(f"alpha={self.alpha:g} is no share: every token, or none, would be dropped. Use 0 to 1.")
        if not 0 <= self.beta < float("inf"):
            raise UserError(f"beta={self.beta:g} would prefer what the weak policy says. Use 0 or more.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Room:
    """What an engine can hold at once."""

    tokens: int
    """Of one step."""
    requests: int
    blocks: int
    """Of the KV cache."""
    block_sizes: tuple[int, ...]
    """Tokens in a block, for each kind of layer that has blocks of its own."""
    longest: int
    """Tokens of a request."""

    def blocks_of(self, prompt: int, max_tokens: int) -> int:
        """What a pair may come to hold; one more a request, for a token that is scheduled ahead."""
        end = min(prompt + max_tokens, self.longest)
        return 2 * sum(-(-end // size) + 1 for size in self.block_sizes)

    def check(self, prompt: int, max_tokens: int) -> None:
        """Raise EngineError where a pair of this length has no room even alone."""
        needs = {
            f"engine.max_num_batched_tokens={self.tokens}": (2 * prompt, self.tokens, "tokens in one step"),
            f"engine.max_num_seqs={self.requests}": (2, self.requests, "requests at once"),
            f"a KV cache of {self.blocks} blocks": (self.blocks_of(prompt, max_tokens), self.blocks, "blocks"),
        }
        for what, (needed, there, of) in needs.items():
            if needed > there:
                raise EngineError(
                    f"a contrast asks a prompt of {prompt} tokens twice, for {max_tokens} more each, and that takes"
                    f" {needed} {of}: {what} is too little, and the two would fall out of step. Start the engine with"
                    f" {needed} or more"
                )


@dataclass(slots=True)
class _Live:
    """A pair that was let in and has not ended."""

    number: int
    prompt: int
    blocks: int
    internal: tuple[str, str]
    """vLLM's own names of the two requests."""
    prefilled: bool = False


def contrasted_ids(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    contrast: Contrast,
    *,
    max_tokens: int,
    salt: str = "",
    ignore_eos: bool = False,
    sampling: Sequence[Sampling] | None = None,
    stop: Sequence[Sequence[str]] | None = None,
) -> list[Generation]:
    """One answer a prompt by the contrast of two policies that `Engine.set_policies` was given.

    The other arguments are those of `Engine.generate_ids`. Raises EngineError where the engine has no room for a pair,
    or cannot keep pairs in step.
    """
    asked = Engine.asked(len(prompts), max_tokens=max_tokens, ignore_eos=ignore_eos, sampling=sampling, stop=stop)
    pairs = _Pairs(engine, contrast)
    for prompt in prompts:
        pairs.room.check(len(prompt), max_tokens)
    return pairs.answer(prompts, asked, salt)


class _Pairs:
    """The pairs of one call."""

    def __init__(self, engine: Engine, contrast: Contrast) -> None:
        self.engine, self.contrast = engine, contrast
        self._core: Any = engine.llm.llm_engine
        self._live: dict[int, _Live] = {}
        self._ended: dict[str, Any] = {}
        """Answers of vLLM, by name of the request."""
        self.room = self._measured_room()

    def _measured_room(self) -> Room:
        config, settings = self._core.vllm_config, self.engine.settings
        scheduler = config.scheduler_config
        if settings.pipeline_parallel_size > 1:
            raise EngineError(
                f"engine.pipeline_parallel_size={settings.pipeline_parallel_size}: a contrast on pipeline stages was"
                " never tried. Use engine.pipeline_parallel_size=1"
            )
        try:
            (blocks, *sizes), *_ = self.engine.call("banpick_contrast_room")
        except RuntimeError as error:
            raise EngineError(f"this engine cannot contrast two policies: {error}") from error
        limit = scheduler.max_num_scheduled_tokens or scheduler.max_num_batched_tokens
        return Room(
            tokens=min(limit, scheduler.max_num_batched_tokens),
            requests=scheduler.max_num_seqs,
            blocks=blocks,
            block_sizes=tuple(sizes),
            longest=config.model_config.max_model_len,
        )

    def answer(
        self, prompts: Sequence[Sequence[int]], asked: Sequence[Mapping[str, Any]], salt: str
    ) -> list[Generation]:
        """The strong requests' answers, in the order of the prompts."""
        waiting = deque(range(len(prompts)))
        self.engine.call("banpick_contrast", True)
        try:
            while waiting or self._live:
                if admitted := self._admissible(prompts, asked, waiting):
                    with self._between_steps():
                        for number in admitted:
                            self._ask(number, prompts[number], asked[number], salt)
                for output in self._core.step():
                    if output.finished:
                        self._ended[output.request_id] = output
                self._look()
        finally:
            left = [name for live in self._live.values() for name in live.internal]
            if left:
                self._core.abort_request(left, internal=True)
                while self._core.has_unfinished_requests():
                    self._core.step()
            told = self.engine.call("banpick_contrast", False)
        strong, weak = ([self._ended[_name(n, which)] for n in range(len(prompts))] for which in (STRONG, WEAK))
        self._check(told, strong, weak)
        return [Generation.of(output) for output in strong]

    def _admissible(
        self, prompts: Sequence[Sequence[int]], asked: Sequence[Mapping[str, Any]], waiting: deque[int]
    ) -> list[int]:
        """The next pairs that a step has room for, beside all that run; they are taken from `waiting`."""
        tokens = sum(2 if live.prefilled else 2 * live.prompt for live in self._live.values())
        blocks, requests = sum(live.blocks for live in self._live.values()), 2 * len(self._live)
        admitted = []
        while waiting:
            prompt = len(prompts[waiting[0]])
            tokens, requests = tokens + 2 * prompt, requests + 2
            blocks += self.room.blocks_of(prompt, asked[waiting[0]]["max_tokens"])
            if tokens > self.room.tokens or requests > self.room.requests or blocks > self.room.blocks:
                break
            admitted.append(waiting.popleft())
        return admitted

    @contextmanager
    def _between_steps(self) -> Iterator[None]:
        """No step begins while the two requests of a pair come in, also where the engine steps by itself."""
        if self.engine.settings.in_process:
            yield
            return
        self.engine.llm.sleep(level=0, mode="keep")
        try:
            yield
        finally:
            self.engine.llm.wake_up(tags=["scheduling"])

    def _ask(self, number: int, prompt: Sequence[int], asked: Mapping[str, Any], salt: str) -> None:
        from vllm.sampling_params import RequestOutputKind

        contrast = self.contrast
        twins = [Twin(number, weak, contrast.alpha, contrast.beta) for weak in (STRONG, WEAK)]
        inputs, parameters = self.engine.requests(
            [prompt, prompt],
            [{**asked, "output_kind": RequestOutputKind.FINAL_ONLY, "skip_reading_prefix_cache": True}] * 2,
            salt,
            [contrast.strong_row, contrast.weak_row],
            [{TWIN: twin.wire()} for twin in twins],
        )
        names: list[str] = []
        try:
            for which, given, sampling in zip((STRONG, WEAK), inputs, parameters, strict=True):
                names.append(self._core.add_request(_name(number, which), given, sampling))
        except BaseException:
            self._core.abort_request(names, internal=True)
            raise
        blocks = self.room.blocks_of(len(prompt), asked["max_tokens"])
        self._live[number] = _Live(number, len(prompt), blocks, (names[0], names[1]))

    def _look(self) -> None:
        """See which pairs have had their first token, and which have ended."""
        states = self._core.output_processor.request_states
        for number, live in list(self._live.items()):
            known = [states[name] for name in live.internal if name in states]
            live.prefilled = all(not state.is_prefilling for state in known)
            if not known:
                del self._live[number]

    def _check(self, told: Sequence[Sequence[Any]], strong: Sequence[Any], weak: Sequence[Any]) -> None:
        """Raise EngineError where a token was not contrasted, by any rank, or the two of a pair differ."""
        ahead = 1 if self._core.vllm_config.scheduler_config.async_scheduling else 0
        for rank, (steps, faults) in enumerate(told):
            if faults:
                raise EngineError(f"rank {rank}: two requests of a contrast fell out of step: {'; '.join(faults[:3])}")
            contrasted = dict(steps)
            for number, (one, other) in enumerate(zip(strong, weak, strict=True)):
                answer, twin = one.outputs[0], other.outputs[0]
                beyond = contrasted.get(number, 0) - len(answer.token_ids)
                if not 0 <= beyond <= ahead or list(answer.token_ids) != list(twin.token_ids):
                    raise EngineError(
                        f"rank {rank}: {contrasted.get(number, 0)} steps of pair {number} were contrasted, and its two"
                        f" requests have {len(answer.token_ids)} and {len(twin.token_ids)} tokens: the answers are not"
                        " those of the contrast"
                    )


def _name(number: int, weak: bool) -> str:
    return f"{'weak' if weak else 'strong'}-{number}"
