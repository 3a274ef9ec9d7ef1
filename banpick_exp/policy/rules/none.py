"""none: stock routing, the first of the two references."""

from typing import ClassVar

from banpick_exp.policy.rule import Rule


class Stock(Rule):
    """`none`: route as the checkpoint does."""

    name: ClassVar[str] = "none"
    is_stock: ClassVar[bool] = True
    reference_rank: ClassVar[int | None] = 0
