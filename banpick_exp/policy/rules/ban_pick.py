"""ban_pick: Ban prunes, and key experts may come back in (Ban&Pick, arXiv 2509.06346, section 3)."""

from typing import TYPE_CHECKING, ClassVar

from banpick_exp.models.routing import Routing
from banpick_exp.models.shape import MoeShape
from banpick_exp.policy.bases.reinforcing import Mode, Reinforcing
from banpick_exp.policy.calibration import Calibration
from banpick_exp.policy.rules.ban import Ban

if TYPE_CHECKING:
    from banpick_kernels.table import RouterTable


class BanPick(Ban, Reinforcing):
    """`ban_pick`: Ban decides how many experts stay, then Pick inserts; a key expert Ban dropped can come back.

    Under mode boost nothing is inserted: Ban then prunes the ranking of the boosted logits.
    """

    name: ClassVar[str] = "ban_pick"
    prunes: ClassVar[bool] = False  # key experts come in beside the one that is left
    ends_are_idle: ClassVar[bool] = True  # as for Ban: the pruning shows between them
    mode: Mode = "range_add"

    @classmethod
    def remarks_on(cls, shape: MoeShape, routing: Routing, *, gpu: bool) -> tuple[str, ...]:
        ours = Ban.remarks_on(shape, routing, gpu=gpu), Reinforcing.remarks_on(shape, routing, gpu=gpu)
        return (*ours[0], *ours[1])

    def needs_calibration(self) -> bool:
        return True

    def check(self, shape: MoeShape) -> None:
        Ban.check(self, shape)
        Reinforcing.check(self, shape)

    def knobs(self) -> dict[str, object]:
        return {**Ban.knobs(self), **Reinforcing.knobs(self)}

    def label(self) -> str:
        return Reinforcing.label(self)

    def max_kept(self, shape: MoeShape, calibration: Calibration | None = None) -> int:
        return Reinforcing.max_kept(self, shape, calibration)

    def budget(self, shape: MoeShape, calibration: Calibration | None = None) -> tuple[float, float]:
        return Ban.budget(self, shape)[0], Reinforcing.budget(self, shape, calibration)[1]

    def fill(self, table: "RouterTable", shape: MoeShape, calibration: Calibration | None) -> None:
        Ban.fill(self, table, shape, calibration)
        Reinforcing.fill(self, table, shape, calibration)
