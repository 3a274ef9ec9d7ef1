"""The sections of the page, in its order: a new one is a module beside these and its name in two lines here."""

from __future__ import annotations

from banpick_exp.report.page import (
    budgets,
    cost,
    demand,
    domains,
    flips,
    front,
    guards,
    heat_maps,
    lengths,
    parallel,
    provenance,
    speed,
    usage,
    verdict,
)

SECTIONS = [
    module.SECTION
    for module in (
        verdict,
        front,
        parallel,
        flips,
        lengths,
        speed,
        demand,
        usage,
        heat_maps,
        domains,
        budgets,
        guards,
        cost,
        provenance,
    )
]
