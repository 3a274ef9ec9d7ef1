"""What is done when work or an engine fails: how often each is tried, and what is said of it."""

from __future__ import annotations

import re
from collections import Counter

ATTEMPTS = 3
"""Engines that a block, a point or a calibration may outlive; work that fails by itself is not tried again."""
STARTS_WITHOUT_PROGRESS = 4
"""Of one slot in a row; work that is done in between pays them back."""
FIRST_REST, MOST_REST = 2.0, 60.0
"""Seconds before a slot is started for the third time without progress, doubled each time; the second is at once."""
FATAL_TO_ENGINE = ("EngineError",)
"""Errors of a call after which the engine can no longer be trusted with the next point."""
DIED = ("EngineDeadError",)
"""Errors by which vLLM says, sometimes before we see it, that a process of the engine died: the work is repeated."""


NO_MEMORY = re.compile(
    r"^(MemoryError|OutOfMemoryError)\b|can't allocate memory|[Cc]annot allocate memory|out of memory|bad_alloc"
    r"|could not create a (primitive|memory)"  # all that oneDNN says of it
)
"""In what a call raised: an allocation that failed in the engine's process, which may have left requests behind that
nobody waits for. So the engine is replaced and the work repeated, as if the process had died of it."""


class StockIsWrong(RuntimeError):
    """Stock's own answers say that nothing measured on this task means anything. The message has completions."""


class PlaceLost(RuntimeError):
    """The place that engines run in is gone, and all of them with it. The message says what died."""


class Restarts:
    """How often an engine was started in each slot since it last got something done.

    >>> restarts = Restarts()
    >>> def tried() -> float | None:
    ...     restarts.started("a")
    ...     return restarts.rest("a")
    >>> [tried() for _ in range(4)]
    [0.0, 2.0, 4.0, None]
    >>> restarts.progressed("a")
    >>> tried()
    0.0
    """

    def __init__(self) -> None:
        self._starts: Counter[str] = Counter()

    def started(self, slot: str) -> None:
        self._starts[slot] += 1

    def progressed(self, slot: str) -> None:
        self._starts[slot] = 0

    def rest(self, slot: str) -> float | None:
        """Seconds to wait before its engine is started again; None where that has been tried often enough."""
        starts = self._starts[slot]
        if starts >= STARTS_WITHOUT_PROGRESS:
            return None
        return 0.0 if starts < 2 else min(MOST_REST, FIRST_REST * 2 ** (starts - 2))


def lost_with(error: str, said: str) -> str | None:
    """Why an engine is lost of which a call raised `error` and said that; None where it can be asked for more.

    >>> lost_with("RuntimeError", "RuntimeError: DefaultCPUAllocator: can't allocate memory")[:40]
    'an allocation of memory failed in its pr'
    >>> lost_with("ValueError", "ValueError: no such rule") is None
    True
    """
    if error in DIED:
        return said
    if NO_MEMORY.search(said):
        return f"an allocation of memory failed in its process ({said}). {LESS_MEMORY}"
    return None


def ends_the_engine(error: BaseException) -> bool:
    """Whether a driver that hears of this error asks the engine nothing more.

    >>> ends_the_engine(MemoryError()), ends_the_engine(ValueError("no such rule"))
    (True, False)
    """
    name = type(error).__name__
    return name in FATAL_TO_ENGINE or lost_with(name, f"{name}: {reason_of(error)}") is not None


LESS_MEMORY = "Use fewer engines a node with cluster.engines=1, or fewer sequences at once with engine.max_num_seqs"
NODE_FULL = re.compile(r"Memory on the node \(IP: ([^,)]+).*? was ([\d.]+\w+ used / [\d.]+\w+ limit)")
"""In two thousand characters that Ray says when its monitor has killed an engine."""
WITHOUT_A_WORD = "Worker unexpectedly exits with a connection error code"
"""Begins six hundred more, of a process that is gone: kill -9, the kernel's killer, a failed allocation in C++."""


def reason_of(error: BaseException) -> str:
    """The line of an error that says what went wrong, of its root cause where that says anything.

    vLLM's settings are checked by pydantic, whose last line is an address and whose first is a count: neither helps.

    >>> reason_of(ValueError("1 validation error for ModelConfig\\n  Value error, 512 is over 256 [type=value_error]\\n"
    ...     "    For further information visit https://errors.pydantic.dev/2/v/value_error"))
    '512 is over 256'
    """
    said = str(error)
    if full := NODE_FULL.search(said):
        return f"node {full[1]} ran out of memory ({full[2]}), and Ray killed the engine. {LESS_MEMORY}"
    if WITHOUT_A_WORD in said:
        return "its process ended without a word: killed, out of memory, or crashed. Its log may say more"
    root = error
    seen = {id(root)}
    while (cause := root.__cause__ or (None if root.__suppress_context__ else root.__context__)) is not None:
        if id(cause) in seen or not _telling_lines(str(cause)):
            break
        root = cause
        seen.add(id(root))
    lines = _telling_lines(str(root))
    return lines[-1] if lines else repr(root)


FOOTERS = (
    "For further information visit",
    "During handling of the above exception",
    "The above exception was the direct cause",
    "See root cause above",
    "Set the environment variable",
    "You can set `",
    "If you suspect this is",
)
"""How lines begin that follow what went wrong without saying it."""


def _telling_lines(text: str) -> list[str]:
    """The lines of an error's text that say something, without pydantic's marks."""
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith(FOOTERS)]
    lines = [line for line in lines if not re.fullmatch(r"\d+ validation errors? for \S+", line)]
    return [re.sub(r" \[type=\w+.*$", "", line.removeprefix("Value error, ")) for line in lines]
