"""What the rules that prune by a threshold on the selected weights share: a floor, and a budget below top_k."""

from typing import TYPE_CHECKING, ClassVar

from banpick_exp.models.shape import MoeShape
from banpick_exp.policy.calibration import Calibration
from banpick_exp.policy.knobs import Whole, check_count
from banpick_exp.policy.rule import Rule

if TYPE_CHECKING:
    from banpick_kernels.table import RouterTable


class Threshold(Rule):
    """Keep some of the checkpoint's own selection, between k_min and top_k experts of it."""

    prunes: ClassVar[bool] = True
    k_min: Whole = 1
    """Fewest experts kept, the best ones, 1 to top_k, whatever the threshold says."""

    def keeps_all(self) -> bool:
        """Whether the threshold stands where it drops nothing: then the table stays neutral, and this is stock."""
        raise NotImplementedError

    def check(self, shape: MoeShape) -> None:
        check_count(self.name, "k_min", self.k_min, shape)

    def budget(self, shape: MoeShape, calibration: Calibration | None = None) -> tuple[float, float]:
        return float(shape.top_k if self.keeps_all() else self.k_min), float(shape.top_k)

    def fill(self, table: "RouterTable", shape: MoeShape, calibration: Calibration | None) -> None:
        if not self.keeps_all():
            table.floor[0] = self.k_min


def usual_floor(shape: MoeShape) -> int:
    """The k_min that rules which compare with the best expert are published with: 2, and 1 of at most 2 experts.

    2402.14800 skips the second of two; 2609.25809 keeps two of 6 or 8, because below that the models collapse.
    """
    return 2 if shape.top_k > 2 else 1


def within_unit(value: float, below: str, above: str, example: str) -> float:
    """`value`, or ValueError in the words of a knob: what happens below 0 and above 1, and what to type."""
    if not 0 <= value <= 1:
        raise ValueError(f"is outside [0, 1]: {below if value < 0 else above}. Use for example policy.{example}.")
    return value


BEYOND_REACH = 2.0
"""A limit that no normalised weight reaches, nor a sum of their squares: both are at most 1."""


def limit_of_layer(threshold: float, importance: float) -> float:
    """What a weight (or tail) must reach where it counts `importance` times: threshold / importance, always finite."""
    return min(threshold / importance, BEYOND_REACH) if importance > 0 else BEYOND_REACH
