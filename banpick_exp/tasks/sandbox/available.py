"""Which sandbox this machine has: the first that holds in its own test. None is refused, never done without."""

from __future__ import annotations

import functools
import os

from banpick_exp.tasks.sandbox.bubblewrap import Bubblewrap
from banpick_exp.tasks.sandbox.landlocked import Landlocked
from banpick_exp.tasks.sandbox.sandbox import Sandbox, unknown_machine
from banpick_exp.tasks.sandbox.self_test import fault


def available() -> Sandbox | str:
    """The sandbox of this machine and user, tried once a process; or, for each, why it is none."""
    return _available(os.getpid())


@functools.lru_cache(maxsize=1)
def _available(process: int) -> Sandbox | str:
    if (reason := unknown_machine()) is not None:
        return reason
    reasons = []
    for sandbox in (Bubblewrap(), Landlocked()):
        reason = fault(sandbox)
        if reason is None:
            return sandbox
        reasons.append(f"{sandbox.name}: {reason}")
    return "; ".join(reasons)
