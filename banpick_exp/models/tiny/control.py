"""The positive control: the embedded checkpoint with experts demoted on purpose, so that Pick must help there.

Pick changes nothing on the healthy tiny model, so a Pick that never worked would look the same. Here an influential
expert is pushed just out of the top K of its tokens: its output is lost, but it still ranks within the top 2K, where
`range_replace` and a small `boost` reach it. In closed form, without training, per planted expert e of layer l:

1. Its gate row is refitted by weighted ridge regression on the router inputs of training problems. On tokens where e
   was selected the target logit is the smaller of its own and the midpoint of the other experts' 9th and 10th, weighted
   by (gate weight / mean)^2; elsewhere the target is its own logit, with weight 0.02.
2. Its down_proj is multiplied by (gate weight before) / (weight when inserted), over the 30 % of its tokens that gave
   it the most weight: inserted again, it contributes what it did.

It proves the machinery, not the paper's claim. Shapes: T tokens, E experts, H hidden, U tokens that used the expert.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import platformdirs
import torch
from torch import Tensor

from banpick_exp.errors import UserError
from banpick_exp.models.checkpoint import CONTROL_RECIPE
from banpick_exp.models.tiny import ASSETS
from banpick_exp.models.tiny.checkpoint import WEIGHTS, load_weights, write_checkpoint
from banpick_exp.models.tiny.model import TinyMoe, tiny_config
from banpick_exp.models.tiny.problems import Exercise, draw, is_trainable
from banpick_exp.models.tiny.train import encode

PLANTED: dict[str, tuple[tuple[int, int], ...]] = {
    "math": ((0, 2),),
    "knowledge": ((0, 11), (0, 25), (3, 14), (3, 16)),
}
"""(layer, expert) of each control, found by search on the shipped checkpoint; docs/tiny-model.md says how. Raise
`CONTROL_RECIPE` with them, or with any step below: cached folders and the fingerprints of points follow it."""

PLANTED_IN = "98debebb27290228"
"""Fingerprint of the weights the search ran on."""

DESCRIPTION = "control.json"
PROBLEMS = 300
RIDGE = 1e-4
UNUSED_WEIGHT = 0.02
TOP_SHARE = 0.3


def build_control(domain: str, output: Path) -> dict[str, Any]:
    """Write the control of one domain to `output`: a complete checkpoint folder, and `control.json`.

    Returns what `control.json` holds: domain, planted [[layer, expert]], the factor of each down_proj, the fingerprint
    of the healthy weights and the recipe's version. About 10 seconds, the same bytes every time.
    Raises UserError for an unknown domain, and for weights other than those the experts were chosen on.
    """
    source = _source(domain)
    weights = load_weights(source)
    inputs_LTH = router_inputs(weights, domain)
    scales = [demote(weights, inputs_LTH[layer], layer, expert) for layer, expert in PLANTED[domain]]
    write_checkpoint(output, weights)
    description = {
        "domain": domain,
        "planted": [list(pair) for pair in PLANTED[domain]],
        "down_proj_scale": scales,
        "source": fingerprint_of(source),
        "recipe": CONTROL_RECIPE,
    }
    (output / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n")
    return description


def control_folder(domain: str) -> Path:
    """The control's checkpoint folder in the user's cache, built on the first call; several processes may call it.

    Raises UserError as `build_control` does, and where the cache cannot be written.
    """
    source = _source(domain)
    identity = json.dumps([CONTROL_RECIPE, domain, PLANTED[domain], fingerprint_of(source)])
    name = f"{domain}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    folder = Path(platformdirs.user_cache_dir("banpick_exp")) / "controls" / name
    if (folder / DESCRIPTION).is_file():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".building-", dir=folder.parent))
    except OSError as error:
        raise UserError(
            f"the control model cannot be kept in {folder.parent} ({error.strerror}), so it cannot be loaded. Make the "
            f"folder writable, or name another cache: XDG_CACHE_HOME=/tmp/cache."
        ) from None
    try:
        build_control(domain, staging)
        os.replace(staging, folder)
    except OSError:
        # A folder that is there already came from another process in the meantime, byte for byte the same.
        if not (folder / DESCRIPTION).is_file():
            raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder


def fingerprint_of(folder: Path) -> str:
    """16 hex digits of the SHA-256 over a checkpoint's weights."""
    return hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()[:16]


