"""What test files share: one real vLLM engine, because a start is dear, and the workers of `-n 2 --dist loadgroup`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from banpick_exp.engine import Engine


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A worker of pytest-xdist takes a whole file, or all the files that read one script of own_process.py."""
    for item in items if "PYTEST_XDIST_WORKER" in os.environ else []:
        group = getattr(getattr(item, "module", None), "OWN_PROCESS", None) or item.path.stem
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def tiny_engine() -> Iterator[Engine]:
    """The shipped checkpoint in a verified engine, in this process. The last policy set is still on."""
    from banpick_exp.tiny import ASSETS
    from banpick_exp.tiny.measure import open_engine

    engine = open_engine(ASSETS / "checkpoint")
    yield engine
    engine.close()
