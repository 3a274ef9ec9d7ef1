"""The typed form of every section under conf/, and the fingerprint of a canonical value.

One frozen model per section; a field is a key of the YAML. Unknown keys, wrong types and values out of range
become one `UserError` (`validation.validated`). Imports nothing heavy.
"""

from __future__ import annotations

import hashlib
import json
import re
from itertools import pairwise
from typing import Any, Literal

from pydantic import Field, model_validator

from banpick_exp.validation import Section

Score = Literal["insertion_kl", "removal_kl", "removal_kl_per_use"]


class ModelConfig(Section):
    """Which checkpoint. `path`: Hugging Face id or folder, null is the embedded one. A folder gives its own sizes."""

    name: str
    path: str | None = None
    control: Literal["math", "knowledge"] | None = None
    """Build the embedded model's positive control (an expert demoted on purpose) for this domain."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "bfloat16"
    trust_remote_code: bool = False
    revision: str | None = None
    num_layers: int | None = Field(default=None, ge=1)
    """MoE layers only."""
    num_experts: int | None = Field(default=None, ge=2)
    """Routed experts in a layer; shared experts are never counted."""
    top_k: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _control_is_built_from_the_embedded_model(self) -> ModelConfig:
        if self.control is not None and self.path is not None:
            raise ValueError(
                f"model.control={self.control} builds a variant of the embedded model and cannot start from"
                f" model.path={self.path}. Type model=tiny_control without model.path, or model.control=null"
            )
        return self


class EngineConfig(Section):
    """One vLLM engine: what it occupies and how it batches."""

    tensor_parallel_size: int = Field(default=1, ge=1)
    gpus: int = Field(default=0, ge=0)
    """GPUs of one engine; 0 is a CPU engine."""
    cpus: int | None = Field(default=None, ge=1)
    """CPU cores of one engine; null is its share of the machine."""
    max_num_seqs: int = Field(default=256, ge=1)
    max_num_batched_tokens: int = Field(default=8192, ge=1)
    max_model_len: int = Field(default=128, ge=2)
    """Tokens of prompt and answer together."""
    compile: bool = False
    """torch.compile, and on a GPU captured graphs: faster once started. Policies are swapped all the same."""
    extra_slots: int = Field(default=0, ge=0)
    """A compiled engine has a fixed width of top_k + this many experts a token; policies that add experts need more."""
    moe_backend: str | None = None
    """vLLM's expert kernels, when its own choice cannot be hooked (a monolithic one)."""
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    kv_cache_gib: int = Field(default=1, ge=1)
    """KV cache of a CPU engine, in GiB."""
    distributed_executor_backend: Literal["mp", "ray", "uni"] | None = None
    start_timeout_seconds: int = Field(default=600, ge=1)
    seed: int = 0

    @model_validator(mode="after")
    def _can_start(self) -> EngineConfig:
        if 0 < self.gpus < self.tensor_parallel_size:
            raise ValueError(
                f"engine.gpus={self.gpus} is fewer than engine.tensor_parallel_size={self.tensor_parallel_size}:"
                f" {self.tensor_parallel_size - self.gpus} rank(s) would have no GPU and the engine would never start."
                f" Type engine.gpus={self.tensor_parallel_size} or engine.tensor_parallel_size={self.gpus}"
            )
        if self.gpus == 0 and self.distributed_executor_backend == "ray":
            raise ValueError(
                "engine.distributed_executor_backend=ray does not exist for CPU engines (engine.gpus=0): the engine"
                " would never start. Type engine.distributed_executor_backend=mp, or null"
            )
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"engine.max_num_batched_tokens={self.max_num_batched_tokens} is below"
                f" engine.max_num_seqs={self.max_num_seqs}: a step could not hold one token of each sequence."
                f" Type engine.max_num_batched_tokens={self.max_num_seqs} or more"
            )
        return self


