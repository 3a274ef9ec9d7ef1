"""What `make docs` adds to docs/: the files at the root of the repository, and one page of the reference for each room.

MkDocs calls the functions by their names. Pages are made from the tree, so that a new module needs no list to be in.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
AT_THE_ROOT = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
SOURCES = {"banpick_exp": ROOT, "banpick_kernels": ROOT / "kernels"}
BY_ITSELF = "banpick_exp/former"
"""Old calls: nothing there is meant to be imported."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The order of the pages: what to read first, every other page of docs/ by name, the reference."""
    first = ["index.md", "method.md", "rules.md", "architecture.md"]
    last = ["contributing.md", "changelog.md"]
    others = [path.name for path in sorted((ROOT / "docs").glob("*.md")) if path.name not in first]
    config.nav = [*first, *others, *last, {"Reference": [f"reference/{name}.md" for name in rooms()]}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for name, page in AT_THE_ROOT.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=linked_from_docs(text)))
    for name, modules in rooms().items():
        files.append(File.generated(config, f"reference/{name}.md", content=reference(name, modules)))
    return files


def linked_from_docs(text: str) -> str:
    """Links of a file at the root, as they are from a page of docs/."""
    text = re.sub(r"(\]\()docs/", r"\1", text)
    for name, page in AT_THE_ROOT.items():
        text = re.sub(rf"(\]\(){re.escape(name)}(?=[)#])", rf"\1{page}", text)
    return text


def rooms() -> dict[str, list[str]]:
    """Room -> its modules that have a docstring, by their dotted names; modules in no room are under `banpick_exp`."""
    found: dict[str, list[str]] = {}
    for package, root in SOURCES.items():
        for path in sorted((root / package).rglob("*.py")):
            if path.is_relative_to(ROOT / BY_ITSELF) or not ast.get_docstring(ast.parse(path.read_text("utf-8"))):
                continue
            parts = path.relative_to(root).with_suffix("").parts
            room = parts[1] if len(parts) > 2 else package
            found.setdefault(room, []).append(".".join(parts).removesuffix(".__init__"))
    return found


def reference(name: str, modules: list[str]) -> str:
    return f"# {name}\n\n" + "\n".join(f"::: {module}\n    options:\n      heading_level: 2\n" for module in modules)
