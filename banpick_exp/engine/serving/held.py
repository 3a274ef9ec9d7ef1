"""What the server of this process holds: its policies, the checkpoint they are for, and what it was started with."""

from __future__ import annotations

from dataclasses import dataclass

from banpick_exp.engine.serving.choice import Policies

ADMIN_TOKEN = "BANPICK_ADMIN_TOKEN"
"""Lets whoever has it swap policies of a running server; unset, nobody may."""
SHORTEST_TOKEN = 16


@dataclass(slots=True)
class Held:
    """Of one server."""

    policies: Policies
    model: str
    """Folder or id of the checkpoint, as vLLM was given it."""
    revision: str | None
    slots: int | None
    """Of a compiled engine: the most experts that a token can keep; None: an eager engine takes any number."""
    model_names: tuple[str, ...] = ()
    """That the server has without a policy; those with one are made of them."""


_SERVERS: list[Held] = []


def hold(held: Held) -> None:
    """From now on the server of this process."""
    _SERVERS[:] = [held]


def held() -> Held:
    """The server of this process."""
    return _SERVERS[0]
