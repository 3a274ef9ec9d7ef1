"""What all figures share: a colour and a marker for each policy family, and names."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from banpick_exp.records import ON
from banpick_exp.report.text import STOCK, in_words

Style = tuple[str, Any, float]
"""Okabe-Ito colour, matplotlib marker, drawn size."""

# Every marker once, since grey has no colours to tell families apart.
STYLES: dict[str, Style] = {
    "none": ("#000000", "*", 12.0),
    "fixed_k": ("#595959", "s", 5.5),
    "pick": ("#0072B2", "o", 6.0),
    "ban": ("#D55E00", "^", 7.0),
    "ban_pick": ("#CC79A7", "D", 5.5),
    "naee": ("#009E73", "v", 7.0),
    "top_p": ("#E69F00", "P", 7.0),
    "diep": ("#56B4E9", "X", 7.0),
    "adapmoe": ("#D55E00", "<", 7.0),
    "modes": ("#0072B2", ">", 7.0),
    "expert_sample": ("#CC79A7", "p", 7.0),
    "rice": ("#009E73", "h", 7.0),
    "steer": ("#E69F00", "d", 7.0),
    "mask": ("#56B4E9", "8", 6.5),
    "logit_offset": ("#009E73", "H", 7.0),
}

CHECKPOINT_MARKERS = ((4, 1, 45), (8, 1, 0), (12, 1, 0), (5, 1, 180), (3, 1, 30))
"""Stars of checkpoints that were made from another: the marker tells the checkpoint, the colour the policy."""
CHECKPOINT_SIZE = 10.0

SPARE_STYLES = (("#009E73", (4, 1, 0), 9.0), ("#CC79A7", (6, 1, 0), 9.0), ("#E69F00", (3, 1, 0), 9.0))  # stars

PAPER = {
    "font.size": 9, "axes.titlesize": 10, "axes.labelsize": 9, "axes.spines.top": False, "axes.spines.right": False,
    "axes.linewidth": 0.8, "axes.grid": True, "grid.color": "#E4E4E4", "grid.linewidth": 0.6, "legend.frameon": False,
    "font.family": "DejaVu Sans", "axes.axisbelow": True, "xtick.major.size": 3, "ytick.major.size": 3,
}  # fmt: skip


def family_styles(policies: Sequence[str]) -> dict[str, Style]:
    """A style for each policy name, the known ones always the same.

    `pick on pruned` has the colour of `pick` and a marker of that checkpoint.
    """
    spare, names = itertools.cycle(SPARE_STYLES), sorted(set(policies), key=_family_order)
    plain = dict.fromkeys(name.partition(ON)[0] for name in names)
    styles = {name: STYLES.get(name) or next(spare) for name in plain}
    checkpoints = sorted({checkpoint for name in names if (checkpoint := name.partition(ON)[2])})
    markers = dict(zip(checkpoints, itertools.cycle(CHECKPOINT_MARKERS), strict=False))
    found = {}
    for name in names:
        policy, _, checkpoint = name.partition(ON)
        made = (styles[policy][0], markers[checkpoint], CHECKPOINT_SIZE) if checkpoint else styles[policy]
        found[name] = made
    return found


def _family_order(name: str) -> tuple[str, int, str]:
    policy, _, checkpoint = name.partition(ON)
    return checkpoint, (list(STYLES).index(policy) if policy in STYLES else len(STYLES)), policy


def family_name(name: str) -> str:
    """What a legend calls a policy."""
    return {STOCK: f"{in_words(STOCK)} ({STOCK})", "fixed_k": "fixed_k ladder"}.get(name, name)
