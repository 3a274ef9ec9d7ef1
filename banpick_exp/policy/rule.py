"""What a routing policy is: a frozen set of knobs that can check itself, name itself and fill the router's table.

Nothing here imports torch: a sweep of policies is composed, checked and counted before anything heavy is loaded.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from banpick_exp.models.routing import Routing
from banpick_exp.models.shape import MoeShape
from banpick_exp.policy.calibration import Calibration
from banpick_exp.policy.experts import KeyExperts

if TYPE_CHECKING:
    from torch import Tensor

    from banpick_kernels.layer_hooks import LayerEdit
    from banpick_kernels.table import RouterTable

Needs = Literal["nothing", "a calibration", "data of your own"]
"""What a rule needs before it can run."""


@dataclass(frozen=True, slots=True)
class BudgetKnob:
    """The knob that decides how many experts a rule keeps, and where `policy.budget` searches for its value.

    Whether more of it keeps more or fewer is not stated: the ends are measured.
    """

    name: str
    """As typed."""
    low: float
    high: float
    """Infinity: top_k of the checkpoint."""
    whole: bool = False
    is_budget: bool = False
    """It is the budget itself: set while planning, never searched."""
    log: bool = False
    """Search on its logarithm: what matters happens close to 0."""

    def within(self, shape: MoeShape) -> "BudgetKnob":
        """The same with an end that a checkpoint has."""
        return replace(self, high=float(shape.top_k)) if math.isinf(self.high) else self


@dataclass(frozen=True, slots=True)
class Pull:
    """Which experts a policy must move, seen from their share of all selections: evidence that it took effect."""

    weights_LE: "Tensor"
    """[L, E], how much an expert's selections count; not 0 everywhere."""
    down: bool = False
    """The weighted share must fall below stock's; otherwise it must rise above it."""


