"""ban: prune per token and per layer (arXiv 2509.06346, section 3)."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator

from banpick_exp.models.routing import Routing
from banpick_exp.models.shape import MoeShape
from banpick_exp.policy.calibration import Calibration, ban_statistics
from banpick_exp.policy.knobs import Number, Whole, check_count
from banpick_exp.policy.rule import BudgetKnob, Needs, Rule

if TYPE_CHECKING:
    from banpick_kernels.table import RouterTable


Use = Literal["layer", "token", "both"]


class Ban(Rule):
    """`ban`: keep between k_min and top_k experts, fewer for peaked tokens and insensitive layers."""

    name: ClassVar[str] = "ban"
    prunes: ClassVar[bool] = True
    needs: ClassVar[Needs] = "a calibration"
    budget_knob: ClassVar[BudgetKnob | None] = BudgetKnob("lambda", 1e-3, 2.0)
    lambda_: Number = Field(alias="lambda")
    """In (0, 2], higher keeps more; the paper publishes 0.26 to 0.95."""
    k_min: Whole
    """Fewest experts kept, 1 to top_k; the paper uses 3 for top_k 8 and 2 for top_k 4 or 6."""
    use: Use = "both"
    """What decides: the layer's sensitivity, the token's own weights, or the mean of both, as published. One alone
    takes the place of that mean (ours): S = lambda * sensitivity, which keeps as many for every token of a layer, or
    S = lambda * Tn, which treats all layers alike. So lambda has the same reach in all three."""

    @field_validator("lambda_")
    @classmethod
    def _lambda_in_limits(cls, lambda_: float) -> float:
        if not 0 < lambda_ <= 2:
            raise ValueError(
                "is outside (0, 2]: at 0 and below every token keeps k_min, above 2 pruning is off. Use for example "
                "policy.lambda=0.8; higher keeps more."
            )
        return lambda_

    @classmethod
    def derived_knobs(cls, shape: MoeShape) -> dict[str, Any]:
        return {"k_min": shape.usual_k_min}

    @classmethod
    def remarks_on(cls, shape: MoeShape, routing: Routing, *, gpu: bool) -> tuple[str, ...]:
        return (f"k_min {shape.usual_k_min} unless typed",)

    def needs_calibration(self) -> bool:
        return True

    def check(self, shape: MoeShape) -> None:
        check_count(self.name, "k_min", self.k_min, shape)

    def knobs(self) -> dict[str, object]:
        # Left out as published: results from before there was a choice keep their fingerprints.
        return {"lambda": self.lambda_, "k_min": self.k_min} | ({} if self.use == "both" else {"use": self.use})

    def budget(self, shape: MoeShape, calibration: Calibration | None = None) -> tuple[float, float]:
        return float(self.k_min), float(shape.top_k)

    def fill(self, table: "RouterTable", shape: MoeShape, calibration: Calibration | None) -> None:
        statistics = ban_statistics(calibration, shape, self.name, layer=self.use != "token", token=self.use != "layer")
        table.ban[0] = True
        table.ban_k_min[0] = self.k_min
        # The router takes half the sum of both. Of one alone the other is 0; twice lambda undoes the half, exactly.
        table.ban_lambda[0] = self.lambda_ if self.use == "both" else 2 * self.lambda_
        table.ratio_min[0] = statistics.r_min
        table.ratio_max[0] = statistics.r_max
        for layer, sensitivity in enumerate(statistics.layer_sensitivity):
            table.sensitivity[0, layer] = sensitivity
