"""The house: which module may import which, what planning must not load, and how long a module may be.

The arrows are read from the source, imports inside functions included: a lazy import is still a dependency.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "banpick_exp"
KERNELS = ROOT / "kernels" / "banpick_kernels"

HEAVY = ("torch", "vllm", "ray", "wandb", "transformers", "datasets")
MAX_LINES = 300

SPINE = ("__main__", "runner", "engine", "vllm_plugin", "policy", "errors")
"""Arrows point from left to right along this line, never back."""

PLANNING = frozenset(
    {"artifact", "axes", "budget", "checkpoint", "command", "compose", "config", "errors", "estimate", "plan", "points"}
    | {"policy", "preview", "records", "run_folder", "solve", "space", "task_files", "tiny", "validation"}
)
"""What `plan` and `preview` may reach. Of tiny only the package itself, which holds the names of its files."""


def unit_of(path: Path) -> str:
    """`plan` for banpick_exp/sweep/plan.py, `policy` for everything under banpick_exp/policy/."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_modules(path: Path) -> set[str]:
    """Absolute names of everything a file imports; imports for type checkers alone are left out."""
    names: set[str] = set()

    class Collector(ast.NodeVisitor):
        def visit_If(self, node: ast.If) -> None:
            if ast.unparse(node.test) not in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
                self.generic_visit(node)

        def visit_Import(self, node: ast.Import) -> None:
            names.update(alias.name for alias in node.names)

        def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
            assert node.level == 0, f"{path}: relative imports hide the arrows"
            module = str(node.module)
            names.update({module} if module != "banpick_exp" else {f"banpick_exp.{alias.name}" for alias in node.names})

    Collector().visit(ast.parse(path.read_text(encoding="utf-8")))
    return names


def arrows() -> dict[str, set[str]]:
    """For each unit of the package, the units it imports."""
    units = {unit_of(path) for path in PACKAGE.rglob("*.py")}
    graph: dict[str, set[str]] = {unit: set() for unit in units}
    for path in PACKAGE.rglob("*.py"):
        for name in imported_modules(path):
            parts = name.split(".")
            if parts[0] == "banpick_exp" and len(parts) > 1 and parts[1] in units:
                graph[unit_of(path)].add(parts[1])
    return {unit: found - {unit} for unit, found in graph.items()}


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    queue = [start]
    while queue:
        for found in graph.get(queue.pop(), set()) - seen:
            seen.add(found)
            queue.append(found)
    return seen


def test_arrows_never_point_back() -> None:
    graph = arrows()
    for index, unit in enumerate(SPINE):
        back = reachable(graph, unit) & set(SPINE[:index])
        assert not back, f"{unit} reaches {back}, which stand above it"


def test_there_are_no_import_cycles() -> None:
    graph = arrows()
    assert [unit for unit in graph if unit in reachable(graph, unit)] == []


def test_planning_reaches_only_light_modules() -> None:
    assert imported_modules(PACKAGE / "tiny" / "__init__.py") <= {"pathlib"}
    graph = arrows() | {"tiny": set()}  # its other modules train and measure; nobody in PLANNING imports one of them
    for start in ("plan", "preview"):
        assert reachable(graph, start) | {start} <= PLANNING
    for unit in PLANNING - {"tiny"}:
        path = PACKAGE / f"{unit}.py"
        for file in [path] if path.is_file() else sorted((PACKAGE / unit).rglob("*.py")):
            assert not {name for name in imported_modules(file) if name.startswith("banpick_exp.models.tiny.")}, file


def test_records_and_analysis_stand_alone() -> None:
    graph = arrows()
    assert graph["records"] <= {"config", "errors", "validation"}
    assert graph["analysis"] <= {"config", "errors", "records", "validation"}
    assert graph["config"] | graph["validation"] <= {"errors", "validation"}


def test_only_the_plugin_knows_vllm_internals() -> None:
    """`vllm.LLM` and `vllm.SamplingParams` are public; anything deeper belongs to the hook."""
    for path in PACKAGE.rglob("*.py"):
        inner = {name for name in imported_modules(path) if name.startswith("vllm.")}
        if unit_of(path) != "vllm_plugin":
            assert not inner, f"{path.relative_to(ROOT)} imports {inner}"


def test_the_kernels_know_nothing_of_the_experiments() -> None:
    files = sorted(KERNELS.rglob("*.py"))
    assert files
    for path in files:
        assert not {name for name in imported_modules(path) if name.split(".")[0] == "banpick_exp"}, path


@pytest.mark.parametrize("path", sorted([*PACKAGE.rglob("*.py"), *KERNELS.rglob("*.py")]), ids=lambda p: p.stem)
def test_modules_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


def test_the_entry_point_is_short() -> None:
    assert len((PACKAGE / "__main__.py").read_text(encoding="utf-8").splitlines()) < 60


def test_planning_loads_nothing_heavy(tmp_path: Path) -> None:
    """A whole dry run, in a process of its own, and then a look at what it loaded."""
    code = (
        "import sys\n"
        "from banpick_exp.__main__ import main\n"
        f"assert main(['+sweep=ban_pick', 'model=qwen3_30b_a3b', 'dry_run=true', {f'output_dir={tmp_path}'!r}]) == 0\n"
        f"print('loaded:', [name for name in {HEAVY} if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])},
    )
    assert done.returncode == 0, done.stderr
    assert "loaded: []" in done.stdout
