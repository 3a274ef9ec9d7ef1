"""The numbers a router reads: device tensors per policy row and layer, never a Python branch.

vLLM compiles the model once and drops every guard, so a Python float in the router would be frozen at trace time.
Tensors changed in place are read anew by eager, compiled and graph-captured code alike: a policy is swapped by
`RouterTable.copy_`. The scalars of one row and layer lie side by side, so that a kernel reads them in one line.

Shape suffixes: P policy rows (row 0 is the default, more serve a policy per request), L MoE layers, E routed experts,
C the columns of `Columns`, padded to 16.
"""

import hashlib
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch
from torch import Tensor

WIDTH = 16
"""Floats in a row of one layer: 64 bytes."""


class Column:
    """One scalar of a policy row. It reads as a view of the table, so `table.keep[0] = 4` writes."""

    def __init__(self, index: int, neutral: float | None) -> None:
        """`neutral`: the value that changes nothing; None is the checkpoint's top_k."""
        self.index, self.neutral = index, neutral

    def __get__(self, table: Any, owner: type) -> Tensor:
        return table.values[..., self.index]


class Columns:
    """The scalars by name: [P,L] views of a `RouterTable`, [P] of a `LayerTable`; all float32, counts and flags too."""

    keep = Column(0, None)
    """Experts kept of the base selection before insertion: the checkpoint's top_k, or fewer. Its fraction, where it has
    one, is the share of tokens that keep one more (`stochastic_rounding`); whole where `ban` is set."""
    ban = Column(1, 0.0)
    """1: prune per token between ban_k_min and keep."""
    ban_k_min = Column(2, None)
    """Fewest experts Ban keeps."""
    ban_lambda = Column(3, 1.0)
    """In (0, 4], higher keeps more: the policy's lambda, doubled where sensitivity or R alone decides."""
    sensitivity = Column(4, 0.0)
    """`layer_sensitivity` of the calibration, 0 to 1."""
    ratio_min = Column(5, 0.0)
    """R_min of the calibration."""
    ratio_max = Column(6, 0.0)
    """R_max of the calibration."""
    floor = Column(7, 1.0)
    """Fewest experts that the four thresholds below leave."""
    min_ratio = Column(8, 0.0)
    """Keep ranks with w_i >= min_ratio * w_1 (naee's beta); 0 keeps all."""
    mass = Column(9, 2.0)
    """Keep the shortest prefix of at least this share of the base's weight (top_p); above 1 keeps all."""
    min_weight = Column(10, 0.0)
    """Keep ranks with w_i >= min_weight, w normalised over the base (modes); 0 keeps all."""
    tail_square = Column(11, 0.0)
    """Drop ranks from the end while the dropped w_i^2 sum to less than this, w normalised (adapmoe); 0 keeps all."""
    insert_window = Column(12, 0.0)
    """A key expert enters only if it ranks within this many; 0 inserts nothing, E always inserts."""
    insert_replaces = Column(13, 0.0)
    """1: an inserted expert evicts the lowest-weight other expert; 0: it makes the selection longer."""
    skips = Column(14, 0.0)
    """1: an unkept slot holds id -1, for expert kernels proved to leave it out. Set by the engine, not by a policy."""
    raw_mass = Column(15, 0.0)
    """1: `mass` is held against the base scores as they are, not over their sum."""


COLUMNS: dict[str, Column] = {name: column for name, column in vars(Columns).items() if isinstance(column, Column)}


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerTable(Columns):
    """One layer's view of a `RouterTable`: the same memory without the layer axis, so it follows every `copy_`."""

    values: Tensor
    """float32 [P,C]."""
    logit_bias_PE: Tensor
    key_PE: Tensor

    def to(self, device: torch.device | str) -> "LayerTable":
        """The same values on `device`: a copy where the device differs, which no longer follows the table."""
        return LayerTable(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})

    def clone(self) -> "LayerTable":
        """A copy that follows nothing."""
        return LayerTable(**{field.name: getattr(self, field.name).clone() for field in fields(self)})

    def copy_(self, other: "LayerTable") -> "LayerTable":
        """Take over the values of `other` in place, across devices. Raises ValueError if a shape differs."""
        return _copy(self, other)


@dataclass(frozen=True, kw_only=True, slots=True)
class RouterTable(Columns):
    """Every value a policy sets, for every row and layer. The tensors are fixed, their contents change in place."""

    values: Tensor
    """float32 [P,L,C], the scalars of `Columns`."""
    logit_bias_PLE: Tensor
    """float32, added to the router logits before scoring; 0 leaves an expert alone, -inf gives it the score 0."""
    key_PLE: Tensor
    """bool, the key experts that insertion may bring in."""

    @classmethod
    def neutral(
        cls, num_layers: int, num_experts: int, top_k: int, rows: int = 1, device: torch.device | str = "cpu"
    ) -> "RouterTable":
        """The table that changes nothing: no bias, no key expert, no pruning, `top_k` experts kept."""
        values = torch.zeros(rows, num_layers, WIDTH, dtype=torch.float32, device=device)
        for column in COLUMNS.values():
            values[..., column.index] = top_k if column.neutral is None else column.neutral
        return cls(
            values=values,
            logit_bias_PLE=torch.zeros(rows, num_layers, num_experts, dtype=torch.float32, device=device),
            key_PLE=torch.zeros(rows, num_layers, num_experts, dtype=torch.bool, device=device),
        )

    def copy_(self, other: "RouterTable") -> "RouterTable":
        """Take over the values of `other` in place, across devices. Raises ValueError if a shape differs."""
        return _copy(self, other)

    def digest(self) -> str:
        """SHA-256 in hex of all names, shapes and values, the same on every device: do two ranks hold one policy?"""
        sha = hashlib.sha256()
        for field in fields(self):
            values = getattr(self, field.name).detach().cpu().contiguous()
            sha.update(f"{field.name} {values.dtype} {tuple(values.shape)}\n".encode())
            sha.update(values.numpy().tobytes())
        return sha.hexdigest()

    def layer(self, index: int) -> LayerTable:
        """Layer `index` as views."""
        return LayerTable(
            values=self.values[:, index], logit_bias_PE=self.logit_bias_PLE[:, index], key_PE=self.key_PLE[:, index]
        )


Table = TypeVar("Table", LayerTable, RouterTable)


def _copy(mine: Table, theirs: Table) -> Table:
    pairs = [(field.name, getattr(mine, field.name), getattr(theirs, field.name)) for field in fields(mine)]
    for name, target, source in pairs:
        if target.shape != source.shape:
            raise ValueError(
                f"{name} has shape {tuple(source.shape)}, this router's is {tuple(target.shape)}: "
                "the policy was built for another model. Build it with this model's layers, experts and top_k."
            )
    for _, target, source in pairs:
        target.copy_(source)
    return mine
