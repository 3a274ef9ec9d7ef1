"""The embedded checkpoint as a Hugging Face folder: config, weights, tokenizer; and its data as JSONL."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from banpick_exp.models.tiny import DOMAINS
from banpick_exp.models.tiny.model import EOS, PAD, VOCAB_SIZE, tiny_config
from banpick_exp.models.tiny.problems import evaluation_set
from banpick_exp.models.tiny.train import TrainingConfig, mean_loss

SPLIT_SIZES = {"calibration": 300, "dev": 400, "test": 800}
SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>")
WEIGHTS = "model.safetensors"


def load_weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / WEIGHTS)


def write_checkpoint(folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Write a complete checkpoint folder that vLLM and Transformers load as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    shape = tiny_config()
    config = shape.to_dict()
    # transformers 5 writes only the new names; readers of either age find theirs.
    config |= {"num_experts": shape.num_experts, "num_local_experts": shape.num_experts}
    config |= {"rope_theta": shape.rope_parameters["rope_theta"]}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    generation = {"pad_token_id": PAD, "eos_token_id": EOS, "do_sample": False}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    # Sorted, so that equal weights give an equal file.
    save_file({name: weights[name].contiguous() for name in sorted(weights)}, folder / WEIGHTS, {"format": "pt"})
    (folder / WEIGHTS).chmod(0o644)  # safetensors writes 0600; others who share the installation read it too
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=character_tokenizer(), pad_token=SPECIAL_TOKENS[0], eos_token=SPECIAL_TOKENS[EOS]
    )
    tokenizer.save_pretrained(folder)


def write_training(folder: Path, config: TrainingConfig) -> dict[str, Any]:
    """Write `training.json`, how the weights in `folder` came about, and return it.

    `dev_loss` is the cross-entropy of these very weights (bf16) on the dev split, nats a token, per domain.
    """
    weights = load_weights(folder)
    record: dict[str, Any] = {
        "settings": dataclasses.asdict(config),
        "dev_loss": {
            domain: round(mean_loss(weights, evaluation_set(domain, "dev", SPLIT_SIZES["dev"], config.seed)), 4)
            for domain in DOMAINS
        },
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "weights_sha256": hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest(),
    }
    (folder / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    return record


def character_tokenizer() -> Tokenizer:
    """One token a character; the id is the ASCII code, 0 to 2 are special."""
    vocabulary = {chr(i): i for i in range(len(SPECIAL_TOKENS), VOCAB_SIZE)}
    vocabulary |= {token: i for i, token in enumerate(SPECIAL_TOKENS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


def write_data(folder: Path, seed: int) -> None:
    """`<domain>_<split>.jsonl`: problem_id, domain, task, prompt, response, answer."""
    folder.mkdir(parents=True, exist_ok=True)
    for domain in DOMAINS:
        for split, size in SPLIT_SIZES.items():
            lines = [
                json.dumps(
                    {
                        "problem_id": f"{domain}-{split}-{index:04d}",
                        "domain": domain,
                        "task": problem.task,
                        "prompt": problem.prompt,
                        "response": problem.response,
                        "answer": problem.answer,
                    }
                )
                for index, problem in enumerate(evaluation_set(domain, split, size, seed))
            ]
            (folder / f"{domain}_{split}.jsonl").write_text("\n".join(lines) + "\n")
