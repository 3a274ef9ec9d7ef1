"""The calibration artifact: what was measured per domain, and what a policy reads of it.

A folder `<fingerprint>/` with `calibration.safetensors` (arrays per domain; `measure.py` says what they are) and
`calibration.json` (settings, model, data, versions). One of another model, data or version is refused, never used.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from banpick_exp.errors import UserError
from banpick_exp.evaluation.calibration.artifact import METADATA, SCHEMA_VERSION, TENSORS, read_artifact
from banpick_exp.policy.calibration import Calibration, Influence

SCORES = ("removal_kl", "removal_kl_per_use", "insertion_kl")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class DomainCalibration:
    """What was measured on the problems of one domain; `measure.py` says how. L MoE layers, E experts."""

    usage: np.ndarray
    """[L,E] int64: tokens that selected an expert while the model answered, prompts included."""
    tokens: np.ndarray
    """[L] int64: of how many."""
    observed_usage: np.ndarray
    """[L,E] int64: the same over one pass of prompts and own answers."""
    observed_tokens: np.ndarray
    """[L] int64."""
    marker_usage: np.ndarray
    """[L,E] int64: of the observed tokens, those that are a marker such as <think>."""
    marker_tokens: np.ndarray
    """[L] int64."""
    removal_kl: np.ndarray
    """[L,E] float32, nats: KL to the unchanged model when the expert's logit is -inf."""
    removal_kl_per_use: np.ndarray
    """[L,E] float32: removal_kl over the expert's share of tokens."""
    insertion_kl: np.ndarray
    """[L,E] float32, nats: KL when that one expert is inserted by range_replace."""
    layer_kl: np.ndarray
    """[L] float32, nats: KL when one layer alone keeps k_min experts."""
    tail_square: np.ndarray
    """[L] float32: mean over tokens of the squared shares below the k_min best experts."""
    fisher: np.ndarray
    """[L] float32, nats: 2 * layer_kl / tail_square."""
    similarity: np.ndarray
    """[L,E,E] float32, 0 to 1: CKA of what two experts answer to the same hidden states."""
    ratio_range: np.ndarray
    """[2] float32: lowest and highest R = (w1+w2+w3) / sum w over tokens and layers."""
    self_kl: np.ndarray
    """[] float32, nats: the largest KL of the unchanged model against itself, which must be 0."""

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray], source: Path) -> DomainCalibration:
        """From the arrays of an artifact. Raises UserError, about `source`, where one is missing."""
        names = [each.name for each in fields(cls)]
        if missing := [name for name in names if name not in arrays]:
            raise UserError(
                f"{source} lacks {', '.join(missing)}: the calibration is damaged. Copy the folder again, or leave"
                " calibration.path out to make one."
            )
        return cls(**{name: arrays[name] for name in names})

    def arrays(self) -> dict[str, np.ndarray]:
        """By name, as they lie in the artifact."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    def score(self, name: str) -> np.ndarray:
        """One of SCORES, [L,E]."""
        assert name in SCORES, name
        values: np.ndarray = getattr(self, name)
        return values

    @property
    def share(self) -> np.ndarray:
        """[L,E]: share of tokens that select an expert."""
        return self.usage / np.maximum(self.tokens, 1)[:, None]


def policy_view(domain: DomainCalibration, score: str, others: Sequence[DomainCalibration] = ()) -> Calibration:
    """What a policy reads: influence by `score`, descending (ties: lower layer, then lower expert).

    `others`: the artifact's other domains, to which `contrast` compares this one.
    """
    values_LE = domain.score(score)
    order = np.argsort(-values_LE.ravel(), kind="stable")
    num_experts = values_LE.shape[1]
    low, high = domain.layer_kl.min(), domain.layer_kl.max()
    span = float(high - low)
    sensitivity = (domain.layer_kl - low) / span if span > 0 else np.zeros_like(domain.layer_kl)
    return Calibration(
        influence=tuple(
            Influence(int(i // num_experts), int(i % num_experts), float(values_LE.ravel()[i])) for i in order
        ),
        layer_sensitivity=sensitivity.tolist(),
        r_min=float(domain.ratio_range[0]),
        r_max=float(domain.ratio_range[1]),
        usage=domain.usage.tolist(),
        tail_square=domain.tail_square.tolist(),
        fisher=domain.fisher.tolist(),
        similarity=_rounded(domain.similarity),
        npmi=_rounded(npmi(domain)),
        contrast=_rounded(contrast(domain, others)),
    )


def policy_views(domains: Mapping[str, DomainCalibration], score: str) -> dict[str, Calibration]:
    """`policy_view` of every domain, each against all the others."""
    return {
        name: policy_view(domain, score, [other for other_name, other in domains.items() if other_name != name])
        for name, domain in domains.items()
    }


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


def save(folder: Path, fingerprint: str, domains: dict[str, DomainCalibration], metadata: dict[str, Any]) -> None:
    """Write the artifact atomically: a reader sees all of it or none."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".calibration-", dir=folder.parent))
    tensors = {
        f"{domain}.{name}": np.ascontiguousarray(v) for domain, d in domains.items() for name, v in d.arrays().items()
    }
    save_file(tensors, staging / TENSORS)
    header = {"schema_version": SCHEMA_VERSION, "fingerprint": fingerprint, "domains": list(domains), **metadata}
    (staging / METADATA).write_text(json.dumps(header, indent=1, sort_keys=True) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(staging, folder)


def load(folder: Path, fingerprint: str) -> dict[str, DomainCalibration] | None:
    """The artifact, or None where there is none. Raises UserError for another model's, data's or version's."""
    if not (folder / METADATA).is_file():
        return None
    header = read_artifact(folder)
    if header.fingerprint != fingerprint:
        raise UserError(
            f"{folder} is the calibration {header.fingerprint} of model {header.model_name}, not {fingerprint} of this "
            f"one: its key experts would be meaningless here. Remove the folder, or drop calibration.path, so that the "
            f"right one is made."
        )
    tensors = load_file(folder / TENSORS)
    found = {}
    for domain in header.domains:
        prefix = f"{domain}."
        own = {name.removeprefix(prefix): array for name, array in tensors.items() if name.startswith(prefix)}
        found[domain] = DomainCalibration.of(own, folder / TENSORS)
    return found
