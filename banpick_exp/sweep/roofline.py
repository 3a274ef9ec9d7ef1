"""How fast a GPU engine should be: a decode step reads weights and cache once, a prefill multiplies.

Four numbers stand for what is not modelled (launches and all-reduces of a layer, vLLM's Python for each sequence, the
shares of bandwidth and of arithmetic that kernels reach). They were set once so that Qwen3-30B-A3B and Qwen3-235B-A22B
on H100s come out near what the ML.ENERGY benchmark measured with vLLM; docs/performance.md has the comparison.
"""

from __future__ import annotations

from dataclasses import dataclass

from banpick_exp.engine.config import EngineConfig
from banpick_exp.models.sizes import Sizes
from banpick_exp.sweep.config import Hardware

LAYER_SECONDS = 100e-6
"""Of a decode step, whatever the batch."""
SEQUENCE_SECONDS = 50e-6
"""Of a decode step, for each sequence."""
BANDWIDTH_SHARE = 0.7
ARITHMETIC_SHARE = 0.4
START_SECONDS = 120.0
"""Of a start beside reading weights: processes, compilation, captured graphs, the self-test. Assumed."""
WORKING_BYTES = 4e9
"""A GPU, for activations and graphs, out of what vLLM may take."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Roofline:
    """One engine's pace, with what follows from what."""

    sizes: Sizes
    hardware: Hardware
    ranks: int
    """GPUs that weights are divided over."""
    context: float
    """Tokens of a sequence that decodes, prompt and answer so far; the mean."""
    batch: int
    """Sequences that decode at once."""
    fits: int
    """Sequences that the cache holds; 0: not even the weights."""
    kv_copies: int
    """Of keys and values, over the ranks."""

    @property
    def weight_read(self) -> float:
        """Bytes of a decode step."""
        sizes = self.sizes
        experts = sizes.shape.num_layers * sizes.experts_read(self.batch) * sizes.expert_bytes
        return sizes.common_bytes + experts

    @property
    def kv_read(self) -> float:
        """Bytes of a decode step."""
        return self.batch * self.context * self.sizes.kv_bytes * self.kv_copies

    @property
    def memory_seconds(self) -> float:
        bandwidth = self.ranks * self.hardware.memory_tb_s * 1e12 * BANDWIDTH_SHARE
        return (self.weight_read + self.kv_read) / bandwidth

    @property
    def arithmetic_seconds(self) -> float:
        return self.batch / self.prefill

    @property
    def overhead_seconds(self) -> float:
        return self.sizes.layers * LAYER_SECONDS + self.batch * SEQUENCE_SECONDS

    @property
    def step_seconds(self) -> float:
        return max(self.memory_seconds, self.arithmetic_seconds) + self.overhead_seconds

    @property
    def generate(self) -> float:
        """Tokens a second."""
        return self.batch / self.step_seconds

    @property
    def prefill(self) -> float:
        """Tokens a second; bound by arithmetic, attention left out."""
        arithmetic = self.ranks * self.hardware.bf16_tflops * 1e12 * ARITHMETIC_SHARE
        return arithmetic / (2 * self.sizes.active_parameters)

    @property
    def start_seconds(self) -> float:
        return self.sizes.weight_bytes / (self.hardware.load_gb_s * 1e9) + START_SECONDS

    def words(self) -> list[str]:
        """The model behind the numbers, a line each for load, decode and prefill."""
        sizes, card = self.sizes, self.hardware
        built = "" if sizes.known else " (assumed: nothing here says how it is built)"
        bound = "bandwidth" if self.memory_seconds >= self.arithmetic_seconds else "arithmetic"
        return [
            f"load: {_gb(sizes.weight_bytes)} of weights{built} at {card.load_gb_s:g} GB/s and {START_SECONDS:.0f} s:"
            f" {self.start_seconds:.0f} s",
            f"decode: {self.batch} sequences of {self.context:,.0f} tokens, a step reads {_gb(self.weight_read)} of"
            f" weights ({sizes.experts_read(self.batch):.0f} of {sizes.shape.num_experts} experts a layer) and"
            f" {_gb(self.kv_read)} of cache, {_gb((self.weight_read + self.kv_read) / self.batch)} a token, from"
            f" {self.ranks} x {card.memory_tb_s:g} TB/s at {100 * BANDWIDTH_SHARE:.0f} %: {_ms(self.memory_seconds)}"
            f" ({bound}-bound), and {_ms(self.overhead_seconds)} for launches and Python:"
            f" {self.generate:,.0f} tokens/s",
            f"prefill: 2 x {sizes.active_parameters / 1e9:.1f}e9 operations a token, {self.ranks} x"
            f" {card.bf16_tflops:g} TFLOPS at {100 * ARITHMETIC_SHARE:.0f} %: {self.prefill:,.0f} tokens/s",
        ]

    def problem(self) -> str | None:
        """Why these GPUs cannot hold it; None where they can."""
        if self.fits > 0:
            return None
        held = self.ranks * self.hardware.memory_gb
        return (
            f"{_gb(self.sizes.weight_bytes)} of weights leave no room for a sequence on {self.ranks} x"
            f" {self.hardware.memory_gb:g} GB ({held:g} GB, hardware={self.hardware.name}): the engine would not start."
            " Type more ranks with engine.tensor_parallel_size and engine.gpus, or hardware= where the cards are others"
        )


def roofline(sizes: Sizes, engine: EngineConfig, hardware: Hardware, *, context: float, waiting: float) -> Roofline:
    """The pace of an engine. `context`: tokens of a sequence, the mean; `waiting`: sequences there are to answer."""
    ranks = engine.ranks
    copies = max(1, engine.tensor_parallel_size // sizes.kv_heads)
    held = ranks * (hardware.memory_gb * 1e9 * engine.gpu_memory_utilization - WORKING_BYTES) - sizes.weight_bytes
    fits = max(0, int(held / (context * sizes.kv_bytes * copies)))
    return Roofline(
        sizes=sizes,
        hardware=hardware,
        ranks=ranks,
        context=context,
        batch=max(1, min(engine.max_num_seqs, fits, int(waiting))),
        fits=fits,
        kv_copies=copies,
    )


def _gb(size: float) -> str:
    return f"{size / 1e9:,.0f} GB" if size >= 20e9 else f"{size / 1e9:.2g} GB"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.1f} ms"
