"""Muon over stacks of equally shaped matrices.

`torch.optim.Muon` takes one matrix at a time: 0.21 s a step for the 400 small matrices of the tiny MoE, most of
the training time. Here equal shapes share one batched Newton-Schulz iteration. Same rule otherwise: Nesterov
momentum 0.95, quintic coefficients, decoupled weight decay, learning rate times sqrt(max(1, rows / columns)).
Source: Keller Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalize(x_NRC: Tensor, steps: int) -> Tensor:
    """Newton-Schulz iteration towards the nearest semi-orthogonal matrix, for each of N matrices."""
    a, b, c = COEFFICIENTS
    tall = x_NRC.shape[-2] > x_NRC.shape[-1]
    x = x_NRC.mT if tall else x_NRC
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class BatchedMuon(torch.optim.Optimizer):
    def __init__(
        self, parameters: Iterable[Tensor], *, lr: float, weight_decay: float, momentum: float = 0.95, steps: int = 4
    ) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})
        self._momentum, self._steps = momentum, steps
        self._by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
        for parameter in self.param_groups[0]["params"]:
            self._by_shape[parameter.shape].append(parameter)
        self._buffers = {s: torch.zeros(len(ps), *s) for s, ps in self._by_shape.items()}

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        lr, decay = self.param_groups[0]["lr"], self.param_groups[0]["weight_decay"]
        for shape, parameters in self._by_shape.items():
            gradient = torch.stack([p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters])
            buffer = self._buffers[shape].lerp_(gradient, 1 - self._momentum)
            update = orthogonalize(gradient.lerp_(buffer, self._momentum), self._steps)
            scale = lr * max(1.0, shape[0] / shape[1]) ** 0.5
            torch._foreach_mul_(parameters, 1 - lr * decay)
            torch._foreach_add_(parameters, list(update.unbind()), alpha=-scale)
