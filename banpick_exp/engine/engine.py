"""One loaded vLLM engine whose policy is swapped in milliseconds. Runs as a Ray actor, or in process for tests.

A loaded engine is precious: nothing here ever reloads it. Every prompt carries `cache_salt` = the policy's
fingerprint, because vLLM's prefix cache would otherwise serve KV computed under another policy.
"""

from __future__ import annotations

import gc
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from banpick_exp.config import fingerprint
from banpick_exp.engine.config import EngineConfig
from banpick_exp.engine.latent_attention import cpu_options
from banpick_exp.engine.sockets import socket_folder
from banpick_exp.engine.types import Generation, RankReport, Sampling
from banpick_exp.models.config import ModelConfig
from banpick_exp.policy import Calibration
from banpick_exp.records import Counters

if TYPE_CHECKING:
    from vllm import LLM, RequestOutput, SamplingParams

ROUTING_WORKER = "banpick_exp.engine.worker.RoutingExtension"
"""What vLLM mixes into its workers; a subclass may bring more methods for `Engine.call`."""
PROBE_PROMPT = [10, 11, 12, 13, 14]
"""Token ids of the start-up probe: any ids do, only the counters are looked at."""
GREEDY: Mapping[str, Any] = {"temperature": 0.0}
UNSET: Mapping[str, int] = {"banpick_extra_slots": 0, "banpick_rows": 1}
"""What the plugin reads from vLLM's `additional_config`, where nothing is said. Named, it is part of vLLM's hashes."""


Chat = bool | Mapping[str, Any]
"""Whether a prompt becomes a chat, or what the chat template is given."""
Prompt = str | list[dict[str, str]]
"""What the user says, or all messages of a chat ({role, content}), which needs a chat template."""


PolicyOfRow = tuple[str, Mapping[str, Any]] | tuple[str, Mapping[str, Any], str]
"""Name, params, and the key of a loaded calibration where it reads one."""


class EngineError(RuntimeError):
    """The engine cannot be trusted to apply policies; it must not measure anything."""


def wrong_count(hooked: int, planned: int) -> str:
    """What it may mean that an engine hooks another number of MoE layers than planned, and what to type."""
    if not hooked:
        return "This architecture bypasses vLLM's factory: every policy would be ignored, so it cannot be measured."
    remedy = f"If the model has {hooked} MoE layers, type model.num_layers={hooked}"
    if hooked > planned:
        return f"The count is wrong, and policies were laid out for fewer layers. {remedy}."
    return (
        f"Either the count is wrong, or the others bypass vLLM's factory and would ignore every policy. {remedy};"
        " if it has more, it cannot be measured."
    )


