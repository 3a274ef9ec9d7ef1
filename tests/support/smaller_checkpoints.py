"""Static methods in the small: the embedded model with experts removed, or merged in pairs, a checkpoint of its own.

What HEAPr, REAP, DERN, STUN, Sub-MoE and others hand over looks the same: fewer rows in each router, fewer experts,
and a config.json that says so. Nothing here is theirs but that form.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from banpick_exp.models.inspect import EMBEDDED_CHECKPOINT

EXPERT = re.compile(r"model\.layers\.(\d+)\.mlp\.experts\.(\d+)\.(\w+)\.weight")
GATE = "model.layers.{}.mlp.gate.weight"

Groups = Callable[[Tensor], list[list[int]]]
"""Routed weight [E] of a layer's experts -> the experts that each of the new ones is the mean of."""


def pruned(folder: Path, keep: int) -> Path:
    """Each layer keeps the `keep` experts with the most routed weight, in their old order."""
    return _rewritten(folder, lambda weight_E: [[e] for e in weight_E.topk(keep).indices.sort().values.tolist()])


def merged_in_pairs(folder: Path, *, top_k: int) -> Path:
    """Experts 0 and 1 averaged, 2 and 3, ...: half as many, router rows too. `top_k`: K of the new checkpoint."""
    return _rewritten(folder, lambda weight_E: [[e, e + 1] for e in range(0, len(weight_E), 2)], top_k=top_k)


def routed_weight(prompts: list[str]) -> dict[int, Tensor]:
    """Layer -> [E] summed weight that each expert of the embedded model is given on these prompts, by Transformers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(EMBEDDED_CHECKPOINT, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_CHECKPOINT)
    sums = {}
    for layer, block in enumerate(model.model.layers):
        sums[layer] = torch.zeros(model.config.num_experts)

        def add(_: object, __: object, routed: tuple[Tensor, Tensor, Tensor], layer: int = layer) -> None:
            _, weights_TK, ids_TK = routed
            sums[layer].index_add_(0, ids_TK.flatten(), weights_TK.flatten())

        block.mlp.gate.register_forward_hook(add)
    with torch.no_grad():
        for prompt in prompts:
            model(torch.tensor([tokenizer(prompt).input_ids]))
    return sums


def _rewritten(folder: Path, groups: Groups, top_k: int | None = None) -> Path:
    lines = (EMBEDDED_CHECKPOINT.parent / "data" / "code_calibration.jsonl").read_text(encoding="utf-8").splitlines()
    weight = routed_weight([json.loads(line)["prompt"] for line in lines[:16]])
    shutil.copytree(EMBEDDED_CHECKPOINT, folder)
    old = load_file(folder / "model.safetensors")
    new = {name: tensor for name, tensor in old.items() if not EXPERT.fullmatch(name)}
    kinds = {found[3] for name in old if (found := EXPERT.fullmatch(name))}
    count = 0
    for layer, weight_E in weight.items():
        members = groups(weight_E)
        count, gate = len(members), GATE.format(layer)
        new[gate] = torch.stack([_mean([old[gate][e] for e in each]) for each in members])
        for number, each in enumerate(members):
            for kind in kinds:
                name = "model.layers.{}.mlp.experts.{}.{}.weight"
                new[name.format(layer, number, kind)] = _mean([old[name.format(layer, e, kind)] for e in each])
    save_file(new, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"num_experts": count, "num_local_experts": count}
    config |= {} if top_k is None else {"num_experts_per_tok": top_k}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def _mean(tensors: list[Tensor]) -> Tensor:
    return torch.stack(tensors).float().mean(0).to(tensors[0].dtype).contiguous()
