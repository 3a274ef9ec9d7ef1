"""Fixtures that more than one test file shares: one real vLLM engine for the whole run, because a start is dear."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from banpick_exp.engine import Engine


@pytest.fixture(scope="session")
def tiny_engine() -> Iterator[Engine]:
    """The shipped checkpoint in a verified engine, in this process. The last policy set is still on."""
    from banpick_exp.tiny import ASSETS
    from banpick_exp.tiny.measure import open_engine

    engine = open_engine(ASSETS / "checkpoint")
    yield engine
    engine.close()
