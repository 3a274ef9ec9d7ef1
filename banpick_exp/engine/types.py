"""What an engine is asked for and gives back: how to sample, the answers, and what its ranks say of themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How one answer is drawn."""

    temperature: float
    top_p: float
    seed: int


@dataclass(frozen=True, slots=True)
class Generation:
    """One answer."""

    text: str
    token_ids: tuple[int, ...]
    prompt_token_ids: tuple[int, ...]
    finish_reason: str
    """vLLM's: `stop` or `length`."""

    @staticmethod
    def of(output: Any) -> Generation:
        """The first answer of a `vllm.RequestOutput`."""
        answer = output.outputs[0]
        return Generation(
            text=answer.text,
            token_ids=tuple(answer.token_ids),
            prompt_token_ids=tuple(output.prompt_token_ids or ()),
            finish_reason=answer.finish_reason or "",
        )

    @property
    def truncated(self) -> bool:
        """It hit the token cap instead of stopping by itself."""
        return self.finish_reason == "length"


# ------------------------------------------------------------ of a rank

Status = Literal["ok", "FAILED", "not applicable"]
OK: Status = "ok"
FAILED: Status = "FAILED"
NOT_APPLICABLE: Status = "not applicable"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of what an engine must prove before a result of it is believed."""

    name: str
    status: Status
    finding: str
    """What was found, in one sentence or two."""

    @property
    def failed(self) -> bool:
        return self.status == FAILED

    def wire(self) -> list[str]:
        """As it travels between processes."""
        return [self.name, self.status, self.finding]

    @staticmethod
    def of(wire: Sequence[str]) -> Check:
        """What `wire` sent."""
        name, status, finding = wire
        return Check(name, cast(Status, status), finding)


@dataclass(frozen=True, kw_only=True, slots=True)
class RankReport:
    """What one rank hooked. Kinds are named once each, sorted, however many layers are of a kind."""

    rank: int
    stage: int = 0
    """Of the pipeline: the ranks of one stage hold the same layers, in parts."""
    layers: tuple[str, ...]
    """The MoE layers that are hooked, by vLLM's name, in layer order."""
    router: tuple[str, ...]
    """vLLM's router classes."""
    num_experts: tuple[int, ...]
    top_k: tuple[int, ...]
    experts: tuple[str, ...]
    """Classes of the expert kernels."""
    quant_method: tuple[str, ...]
    """vLLM's classes that own the experts' weights."""
    filler: tuple[str, ...]
    """What a banned slot holds: `dup` or `skip`."""
    filler_reason: tuple[str, ...]
    device: str
    """As torch names it; `none` where no layer is hooked."""
    device_name: str
    """As its maker calls it."""
    dtype: str
    """What it computes in: `float32`, `bfloat16`, ..."""
    compilation: str
    """vLLM's compilation mode; `NONE` of an eager engine."""
    graphs: str
    """vLLM's mode of captured graphs."""
    model_runner: Literal["v1", "v2"] = "v1"
    """Which of vLLM's two runs the model."""

    @staticmethod
    def of(plain: Mapping[str, Any]) -> RankReport:
        """From its fields as a rank sends them: lists in place of tuples."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()
        }
        return RankReport(**values)


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheKeys:
    """Where vLLM keeps what it compiled, and where a stock engine of the same checkpoint would."""

    ours: str
    stock: str
    used: str
    """The folder the engine works in; empty where it compiled nothing."""
    exact: bool
    """`ours` was rebuilt to the name of that folder, so `stock` is a folder's name too; otherwise both are hashes of
    the environment alone."""
