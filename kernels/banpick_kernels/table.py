"""The numbers a router reads: one small tensor per policy value, never a Python branch.

vLLM compiles the model once and drops every guard, so a Python float in the router would be frozen at trace time.
Tensors changed in place are read anew by eager, compiled and graph-captured code alike: a policy is swapped by
`RouterTable.copy_`.

Shape suffixes: P policy rows (row 0 is the default, more serve a policy per request), L MoE layers, E routed experts.
"""

import hashlib
from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerTable:
    """One layer's view of a `RouterTable`: the same memory without the layer axis, so it follows every `copy_`."""

    logit_bias_PE: Tensor
    key_PE: Tensor
    insert_window_P: Tensor
    insert_replaces_P: Tensor
    keep_P: Tensor
    ban_P: Tensor
    ban_k_min_P: Tensor
    ban_lambda_P: Tensor
    sensitivity_P: Tensor
    ratio_min_P: Tensor
    ratio_max_P: Tensor

    def to(self, device: torch.device | str) -> "LayerTable":
        """The same values on `device`: a copy where the device differs, which no longer follows the table."""
        return LayerTable(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


@dataclass(frozen=True, kw_only=True, slots=True)
class RouterTable:
    """Every value a policy sets, for every row and layer. Fields are fixed, their contents change in place."""

    logit_bias_PLE: Tensor
    """float32, added to the router logits before scoring; 0 leaves an expert alone, -inf gives it the score 0."""
    key_PLE: Tensor
    """bool, the key experts that insertion may bring in."""
    insert_window_PL: Tensor
    """int32, a key expert enters only if it ranks within this many; 0 inserts nothing, E always inserts."""
    insert_replaces_PL: Tensor
    """bool, an inserted expert evicts the lowest-weight other expert (True) or makes the selection longer (False)."""
    keep_PL: Tensor
    """int32, experts kept of the base selection before insertion: the checkpoint's top_k, or fewer."""
    ban_PL: Tensor
    """bool, prune per token between ban_k_min and keep."""
    ban_k_min_PL: Tensor
    """int32, fewest experts Ban keeps."""
    ban_lambda_PL: Tensor
    """float32 in (0, 2], higher keeps more."""
    sensitivity_PL: Tensor
    """float32, `layer_sensitivity` of the calibration, 0 to 1."""
    ratio_min_PL: Tensor
    """float32, R_min of the calibration."""
    ratio_max_PL: Tensor
    """float32, R_max of the calibration."""

    @classmethod
    def neutral(
        cls, num_layers: int, num_experts: int, top_k: int, rows: int = 1, device: torch.device | str = "cpu"
    ) -> "RouterTable":
        """The table that changes nothing: no bias, no key expert, no pruning, `top_k` experts kept."""

        def full(value: float | bool, dtype: torch.dtype, *trailing: int) -> Tensor:
            return torch.full((rows, num_layers, *trailing), value, dtype=dtype, device=device)

        return cls(
            logit_bias_PLE=full(0.0, torch.float32, num_experts),
            key_PLE=full(False, torch.bool, num_experts),
            insert_window_PL=full(0, torch.int32),
            insert_replaces_PL=full(False, torch.bool),
            keep_PL=full(top_k, torch.int32),
            ban_PL=full(False, torch.bool),
            ban_k_min_PL=full(top_k, torch.int32),
            ban_lambda_PL=full(1.0, torch.float32),
            sensitivity_PL=full(0.0, torch.float32),
            ratio_min_PL=full(0.0, torch.float32),
            ratio_max_PL=full(0.0, torch.float32),
        )

    def copy_(self, other: "RouterTable") -> "RouterTable":
        """Take over the values of `other` in place, across devices. Raises ValueError if a shape differs."""
        for field in fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            if mine.shape != theirs.shape:
                raise ValueError(
                    f"{field.name} has shape {tuple(theirs.shape)}, this router's is {tuple(mine.shape)}: "
                    "the policy was built for another model. Build it with this model's layers, experts and top_k."
                )
        for field in fields(self):
            getattr(self, field.name).copy_(getattr(other, field.name))
        return self

    def digest(self) -> str:
        """SHA-256 in hex of all names, shapes and values, the same on every device: do two ranks hold one policy?"""
        sha = hashlib.sha256()
        for field in fields(self):
            values = getattr(self, field.name).detach().cpu().contiguous()
            sha.update(f"{field.name} {values.dtype} {tuple(values.shape)}\n".encode())
            sha.update(values.numpy().tobytes())
        return sha.hexdigest()

    def layer(self, index: int) -> LayerTable:
        """Layer `index` as views: `key_PLE[:, index]` becomes `key_PE`, `keep_PL[:, index]` becomes `keep_P`."""
        views = {field.name.replace("_PL", "_P"): getattr(self, field.name)[:, index] for field in fields(self)}
        return LayerTable(**views)
