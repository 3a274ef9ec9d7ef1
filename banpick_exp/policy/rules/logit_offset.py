"""logit_offset: additive router-logit vectors from a file (Rewiring Experts on the Fly, arXiv 2510.14853).

    z[t,e] += offset[l,e]                           offset: [L,E], the tensor `logit_offset` of a safetensors file

The paper optimises the vectors on the prompt at test time; here they are data, made by any method beforehand. SHA-256
of the file is one of the knobs (found when it is absent), so the fingerprint follows the content, and a file that
changes between planning and running is refused. The path is a knob as well, absolute, because workers open the file
again; a moved file is therefore run anew.

Logits 0, 1, 2 and the offset 3, 0, 0 give 3, 1, 2: with K = 2, experts 0 and 2.

>>> import os, tempfile, torch
>>> from safetensors.torch import save_file
>>> from banpick_exp.policy import build_policy
>>> with tempfile.TemporaryDirectory() as folder:
...     path = os.path.join(folder, "offset.safetensors")
...     save_file({"logit_offset": torch.tensor([[3.0, 0.0, 0.0]])}, path)
...     policy = build_policy("logit_offset", {"path": path}, num_layers=1, num_experts=3, top_k=2)
>>> policy.route(torch.tensor([[0.0, 1.0, 2.0]]), 0)[1].tolist()
[[0, 2]]
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from banpick_exp.errors import UserError
from banpick_exp.models.shape import MoeShape
from banpick_exp.policy.calibration import Calibration
from banpick_exp.policy.offset_file import KEY, read_offset
from banpick_exp.policy.rule import Needs, Pull, Rule

if TYPE_CHECKING:
    from banpick_kernels.layer_hooks import LayerEdit
    from banpick_kernels.table import RouterTable


def _text(value: Any) -> str:
    if not isinstance(value, str | Path) or not str(value):
        raise ValueError("is no text. Write it in quotes.")
    return str(value)


Text = Annotated[str, BeforeValidator(_text)]


class LogitOffset(Rule):
    """`logit_offset`: add a vector to the router logits of each layer."""

    name: ClassVar[str] = "logit_offset"
    needs: ClassVar[Needs] = "data of your own"
    needs_instead: ClassVar[str] = "a file of offsets"
    path: Text
    """A safetensors file with the tensor `logit_offset` [L,E], in logits; F64, F32, F16 or BF16, all finite."""
    sha256: Annotated[str | None, BeforeValidator(lambda value: None if value is None else _text(value))] = Field(
        default=None, validate_default=True
    )
    """The file's SHA-256 in hex; where given, the file must have it."""

    @field_validator("path")
    @classmethod
    def _path_is_readable(cls, path: str) -> str:
        whole = str(Path(path).expanduser().absolute())
        read_offset(whole)
        return whole

    @field_validator("sha256")
    @classmethod
    def _sha256_is_of_the_file(cls, sha256: str | None, info: ValidationInfo) -> str | None:
        if "path" not in info.data:
            return sha256  # the path has its own message
        found = read_offset(info.data["path"]).sha256
        if sha256 is not None and sha256.lower() != found:
            raise ValueError(
                f"is not that of {info.data['path']}, which has {found}: other offsets would be run under this name. "
                f"Bring the file back, or leave sha256 out to take the file as it is."
            )
        return found

    def check(self, shape: MoeShape) -> None:
        found, wanted = read_offset(self.path).shape, (shape.num_layers, shape.num_experts)
        if found != wanted:
            raise UserError(
                f"policy.path={self.path!r} holds {KEY} of shape {list(found)}, but this checkpoint has "
                f"{shape.num_layers} MoE layers of {shape.num_experts} experts: it is of another model. "
                f"Use a file with shape {list(wanted)}."
            )

    def knobs(self) -> dict[str, object]:
        return {"path": self.path, "sha256": self.sha256}

    def files(self) -> dict[str, str]:
        return {"path": self.path}

    def label(self) -> str:
        """The file's name and the start of its SHA-256."""
        return f"{self.name} {Path(self.path).stem} {str(self.sha256)[:8]}"

    def fill(self, table: "RouterTable", shape: MoeShape, calibration: Calibration | None) -> None:
        import torch

        offset = read_offset(self.path)
        if offset.sha256 != self.sha256:
            raise UserError(
                f"policy.path={self.path!r} has changed since it was planned: SHA-256 was {self.sha256}, "
                f"is {offset.sha256}. The run would carry another policy's name. Bring the file back, or plan again."
            )
        table.logit_bias_PLE[0] = torch.tensor(offset.values).reshape(offset.shape)

    def pull(self, table: "RouterTable", edits: "Sequence[LayerEdit | None] | None") -> Pull | None:
        """An offset touches every expert: what it raises is the mean offset of the selected ones."""
        bias_LE = table.logit_bias_PLE[0]
        return Pull(bias_LE) if bool(bias_LE.any()) else None
