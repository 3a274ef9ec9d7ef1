"""Where engines run: the settings of conf/cluster/."""

from __future__ import annotations

import re

from pydantic import Field, model_validator

from banpick_exp.config import Section

ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}")
"""HOST:PORT, with brackets around an IPv6 host."""


class ClusterConfig(Section):
    """Where engines run, how many side by side, and on how many cores."""

    backend: str = "ray"
    """What places engines: `ray`, or `inline` for one engine in this process (`backends.registry`)."""
    address: str | None = None
    """A standing Ray cluster: auto, or HOST:PORT of its head; null for one started on this machine."""
    engines: int = Field(default=1, ge=1)
    cpus: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _address_has_a_form_that_ray_takes(self) -> ClusterConfig:
        if self.address is None or self.address == "auto" or ADDRESS.fullmatch(self.address):
            return self
        scheme, _, rest = self.address.rpartition("://")
        host = rest.partition("/")[0].rpartition(":")[0] or "HOST"
        what = f"is a {scheme}:// address, which is Ray's client or dashboard" if scheme else "is no HOST:PORT"
        raise ValueError(
            f"cluster.address={self.address} {what}: engines could not be placed there. Type"
            f" cluster.address={host}:6379 (what ray start printed on the head node), or cluster.address=auto on a node"
            " of the cluster"
        )