class TaskConfig(Section):
    """What is asked and how an answer is read. `data_files`: a path with {domain} and {split}; null: embedded."""

    name: str
    data_files: str | None = None
    domains: tuple[str, ...] = Field(min_length=1)
    split: str = "test"
    max_problems: int | None = Field(default=None, ge=1)
    """Per domain; null is all of them."""
    max_tokens: int = Field(default=24, ge=1)
    answer_separator: str | None = ";"
    """The answer is what follows the last separator; null takes the whole text."""
    answer_pattern: str | None = None
    """A regular expression with one group that finds the answer; it wins over the separator."""
    chat_template: bool = False
    samples: int = Field(default=1, ge=1)
    """Answers to each problem; accuracy is their mean (avg@n)."""
    temperature: float = Field(default=0.0, ge=0)
    """0 is greedy. Above, every answer is drawn with a seed of its own, the same for every policy."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    throughput_prompts: int = Field(default=192, ge=1)
    """Prompts of a timed run, over all domains."""
    throughput_tokens: int | None = Field(default=None, ge=1)
    """Tokens generated for each of them, all the same number; null is max_tokens."""
    throughput_repeats: int = Field(default=3, ge=1)

    @model_validator(mode="after")
    def _sampling_changes_something(self) -> TaskConfig:
        idle = f"task.samples={self.samples}" if self.samples > 1 else f"task.top_p={self.top_p:g}"
        if self.temperature == 0 and (self.samples > 1 or self.top_p < 1):
            raise ValueError(
                f"{idle} at task.temperature=0 is greedy decoding all the same: the same answer every time, so it would"
                f" change nothing. Type task.temperature=0.6 beside it, or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _answer_pattern_has_one_group(self) -> TaskConfig:
        if self.answer_pattern is not None:
            try:
                groups = re.compile(self.answer_pattern).groups
            except re.error as error:
                raise ValueError(
                    f"task.answer_pattern={self.answer_pattern!r} is no regular expression: {error}"
                ) from None
            if groups != 1:
                raise ValueError(
                    f"task.answer_pattern={self.answer_pattern!r} has {groups} groups, so it does not say which part is"
                    " the answer. Use exactly one, e.g. task.answer_pattern='answer: *(.+)'"
                )
        repeated = sorted({domain for domain in self.domains if self.domains.count(domain) > 1})
        if repeated:
            raise ValueError(
                f"task.domains names {', '.join(repeated)} twice: its problems would count twice. Name each domain once"
            )
        return self


class CalibrationConfig(Section):
    """How key experts and layer sensitivity are measured, before the first point that needs them."""

    path: str | None = None
    """A folder with an artifact made before, to use instead of making one; null makes or finds its own."""
    score: Score = "insertion_kl"
    samples: int = Field(default=64, ge=1)
    """Per domain."""
    top_vocab: int = Field(default=1000, ge=2)
    """KL is taken over the unchanged model's most likely tokens, this many."""
    k_min: int = Field(default=3, ge=1)
    range_factor: float = Field(default=2.0, ge=1)
    max_tokens: int = Field(default=24, ge=1)
    markers: tuple[str, ...] | None = None
    """Texts of one token each whose experts `npmi` finds; null is the task's answer separator, else <think>, </think>.
    Others are left out; with none left, the policies that follow npmi cannot start."""

    def markers_of(self, task: TaskConfig) -> tuple[str, ...]:
        """The marker texts for a task."""
        if self.markers is not None:
            return self.markers
        return ("<think>", "</think>") if task.answer_separator is None else (task.answer_separator,)


class ClusterConfig(Section):
    """Where engines run. `address`: a standing Ray cluster, or null for one started on this machine."""

    address: str | None = None
    engines: int = Field(default=1, ge=1)
    cpus: int | None = Field(default=None, ge=1)


class TrackingConfig(Section):
    """Where results are mirrored; the local records are the truth."""

    name: Literal["none", "wandb"] = "wandb"
    mode: Literal["offline", "online"] = "offline"
    project: str = "banpick"
    entity: str | None = None


class SweepConfig(Section):
    """A search space: a list of overrides is the product of its `choice()` and `range()`; K is the model's top_k."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    params: tuple[str, ...] = ()
    blocks: tuple[tuple[str, ...], ...] = ()
    """More products, beside `params`."""
    reference: tuple[tuple[str, ...], ...] = ()
    """Points that every result is held against; `policy=none` is always one of them."""


class SearchConfig(Section):
    """How the space is spent: all of it (`grid`), in blocks with losers stopped (`racing`), or sampled (`optuna`)."""

    name: Literal["grid", "racing", "optuna"] = "grid"
    blocks: tuple[float, ...] = (0.03125, 0.0625, 0.125, 0.1875, 0.25, 0.375, 0.5, 0.75, 1.0)
    """Cumulative shares of the problems after which a race compares its points; the last is 1."""
    error_rate: float = Field(default=0.05, gt=0, lt=1)
    """Chance that a race stops any point that belongs on the front."""
    margin: float = Field(default=0.0, ge=0, lt=1)
    """A race also stops points that gain less than this (accuracy, 0..1) over their reference for sure; 0: none."""
    trials: int = Field(default=24, ge=1)
    """Points that optuna tries, beside the references."""
    startup: int = Field(default=8, ge=1)
    """How many of the trials are drawn at random."""
    seed: int = Field(default=0, ge=0)

    @property
    def sampled(self) -> bool:
        """Whether points are drawn while the run goes on."""
        return self.name == "optuna"

    @model_validator(mode="after")
    def _blocks_rise_to_one(self) -> SearchConfig:
        rising = all(low < high for low, high in pairwise((0.0, *self.blocks)))
        if not rising or not self.blocks or self.blocks[-1] != 1:
            raise ValueError(
                f"search.blocks={list(self.blocks)} does not rise from above 0 to 1: survivors would not answer every"
                " problem once. Type e.g. 'search.blocks=[0.125,0.25,0.5,1]'"
            )
        return self


class RunConfig(Section):
    """Settings of the whole run, the same for every point."""

    output_dir: str = "outputs"
    resume: str | None = None
    dry_run: bool = False
    repeats: int = Field(default=1, ge=1)
    """Runs of every point, in other batches and another order (`asking.batches`), to see how far scores move."""
    cluster: ClusterConfig
    tracking: TrackingConfig
    sweep: SweepConfig
    search: SearchConfig = SearchConfig()


GREEDY = {"samples": 1, "temperature": 0.0, "top_p": 1.0}
"""How a task samples unless it says otherwise; records and fingerprints made before it could say lack these keys."""


def fingerprint(value: Any) -> str:
    """16 hex digits of the SHA-256 over `value` as canonical JSON (sorted keys, no spaces, no NaN)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
