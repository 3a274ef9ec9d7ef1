"""What one engine occupies and how it batches: the settings of conf/engine/."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from banpick_exp.config import Section

AUTO_ROWS = 16
"""Policies in one batch where nobody says how many: the rows that `bench rows` looks at."""


class EngineConfig(Section):
    """One vLLM engine: what it occupies and how it batches."""

    tensor_parallel_size: int = Field(default=1, ge=1)
    """Ranks that hold a part of every layer."""
    pipeline_parallel_size: int = Field(default=1, ge=1)
    """Stages that hold some of the layers each."""
    data_parallel_size: int = Field(default=1, ge=1)
    """Always 1: `cluster.engines` is the number of engines that share the problems."""
    expert_parallel: bool = False
    """Each tensor-parallel rank holds some experts whole, in place of a part of every one. GPUs only."""
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
    policies_per_batch: Literal["auto"] | Annotated[int, Field(ge=1, le=256)] = "auto"
    """How many policies answer in one batch, where points may share one; 1: each has the engine to itself."""
    model_runner: Literal["v1", "v2"] = "v1"
    """Which of vLLM's two model runners: v1, or v2, vLLM's own choice on GPUs, which its CPU engines have not."""
    parity_check: bool = True
    """Hold a CPU engine against Transformers at its first start with a checkpoint; engines on GPUs are not."""
    start_timeout_seconds: int = Field(default=600, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _can_start(self) -> EngineConfig:
        if self.data_parallel_size > 1:
            raise ValueError(
                f"engine.data_parallel_size={self.data_parallel_size} needs a driver process for each replica, which"
                " vLLM's offline engine refuses, and would route tokens of other replicas, which nobody could count."
                f" Engines side by side share the problems as replicas would: type"
                f" cluster.engines={self.data_parallel_size} and leave engine.data_parallel_size out"
            )
        if self.expert_parallel:
            self._check_expert_parallel()
        if 0 < self.gpus < self.ranks:
            whole = f"engine.tensor_parallel_size={self.tensor_parallel_size}"
            if self.pipeline_parallel_size > 1:
                whole += f" times engine.pipeline_parallel_size={self.pipeline_parallel_size}"
            less = "" if self.pipeline_parallel_size > 1 else f" or engine.tensor_parallel_size={self.gpus}"
            raise ValueError(
                f"engine.gpus={self.gpus} is fewer than {whole}: {self.ranks - self.gpus} rank(s) would have no GPU and"
                f" the engine would never start. Type engine.gpus={self.ranks}{less}"
            )
        if self.gpus == 0 and self.distributed_executor_backend == "ray":
            raise ValueError(
                "engine.distributed_executor_backend=ray does not exist for CPU engines (engine.gpus=0): the engine"
                " would never start. Type engine.distributed_executor_backend=mp, or null"
            )
        if self.gpus == 0 and self.model_runner == "v2":
            raise ValueError(
                "engine.model_runner=v2 does not exist for CPU engines (engine.gpus=0): it runs on Triton, which has no"
                " CPU in vLLM's wheel, and the engine would never start. Type engine.model_runner=v1"
            )
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"engine.max_num_batched_tokens={self.max_num_batched_tokens} is below"
                f" engine.max_num_seqs={self.max_num_seqs}: a step could not hold one token of each sequence."
                f" Type engine.max_num_batched_tokens={self.max_num_seqs} or more"
            )
        return self

    def _check_expert_parallel(self) -> None:
        if self.gpus == 0:
            raise ValueError(
                "engine.expert_parallel=true does not exist for CPU engines (engine.gpus=0): vLLM's CPU kernels take no"
                " expert map and would read past a rank's experts. Type engine.expert_parallel=false"
            )
        if self.tensor_parallel_size == 1:
            raise ValueError(
                "engine.expert_parallel=true divides the experts of a layer between tensor-parallel ranks, and"
                " engine.tensor_parallel_size=1 has one: it would change nothing. Type engine.tensor_parallel_size=2 or"
                " more, or leave engine.expert_parallel out"
            )

    @property
    def rows(self) -> int:
        """Policies that the loaded engine can hold at once.

        `auto` holds several where that was tried: not on a GPU so far, nor on pipeline stages (docs/performance.md).
        """
        if self.policies_per_batch != "auto":
            return self.policies_per_batch
        return 1 if self.gpus or self.pipeline_parallel_size > 1 else AUTO_ROWS

    @property
    def ranks(self) -> int:
        """Processes that hold a part of the model; each has a GPU of its own, where the engine has GPUs."""
        return self.tensor_parallel_size * self.pipeline_parallel_size

    @property
    def in_process(self) -> bool:
        """Whether vLLM runs in the process that started it: one rank, and no executor that makes processes."""
        return self.ranks == 1 and self.distributed_executor_backend in (None, "uni")

    @property
    def ranks_in_words(self) -> str:
        """`, tensor parallel 8, pipeline parallel 2, expert parallel`; empty for one rank."""
        sizes = {"tensor": self.tensor_parallel_size, "pipeline": self.pipeline_parallel_size}
        words = [f"{kind} parallel {size}" for kind, size in sizes.items() if size > 1]
        words += ["expert parallel"] * self.expert_parallel
        return "".join(f", {word}" for word in words)
