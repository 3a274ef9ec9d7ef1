"""Who asked for another policy, and what came of it: one line each on stderr, whatever level vLLM logs at."""

from __future__ import annotations

import logging
from functools import cache


@cache
def _logger() -> logging.Logger:
    logger = logging.getLogger("banpick.audit")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s audit: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # vLLM's handlers drop what is below VLLM_LOGGING_LEVEL
    return logger


def audit(client: str, what: str) -> None:
    """`client`: the address that asked. A line break in what a client sent begins no line of its own."""
    _logger().info("%s", f"{client} {what}".encode("unicode_escape").decode("ascii"))
