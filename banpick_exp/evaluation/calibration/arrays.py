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
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from banpick_exp.errors import UserError
from banpick_exp.evaluation.calibration.artifact import METADATA, SCHEMA_VERSION, TENSORS, read_artifact
from banpick_exp.policy.calibration import Calibration, Influence

SCORES = ("removal_kl", "removal_kl_per_use", "insertion_kl")

DomainCalibration = dict[str, np.ndarray]
"""usage, observed_usage, marker_usage [L,E] int64; tokens, observed_tokens, marker_tokens [L] int64; float32: each of
SCORES [L,E], layer_kl, tail_square, fisher [L], similarity [L,E,E], ratio_range [2], self_kl []."""


def policy_view(domain: DomainCalibration, score: str, others: Sequence[DomainCalibration] = ()) -> Calibration:
    """What a policy reads: influence by `score`, descending (ties: lower layer, then lower expert).

    `others`: the artifact's other domains, to which `contrast` compares this one.
    """
    values_LE = domain[score]
    order = np.argsort(-values_LE.ravel(), kind="stable")
    num_experts = values_LE.shape[1]
    low, high = domain["layer_kl"].min(), domain["layer_kl"].max()
    span = float(high - low)
    sensitivity = (domain["layer_kl"] - low) / span if span > 0 else np.zeros_like(domain["layer_kl"])
    return Calibration(
        influence=tuple(
            Influence(int(i // num_experts), int(i % num_experts), float(values_LE.ravel()[i])) for i in order
        ),
        layer_sensitivity=sensitivity.tolist(),
        r_min=float(domain["ratio_range"][0]),
        r_max=float(domain["ratio_range"][1]),
        usage=domain["usage"].tolist(),
        tail_square=domain["tail_square"].tolist(),
        fisher=domain["fisher"].tolist(),
        similarity=_rounded(domain["similarity"]),
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

    Of 100 tokens 10 are markers; expert 0 is selected by 20, 8 of them markers, expert 1 by 30 and no marker:

    >>> seen = {"observed_usage": [[20, 30]], "observed_tokens": [100], "marker_usage": [[8, 0]], "marker_tokens": [10]}
    >>> npmi({name: np.array(value) for name, value in seen.items()}).round(4).tolist()  # ln 4 / -ln 0.08
    [[0.5489, -1.0]]
    """
    tokens_L1 = np.maximum(domain["observed_tokens"], 1)[:, None]
    expert_LE, marker_L1 = domain["observed_usage"] / tokens_L1, domain["marker_tokens"][:, None] / tokens_L1
    both_LE = domain["marker_usage"] / tokens_L1
    with np.errstate(divide="ignore", invalid="ignore"):
        found_LE = np.log(both_LE / (expert_LE * marker_L1)) / -np.log(both_LE)
    return np.where(both_LE == 0, -1.0, np.where(both_LE == 1, 1.0, found_LE)).clip(-1, 1)


def contrast(domain: DomainCalibration, others: Sequence[DomainCalibration]) -> np.ndarray:
    """Share of this domain's tokens that select an expert, less the mean of the other domains' shares, [L,E].

    SteerMoE's risk difference (arXiv 2509.09660), with domains for its contrastive prompts (ours). Without others: 0.
    """
    shares = [d["usage"] / np.maximum(d["tokens"], 1)[:, None] for d in (domain, *others)]
    return shares[0] - np.mean(shares[1:], axis=0) if others else np.zeros_like(shares[0])


def _rounded(values: np.ndarray) -> Any:
    """Nested lists, to six digits after the point: what a policy reads travels as JSON."""
    return np.asarray(values, dtype=np.float64).round(6).tolist()


def save(folder: Path, fingerprint: str, domains: dict[str, DomainCalibration], metadata: dict[str, Any]) -> None:
    """Write the artifact atomically: a reader sees all of it or none."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".calibration-", dir=folder.parent))
    tensors = {f"{domain}.{name}": np.ascontiguousarray(v) for domain, d in domains.items() for name, v in d.items()}
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
    return {
        domain: {name.split(".", 1)[1]: v for name, v in tensors.items() if name.split(".", 1)[0] == domain}
        for domain in header.domains
    }
