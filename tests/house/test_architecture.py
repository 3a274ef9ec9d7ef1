"""The house: which room imports which (contracts in pyproject.toml), what planning must not load, and docs that follow.

import-linter reads the arrows from the source: imports inside functions and under TYPE_CHECKING count too.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import grimp
import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "banpick_exp"
KERNELS = ROOT / "kernels" / "banpick_kernels"
LINTER: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]

HEAVY = ("torch", "vllm", "ray", "wandb", "transformers", "datasets")
PUBLIC_ROOMS = ("banpick_exp", "banpick_exp.analysis", "banpick_exp.policy", "banpick_exp.transformers")
"""What may be imported from the package itself, so that its __init__ says something."""


@cache
def arrows() -> grimp.ImportGraph:
    """Module -> modules it imports, from both source roots."""
    return grimp.build_graph("banpick_exp", "banpick_kernels", exclude_type_checking_imports=False, cache_dir=None)


def outside_python(*command: str, limit: int = 60) -> subprocess.CompletedProcess[str]:
    """Runs a command from the repository, which imports this checkout and nothing that a test has loaded."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    environment = os.environ | {"PYTHONPATH": paths}
    return subprocess.run(command, capture_output=True, text=True, timeout=limit, cwd=ROOT, env=environment)


def test_every_contract_of_the_house_is_kept() -> None:
    checked = outside_python(str(Path(sys.executable).parent / "lint-imports"), "--no-logo", "--no-cache")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"Contracts: {len(LINTER['contracts'])} kept, 0 broken." in checked.stdout


def test_no_contract_has_an_exception() -> None:
    assert LINTER["exclude_type_checking_imports"] is False
    rules = {
        key: value
        for contract in LINTER["contracts"]
        for key, value in contract.items()
        if key.startswith(("ignore", "exhaustive_ignores", "skip", "unmatched", "allow_indirect", "depth"))
    }
    assert rules == {}
    optional = [layer for contract in LINTER["contracts"] for layer in contract.get("layers", ()) if "(" in layer]
    assert optional == []


def test_no_module_imports_itself_by_way_of_others() -> None:
    """Finer than the contract, which compares folders: circles of single modules, `__init__` among them."""
    graph = arrows()
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    while removable := {module for module, imported in imports.items() if not imported & imports.keys()}:
        imports = {module: imported for module, imported in imports.items() if module not in removable}
    assert sorted(imports) == [], "modules of a circle, and what stands on it"


def test_files_of_tests_have_names_of_their_own() -> None:
    """They are imported by name alone: pytest and mypy stop at the second of a name."""
    names = [path.name for path in (ROOT / "tests").rglob("*.py")]
    assert sorted({name for name in names if names.count(name) > 1}) == []


def test_imports_are_absolute() -> None:
    for path in [*PACKAGE.rglob("*.py"), *KERNELS.rglob("*.py")]:
        relative = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        assert all(node.level == 0 for node in relative), f"{path}: relative imports hide the arrows"


def test_every_folder_is_a_package_and_rooms_are_imported_by_module() -> None:
    """An `__init__` that imports makes everyone who wants one module load them all; two rooms are public instead."""
    for folder in {path.parent for root in (PACKAGE, KERNELS) for path in root.rglob("*.py")}:
        assert (folder / "__init__.py").is_file(), f"{folder.relative_to(ROOT)} has no __init__.py"
    for path in PACKAGE.rglob("__init__.py"):
        name = ".".join(path.parent.relative_to(ROOT).parts)
        if name not in PUBLIC_ROOMS:
            imported = arrows().find_modules_directly_imported_by(name)
            assert not imported, f"{name} imports {sorted(imported)}"


def test_nothing_imports_the_package_itself() -> None:
    """Its __init__ leads to the room on top: who imported it from below would stand on all rooms."""
    assert arrows().find_modules_that_directly_import("banpick_exp") == set()


