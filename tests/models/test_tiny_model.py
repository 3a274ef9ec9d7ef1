"""The training-time model is the published architecture, training is reproducible, the shipped files are complete."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from banpick_exp.models.tiny import ASSETS
from banpick_exp.models.tiny.checkpoint import load_weights, write_checkpoint
from banpick_exp.models.tiny.model import PAD, TinyMoe, tiny_config
from banpick_exp.models.tiny.muon import orthogonalize
from banpick_exp.models.tiny.problems import evaluation_set
from banpick_exp.models.tiny.train import TrainingConfig, encode, mean_loss, train

CHECKPOINT = ASSETS / "checkpoint"


@pytest.mark.slow
def test_logits_equal_those_of_transformers() -> None:
    from transformers import Qwen3MoeForCausalLM

    ids, _ = encode([p for domain in ("math", "code", "knowledge") for p in evaluation_set(domain, "dev", 6, 0)])
    ours = TinyMoe(tiny_config())
    ours.load_state_dict({name: weight.float() for name, weight in load_weights(CHECKPOINT).items()})
    theirs = Qwen3MoeForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    with torch.no_grad():
        logits, unpadded = ours(ids)
        expected = theirs(ids, attention_mask=ids.ne(PAD)).logits.flatten(0, 1)[unpadded]
    assert len(unpadded) < ids.numel(), "the batch should hold padding"
    torch.testing.assert_close(logits.log_softmax(-1), expected.log_softmax(-1), atol=1e-4, rtol=0)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_labels_cover_the_response_and_eos_only() -> None:
    problem = evaluation_set("math", "dev", 1, 0)[0]
    ids, labels = encode([problem])
    start = len(problem.prompt)
    assert labels[0, : start - 1].eq(PAD).all()
    assert "".join(map(chr, labels[0, start - 1 : -2].tolist())) == problem.response
    assert labels[0, -2] == tiny_config().eos_token_id and labels[0, -1] == PAD
    assert ids[0, -1] == tiny_config().eos_token_id


@pytest.mark.parametrize("shape", [(32, 128), (128, 32), (48, 96)])
def test_orthogonalize_keeps_the_singular_vectors_and_evens_out_the_values(shape: tuple[int, int]) -> None:
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    for matrix, result in zip(matrices, orthogonalize(matrices, steps=5), strict=True):
        u, before, vh = torch.linalg.svd(matrix, full_matrices=False)
        inside = u.T @ result @ vh.T
        values = inside.diagonal()
        # Source's coefficients aim at the band around 1, not at 1 itself.
        assert (values > 0.3).all() and (values < 1.3).all()
        assert (inside - values.diag()).abs().max() < 1e-3
        torch.testing.assert_close(u @ inside @ vh, result, atol=1e-4, rtol=0)
        assert values.max() / values.min() < before.max() / before.min()


def test_learning_rate_schedule() -> None:
    config = TrainingConfig(steps=1000)
    assert config.lr_factor(0) == 1 / 50 and config.lr_factor(49) == 1.0
    assert config.lr_factor(399) == config.lr_factor(400) == 1.0
    assert config.lr_factor(700) == pytest.approx(0.51)
    assert config.lr_factor(1000) == pytest.approx(0.02)


@pytest.mark.slow
def test_training_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    config = TrainingConfig(steps=3, batch_size=8)
    for name in ("first", "second"):
        train(config, tmp_path / name)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
    torch.manual_seed(config.seed)
    for name, start in TinyMoe(tiny_config()).named_parameters():
        assert not torch.equal(load_file(tmp_path / "first")[name], start.bfloat16()) or "norm" in name, name


def test_shipped_checkpoint_is_what_the_command_writes(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, load_weights(CHECKPOINT))
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    shipped = {path.name: path.read_bytes() for path in CHECKPOINT.iterdir()}
    record = json.loads(shipped.pop("training.json"))
    config, shipped_config = json.loads(written.pop("config.json")), json.loads(shipped.pop("config.json"))
    # Another release of transformers may write other defaults; what defines the model must agree.
    keys = ("architectures", "num_experts", "num_local_experts", "num_experts_per_tok", "rope_theta", "rope_parameters")
    for key in keys:
        assert config[key] == shipped_config[key], key
    assert written.keys() == shipped.keys()
    assert written["model.safetensors"] == shipped["model.safetensors"]
    assert written["tokenizer.json"] == shipped["tokenizer.json"]
    assert record["weights_sha256"] == hashlib.sha256(shipped["model.safetensors"]).hexdigest()
    assert record["settings"]["steps"] == TrainingConfig().steps and record["settings"]["seed"] == 0


@pytest.mark.slow
def test_recorded_loss_is_the_loss_of_the_shipped_weights() -> None:
    record = json.loads((CHECKPOINT / "training.json").read_text())
    weights = load_weights(CHECKPOINT)
    problems = evaluation_set("math", "dev", 400, 0)
    assert mean_loss(weights, problems) == pytest.approx(record["dev_loss"]["math"], abs=2e-3)
    untrained = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    assert mean_loss(untrained, problems[:4]) == pytest.approx(4.852, abs=1e-3)  # ln 128


def test_assets_stay_small() -> None:
    assert sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()) < 8_000_000
