"""docs/extending.md: a benchmark, a model family, a backend and a section of the report take the pieces of the page."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")

PIECE = re.compile(r"`([\w/]+\.(?:py|yaml))`(?:, [^`\n]*)?:\n\n```(\w+)\n(.*?)```", re.DOTALL)
"""A file's place, the language, and what it holds or how it changes."""


def edited(source: str, diff: str) -> str:
    """`source` after a diff whose hunks are told apart by lines with @@."""
    for hunk in diff.split("@@\n"):
        lines = hunk.splitlines(keepends=True)
        before = "".join(line[1:] for line in lines if line[0] != "+")
        assert source.count(before) == 1, f"the page shows lines that are not there, or not once:\n{before}"
        source = source.replace(before, "".join(line[1:] for line in lines if line[0] != "-"))
    return source


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with every piece of the page in its place."""
    folder = tmp_path_factory.mktemp("project")
    package = ROOT / "banpick_exp"
    shutil.copytree(package, folder / "banpick_exp", ignore=shutil.ignore_patterns("__pycache__", "assets"))
    for assets in package.rglob("assets"):
        (folder / assets.relative_to(ROOT)).symlink_to(assets)
    shutil.copytree(ROOT / "conf", folder / "conf")
    for place, language, text in PIECE.findall(PAGE):
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        assert path.exists() == (language == "diff"), f"{place}: new files are shown whole, others as a diff"
        path.write_text(edited(path.read_text(encoding="utf-8"), text) if language == "diff" else text)
    return folder


def test_every_block_of_the_page_has_a_place() -> None:
    assert len(PIECE.findall(PAGE)) == PAGE.count("```") // 2


@pytest.mark.slow
def test_four_additions_by_their_pieces_alone(project: Path) -> None:
    tests = sorted(str(path.relative_to(project)) for path in (project / "tests").rglob("test_*.py"))
    path = os.pathsep.join(map(str, (project, ROOT / "kernels", ROOT / "tests" / "support")))
    options = ["-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", "."]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *tests],
        cwd=project,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "4 passed" in done.stdout