def test_vllm_finds_its_plugin_without_loading_the_engine() -> None:
    """vLLM loads the entry point in every process it starts, before the platform is known."""
    code = "import sys, banpick_exp.engine.vllm_entry; print([n for n in ('vllm', 'torch') if n in sys.modules])"
    loaded = outside_python(sys.executable, "-c", code)
    assert loaded.stdout == "[]\n", loaded.stdout + loaded.stderr


def test_planning_loads_nothing_heavy(tmp_path: Path) -> None:
    """A whole dry run, in a process of its own, and then a look at what it loaded."""
    code = (
        "import sys\n"
        "from banpick_exp.__main__ import main\n"
        "words = ['+sweep=ban_pick', 'model=qwen3_30b_a3b', 'task=tiny', 'dry_run=true']\n"
        f"assert main([*words, {f'output_dir={tmp_path}'!r}]) == 0\n"
        f"print('loaded:', [name for name in {HEAVY} if name in sys.modules])\n"
    )
    done = outside_python(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    assert "loaded: []" in done.stdout


def test_a_driver_joins_its_cluster_without_what_it_needs_at_its_end() -> None:
    """Who goes on after a driver that died waits for the first result: figures and W&B are not what it begins with."""
    heavy = [*(name for name in HEAVY if name != "ray"), "matplotlib"]
    code = (
        "import sys, banpick_exp.cluster.run, banpick_exp.cluster.backends.ray;"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    loaded = outside_python(sys.executable, "-c", code)
    assert loaded.stdout == "[]\n", loaded.stdout + loaded.stderr


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("config.py")), ids=lambda path: path.parent.name)
def test_settings_load_nothing_heavy(path: Path) -> None:
    """Settings live beside their owner and are read by every process, so they import what is light."""
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    code = f"import sys, {name}; print([name for name in {HEAVY} if name in sys.modules])"
    loaded = outside_python(sys.executable, "-c", code)
    assert loaded.stdout == "[]\n", loaded.stdout + loaded.stderr


# ---- docs/architecture.md


def rooms_table() -> dict[str, set[str]]:
    """Folder -> the modules that the page names in its line, both relative to the repository."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w/]+/)` \|[^|]*\|([^|]*)\|$", text, re.MULTILINE)
    return {folder.rstrip("/"): set(re.findall(r"`(\w+)`", modules)) for folder, modules in rows}


def test_the_page_names_every_module_and_none_that_is_gone() -> None:
    tree: dict[str, set[str]] = {}
    for path in [*PACKAGE.rglob("*.py"), *KERNELS.rglob("*.py")]:
        if path.name != "__init__.py":
            tree.setdefault(path.parent.relative_to(ROOT).as_posix(), set()).add(path.stem)
    assert rooms_table() == tree


def test_the_page_tells_the_arrow_rule_of_the_contract() -> None:
    layers = next(contract["layers"] for contract in LINTER["contracts"] if contract["id"] == "rooms")
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if line.startswith("`former · "))
    assert re.findall(r"\w+", line) == [*re.findall(r"\w+", " ".join(layers)), "kernels"]


PATH = re.compile(r"`((?:banpick_exp|kernels|tests|conf|sweeps)/[\w./-]*|[\w/]+/\w+\.py)(?:::\w+)?`")
MODULE = re.compile(r"\bbanpick_(?:exp|kernels)(?:\.[a-z_]\w*)+")
SHOWN = re.compile(r"`([\w/]+\.(?:py|yaml))`[,:]")
"""The file of an example: it is written down on the page, after a comma or a colon."""

PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
"""CHANGELOG.md tells of what was."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_name_what_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    shown = {Path(name).stem for name in SHOWN.findall(text)}
    paths = [path for path in PATH.findall(text) if Path(path).stem not in shown]
    assert [
        path for path in paths if not any((root / path).exists() for root in (ROOT, PACKAGE, ROOT / "kernels"))
    ] == []
    modules = {name for name in MODULE.findall(text) if not shown & set(name.split("."))}
    known = arrows().modules
    assert {name for name in modules if not {name, name.rpartition(".")[0]} & known} == set()
