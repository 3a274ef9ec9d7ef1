"""What a rule does to one layer beyond the numbers of the table: hooks in torch, each the identity until overridden.

`reference.route` and the hooked layer of an engine call them at the same places. A hook branches on shapes alone, never
on values, and each token's result depends on that token's row alone. The fused kernel knows no hooks: a layer with an
edit is routed in torch, on every device.

Imports no torch, so that a rule's module, which planning loads too, can derive its edit from `LayerEdit` at the top.

Shape suffixes: T tokens, E experts, K experts of the base selection, S slots. A 1 is an axis that broadcasts.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerEdit:
    """One layer's hooks of one rule. A subclass adds tensors and numbers as fields and overrides what it needs."""

    @property
    def weights_last(self) -> bool:
        """Whether `weights` comes after the checkpoint's renormalisation instead of before it."""
        return False

    def logits(self, logits_TE: Tensor) -> Tensor:
        """Router logits float32 [T,E] to be ordered and scored instead of these, which have the policy's bias in them.

        Given: NaN is -inf already, and +inf the largest float.
        """
        return logits_TE

    def select(self, logits_TE: Tensor, ranking_TE: Tensor, ids_TK: Tensor) -> Tensor:
        """Another base selection: ids int64 of at most K distinct experts a token, best logit first, ties by lower id.

        Args:
            logits_TE: float32, after `logits`.
            ranking_TE: what the router ranks by: the logits, or scores + correction bias, -inf for an unseen group.
            ids_TK: int64, the router's own selection, best first.
        """
        return ids_TK

    def keep(self, share_TK: Tensor, ids_TK: Tensor) -> Tensor | None:
        """Which of the base selection stay, bool [T,K], each rank on its own; None: all of them.

        The table's keep rule counts beside it, and the first `floor` ranks of the table stay whatever this says.

        Args:
            share_TK: scores of the base selection over their sum, descending.
            ids_TK: int64, the base selection after `select`, best first.
        """
        return None

    def weights(self, weights_TS: Tensor, ids_TS: Tensor) -> Tensor:
        """The weights of the selected experts, float32 [T,S]; 0 where a slot is not kept, and it must stay 0 there."""
        return weights_TS

    def pull(self) -> Tensor | None:
        """Which experts get more of the selections, int [E]: 1 more, -1 fewer, 0 undecided. None: cannot be said."""
        return None

    def tensors(self) -> dict[str, Tensor]:
        """The fields that are tensors, by name."""
        from torch import Tensor

        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def to(self, device: torch.device | str) -> Self:
        """The same edit with its tensors on `device`."""
        return replace(self, **{name: value.to(device) for name, value in self.tensors().items()})

    def digest(self) -> str:
        """SHA-256 in hex of class, numbers and tensors, the same on every device: do two ranks hold one edit?"""
        tensors = self.tensors()
        sha = hashlib.sha256(f"{type(self).__qualname__}\n".encode())
        for field in fields(self):
            if field.name not in tensors:
                sha.update(f"{field.name} {getattr(self, field.name)!r}\n".encode())
                continue
            values = tensors[field.name].detach().cpu().contiguous()
            sha.update(f"{field.name} {values.dtype} {tuple(values.shape)}\n".encode())
            sha.update(values.numpy().tobytes())
        return sha.hexdigest()