def _source(domain: str) -> Path:
    if domain not in PLANTED:
        raise UserError(
            f"there is no control for domain {domain!r}: no expert was chosen to plant. Use {' or '.join(PLANTED)}."
        )
    folder = ASSETS / "checkpoint"
    if not (folder / WEIGHTS).is_file():
        raise UserError(
            "the embedded model is not in this installation: there is nothing to build a control from. "
            "Type python -m banpick_exp tiny to train it (15 minutes)."
        )
    found = fingerprint_of(folder)
    if found != PLANTED_IN:
        raise UserError(
            f"the embedded weights are {found}, the planted experts were chosen on {PLANTED_IN}: demoting the same ids "
            f"here would demote experts that mean nothing. Restore the shipped checkpoint, or choose experts for this "
            f"one (docs/tiny-model.md says how): PLANTED and PLANTED_IN in banpick_exp/models/tiny/control.py."
        )
    return folder


def training_problems(domain: str, count: int = PROBLEMS) -> list[Exercise]:
    """Distinct problems the model was trained on, always the same ones."""
    rng = random.Random(f"control/{domain}")
    found: dict[str, Exercise] = {}
    while len(found) < count:
        problem = draw(rng, domain)
        if is_trainable(problem):
            found.setdefault(problem.prompt, problem)
    return list(found.values())


def router_inputs(weights: dict[str, Tensor], domain: str) -> list[Tensor]:
    """Per layer the router's inputs [T, H] over prompts and responses of the training problems.

    In float64: what is left of rounding differences between machines vanishes in the final bf16.
    """
    model = TinyMoe(tiny_config()).double()
    model.load_state_dict(weights)
    inputs: list[Tensor] = []
    for block in model.model.moe_blocks():
        block.gate.register_forward_hook(lambda module, args, output: inputs.append(args[0]))
    with torch.no_grad():
        model(encode(training_problems(domain))[0])
    return inputs


def demote(weights: dict[str, Tensor], inputs_TH: Tensor, layer: int, expert: int) -> float:
    """Demote one expert in `weights`, in place. Returns the factor its down_proj was multiplied by.

    Raises ValueError for an expert that no token selects: there is nothing to demote.
    """
    gate_name = f"model.layers.{layer}.mlp.gate.weight"
    down_name = f"model.layers.{layer}.mlp.experts.{expert}.down_proj.weight"
    top_k = tiny_config().num_experts_per_tok
    logits_TE = inputs_TH @ weights[gate_name].double().T
    used_T = (logits_TE.topk(top_k, -1).indices == expert).any(-1)
    if not used_T.any():
        raise ValueError(f"expert {expert} of layer {layer} is selected by no token of the training problems")
    own_T = logits_TE[:, expert]
    others_TE = logits_TE.clone()
    others_TE[:, expert] = float("-inf")
    others_TE = others_TE.sort(-1, descending=True).values

    before_U = _share(own_T, others_TE, top_k)[used_T]
    outside_T = others_TE[:, top_k : top_k + 2].mean(-1)
    target_T = torch.where(used_T, torch.minimum(own_T, outside_T), own_T)
    weight_T = torch.full_like(own_T, UNUSED_WEIGHT)
    weight_T[used_T] = (before_U / before_U.mean()) ** 2
    gram_HH = inputs_TH.T @ (weight_T[:, None] * inputs_TH)
    gram_HH.diagonal().add_(RIDGE * gram_HH.diagonal().mean())
    row_H = torch.linalg.solve(gram_HH, inputs_TH.T @ (weight_T * target_T)).bfloat16()
    weights[gate_name] = weights[gate_name].clone()
    weights[gate_name][expert] = row_H

    inserted_U = _share(inputs_TH @ row_H.double(), others_TE, top_k)[used_T]
    strongest = before_U.argsort(descending=True, stable=True)[: max(1, round(TOP_SHARE * len(before_U)))]
    scale = float(before_U[strongest].mean() / inserted_U[strongest].mean())
    weights[down_name] = (weights[down_name].double() * scale).bfloat16()
    return scale


def _share(own_T: Tensor, others_TE: Tensor, top_k: int) -> Tensor:
    """The expert's renormalised gate weight [T] beside the K - 1 strongest others: its weight when it is selected."""
    return torch.cat((own_T[:, None], others_TE[:, : top_k - 1]), -1).softmax(-1)[:, 0]
