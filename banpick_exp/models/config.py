"""Which checkpoint: the settings of conf/model/."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from banpick_exp.config import Section
from banpick_exp.models.dtype import Dtype

ControlKind = Literal["math", "knowledge", "weak_math", "demoted_code", "harmful_math"]
"""The controls of the embedded model; `models.tiny.kinds` says what each is."""


class ModelConfig(Section):
    """Which checkpoint. `path`: Hugging Face id or folder, null is the embedded one. A folder gives its own sizes."""

    name: str
    path: str | None = None
    control: ControlKind | None = None
    """Build this variant of the embedded model, with experts planted on purpose; `python -m banpick_exp tiny --help`
    lists them."""
    dtype: Dtype = "auto"
    """What the engine computes in; auto is what the machine is fast at (`models.dtype`)."""
    trust_remote_code: bool = False
    revision: str | None = None
    num_layers: int | None = Field(default=None, ge=1)
    """MoE layers only."""
    num_experts: int | None = Field(default=None, ge=2)
    """Routed experts in a layer; shared experts are never counted."""
    top_k: int | None = Field(default=None, ge=1)
    made_from: str | None = None
    """What a static method (pruning, merging) made it from: a folder, or a name of conf/model. Its points are then held
    against those of that checkpoint, on one front. The checkpoint itself may name itself."""
    suggested_tasks: tuple[str, ...] = ()
    """Names of conf/task/ that suit it: the first is asked by a shipped sweep where no task is typed. Changes no
    result."""

    @model_validator(mode="after")
    def _control_is_built_from_the_embedded_model(self) -> ModelConfig:
        if self.control is not None and self.path is not None:
            raise ValueError(
                f"model.control={self.control} builds a variant of the embedded model and cannot start from"
                f" model.path={self.path}. Leave model.path out, as model=tiny_control does, or type model.control=null"
            )
        return self
