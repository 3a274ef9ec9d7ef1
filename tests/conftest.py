"""What test files share: one real vLLM engine, because a start is dear, and the workers of `-n 2 --dist loadfile`."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from banpick_exp.engine.engine import Engine


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `-n 2 --dist loadfile` a worker takes a whole file, or all the files that read one script of own_process.py.

    Not by `xdist_group` marks: pytest-xdist 3.8 writes them into an attribute that pytest 9.2 no longer reads.
    """
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class ByFileOrScript(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _script_or_file(config.rootpath, nodeid.partition("::")[0])

    return ByFileOrScript(config, log)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of two workers each takes the next file in this order: those with slow tests come first, and hundreds of quick
    ones fill up the end, so that no worker waits long for the other."""
    if not hasattr(config, "workerinput"):
        return
    slow = {item.path for item in items if item.get_closest_marker("slow") or item.get_closest_marker("engine")}
    items.sort(key=lambda item: item.path not in slow)


@functools.cache
def _script_or_file(root: Path, file: str) -> str:
    named = re.search(r'^OWN_PROCESS = "(.+)"$', (root / file).read_text(encoding="utf-8"), re.MULTILINE)
    return named[1] if named else file


@pytest.fixture(scope="session")
def tiny_engine() -> Iterator[Engine]:
    """The shipped checkpoint in a verified engine, in this process, which holds as many policies as a sweep's. The last
    policy set is still on."""
    from banpick_exp.engine.config import AUTO_ROWS
    from banpick_exp.evaluation.controls import open_engine
    from banpick_exp.models.tiny import ASSETS

    engine = open_engine(ASSETS / "checkpoint", rows=AUTO_ROWS)
    yield engine
    engine.close()


@pytest.fixture
def no_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """For runs of which records and the terminal are read alone: figures and page take a second of each."""
    from banpick_exp.cluster import summary

    monkeypatch.setattr(summary, "write_report", lambda run: [])
