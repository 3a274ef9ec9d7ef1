"""What one engine occupies and how it batches: the settings of conf/engine/."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from banpick_exp.config import Section


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
    kv_cache_blocks: int | None = Field(default=None, ge=1)
    """KV cache of any engine, in vLLM's blocks (128 tokens on a CPU), in place of what its memory would hold: filling
    1 GiB with zeros takes a CPU engine seconds at every start."""
    distributed_executor_backend: Literal["mp", "ray", "uni"] | None = None
    start_timeout_seconds: int = Field(default=600, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**32)

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