def stages_of(reports: Sequence[RankReport]) -> list[list[RankReport]]:
    """The ranks of each pipeline stage, those of lower layers first; all in one where there is no pipeline."""
    return [[each for each in reports if each.stage == stage] for stage in sorted({each.stage for each in reports})]


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """For imports: what thousands of modules make stays, and looking for garbage in it takes a quarter of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _joined(stages: Sequence[Mapping[str, list[Any]]]) -> Counters:
    """The layers of all stages, those of lower layers first."""
    return Counters(**{field: [value for part in stages for value in part[field]] for field in stages[0]})


class Engine:
    """start, verify, set_policy, generate, score, prefill, close; `call` reaches what else the workers can do."""

    def __init__(
        self,
        model: ModelConfig,
        model_path: str,
        engine: EngineConfig,
        num_layers: int,
        options: Mapping[str, Any] | None = None,
        *,
        worker: str = ROUTING_WORKER,
        rows: int = 1,
    ) -> None:
        """`num_layers`: MoE layers the checkpoint has, by its config.json; `verify` holds the hook against it.

        `options`: further arguments of `vllm.LLM`, over those that the settings give.

        `worker`: the worker extension by its full name, `RoutingExtension` or a subclass. The same for all engines that
        are started in one process: vLLM mixes it into its worker class and leaves it there.

        `rows`: how many policies the engine can hold at once, one for each request of a batch.
        """
        self.model, self.model_path, self.settings, self.num_layers = model, model_path, engine, num_layers
        self.options, self.worker, self.rows = dict(options or {}), worker, rows
        self.policy_fingerprints = ["none"]
        """Of the policies held, by row."""
        self._llm: LLM | None = None
        self._stages: list[int] | None = None
        """The pipeline stage of each rank; None where there is one stage."""

    # ------------------------------------------------------------ life

    def start(self) -> float:
        """Load the checkpoint. Returns seconds. The environment is set before vLLM is imported."""
        begin = time.perf_counter()
        os.environ.update(self._environment())
        with _nothing_collected():
            from vllm import LLM

        settings = self.settings
        if settings.gpus == 0 and settings.cpus is not None:
            import torch

            # Where torch was imported before the environment was set, only this still reaches OpenMP.
            torch.set_num_threads(settings.cpus)
        options: dict[str, Any] = {"worker_extension_cls": self.worker}
        if settings.gpus == 0:
            options |= cpu_options(self.model, self.model_path)
        if settings.distributed_executor_backend is not None:
            options["distributed_executor_backend"] = settings.distributed_executor_backend
        elif settings.ranks > 1:
            # Inside a Ray actor vLLM would choose Ray, which a CPU has no executor for and one node has no need of.
            options["distributed_executor_backend"] = "mp"
        if settings.moe_backend is not None:
            options["moe_backend"] = settings.moe_backend
        if settings.kv_cache_blocks is not None:
            options["num_gpu_blocks_override"] = settings.kv_cache_blocks
        additional = {"banpick_extra_slots": settings.extra_slots, "banpick_rows": self.rows}
        if set_apart := {name: value for name, value in additional.items() if value != UNSET[name]}:
            options["additional_config"] = set_apart
        gc.freeze()  # what was imported stays: vLLM collects garbage several times while it loads
        self._llm = LLM(
            model=self.model_path,
            revision=self.model.revision,
            dtype=self.model.dtype,
            trust_remote_code=self.model.trust_remote_code,
            tensor_parallel_size=settings.tensor_parallel_size,
            pipeline_parallel_size=settings.pipeline_parallel_size,
            enable_expert_parallel=settings.expert_parallel,
            enforce_eager=not settings.compile,
            max_model_len=settings.max_model_len,
            max_num_seqs=settings.max_num_seqs,
            max_num_batched_tokens=settings.max_num_batched_tokens,
            gpu_memory_utilization=settings.gpu_memory_utilization,
            seed=settings.seed,
            disable_log_stats=True,
            **(options | self.options),
        )
        if settings.pipeline_parallel_size > 1:
            self._place(self.describe())
        elif self.rows > 1:
            self.describe()  # from now on requests are followed
        return time.perf_counter() - begin

    def _place(self, reports: Sequence[RankReport]) -> None:
        """Tell each rank which of the model's MoE layers are its own: a policy is laid out for all of them."""
        self._stages = [report.stage for report in reports]
        self.call("banpick_place", [len(ranks[0].layers) for ranks in stages_of(reports)])

    def _environment(self) -> dict[str, str]:
        """What vLLM reads from the environment. VLLM_PLUGINS also separates its compile cache from stock vLLM's."""
        environment = {
            "VLLM_PLUGINS": "banpick",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
            "VLLM_USE_V2_MODEL_RUNNER": str(int(self.settings.model_runner == "v2")),
        }
        if self.settings.gpus == 0:
            environment |= {
                "VLLM_CPU_KVCACHE_SPACE": str(self.settings.kv_cache_gib),
                "VLLM_CPU_OMP_THREADS_BIND": "nobind",
                # Spinning OpenMP barriers on a busy machine made the embedded model 10 times slower.
                "OMP_WAIT_POLICY": "PASSIVE",
            }
            if self.settings.cpus is not None:
                environment["OMP_NUM_THREADS"] = str(self.settings.cpus)
        environment |= socket_folder()
        if self.settings.in_process:
            environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        if os.path.isdir(self.model_path):
            environment["HF_HUB_OFFLINE"] = "1"
        return environment

    def close(self) -> None:
        """Free the engine; another may be started in the same process."""
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
            self._llm = None

    @property
    def llm(self) -> LLM:
        if self._llm is None:
            raise EngineError("the engine is not started: call start() first")
        return self._llm

    def call(self, method: str, *arguments: Any) -> list[Any]:
        """What the worker method answers on every rank, rank 0 first. Plain values alone travel, both ways."""
        return self.llm.collective_rpc(method, args=arguments)

    # ------------------------------------------------------------ trust

    def describe(self) -> list[RankReport]:
        """What each rank hooked. Raises EngineError where a rank holds a layer that no policy would reach."""
        try:
            return [RankReport.of(plain) for plain in self.call("banpick_describe")]
        except RuntimeError as error:
            raise EngineError(f"a rank cannot be trusted to apply policies: {error}") from error

    def verify(self) -> RankReport:
        """Every rank proves that its MoE layers are hooked, route like the reference, leave out the banned, and count.

        The short form of `python -m banpick_exp verify`. Raises EngineError otherwise. Returns what the first rank
        with MoE layers hooked; the policy is none afterwards.
        """
        reports = self.describe()
        stages = stages_of(reports)
        hooked = sum(len(ranks[0].layers) for ranks in stages)
        for report in reports:
            own, whole = len(report.layers), len(stages[report.stage][0].layers)
            if own != whole or hooked != self.num_layers:
                hooked += own - whole
                raise EngineError(
                    f"rank {report.rank}: {hooked} of {self.num_layers} MoE layers are hooked."
                    f" {wrong_count(hooked, self.num_layers)}"
                )
        for rank, problems in enumerate(self.call("banpick_self_test")):
            if problems:
                raise EngineError(f"rank {rank}: the self-test failed: {'; '.join(problems)}")
        first = next(report for report in reports if report.layers)
        problem = self.count_probe([PROBE_PROMPT], answer_tokens=1, k=min(3, *first.top_k))
        if problem:
            raise EngineError(f"{problem}: measured budgets would be wrong.")
        if self.rows > 1 and (problem := self.row_probe(min(first.top_k))):
            raise EngineError(f"{problem}: requests would be answered under another policy than the one they name.")
        return first

    def count_probe(self, prompts: Sequence[Sequence[int]], *, answer_tokens: int, k: int) -> str | None:
        """Route `prompts` under fixed_k `k` and hold each rank's counters against the count by hand; None where equal.

        Every prompt token is routed, and every answered one but the last. The policy is none afterwards.
        """
        tokens = sum(len(prompt) + answer_tokens - 1 for prompt in prompts)
        self.set_policy("fixed_k", {"k": k})
        self.counters(reset=True)
        try:
            self.generate_ids(prompts, max_tokens=answer_tokens, salt="verify", ignore_eos=True)
            counted = [Counters(**plain) for plain in self.call("banpick_counters", True)]
        finally:
            self.set_policy("none", {})
        for rank, counters in enumerate(counted):
            found = counters.tokens, counters.kept, [sum(usage_E) for usage_E in counters.usage]
            for values, wanted in zip(found, (tokens, tokens * k, tokens * k), strict=True):
                if set(values) - {wanted}:
                    what = "" if wanted == tokens else f" with {k} experts each"
                    return f"rank {rank}: a probe of {tokens} tokens{what} was counted as {values} per layer"
        return None

    def row_probe(self, top_k: int) -> str | None:
        """Ask two rows at once, the second under fixed_k 1, and hold each rank's counters against the count by hand;
        None where equal. Requests of both rows stand on both sides of each other. The policy is none afterwards.
        """
        lengths, rows, budgets = (5, 3, 8, 6), (1, 0, 1, 0), (top_k, 1)
        self.set_policies([("none", {}), ("fixed_k", {"k": 1})])
        self.counters(reset=True)
        try:
            prompts = [PROBE_PROMPT[:1] * length for length in lengths]
            self.generate_ids(prompts, max_tokens=2, salt="verify rows", ignore_eos=True, rows=rows)
            counted = self.call("banpick_counters_by_row", True)
        finally:
            self.set_policy("none", {})
        for rank, counters in enumerate(counted):
            for row, budget in enumerate(budgets):
                tokens = sum(length + 1 for length, of in zip(lengths, rows, strict=True) if of == row)
                found = counters[row]["tokens"], counters[row]["kept"]
                if any(set(values) - {wanted} for values, wanted in zip(found, (tokens, tokens * budget), strict=True)):
                    what = f"{tokens} tokens of row {row} with {budget} experts each"
                    return f"rank {rank}: a probe of {what} was counted as {found[0]} and {found[1]} per layer"
        return None

    # ------------------------------------------------------------ policy

    def load_calibration(self, key: str, calibration: Calibration) -> None:
        """Hand one domain's calibration to every rank, once; policies then name it by `key`."""
        self.call("banpick_load_calibration", key, calibration.to_json())

    def set_policy(self, name: str, params: Mapping[str, Any], calibration_key: str = "") -> float:
        """Swap the routing policy in place, on every rank. Returns seconds. Raises EngineError when ranks disagree."""
        begin = time.perf_counter()
        answers = self.call("banpick_set_policy", name, json.dumps(dict(params)), calibration_key)
        self.policy_fingerprints = [self._held(name, params, calibration_key, [digest for digest, _ in answers])]
        return time.perf_counter() - begin

    def set_policies(self, policies: Sequence[PolicyOfRow]) -> float:
        """Hold several policies at once, the first of them in row 0; a request then names its row. Returns seconds.

        Each is (name, params) or (name, params, calibration key). Raises EngineError when ranks disagree, or where the
        engine was started for fewer.
        """
        if not 1 <= len(policies) <= self.rows:
            raise EngineError(
                f"{len(policies)} policies at once, and this engine was started for 1 to {self.rows}: start it with"
                f" rows={max(1, len(policies))}"
            )
        begin = time.perf_counter()
        asked = [(policy[0], dict(policy[1]), policy[2] if len(policy) == 3 else "") for policy in policies]
        answers = self.call("banpick_set_policies", [[name, json.dumps(params), key] for name, params, key in asked])
        self.policy_fingerprints = [
            self._held(name, params, key, [digests[row] for digests, _ in answers])
            for row, (name, params, key) in enumerate(asked)
        ]
        return time.perf_counter() - begin

    @property
    def policy_fingerprint(self) -> str:
        """Of the policy in row 0."""
        return self.policy_fingerprints[0]

    def _held(self, name: str, params: Mapping[str, Any], calibration_key: str, digests: Sequence[str]) -> str:
        """The fingerprint of a policy of which each rank names the digest that it holds."""
        stages = [set(ranks) for ranks in self._by_stage(digests)]
        for of_stage in stages:
            if len(of_stage) != 1:
                raise EngineError(f"ranks hold different policies after the swap: {sorted(of_stage)}")
        held = "-".join(of_stage.pop() for of_stage in stages)
        return fingerprint([name, dict(params), calibration_key, held])

    def counters(self, *, reset: bool) -> Counters:
        """Of all layers and rows, by the first rank of each stage; `verify` has shown that the ranks count alike."""
        return _joined([ranks[0] for ranks in self._by_stage(self.call("banpick_counters", reset))])

    def counters_by_row(self, *, reset: bool) -> list[Counters]:
        """The same of each policy that is held, by row."""
        stages = [ranks[0] for ranks in self._by_stage(self.call("banpick_counters_by_row", reset))]
        held = range(len(self.policy_fingerprints))
        return [_joined([of_stage[row] for of_stage in stages]) for row in held]

    def _by_stage(self, answers: Sequence[Any]) -> list[list[Any]]:
        """What the ranks answered, stage by stage, those of lower layers first."""
        if self._stages is None:
            return [list(answers)]
        pairs = list(zip(self._stages, answers, strict=True))
        return [[answer for stage, answer in pairs if stage == each] for each in sorted(set(self._stages))]

    # ------------------------------------------------------------ work

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        max_tokens: int,
        chat: Chat = False,
        salt: str = "",
        ignore_eos: bool = False,
        stop: Sequence[Sequence[str]] | None = None,
        rows: Sequence[int] | None = None,
    ) -> list[Generation]:
        """Greedy answers under the current policy. `salt` is added to the policy's own cache salt.

        `rows`: of `set_policies`, which policy answers each prompt; None: row 0 answers all.
        """
        sequences = self.tokenize(prompts, chat=chat)
        return self.generate_ids(
            sequences, max_tokens=max_tokens, salt=salt, ignore_eos=ignore_eos, stop=stop, rows=rows
        )

    def tokenize(
        self, prompts: Sequence[Prompt], *, chat: Chat = False, special_tokens: bool = True
    ) -> list[list[int]]:
        """Token ids of each text. `special_tokens`: with those that the model's tokenizer puts around it.

        `chat`: what the user says in a chat; an object is handed to the chat template.
        """
        tokenizer: Any = self.llm.get_tokenizer()
        if chat is not False:
            given = {} if chat is True else dict(chat)
            messages = [[{"role": "user", "content": each}] if isinstance(each, str) else each for each in prompts]
            return [
                tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False, **given)
                for message in messages
            ]
        if not prompts:
            return []
        assert all(isinstance(each, str) for each in prompts), "planning refuses a chat without a chat template"
        ids: list[list[int]] = tokenizer(list(prompts), add_special_tokens=special_tokens).input_ids
        return ids

    def end_token(self) -> int | None:
        """The token that ends an answer, by the tokenizer; None where it names none."""
        tokenizer: Any = self.llm.get_tokenizer()
        return None if tokenizer.eos_token_id is None else int(tokenizer.eos_token_id)

    def first_token(self) -> int | None:
        """The token that a text without a beginning is put behind: the one that begins texts, else the one that ends
        them; None where the tokenizer names neither."""
        tokenizer: Any = self.llm.get_tokenizer()
        return self.end_token() if tokenizer.bos_token_id is None else int(tokenizer.bos_token_id)

    def generate_ids(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: int,
        salt: str = "",
        ignore_eos: bool = False,
        sampling: Sequence[Sampling] | None = None,
        stop: Sequence[Sequence[str]] | None = None,
        rows: Sequence[int] | None = None,
    ) -> list[Generation]:
        """One answer a prompt, greedy or drawn as `sampling` (one entry a prompt) says.

        `stop`: for each prompt the texts at which its answer ends; they are left out of it. `rows` as in `generate`.
        """
        asked = self.asked(len(prompts), max_tokens=max_tokens, ignore_eos=ignore_eos, sampling=sampling, stop=stop)
        return [Generation.of(output) for output in self._run(prompts, asked, salt, rows)]

    @staticmethod
    def asked(
        prompts: int,
        *,
        max_tokens: int,
        ignore_eos: bool = False,
        sampling: Sequence[Sampling] | None = None,
        stop: Sequence[Sequence[str]] | None = None,
    ) -> list[dict[str, Any]]:
        """Arguments of `vllm.SamplingParams` for each of so many prompts; what they mean is said in `generate_ids`."""
        limits = {"max_tokens": max_tokens, "ignore_eos": ignore_eos}
        drawn = [GREEDY] * prompts if sampling is None else [asdict(each) for each in sampling]
        asked = [{**each, **limits} for each in drawn]
        if stop is not None:
            asked = [each | {"stop": list(ends)} if ends else each for each, ends in zip(asked, stop, strict=True)]
        return asked

    def score(
        self, sequences: Sequence[Sequence[int]], *, salt: str = "", rows: Sequence[int] | None = None
    ) -> list[list[float]]:
        """Log-probability (nats) of each token given those before it, under the current policy.

        Element i of a result belongs to token i + 1: the first token has no prediction. `rows` as in `generate`.
        """
        scored = [{**GREEDY, "max_tokens": 1, "prompt_logprobs": 0}] * len(sequences)
        results = []
        for sequence, output in zip(sequences, self._run(sequences, scored, salt, rows), strict=True):
            assert output.prompt_logprobs is not None
            entries = zip(sequence[1:], output.prompt_logprobs[1:], strict=True)
            results.append([entry[token].logprob for token, entry in entries if entry is not None])
        return results

    def continuations(
        self, sequences: Sequence[Sequence[int]], starts: Sequence[int], *, salt: str = ""
    ) -> list[tuple[float, bool]]:
        """Log-probability (nats) of each sequence from its token `start` (1 or more) on, under the current policy, and
        whether greedy decoding would have written just that."""
        # Flat: an object for each token of a long context takes longer than the model.
        scored = [{**GREEDY, "max_tokens": 1, "prompt_logprobs": 0, "flat_logprobs": True}] * len(sequences)
        results = []
        for sequence, start, output in zip(sequences, starts, self._run(sequences, scored, salt), strict=True):
            assert output.prompt_logprobs is not None
            entries = [(output.prompt_logprobs[place] or {})[sequence[place]] for place in range(start, len(sequence))]
            results.append((sum(entry.logprob for entry in entries), all(entry.rank == 1 for entry in entries)))
        return results

    def prefill(self, sequences: Sequence[Sequence[int]], *, reuse_prefixes: bool = False, salt: str = "") -> None:
        """Put sequences through the model, for those who watch it from inside the workers; nothing comes back.

        `reuse_prefixes` False: every token is computed, however often it or its beginning was seen before.
        """
        skip = None if reuse_prefixes else True
        passed = [{**GREEDY, "max_tokens": 1, "skip_reading_prefix_cache": skip}] * len(sequences)
        self._run(sequences, passed, salt)

    def _run(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sequence[Mapping[str, Any]],
        salt: str,
        rows: Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """`sampling`: arguments of `vllm.SamplingParams`, one entry a prompt. `rows` as in `generate`."""
        inputs, parameters = self.requests(prompts, sampling, salt, rows)
        return self.llm.generate(inputs, parameters, use_tqdm=False)

    def requests(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sequence[Mapping[str, Any]],
        salt: str,
        rows: Sequence[int] | None = None,
        extra: Sequence[Mapping[str, Any]] | None = None,
    ) -> tuple[Any, list[SamplingParams]]:
        """What vLLM is asked for these prompts: inputs and parameters, one entry a prompt. Arguments as in `_run`.

        `extra`: what the workers are told of each request, beside its row.
        """
        from vllm import SamplingParams

        held = self.policy_fingerprints
        rows_R = [0] * len(prompts) if rows is None else list(rows)
        if len(rows_R) != len(prompts) or not all(0 <= row < len(held) for row in rows_R):
            raise EngineError(
                f"rows={sorted(set(rows_R))} for {len(prompts)} prompts: each prompt names one of the {len(held)}"
                f" policies that set_policies was given, 0..{len(held) - 1}"
            )
        told = [{"routing_row": row} if row else {} for row in rows_R]
        if extra is not None:
            told = [of_row | dict(more) for of_row, more in zip(told, extra, strict=True)]
        # `skip_clone`: made for one request alone. vLLM copies others deeply, a tenth of a small model's time.
        parameters = [
            SamplingParams(**each, skip_clone=True, extra_args=more or None)
            for each, more in zip(sampling, told, strict=True)
        ]
        # A policy changes hidden states, so keys and values: with its fingerprint none is read under another.
        inputs = [
            {"prompt_token_ids": list(ids), "cache_salt": f"{held[row]}{salt}"}
            for ids, row in zip(prompts, rows_R, strict=True)
        ]
        return inputs, parameters
