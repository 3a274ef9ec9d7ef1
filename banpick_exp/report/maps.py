"""The arrays behind the heat maps: expert usage under stock and a policy, influence, experts kept per layer."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from banpick_exp.analysis import EQUAL_BUDGET_TOLERANCE
from banpick_exp.errors import UserError
from banpick_exp.evaluation.calibration.scores import SCORES
from banpick_exp.records import OVERALL, Counters, PointRecord
from banpick_exp.report.figures.names import INFLUENCE, KEPT, USAGE
from banpick_exp.report.run import Run
from banpick_exp.report.text import rival

MOST_ROWS = 40  # policies in one picture of kept experts; beyond, the table has the rest


@dataclass(frozen=True, kw_only=True, slots=True)
class Maps:
    """What a run can show. Usage and influence are [L, E] by domain, kept is one row [L] a policy; empty: unknown."""

    stock_usage: dict[str, np.ndarray]
    policy_usage: dict[str, np.ndarray]
    policy: PointRecord | None
    why: str
    influence: dict[str, np.ndarray]
    score: str
    kept: np.ndarray
    kept_labels: list[str]
    even: int
    """Policies that keep the same number in every layer; left out of `kept` unless there is no other."""


NOTHING = Maps(
    stock_usage={}, policy_usage={}, policy=None, why="", influence={}, score="", kept=np.zeros((0, 0)), kept_labels=[],
    even=0,
)  # fmt: skip
"""Of a run whose arrays cannot be read."""


def maps_of(run: Run, label: str | None = None) -> Maps:
    """The arrays of a run for one policy (see `chosen_policy`). Usage is the share of tokens that select an expert."""
    policy, why = chosen_policy(run, label)
    stock = _stock_of(run, policy)
    influence, score = _influence(run, policy)
    by_layer = [
        (row["label"], np.array(row["mean_kept_by_layer"], float))
        for row in run.done_rows().sort("mean_kept").iter_rows(named=True)
        if row["mean_kept_by_layer"]
    ]
    uneven = [(name, kept) for name, kept in by_layer if np.ptp(kept) > 1e-6]
    shown = uneven[:MOST_ROWS]
    return Maps(
        stock_usage={} if stock is None else _usage(stock.engagement.stock_counters),
        policy_usage={} if policy is None else _usage(policy.engagement.counters),
        policy=policy,
        why=why,
        influence=influence,
        score=score,
        kept=np.array([kept for _, kept in shown]),
        kept_labels=[name for name, _ in shown],
        even=len(by_layer) - len(uneven),
    )


def chosen_policy(run: Run, label: str | None = None) -> tuple[PointRecord | None, str]:
    """The point whose routing is drawn beside stock's, and why it: the one asked for, else the best at equal budget.

    Args: label: also a fingerprint.
    Raises: UserError for a label that no done point has.
    """
    others = [record for record in run.done if not record.is_stock]
    if label is not None:
        for record in others:
            if label in (record.label, record.fingerprint):
                return record, "as asked for"
        known = ", ".join(f'"{record.label}"' for record in others[:12])
        raise UserError(
            f'--policy "{label}" is no finished policy of {run.folder.path}: nothing could be drawn.'
            f" Type one of: {known}."
        )
    compared = run.verdicts.filter((pl.col("domain") == OVERALL) & pl.col("lo_simultaneous").is_not_null())
    near = compared.filter(pl.col("budget_gap").abs() <= EQUAL_BUDGET_TOLERANCE)
    for row in (near if near.height else compared).sort("lo_simultaneous", descending=True).iter_rows(named=True):
        record = next(record for record in run.done if record.fingerprint == row["fingerprint"])
        if record.is_stock:  # of a checkpoint that was made from another: it changes no routing that could be drawn
            continue
        if row["verdict"] == "beats":
            return record, f"beats {rival(row)}"
        return record, f"no policy gains over all domains; of those that tie this one stands best, against {rival(row)}"
    return (others[0], "no policy was compared; the first point") if others else (None, "")


def most_changed(maps: Maps, domain: str, count: int = 3) -> list[str]:
    """`L1E7 +0.12`: the experts whose share of tokens the policy changes most, the largest change first."""
    change_LE = maps.policy_usage[domain] - maps.stock_usage[domain]
    order = np.argsort(-np.abs(change_LE), axis=None, kind="stable")[:count]
    experts = change_LE.shape[1]
    return [f"L{i // experts}E{i % experts} {change_LE.ravel()[i]:+.3f}" for i in order]


def map_figures(run: Run, maps: Maps) -> dict[str, Callable[[], Path]]:
    """Name of a figure -> what draws it in the run's folder: those that the run has numbers for."""
    drawn = {USAGE: _draw_usage, INFLUENCE: _draw_influence, KEPT: _draw_kept}
    there: dict[str, Sized] = {USAGE: maps.stock_usage, INFLUENCE: maps.influence, KEPT: maps.kept}
    return {name: functools.partial(draw, run, maps) for name, draw in drawn.items() if len(there[name])}


