"""dynamic_experts: another number of experts for each answer to a problem (Dynamic Experts Search, arXiv 2509.22572).

    sample i of a problem is answered with the first ks[i mod n] experts a token, in every layer and all along;
    ks from the largest to the smallest, n of them

A problem is answered `task.samples` times, and the answers differ not only by their seeds but by how many experts the
model thinks with. Within one answer k stays the same (the paper's "expert configuration inheritance"). What becomes of
the answers is the task's to say: their mean, or one that a verifier chooses (`task.choose`). The paper builds a search
on this; here whole answers are sampled and one is chosen (best-of-n), and nothing is searched within an answer.

The largest k answers first (ours): where no answer has a majority the first sample counts, and that should not be the
one with the fewest experts.

Each k is a row of the engine, so all answers go into one batch: the engine holds as many policies as there are ks
(`engine.policies_per_batch`). The budget is what was measured over the tokens of all answers, each k counted by itself.

Where `ks` is absent, K of them are taken around the checkpoint's K, from half of it on: 4 to 11 at K = 8, the paper's
range. The rival is `fixed_k` of that mean, with as many samples and the same verifier.

>>> from banpick_exp.policy import MoeShape, parse_policy
>>> shape = MoeShape(num_layers=2, num_experts=64, top_k=8)
>>> rule = parse_policy("dynamic_experts", {"ks": [6, 8, 10]}, shape)
>>> [rule.parts[rule.row_of(sample)].label() for sample in range(4)]
['fixed_k k=10', 'fixed_k k=8', 'fixed_k k=6', 'fixed_k k=10']
>>> rule.budget(shape), rule.derived_knobs(shape)["ks"]
((6.0, 10.0), [4, 5, 6, 7, 8, 9, 10, 11])
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar

from pydantic import field_validator

from banpick_exp.errors import UserError
from banpick_exp.models.routing import Routing
from banpick_exp.models.shape import MoeShape
from banpick_exp.policy.bases.several import SeveralRows
from banpick_exp.policy.knobs import as_whole
from banpick_exp.policy.rule import Rule, short
from banpick_exp.policy.rules.fixed_k import FixedK, most_kept

EXAMPLE = "Write for example policy.ks=[4,6,8,10]."

MOST_KS = 8
"""Numbers of experts where none are named: as many answers are asked of each problem."""


class DynamicExperts(SeveralRows):
    """`dynamic_experts`: the samples of a problem spread over several numbers of experts."""

    name: ClassVar[str] = "dynamic_experts"
    ks: tuple[int, ...]
    """Whole numbers of experts, ascending; below and above top_k."""

    @field_validator("ks", mode="before")
    @classmethod
    def _whole_ascending_and_each_once(cls, ks: Any) -> tuple[int, ...]:
        if isinstance(ks, str) or not isinstance(ks, Sequence):
            raise ValueError(f"is no list of numbers of experts. {EXAMPLE}")
        counts = []
        for each in ks:
            try:
                counts.append(as_whole(each))
            except ValueError:
                raise ValueError(f"holds {each!r}, which is no whole number of experts. {EXAMPLE}") from None
        counts.sort()
        if len(counts) < 2:
            raise ValueError("names fewer than two numbers of experts: that is policy=fixed_k. Name two or more.")
        if twice := [first for first, second in pairwise(counts) if first == second]:
            raise ValueError(f"names {twice[0]} twice: each has a row of its own. Name it once.")
        return tuple(counts)

    @classmethod
    def derived_knobs(cls, shape: MoeShape) -> dict[str, Any]:
        low = max(1, shape.top_k // 2)
        high = min(most_kept(shape), low + min(max(2, shape.top_k), MOST_KS) - 1)
        return {"ks": list(range(low, high + 1))}

    @classmethod
    def idle_on(cls, shape: MoeShape) -> str | None:
        return "one expert in all: there is no other number of them" if shape.num_experts == 1 else None

    @classmethod
    def remarks_on(cls, shape: MoeShape, routing: Routing, *, gpu: bool) -> tuple[str, ...]:
        ks = cls.derived_knobs(shape)["ks"]
        typed = f"task.samples={len(ks)} task.temperature=0.6"
        if gpu:
            wider = max(ks) - shape.top_k
            typed += f" engine.policies_per_batch={len(ks)}" + (f" engine.extra_slots={wider}" if wider > 0 else "")
        return (f"answers each problem several times: type {typed}",)

    @property
    def parts(self) -> tuple[Rule, ...]:
        return tuple(FixedK(k=k) for k in reversed(self.ks))

    def check(self, shape: MoeShape) -> None:
        most = most_kept(shape)
        if outside := [k for k in self.ks if not 1 <= k <= most]:
            raise UserError(
                f"policy.ks={list(self.ks)} holds {outside[0]}: a token of this checkpoint keeps 1 to {most} experts."
                f" Use numbers from 1 to {most}."
            )

    def check_task(self, samples: int, temperature: float) -> None:
        ks, drawn = len(self.ks), f"{temperature or 0.6:g}"
        if samples >= ks and temperature > 0:
            return
        if samples < ks:
            problem = f"and task.samples={samples} leaves {ks - samples} of them without an answer"
        else:
            problem = f"and task.temperature={temperature:g} draws none of them"
        raise UserError(
            f"policy={self.name} answers a problem under {ks} numbers of experts ({short(self.ks)}), {problem}. Type"
            f" task.samples={max(ks, samples)} task.temperature={drawn}, or name fewer in policy.ks."
        )

    def knobs(self) -> dict[str, object]:
        return {"ks": list(self.ks)}
