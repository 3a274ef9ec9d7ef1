"""A step whose tokens are of several policies: each token is routed in the way that its policy goes alone.

So a token gets what it would get in a batch of its own policy, ties included, and what is cheap for a policy stays
cheap: rows that leave the choice to vLLM's router with the same k go to it together, rows that are edited by numbers go
through one edit that reads each token's row, and a row with hooks of its own goes by itself.

Shapes: T tokens, N tokens of a group, K experts a token, S slots, P policy rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from banpick_exp.engine.plugin.policy_row import AllRows, PolicyRow, ShortCuts
from banpick_exp.engine.plugin.token_rows import Ints, TokenRows
from banpick_exp.engine.plugin.ways import Asked, Layer, biased_stock_routing, edited_routing


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that go one way together."""

    rows: PolicyRow | AllRows
    cuts: ShortCuts


@dataclass(frozen=True, slots=True)
class Mixture:
    """The groups of some rows of one layer."""

    everyone: AllRows
    cuts: ShortCuts
    """Of all the rows together."""
    groups: tuple[Group, ...]
    group_P: Ints
    """The place in `groups` of each row; -1 of a row that is not among them."""
    hooks: bool
    """Whether one of the rows has hooks."""
    prunes: bool
    """Whether a slot may be banned, or stay empty because another row needs more."""

    @staticmethod
    def of(everyone: AllRows, rows: list[PolicyRow], present: tuple[int, ...]) -> Mixture:
        """Of the rows that are `present`, ascending."""
        together = ShortCuts.together([rows[row].cuts for row in present])
        ways: dict[object, list[int]] = {}
        for row in present:
            cuts = rows[row].cuts
            if cuts.stock_k is not None:
                way: object = ("stock", cuts.stock_k, cuts.biased)
            else:
                way = "edited" if rows[row].edit is None else ("hooks", row)
            ways.setdefault(way, []).append(row)
        groups, group_P = [], np.full(len(rows), -1, dtype=np.int64)
        for number, members in enumerate(ways.values()):
            group_P[members] = number
            first, alone = rows[members[0]], len(members) == 1
            cuts = (
                first.cuts
                if alone or first.cuts.stock_k is not None
                else ShortCuts.together([rows[row].cuts for row in members])
            )
            groups.append(Group(first if alone else everyone, cuts))
        prunes = any(group.cuts.stock_k != together.slots for group in groups)
        hooks = any(rows[row].edit is not None for row in present)
        return Mixture(everyone, together, tuple(groups), group_P, hooks, prunes)


def mixed_routing(layer: Layer, mixture: Mixture, asked: Asked, token_rows: TokenRows) -> tuple[Tensor, Tensor, Tensor]:
    """Weights [T,S] float32, ids [T,S] int32, kept [T,S]."""
    tokens, slots = asked.logits_TE.shape[0], mixture.cuts.slots
    if len(mixture.groups) == 1:  # padding goes with the rest
        return _routed(layer, mixture.groups[0], asked, token_rows.row_T[:tokens])
    device = layer.tokens_P.device
    weights_TS = torch.zeros(tokens, slots, device=device)
    ids_TS = torch.zeros(tokens, slots, dtype=torch.int32, device=device)
    kept_TS = torch.zeros(tokens, slots, dtype=torch.bool, device=device)
    for group, at_N in zip(mixture.groups, token_rows.places(mixture.group_P, tokens), strict=True):
        if len(at_N) == 0:
            continue
        part = asked if len(at_N) == tokens else asked.of(at_N)
        weights, ids, kept = _routed(layer, group, part, token_rows.row_T[:tokens].index_select(0, at_N))
        width = ids.shape[1]
        weights_TS[at_N, :width] = weights.float()
        ids_TS[at_N, :width] = ids.int()
        kept_TS[at_N, :width] = kept
    return weights_TS, ids_TS.where(kept_TS, ids_TS[:, :1]), kept_TS


def _routed(layer: Layer, group: Group, asked: Asked, row_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The tokens of one group, [N, slots of the group]."""
    own_N = row_N if isinstance(group.rows, AllRows) else None
    if group.cuts.stock_k is None:
        return edited_routing(layer, group.rows, group.cuts, asked, own_N)
    weights, ids = biased_stock_routing(layer, group.rows, group.cuts, asked, own_N)
    return weights, ids, torch.ones_like(ids, dtype=torch.bool)
