"""scmoe: what the checkpoint says beyond a weak routing of itself (Self-Contrast MoE, arXiv 2405.14507).

    z_s: logits of the next token under the checkpoint's own routing; z_w: under `rank_k` of `weak_rank`
    score = (1 + beta) z_s - beta z_w   where z_s >= max(z_s) + ln(alpha);   -inf elsewhere

The token with the highest score is written, or one is drawn from the softmax of the scores where the task samples. Both
routings read the same prompt and the same answer, each with keys and values of its own from the first token on.

Each request is put twice, one of each row of the engine (`engine.policies_per_batch=2` or more), and the two advance
in step (`engine/contrast.py`). So a token of an answer costs K experts and one more, and attention, the dense layers
and the KV cache twice. `mean_kept` counts what both rows keep for one token, K + 1; what is beside the experts it
cannot show. The rival of about that price is stock answering twice (`task.samples=2`).

>>> from banpick_exp.policy import MoeShape, parse_policy
>>> shape = MoeShape(num_layers=2, num_experts=64, top_k=8)
>>> rule = parse_policy("scmoe", {}, shape)
>>> rule.label(), [part.label() for part in rule.parts], rule.budget(shape)
('scmoe beta=0.5 alpha=0.1 weak_rank=2', ['none', 'rank_k rank=2'], (9.0, 9.0))
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import field_validator

from banpick_exp.errors import UserError
from banpick_exp.models.routing import Routing
from banpick_exp.models.shape import MoeShape
from banpick_exp.policy.bases.several import SeveralRows
from banpick_exp.policy.calibration import Calibration
from banpick_exp.policy.knobs import Number, Whole
from banpick_exp.policy.rule import Rule
from banpick_exp.policy.rules.none import Stock
from banpick_exp.policy.rules.rank_k import RankK

MOST = 100.0


class Scmoe(SeveralRows):
    """`scmoe`: the checkpoint contrasted with the one expert of a rank."""

    name: ClassVar[str] = "scmoe"
    in_torch: ClassVar[bool] = True
    beta: Number = 0.5
    """How far from the weak routing's logits, 0 to 100; 0 is stock's greedy answer at the price of both."""
    alpha: Number = 0.1
    """Tokens with less than this share of the likeliest one's probability are dropped, 0 to 1."""
    weak_rank: Whole = 2

    @field_validator("beta")
    @classmethod
    def _beta_in_limits(cls, beta: float) -> float:
        if not 0 <= beta <= MOST:
            raise ValueError(f"is outside [0, {MOST:g}]: the weak routing would be preferred. Use for example 0.5.")
        return beta

    @field_validator("alpha")
    @classmethod
    def _alpha_is_a_share(cls, alpha: float) -> float:
        if not 0 <= alpha <= 1:
            raise ValueError("is outside [0, 1]: every token would be dropped. Use for example policy.alpha=0.1.")
        return alpha

    @classmethod
    def idle_on(cls, shape: MoeShape) -> str | None:
        return "one expert in all: there is no weaker routing" if shape.num_experts == 1 else None

    @classmethod
    def remarks_on(cls, shape: MoeShape, routing: Routing, *, gpu: bool) -> tuple[str, ...]:
        return ("answers from two rows: type engine.policies_per_batch=2",) if gpu else ()

    @property
    def parts(self) -> tuple[Rule, ...]:
        return Stock(), RankK(rank=self.weak_rank)

    @property
    def contrast(self) -> tuple[float, float] | None:
        return self.alpha, self.beta

    def row_of(self, sample: int) -> int:
        return 0

    def check(self, shape: MoeShape) -> None:
        if not 1 <= self.weak_rank <= shape.num_experts:
            raise UserError(
                f"policy.weak_rank={self.weak_rank} is no rank among the {shape.num_experts} experts of a layer: the"
                f" weak routing would keep none. Use 1..{shape.num_experts}."
            )

    def knobs(self) -> dict[str, object]:
        return {"beta": self.beta, "alpha": self.alpha, "weak_rank": self.weak_rank}

    def budget(self, shape: MoeShape, calibration: Calibration | None = None) -> tuple[float, float]:
        lows, highs = zip(*(part.budget(shape, calibration) for part in self.parts), strict=True)
        return sum(lows), sum(highs)
