"""Train the embedded checkpoint: two gloo processes of one thread each, seeded, bit-equal on a rerun.

Muon on every projection (experts included) and AdamW on the rest; the loss covers the response and eos only.
Measured on 2 cores: see `docs/tiny-model.md`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors.torch import save_file
from torch import Tensor

from banpick_exp.models.tiny.model import EOS, PAD, TinyMoe, tiny_config
from banpick_exp.models.tiny.muon import BatchedMuon
from banpick_exp.models.tiny.problems import Exercise, training_batch

WORLD_SIZE = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig:
    steps: int = 1800
    batch_size: int = 96
    seed: int = 0
    muon_lr: float = 0.02
    adam_lr: float = 3e-3
    weight_decay: float = 0.05
    clip: float = 1.0
    balance_weight: float = 0.1
    warmup_steps: int = 50
    constant_until: float = 0.4
    final_lr_fraction: float = 0.02

    def lr_factor(self, step: int) -> float:
        """Linear warm-up, constant, then linear to `final_lr_fraction`."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        start = self.constant_until * self.steps
        if step < start:
            return 1.0
        return 1.0 - (1.0 - self.final_lr_fraction) * (step - start) / (self.steps - start)


def encode(problems: list[Exercise]) -> tuple[Tensor, Tensor]:
    """Token ids [B, S] and labels [B, S]: label s is the token after s, or PAD where the loss ignores it."""
    texts = [[ord(c) for c in p.prompt + p.response] + [EOS] for p in problems]
    ids = torch.full((len(texts), max(map(len, texts))), PAD)
    labels = torch.full_like(ids, PAD)
    for row, (text, problem) in enumerate(zip(texts, problems, strict=True)):
        ids[row, : len(text)] = torch.tensor(text)
        start = len(problem.prompt)
        labels[row, start - 1 : len(text) - 1] = torch.tensor(text[start:])
    return ids, labels


def _optimizers(model: TinyMoe, config: TrainingConfig) -> list[torch.optim.Optimizer]:
    projections = [p for n, p in model.named_parameters() if "_proj" in n]
    rest = [p for n, p in model.named_parameters() if "_proj" not in n]
    return [
        BatchedMuon(projections, lr=config.muon_lr, weight_decay=config.weight_decay),
        torch.optim.AdamW(rest, lr=config.adam_lr, betas=(0.9, 0.98), weight_decay=config.weight_decay),
    ]


def _all_reduce_gradients(parameters: Sequence[Tensor]) -> None:
    flat = torch.cat([p.grad.flatten() if p.grad is not None else torch.zeros(p.numel()) for p in parameters])
    dist.all_reduce(flat)
    offset = 0
    for p in parameters:
        p.grad = flat[offset : offset + p.numel()].view_as(p)
        offset += p.numel()


def _worker(rank: int, rendezvous: str, config: TrainingConfig, output: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=WORLD_SIZE)
    torch.manual_seed(config.seed)
    model = TinyMoe(tiny_config())
    parameters = list(model.parameters())
    optimizers = _optimizers(model, config)
    base_lr = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    columns = (
        TextColumn("training {task.fields[loss]}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, disable=rank != 0) as progress:
        bar = progress.add_task("train", total=config.steps, loss="")
        for step in range(config.steps):
            ids, labels = encode(training_batch(config.seed, step, config.batch_size)[rank::WORLD_SIZE])
            logits, unpadded = model(ids)
            target = labels.flatten()[unpadded]
            # Summed over this rank and divided by the global count, so that the two ranks add up to one batch.
            count = target.ne(PAD).sum().float()
            dist.all_reduce(count)
            loss = F.cross_entropy(logits, target, ignore_index=PAD, reduction="sum") / count
            (loss + config.balance_weight / WORLD_SIZE * model.balance_loss()).backward()
            _all_reduce_gradients(parameters)
            torch.nn.utils.clip_grad_norm_(parameters, config.clip)
            for optimizer, lr in zip(optimizers, base_lr, strict=True):
                optimizer.param_groups[0]["lr"] = lr * config.lr_factor(step)
                optimizer.step()
                optimizer.zero_grad()
            if step % 20 == 0:
                progress.update(bar, loss=f"loss {loss.item() * WORLD_SIZE:.3f}")
            progress.advance(bar)
    if rank == 0:
        save_file({n: p.detach().to(torch.bfloat16).contiguous() for n, p in model.named_parameters()}, output)
    dist.destroy_process_group()


def train(config: TrainingConfig, output: Path) -> None:
    """Train and write the bf16 weights to `output` (safetensors, published Qwen3-MoE names)."""
    with tempfile.TemporaryDirectory() as folder:
        rendezvous = os.path.join(folder, "rendezvous")
        arguments: tuple[Any, ...] = (rendezvous, config, str(output))
        mp.start_processes(_worker, args=arguments, nprocs=WORLD_SIZE, start_method="spawn")


@torch.no_grad()
def mean_loss(weights: dict[str, Tensor], problems: list[Exercise]) -> float:
    """Cross-entropy in nats a token of response and eos, in float32: what training minimises."""
    model = TinyMoe(tiny_config())
    model.load_state_dict({name: weight.float() for name, weight in weights.items()})
    ids, labels = encode(problems)
    logits, unpadded = model(ids)
    return F.cross_entropy(logits, labels.flatten()[unpadded], ignore_index=PAD).item()