class Rule(BaseModel):
    """One policy: a subclass per name, a field per knob. A knob that is absent is absent; none is ever -1 for "off".

    Made by `parse_policy`, which turns every problem with a knob into a UserError. What others must know of a rule they
    ask it here: no module beyond the registry tells rules apart by their names.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: ClassVar[str]
    is_stock: ClassVar[bool] = False
    """Whether this is the checkpoint's own routing, which every other point is held against."""
    reference_rank: ClassVar[int | None] = None
    """Place among the references, which run first (stock is 0) and are never stopped by a race; None for a rule that is
    held against them."""
    in_torch: ClassVar[bool] = False
    """Whether `edits` may return hooks: the fused kernel knows none, so a compiled engine on a GPU cannot run it."""
    budget_knob: ClassVar[BudgetKnob | None] = None
    """None where no knob decides the budget."""
    ends_are_idle: ClassVar[bool] = True
    """Whether a measured budget at either end of a range of `budget` shows that the rule did nothing: a threshold that
    drops nothing, or all it may, in every token. False where an honest run may sit there."""
    prunes: ClassVar[bool] = False
    """Whether all it does is to keep fewer experts than the checkpoint selects."""
    exchanges: ClassVar[bool] = False
    """Whether all it does is to select other experts than the checkpoint does."""
    needs: ClassVar[Needs] = "nothing"
    """What its knobs as shipped need before it can run; of one policy that is typed, `needs_calibration` decides."""
    needs_instead: ClassVar[str] = ""
    """What would do in place of `needs`, or needs more than it; empty where there is neither."""
    needs_pull: ClassVar[bool] = False
    """Whether a policy without a `pull` is stock routing under another name, and hence no result."""

    @property
    def is_reference(self) -> bool:
        return self.reference_rank is not None

    @property
    def parts(self) -> "tuple[Rule, ...]":
        """The rules of the rows that the policy holds at once, row 0 first; a rule of one row is its own only part."""
        return (self,)

    def row_of(self, sample: int) -> int:
        """Which row answers the sample of that number, counted from 0, of any problem."""
        return sample % len(self.parts)

    @property
    def contrast(self) -> tuple[float, float] | None:
        """(alpha, beta) where row 0 and row 1 answer every request together, by their contrast (`scmoe`); None where a
        request is answered by one row. What such rows keep is kept for one token, so it adds up."""
        return None

    def check_task(self, samples: int, temperature: float) -> None:
        """Raise UserError where a task with so many answers a problem, drawn so, cannot be answered under it."""

    @classmethod
    def superseded_knobs(cls, typed: Mapping[str, Any]) -> tuple[str, ...]:
        """Knobs whose defaults in conf/policy/ step back because of what was `typed`, without `policy.`."""
        return ()

    @classmethod
    def derived_knobs(cls, shape: MoeShape) -> dict[str, Any]:
        """What null stands for in knobs whose usual value follows from the checkpoint."""
        return {}

    @classmethod
    def idle_on(cls, shape: MoeShape) -> str | None:
        """Why it would change nothing on any checkpoint of this shape, whatever its knobs; None where it may."""
        if cls.exchanges and shape.num_experts == shape.top_k:
            return "every expert is selected already"
        return "one expert a token: there is nothing to prune" if cls.prunes and shape.top_k == 1 else None

    @classmethod
    def remarks_on(cls, shape: MoeShape, routing: Routing, *, gpu: bool) -> tuple[str, ...]:
        """What is to be known before it is tried on such a checkpoint. `gpu`: on an engine of conf/engine/cuda*."""
        return ()

    def idle_remedy(self, knob: str) -> str:
        """What to type where `knob` changes nothing, because the other knobs leave it out of `canonical`."""
        return "Leave it out, or choose a mode that uses it."

    def needs_calibration(self) -> bool:
        """Whether `fill` reads the calibration."""
        return False

    def reinforces_by(self) -> str | None:
        """The mode by which key experts of the calibration are reinforced; None where none are read of it."""
        return None

    def needs_gain(self) -> bool:
        """Whether key experts are those that help for sure: then the calibration's score must have a sign."""
        return False

    def key_experts_of(self, shape: MoeShape, calibration: Calibration | None) -> KeyExperts | None:
        """Those that are reinforced, maybe none: then the rule does without. None for a rule that reinforces none."""
        return None

    def check(self, shape: MoeShape) -> None:
        """Raise UserError where a knob does not fit this checkpoint."""

    def knobs(self) -> dict[str, object]:
        """The knobs that matter, as plain JSON values; those that the chosen mode ignores are left out."""
        return {}

    def canonical(self) -> dict[str, object]:
        """`name` and the knobs that matter: two rules that route alike by definition have equal canonical forms.

        Pop `name` and the rest parses back to the same rule, also after a round trip through JSON.
        """
        return {"name": self.name, **self.knobs()}

    def files(self) -> dict[str, str]:
        """Knob -> path of a file of the user's that `fill` reads, which an export must carry along."""
        return {}

    def label(self) -> str:
        """A short name for tables and plots, such as `pick boost=1 key_experts=4`."""
        return " ".join([self.name, *(f"{knob}={short(value)}" for knob, value in self.knobs().items())])

    def max_kept(self, shape: MoeShape, calibration: Calibration | None = None) -> int:
        """The most experts a token can keep in any layer; an upper bound where the calibration is still unknown."""
        return shape.top_k

    def budget(self, shape: MoeShape, calibration: Calibration | None = None) -> tuple[float, float]:
        """The lowest and highest `mean_kept` the rule can lead to, in experts per token; equal where exact."""
        return float(shape.top_k), float(shape.top_k)

    def drawn_within(self, choices: int) -> tuple[float, float] | None:
        """Between what an honest run counts its `mean_kept`, where chance decides how many experts stay.

        None: chance decides nothing, and `budget` says it. `choices`: tokens x layers that were counted, at least 1.
        """
        return None

    def fill(self, table: "RouterTable", shape: MoeShape, calibration: Calibration | None) -> None:
        """Write the rule into row 0 of a neutral table. Raises UserError where the calibration lacks what it needs."""

    def edits(self, shape: MoeShape, calibration: Calibration | None) -> "Sequence[LayerEdit | None] | None":
        """What the rule does beyond the table, one entry a layer; None where the table says it all.

        Imports torch. Raises UserError where the calibration lacks what it needs.
        """
        return None

    def pull(self, table: "RouterTable", edits: "Sequence[LayerEdit | None] | None") -> Pull | None:
        """The experts whose share of the selections must move, told from what was filled; None where there are none.

        An edit that says what it pulls (`LayerEdit.pull`) decides; otherwise it is the key experts and those whose
        logits have a bias, down where one of these is negative.
        """
        pulls = [None if edit is None else edit.pull() for edit in edits or ()]
        bias_LE, key_LE = table.logit_bias_PLE[0], table.key_PLE[0]
        if all(pull_E is None for pull_E in pulls):
            weights_LE, down = key_LE | (bias_LE != 0), bool((bias_LE < 0).any())
        else:
            weights_LE = key_LE.long() * 0
            for layer, pull_E in enumerate(pulls):
                if pull_E is not None:
                    weights_LE[layer] = pull_E
            down = bool((weights_LE <= 0).all())
            weights_LE = -weights_LE if down else weights_LE
        return Pull(weights_LE, down) if bool(weights_LE.any()) else None


def short(value: object) -> str:
    """A knob's value in a label: 0.5 as 0.5, 1.0 as 1, named experts as L0E3+L2E1, whole numbers as 4..11 or 4,6,8."""
    if isinstance(value, float):
        return format(value, ".10g")
    if isinstance(value, dict):
        names = [f"L{layer}E{expert}" for layer, experts in value.items() for expert in experts]
        return "+".join(names[:6]) + (f"+{len(names) - 6} more" if len(names) > 6 else "")
    if isinstance(value, list | tuple):
        run = all(isinstance(each, int) and each == value[0] + i for i, each in enumerate(value))
        return f"{value[0]}..{value[-1]}" if run and len(value) > 2 else ",".join(map(short, value))
    return str(value)
