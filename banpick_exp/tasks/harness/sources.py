"""What an lm-eval task is made of, read without importing anything of it: its YAML, those it includes, its Python.

lm-eval imports the modules behind `!function` when it loads a task, and some run code then (humaneval's does, as a
test of whether it may). So whatever runs what a model wrote is found here, in the source, and refused.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from banpick_exp.errors import UserError

CALLED = ("exec", "eval", "parse_expr", "sympify")
"""Functions that run text as Python; sympy's two evaluate what they parse."""
RUNS_CODE = (*CALLED, "code_eval", "subprocess", "os.system", "os.popen")
"""Signs of a module that runs what a model wrote, or programs."""
ENDINGS = (".yaml", ".yml")


@dataclass(frozen=True, slots=True)
class Sources:
    """The files of one task."""

    config: dict[str, Any]
    """Of the YAML and what it includes; a function is a text."""
    yamls: tuple[Path, ...]
    modules: tuple[Path, ...]
    """Python that it names, and what that imports of lm-eval's tasks."""

    @property
    def digest(self) -> str:
        """Of the content of all files, and no place."""
        found = hashlib.sha256()
        for path in (*self.yamls, *self.modules):
            content = path.read_bytes()
            found.update(f"{path.name}\0{len(content)}\0".encode())
            found.update(content)
        return found.hexdigest()[:16]


def is_local(name: str) -> bool:
    """Whether a task is a YAML file of the user's, and no name that lm-eval knows."""
    return name.endswith(ENDINGS)


def package_folder() -> Path | None:
    """Where lm-eval is installed, without importing it."""
    spec = importlib.util.find_spec("lm_eval")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def sources_of(path: Path) -> Sources:
    """Raises UserError for what cannot be read as a task."""
    yamls: list[Path] = []
    functions: list[tuple[Path, str]] = []
    config = _config(path, yamls, functions)
    modules: dict[Path, None] = {}
    for folder, function in functions:
        own = (folder / f"{function.rpartition('.')[0].replace('.', '/')}.py").resolve()
        if own.is_file():
            _add_module(own, modules)
    return Sources(config, tuple(yamls), tuple(modules))


def _config(path: Path, yamls: list[Path], functions: list[tuple[Path, str]]) -> dict[str, Any]:
    class Loader(yaml.SafeLoader):
        pass

    def function(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> str:
        name = str(loader.construct_scalar(node))
        functions.append((path.parent, name))
        return f"!function {name}"

    Loader.add_constructor("!function", function)
    if path in yamls:
        raise UserError(f"{path} includes itself, so there is no task in it. Mend its `include`.")
    yamls.append(path)
    try:
        found = yaml.load(path.read_text(encoding="utf-8"), Loader=Loader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read as YAML ({error}), so there is no task in it. Mend it.") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} is no task of lm-eval: a task is a YAML object with `task: NAME`. Mend it.")
    merged: dict[str, Any] = {}
    includes = found.pop("include", [])
    for each in includes if isinstance(includes, list) else [includes]:
        merged |= _config((path.parent / each).resolve(), yamls, functions)
    return merged | found


def _add_module(path: Path, modules: dict[Path, None]) -> None:
    if path in modules:
        return
    modules[path] = None
    root = package_folder()
    for node in ast.walk(_tree(path)):
        names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            if root is not None and name.startswith("lm_eval.tasks."):
                other = root.parent.joinpath(*name.split(".")).with_suffix(".py")
                if other.is_file():
                    _add_module(other, modules)


def _tree(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_bytes())
    except (SyntaxError, ValueError) as error:
        raise UserError(f"{path} is no Python ({error}), so its task cannot be graded. Mend it.") from None


def runs_code(sources: Sources) -> str | None:
    """Why a task is taken for one that runs what a model wrote; None where nothing says so."""
    if sources.config.get("unsafe_code"):
        return "it says unsafe_code: true"
    for path in sources.modules:
        for node in ast.walk(_tree(path)):
            if (sign := _sign(node)) in RUNS_CODE:
                return f"{path.name}, line {getattr(node, 'lineno', 0)} has {sign}"
    metrics = sources.config.get("metric_list") or []
    if any(isinstance(each, dict) and each.get("metric") == "code_eval" for each in metrics):
        return "its metric is code_eval"
    return None


def _sign(node: ast.AST) -> str:
    if isinstance(node, ast.Name) and node.id in CALLED:  # called, or handed on to be
        return node.id
    if isinstance(node, ast.Attribute) and node.attr in CALLED[2:]:
        return node.attr
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
        return f"os.{node.attr}"
    if isinstance(node, ast.Constant) and node.value == "code_eval":
        return "code_eval"
    if isinstance(node, ast.Import | ast.ImportFrom):
        names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
        return "subprocess" if "subprocess" in names else ""
    return ""
