"""The routing dimensions of a checkpoint: layers, experts, experts a token."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from banpick_exp.errors import UserError

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, kw_only=True, slots=True)
class MoeShape:
    """The routing dimensions of a checkpoint. Raises UserError where they cannot be those of a router."""

    num_layers: int
    """L, MoE layers only; layer 0 is the first of them."""
    num_experts: int
    """E, routed experts per layer; shared experts are always on and not counted."""
    top_k: int
    """K, experts the checkpoint selects per token and layer."""

    def __post_init__(self) -> None:
        if self.num_layers < 1 or not 1 <= self.top_k <= self.num_experts:
            raise UserError(
                f"num_layers={self.num_layers}, num_experts={self.num_experts}, top_k={self.top_k} describe no router: "
                "nothing can be routed. Use num_layers >= 1 and 1 <= top_k <= num_experts."
            )

    @property
    def usual_k_min(self) -> int:
        """Fewest experts kept that published models bear (arXiv 2509.06346): 3 for K = 8, 2 for K = 4 or 6.

        Ours beyond those: 3 for any larger K, and 1 where K is 1 or 2.
        """
        if self.top_k >= 7:
            return 3
        return 2 if self.top_k >= 3 else 1
