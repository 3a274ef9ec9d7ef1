"""The arrays behind the heat maps: expert usage under stock and a policy, influence, experts kept per layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from banpick_exp.records import OVERALL
from banpick_exp.report.figures.heat_map import heat_grid
from banpick_exp.report.run import Run, chosen_policy

MOST_ROWS = 40  # policies in one picture of kept experts; beyond, the table has the rest


@dataclass(frozen=True, kw_only=True, slots=True)
class Maps:
    """What a run can show. Usage and influence are [L, E] by domain, kept is one row [L] a policy; empty: unknown."""

    stock_usage: dict[str, np.ndarray]
    policy_usage: dict[str, np.ndarray]
    policy: dict[str, Any] | None
    why: str
    influence: dict[str, np.ndarray]
    score: str
    kept: np.ndarray
    kept_labels: list[str]
    even: int
    """Policies that keep the same number in every layer; left out of `kept` unless there is no other."""


def maps_of(run: Run, label: str | None = None) -> Maps:
    """The arrays of a run for one policy (see `chosen_policy`). Usage is the share of tokens that select an expert."""
    record, why = chosen_policy(run, label)
    stock = _stock_of(run, record)
    influence: dict[str, np.ndarray] = {}
    score = ""
    followed = record["calibration"] if record and record["calibration"] else next(iter(run.calibrations), None)
    if followed in run.calibrations:
        score, domains = run.calibrations[followed]
        influence = {domain: found[score] for domain, found in domains.items()}
    rows = run.frame.filter((pl.col("status") == "done") & (pl.col("domain") == OVERALL))
    by_layer = [(row["label"], row["mean_kept_by_layer"]) for row in rows.sort("mean_kept").iter_rows(named=True)]
    by_layer = [(name, np.array(kept, float)) for name, kept in by_layer if kept]
    uneven = [(name, kept) for name, kept in by_layer if np.ptp(kept) > 1e-6]
    shown = uneven[:MOST_ROWS]
    return Maps(
        stock_usage=_usage(stock, "stock_counters"), policy_usage=_usage(record, "counters"), policy=record, why=why,
        influence=influence, score=score, kept=np.array([kept for _, kept in shown]),
        kept_labels=[name for name, _ in shown], even=len(by_layer) - len(uneven),
    )  # fmt: skip


def most_changed(maps: Maps, domain: str, count: int = 3) -> list[str]:
    """`L1E7 +0.12`: the experts whose share of tokens the policy changes most, the largest change first."""
    change_LE = maps.policy_usage[domain] - maps.stock_usage[domain]
    order = np.argsort(-np.abs(change_LE), axis=None, kind="stable")[:count]
    experts = change_LE.shape[1]
    return [f"L{i // experts}E{i % experts} {change_LE.ravel()[i]:+.3f}" for i in order]


def draw_maps(run: Run, maps: Maps) -> list[Path]:
    """`usage.png`, `influence.png` and `kept.png` in the run's folder, as far as the run has their numbers."""
    files = []
    if maps.stock_usage:
        unit = "share of tokens"
        cells = [[(f"{domain}: stock", usage, unit)] for domain, usage in maps.stock_usage.items()]
        title = f"Expert usage, {run.models}"
        if maps.policy and maps.policy_usage.keys() == maps.stock_usage.keys():
            title += f": stock (left) and {maps.policy['label']} (right)"
            for line, (domain, usage) in zip(cells, maps.policy_usage.items(), strict=True):
                line.append((f"{domain}: {maps.policy['policy']['name']}", usage, unit))
        files.append(heat_grid(cells, run.folder / "usage.png", title=title, shared=True))
    if maps.influence:
        influence = [(domain, values, f"{maps.score} (nats)") for domain, values in maps.influence.items()]
        title = f"Influence of single experts ({maps.score}), {run.models}"
        files.append(heat_grid([influence], run.folder / "influence.png", title=title))
    if len(maps.kept):
        kept = [("all domains", maps.kept, "mean experts kept")]
        title = f"Experts kept per layer, {run.models}"
        path = run.folder / "kept.png"
        files.append(heat_grid([kept], path, title=title, y_label="", x_label="MoE layer", rows=maps.kept_labels))
    return files


def _stock_of(run: Run, record: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    stock = [r for r in run.done if r["policy"]["name"] == "none"]
    same = [r for r in stock if record is not None and all(r[k] == record[k] for k in ("model", "engine", "task"))]
    return next(iter([*same, *stock]), None)


def _usage(record: Mapping[str, Any] | None, key: str) -> dict[str, np.ndarray]:
    counters = (record or {}).get("engagement", {}).get(key) or {}
    return {
        domain: np.array(found["usage"], float) / np.maximum(np.array(found["tokens"], float), 1)[:, None]
        for domain, found in counters.items()
    }