def _draw_usage(run: Run, maps: Maps) -> Path:
    unit = "share of tokens"
    cells = [[(f"{domain}: stock", usage, unit)] for domain, usage in maps.stock_usage.items()]
    title = f"Expert usage, {run.models}"
    if maps.policy and maps.policy_usage.keys() == maps.stock_usage.keys():
        title += f": stock (left) and {maps.policy.label} (right)"
        for line, (domain, usage) in zip(cells, maps.policy_usage.items(), strict=True):
            line.append((f"{domain}: {maps.policy.policy_name}", usage, unit))
    return _heat_grid(cells, run.folder.figure_path(USAGE), title=title, shared=True)


def _heat_grid(*maps: Any, **named: Any) -> Path:
    """As `heat_map.heat_grid`. Matplotlib takes half a second to load: nobody waits for it before a run has begun."""
    from banpick_exp.report.figures.heat_map import heat_grid

    return heat_grid(*maps, **named)


def _draw_influence(run: Run, maps: Maps) -> Path:
    influence = [(domain, values, f"{maps.score} (nats)") for domain, values in maps.influence.items()]
    title = f"Influence of single experts ({maps.score}), {run.models}"
    return _heat_grid([influence], run.folder.figure_path(INFLUENCE), title=title)


def _draw_kept(run: Run, maps: Maps) -> Path:
    kept = [("all domains", maps.kept, "mean experts kept")]
    title = f"Experts kept per layer, {run.models}"
    path = run.folder.figure_path(KEPT)
    return _heat_grid([kept], path, title=title, y_label="", x_label="MoE layer", rows=maps.kept_labels)


def _stock_of(run: Run, policy: PointRecord | None) -> PointRecord | None:
    """Of the policy's set-up where there is one, and never of a checkpoint with another number of experts."""
    experts = None if policy is None else policy.model.num_experts
    stock = [record for record in run.done if record.is_stock and experts in (None, record.model.num_experts)]
    same = [
        record
        for record in stock
        if policy is not None
        and (record.model, record.engine, record.task) == (policy.model, policy.engine, policy.task)
    ]
    return next(iter([*same, *stock]), None)


def _influence(run: Run, policy: PointRecord | None) -> tuple[dict[str, np.ndarray], str]:
    """By domain, and its score: of the calibration that the policy followed, else of the run's first."""
    followed = policy.calibration if policy and policy.calibration else next(iter(run.calibrations), None)
    if followed not in run.calibrations:
        return {}, ""
    there = run.calibrations[followed]
    asked = [policy.score] if policy and policy.score else [each.score for each in run.records if each.score]
    score = next((name for name in SCORES if name in there and name in asked), None)
    if score is None:
        return {}, ""
    return dict(there[score]), score


def _usage(counters: Mapping[str, Counters]) -> dict[str, np.ndarray]:
    return {
        domain: np.array(found.usage, float) / np.maximum(np.array(found.tokens, float), 1)[:, None]
        for domain, found in counters.items()
    }
