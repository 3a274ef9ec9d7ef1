"""What rules share that hold several rows of the router's table at once: a request names the row that answers it."""

from typing import TYPE_CHECKING

from banpick_exp.errors import UserError
from banpick_exp.models.shape import MoeShape
from banpick_exp.policy.calibration import Calibration
from banpick_exp.policy.rule import Rule

if TYPE_CHECKING:
    from banpick_kernels.table import RouterTable


class SeveralRows(Rule):
    """A rule whose `parts` are rules of one row each; what is implied of it is what they imply together."""

    @property
    def parts(self) -> tuple[Rule, ...]:
        """Those of the subclass, row 0 first."""
        raise NotImplementedError

    def needs_calibration(self) -> bool:
        return any(part.needs_calibration() for part in self.parts)

    def check(self, shape: MoeShape) -> None:
        for part in self.parts:
            part.check(shape)

    def max_kept(self, shape: MoeShape, calibration: Calibration | None = None) -> int:
        return max(part.max_kept(shape, calibration) for part in self.parts)

    def budget(self, shape: MoeShape, calibration: Calibration | None = None) -> tuple[float, float]:
        lows, highs = zip(*(part.budget(shape, calibration) for part in self.parts), strict=True)
        return min(lows), max(highs)

    def fill(self, table: "RouterTable", shape: MoeShape, calibration: Calibration | None) -> None:
        raise UserError(not_one_table(self))


def not_one_table(rule: Rule) -> str:
    """Why a policy of several rows is no table of one row, and what can take it."""
    return (
        f"policy={rule.name} is a policy of several rows: it answers several times a request, under"
        f" {len(rule.parts)} rules ({', '.join(part.label() for part in rule.parts)}), and is no single table that a"
        " router could read. Sweeps measure it; for anything else take one of these rules"
    )
