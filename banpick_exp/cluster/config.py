"""Where engines run: the settings of conf/cluster/."""

from __future__ import annotations

from pydantic import Field

from banpick_exp.config import Section


class ClusterConfig(Section):
    """Where engines run, how many side by side, and on how many cores."""

    backend: str = "ray"
    """What places engines: `ray`, or `inline` for one engine in this process (`backends.registry`)."""
    address: str | None = None
    """A standing Ray cluster, or null for one started on this machine."""
    engines: int = Field(default=1, ge=1)
    cpus: int | None = Field(default=None, ge=1)
