"""`make docs`: every page and the reference are built, warnings are errors, and a reader's browser fetches nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from synthetic_run import SyntheticRun, ladder

ROOT = Path(__file__).resolve().parents[2]

FETCHED = re.compile(r"""<(?:script|img|iframe|link)\b[^>]*?(?:src|href)=["']?((?:https?:)?//[^"' >]+)""")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    program = Path(sys.executable).parent / "mkdocs"
    built = subprocess.run(
        [program, "build", "--strict", "--config-file", ROOT / ".ci/mkdocs.yml", "--site-dir", folder],
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


pytestmark = pytest.mark.slow


def test_every_page_is_there(site: Path) -> None:
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")} | {"index", "contributing", "changelog"}
    assert pages <= {path.stem for path in site.glob("*.html")}
    index = (site / "index.html").read_text(encoding="utf-8")
    assert all(f"{page}.html" in index for page in pages), "a page that no menu leads to"


def test_the_reference_is_read_from_the_docstrings(site: Path) -> None:
    policy = (site / "reference/policy.html").read_text(encoding="utf-8")
    assert 'id="banpick_exp.policy.build.build_policy"' in policy
    rooms = {path.parent.name for path in (ROOT / "banpick_exp").glob("*/config.py")} | {"analysis", "policy"}
    assert rooms <= {path.stem for path in (site / "reference").glob("*.html")}


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    fetched = {page.name: FETCHED.findall(page.read_text(encoding="utf-8")) for page in site.rglob("*.html")}
    assert fetched and not any(fetched.values()), fetched


def test_the_python_of_the_readme_runs(tmp_path: Path) -> None:
    folder = ladder(SyntheticRun(problems=40), ks=(6, 4)).write(tmp_path / "ladder" / "first")
    code = "".join(re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL))
    code = code.replace("outputs/pick_strength/<run>", str(folder)).replace('"outputs"', repr(str(tmp_path)))
    found: dict[str, Any] = {}
    exec(code, found)
    assert found["weights"].shape == (5, 8) and found["kept"].any(dim=0).sum() > 0
    assert found["front"].height and "verdict" in found["found"].columns and "guard" in found["alarms"].columns
    assert found["flips"].height and found["many"].collect()["label"].n_unique() == 3
