"""Where engines run: the settings of conf/cluster/."""

from __future__ import annotations

from pydantic import Field

from banpick_exp.config import Section


class ClusterConfig(Section):
    """Where engines run. `address`: a standing Ray cluster, or null for one started on this machine."""

    address: str | None = None
    engines: int = Field(default=1, ge=1)
    cpus: int | None = Field(default=None, ge=1)
