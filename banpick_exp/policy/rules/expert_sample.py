"""expert_sample: keep the certain head of the ranking, sample the uncertain tail (Expert-Sample, arXiv 2602.02443).

    keep ranks 1 .. h, h = floor(k/2) + 1;  of ranks h+1 .. pool_factor * k keep the k - h with the largest
    z_i + temperature * g_i,  g_i = -log(-log(u_i)),  u_i uniform in (0, 1)

which draws k - h experts without replacement from softmax(z / temperature). Weights are the experts' own router scores,
renormalised as the checkpoint does. A token keeps k experts, top_k where k is absent. At temperature 0, and where k is
1 or 2, nothing is drawn: that is `fixed_k`.

Where the randomness comes from (ours): u_i is a hash of the seed, the layer, the bits of all the token's logits in that
layer, and the expert id. So the same token state draws the same experts in any row of any batch, on every rank and in
every rerun, nothing is stored, and captured or repeated calls need no generator. Two samples of one problem therefore
part only where their tokens do; to make several runs differ from the first token on, give each its own seed. Logits
that differ in their last bit (another batch size, another kernel) draw anew.

Ranks are the router's own: by score plus correction bias where it has one, groups that it does not see left out.

Logits 5, 4, 3, 2.5, 2, 1 and K = 4: experts 0, 1 and 2 stay, the fourth is one of the others, by the seed.

>>> import torch
>>> from banpick_exp.policy import build_policy
>>> logits, shape = torch.tensor([[5.0, 4.0, 3.0, 2.5, 2.0, 1.0]]), dict(num_layers=1, num_experts=6, top_k=4)
>>> [build_policy("expert_sample", {"seed": seed}, **shape).route(logits, 0)[1][0].tolist() for seed in range(4)]
[[0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 4], [0, 1, 2, 4]]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pydantic import field_validator

from banpick_exp.models.shape import MoeShape
from banpick_exp.policy.bases.truncated import Truncated
from banpick_exp.policy.calibration import Calibration
from banpick_exp.policy.knobs import Number, Whole
from banpick_kernels.insertion import rank_window
from banpick_kernels.layer_hooks import LayerEdit

if TYPE_CHECKING:
    from torch import Tensor

SEED_LIMIT = 2**31


def _signed(bits: int) -> int:
    """The int64 with these 64 bits."""
    bits %= 2**64
    return bits - 2**64 if bits >= 2**63 else bits


GOLDEN, FIRST, SECOND = map(_signed, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
"""Constants of splitmix64 (Steele, Lea and Flood, 2014)."""


def _mixed(bits: Tensor) -> Tensor:
    """splitmix64's finaliser on int64: every bit of the result hangs on every bit given. Overflow wraps."""
    for shift, factor in ((30, FIRST), (27, SECOND)):
        bits = (bits ^ _shifted(bits, shift)) * factor
    return bits ^ _shifted(bits, 31)


def _shifted(bits: Tensor, by: int) -> Tensor:
    """To the right, zeros coming in: `>>` alone would bring in the sign."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


def gumbel_noise(logits_TE: Tensor, seed: int, layer: int) -> Tensor:
    """Standard Gumbel noise float32 [T,E], a function of seed, layer, the row of logits and the expert id alone."""
    import torch

    expert_E = torch.arange(1, logits_TE.shape[1] + 1, device=logits_TE.device) * GOLDEN
    bits_TE = (logits_TE + 0.0).contiguous().view(torch.int32).long()  # -0.0 becomes 0.0
    token_T1 = _mixed(bits_TE ^ expert_E).sum(dim=-1, keepdim=True)
    salt = _signed(seed * FIRST + (layer + 1) * SECOND)
    bits_TE = _mixed(_mixed(token_T1 + salt) + expert_E)
    uniform_TE = (_shifted(bits_TE, 41).float() + 0.5) / 2**23
    return -(-uniform_TE.log()).log()


@dataclass(frozen=True, kw_only=True, eq=False)
class SampleEdit(LayerEdit):
    """Another base selection for one layer: the first `head` experts of the router's, the rest of `k` drawn."""

    seed: int
    layer: int
    head: int
    k: int
    pool: int
    temperature: float

    def select(self, logits_TE: Tensor, ranking_TE: Tensor, ids_TK: Tensor) -> Tensor:
        import torch

        from banpick_kernels.reference import LARGEST, best_first, reordered

        head_TK = ids_TK[:, : self.head]
        noisy_TE = logits_TE + self.temperature * gumbel_noise(logits_TE, self.seed, self.layer)
        noisy_TE = noisy_TE.where(ranking_TE > -torch.inf, -LARGEST).clamp_min(-LARGEST)
        pool_TR = best_first(ranking_TE)[:, : self.pool]
        drawn_TR = best_first(noisy_TE.scatter(1, head_TK, -torch.inf).gather(1, pool_TR))
        tail_TK = pool_TR.gather(1, drawn_TR[:, : self.k - self.head])
        return reordered(logits_TE, torch.cat([head_TK, tail_TK], dim=-1))


class ExpertSample(Truncated):
    """`expert_sample`: the first half of the experts as ranked, the others drawn from further down."""

    name: ClassVar[str] = "expert_sample"
    in_torch: ClassVar[bool] = True
    temperature: Number = 1.0
    """Strength of the noise, 0 to 100: 0 is fixed_k, 1 draws by the router's own scores, more draws more evenly."""
    pool_factor: Number = 4.0
    """Experts are drawn down to this many times k, at least 1 and at most all."""
    seed: Whole = 0
    """0 to 2**31 - 1."""

    @field_validator("temperature")
    @classmethod
    def _temperature_in_limits(cls, temperature: float) -> float:
        if not 0 <= temperature <= 100:
            raise ValueError(
                "is outside [0, 100]: experts cannot be drawn with it. Use for example policy.temperature=1."
            )
        return temperature

    @field_validator("pool_factor")
    @classmethod
    def _pool_holds_k(cls, pool_factor: float) -> float:
        if pool_factor < 1:
            raise ValueError("is below 1: there would be fewer than k experts to choose from. Use for example 4.")
        return pool_factor

    @field_validator("seed")
    @classmethod
    def _seed_in_limits(cls, seed: int) -> int:
        if not 0 <= seed < SEED_LIMIT:
            raise ValueError(f"is outside [0, {SEED_LIMIT - 1}]. Use for example policy.seed=1.")
        return seed

    @classmethod
    def idle_on(cls, shape: MoeShape) -> str | None:
        few = shape.top_k <= 2
        return f"with {shape.top_k} a token nothing is drawn: it is fixed_k" if few else None

    def knobs(self) -> dict[str, object]:
        drawing = {"temperature": self.temperature, "pool_factor": self.pool_factor, "seed": self.seed}
        return {**drawing, **super().knobs()}

    def edits(self, shape: MoeShape, calibration: Calibration | None) -> Sequence[LayerEdit | None] | None:
        k = self.kept(shape)
        head, pool = k // 2 + 1, rank_window(self.pool_factor, k, shape.num_experts)
        if self.temperature == 0 or head >= k or pool == k:
            return None
        return [
            SampleEdit(seed=self.seed, layer=layer, head=head, k=k, pool=pool, temperature=self.temperature)
            for layer in range(shape.num_layers)
        ]
