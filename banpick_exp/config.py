"""The typed form of every section under conf/, and the fingerprint of a canonical value.

One frozen model per section; a field is a key of the YAML. Unknown keys, wrong types and values out of range
become one `UserError` that names the key, the value, what follows and what to type. Imports nothing heavy.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from banpick_exp.errors import UserError

Score = Literal["insertion_kl", "removal_kl", "removal_kl_per_use"]


class Section(BaseModel):
    """A frozen group of settings; a key it does not list is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)


class ModelConfig(Section):
    """Which checkpoint. `path`: Hugging Face id or folder; null is the embedded one. Sizes may come from config.json."""

    name: str
    path: str | None = None
    control: Literal["math", "knowledge"] | None = None
    """Build the embedded model's positive control for this domain (a planted, demoted expert) instead of loading `path`."""
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
    eager: bool = True
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    kv_cache_gib: int = Field(default=1, ge=1)
    """KV cache of a CPU engine, in GiB."""
    distributed_executor_backend: Literal["mp", "ray", "uni"] | None = None
    start_timeout_seconds: int = Field(default=600, ge=1)
    seed: int = 0

    @model_validator(mode="after")
    def _every_rank_has_a_gpu(self) -> EngineConfig:
        if 0 < self.gpus < self.tensor_parallel_size:
            raise ValueError(
                f"engine.gpus={self.gpus} is fewer than engine.tensor_parallel_size={self.tensor_parallel_size}:"
                f" {self.tensor_parallel_size - self.gpus} rank(s) would have no GPU and the engine would never start."
                f" Type engine.gpus={self.tensor_parallel_size} or engine.tensor_parallel_size={self.gpus}"
            )
        return self


class TaskConfig(Section):
    """What is asked and how an answer is read. `data_files`: a path with {domain} and {split}; null is the embedded data."""

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
    throughput_prompts: int = Field(default=192, ge=1)
    throughput_repeats: int = Field(default=3, ge=1)

    @model_validator(mode="after")
    def _answer_pattern_has_one_group(self) -> TaskConfig:
        if self.answer_pattern is not None:
            import re

            try:
                groups = re.compile(self.answer_pattern).groups
            except re.error as error:
                raise ValueError(f"task.answer_pattern={self.answer_pattern!r} is no regular expression: {error}") from None
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

    score: Score = "insertion_kl"
    samples: int = Field(default=64, ge=1)
    """Per domain."""
    top_vocab: int = Field(default=1000, ge=2)
    """KL is taken over the unchanged model's most likely tokens, this many."""
    k_min: int = Field(default=3, ge=1)
    range_factor: float = Field(default=2.0, ge=1)
    max_tokens: int = Field(default=24, ge=1)


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
    """A search space: each list of overrides is a product of its `choice()` and `range()`; K is the checkpoint's top_k."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    params: tuple[str, ...] = ()
    blocks: tuple[tuple[str, ...], ...] = ()
    """More products, beside `params`."""
    reference: tuple[tuple[str, ...], ...] = ()
    """Points that every result is held against; `policy=none` is always one of them."""


class RunConfig(Section):
    """Settings of the whole run, the same for every point."""

    output_dir: str = "outputs"
    resume: str | None = None
    dry_run: bool = False
    cluster: ClusterConfig
    tracking: TrackingConfig
    sweep: SweepConfig


SectionT = TypeVar("SectionT", bound=Section)


def suggestion(word: str, choices: Iterable[str]) -> str:
    """`Did you mean policy=pick? ` for a near miss, else the empty string; `word` and `choices` as the user types them."""
    near = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f"Did you mean {near[0]}? " if near else ""


def validated(section: type[SectionT], values: Mapping[str, Any], prefix: str = "") -> SectionT:
    """`values` as a `section`, or one `UserError` for everything wrong in it.

    `prefix` is the name of the section as typed on the command line ("engine"), empty for the root.
    """
    try:
        return section.model_validate(dict(values))
    except ValidationError as error:
        messages = [_explain(section, dict(details), prefix) for details in error.errors()]
        raise UserError("\n".join(messages)) from None


def _explain(section: type[Section], details: dict[str, Any], prefix: str) -> str:
    path = [str(part) for part in details["loc"]]
    key = ".".join([prefix, *path] if prefix else path)
    kind, value = details["type"], details["input"]
    if kind == "extra_forbidden":
        names = sorted(section.model_fields)
        typed = [f"{prefix}.{name}" if prefix else name for name in names]
        return (
            f"{key} is no setting: it would be ignored, so nothing was started."
            f" {suggestion(key, typed)}The keys of {prefix or 'the root'}: {', '.join(names)}."
        )
    if kind == "missing" or value == "???":
        return f"{key} has no value and no default. Type {key}=VALUE."
    if kind == "value_error":
        return str(details["ctx"]["error"]) + "."
    rule = details["msg"][:1].lower() + details["msg"][1:]
    field = section.model_fields.get(path[0]) if path else None
    default = "" if field is None or field.is_required() else f" The default: {key}={_as_typed(field.default)}."
    return f"{key}={_as_typed(value)} cannot be used: {rule}. Nothing was started.{default}"


def _as_typed(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(list(value)) if isinstance(value, tuple) else str(value)


def fingerprint(value: Any) -> str:
    """16 hex digits of the SHA-256 over `value` as canonical JSON (sorted keys, no spaces, no NaN)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
