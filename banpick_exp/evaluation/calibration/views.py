"""What policies read of a calibration: experts in the order of a score, layers by sensitivity, and what rivals follow.

Shapes: L MoE layers, E experts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from banpick_exp.evaluation.calibration.arrays import DomainCalibration
from banpick_exp.evaluation.calibration.race import rank_correlation
from banpick_exp.evaluation.calibration.scores import SCORES, Name
from banpick_exp.policy.calibration import Calibration, Influence

ONE_PASS = ("reap", "man", "easy_ep", "fisher_removal")
"""Scores of one pass over the tokens: to look at and to compare, never what an expert is chosen by."""


def policy_view(
    domain: DomainCalibration,
    score: Name | None = None,
    others: Sequence[DomainCalibration] = (),
    *,
    sensitivity: str = "kl",
) -> Calibration:
    """What a policy reads of one domain.

    `score`: ranks experts, descending (ties: lower layer, then lower expert); None for a policy that follows none.
    `others`: the artifact's other domains, to which `contrast` compares this one, and whose experts may be merged.
    """
    return Calibration(
        influence=None if score is None else influence(domain, score),
        influence_elsewhere=None if score is None else tuple(influence(other, score) for other in others),
        layer_sensitivity=layer_sensitivity(domain, sensitivity).tolist(),
        r_min=float(domain.ratio_range[0]),
        r_max=float(domain.ratio_range[1]),
        usage=domain.usage.tolist(),
        tail_square=domain.tail_square.tolist(),
        fisher=domain.fisher.tolist(),
        skip_kl=np.maximum(domain.skip_kl, 0).tolist(),
        ratio_median=domain.ratio_median.tolist(),
        similarity=_rounded(domain.similarity),
        npmi=_rounded(npmi(domain)),
        contrast=_rounded(contrast(domain, others)),
    )


def policy_views(
    domains: Mapping[str, DomainCalibration], score: Name | None, *, sensitivity: str = "kl"
) -> dict[str, Calibration]:
    """`policy_view` of every domain, each against all the others."""
    views = {}
    for name, domain in domains.items():
        others = [other for other_name, other in domains.items() if other_name != name]
        views[name] = policy_view(domain, score, others, sensitivity=sensitivity)
    return views


def influence(domain: DomainCalibration, score: Name) -> tuple[Influence, ...]:
    """All experts by a score that was measured, the highest first; with bounds where it has a sign."""
    found = domain.scores[score]
    experts = found.value.shape[1]
    value, lower = found.value.ravel(), found.lower.ravel()
    signed = SCORES[score].labelled
    return tuple(
        Influence(int(i // experts), int(i % experts), float(value[i]), float(lower[i]) if signed else None)
        for i in order(found.value, found.samples)
    )


def order(value_LE: np.ndarray, samples_LE: np.ndarray) -> np.ndarray:
    """Experts (layer * E + expert), the highest value first; those that a race dropped after all that went on."""
    return np.lexsort((np.arange(value_LE.size), -value_LE.ravel(), -samples_LE.ravel()))


def layer_sensitivity(domain: DomainCalibration, by: str = "kl") -> np.ndarray:
    """[L], 0 the least sensitive layer and 1 the most: `kl` moved or, `gold`, likelihood lost where k_min are kept.

    Ours: 0 everywhere where no layer differs from another.
    """
    loss_L = domain.layer_kl if by == "kl" else loss_of_right_answers(domain)
    span = float(loss_L.max() - loss_L.min())
    found: np.ndarray = (loss_L - loss_L.min()) / span if span > 0 else np.zeros_like(loss_L)
    return found


def loss_of_right_answers(domain: DomainCalibration) -> np.ndarray:
    """[L] nats an answer that right answers lose where a layer alone keeps k_min experts; limit_gain was measured.

    0 where k_min is K.
    """
    gain_LK = np.pad(domain.scores["limit_gain"].value, ((0, 0), (0, 1)))
    loss_L: np.ndarray = -gain_LK[:, int(np.asarray(domain.k_min).item()) - 1]
    return loss_L


def agreement(domain: DomainCalibration) -> dict[str, dict[str, float]]:
    """Rank correlation (Spearman) of each two scores that are there, over the experts that both used most samples of.

    One-pass scores against those that a change was measured for. NaN where nothing can be said.
    """
    measured = {str(name): (s.value, s.samples) for name, s in domain.scores.items() if name in SCORES}
    whole = np.full(domain.usage.shape, np.iinfo(np.int64).max)
    passing = {name: (getattr(domain, name), whole) for name in ONE_PASS}
    found: dict[str, dict[str, float]] = {}
    for name, (value, samples) in (measured | passing).items():
        found[name] = {}
        for other, (other_value, other_samples) in measured.items():
            both = (samples == samples.max()) & (other_samples == other_samples.max())
            enough = both.sum() > 2 and other != name
            found[name][other] = rank_correlation(value[both], other_value[both]) if enough else math.nan
    return found


def npmi(domain: DomainCalibration) -> np.ndarray:
    """Normalised pointwise mutual information of "selects expert e" and "is a marker", [L,E] (RICE, 2505.14681).

        nPMI(e, m) = ln(p(e,m) / (p(e) p(m))) / -ln p(e,m)

    over the tokens of one pass: -1 where they never meet, 0 where one says nothing of the other, 1 where they always
    do. All -1 where no marker was seen. Ours: the marker is the token that is routed, and 1 where p(e,m) = 1.
    """
    return npmi_of(domain.observed_usage, domain.observed_tokens, domain.marker_usage, domain.marker_tokens)


def npmi_of(
    usage_LE: np.ndarray, tokens_L: np.ndarray, marker_usage_LE: np.ndarray, marker_tokens_L: np.ndarray
) -> np.ndarray:
    """`npmi` of counts.

    Of 100 tokens 10 are markers; expert 0 is selected by 20, 8 of them markers, expert 1 by 30 and no marker:

    >>> counts = [[20, 30]], [100], [[8, 0]], [10]
    >>> npmi_of(*map(np.array, counts)).round(4).tolist()  # ln 4 / -ln 0.08
    [[0.5489, -1.0]]
    """
    tokens_L1 = np.maximum(tokens_L, 1)[:, None]
    expert_LE, marker_L1 = usage_LE / tokens_L1, marker_tokens_L[:, None] / tokens_L1
    both_LE = marker_usage_LE / tokens_L1
    with np.errstate(divide="ignore", invalid="ignore"):
        found_LE = np.log(both_LE / (expert_LE * marker_L1)) / -np.log(both_LE)
    return np.where(both_LE == 0, -1.0, np.where(both_LE == 1, 1.0, found_LE)).clip(-1, 1)


def contrast(domain: DomainCalibration, others: Sequence[DomainCalibration]) -> np.ndarray:
    """Share of this domain's tokens that select an expert, less the mean of the other domains' shares, [L,E].

    SteerMoE's risk difference (arXiv 2509.09660), with domains for its contrastive prompts (ours). Without others: 0.
    """
    shares = [each.share for each in (domain, *others)]
    return shares[0] - np.mean(shares[1:], axis=0) if others else np.zeros_like(shares[0])


def _rounded(values: np.ndarray) -> Any:
    """Nested lists, to six digits after the point: what a policy reads travels as JSON."""
    return np.asarray(values, dtype=np.float64).round(6).tolist()
