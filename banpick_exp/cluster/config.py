"""Where engines run: the settings of conf/cluster/."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from banpick_exp.config import Section

HOST = r"\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+"
ADDRESS = re.compile(rf"({HOST}):([0-9]{{1,5}})")
"""HOST:PORT, with brackets around an IPv6 host."""
PORTS = range(1, 65536)


class ClusterConfig(Section):
    """Where engines run, how many side by side, and on how many cores."""

    backend: str = "ray"
    """What places engines: `ray`, or `inline` for one engine in this process (`backends.registry`)."""
    address: str | None = None
    """A standing Ray cluster: auto, or HOST:PORT of its head; null for one started on this machine."""
    engines: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Engines loaded side by side; `auto`: as many as fit (`room`), and no more than there are points."""
    cpus: int | None = Field(default=None, ge=1)
    dead_seconds: float = Field(default=60, ge=5)
    """An engine, or a process of it, that gives no sign of life for so long is dead: its work goes elsewhere."""
    idle_seconds: float = Field(default=300, ge=0)
    """On a standing cluster: how long loaded engines wait for the next driver of their run when one was ended by a
    signal or died; then they end by themselves. 0: they end with their driver."""
    grows: bool = False
    """Of a standing cluster: nodes will join it, so an engine that fits none of today's is waited for, not refused."""
    deadline_seconds: float = Field(default=600, ge=1)
    """A block or point has at least so long, and 20 times what it should take, before its engine is taken for hung."""

    @model_validator(mode="after")
    def _address_has_a_form_that_ray_takes(self) -> ClusterConfig:
        if self.address is None:
            return self
        if self.backend == "inline":
            raise ValueError(
                f"cluster.address={self.address} is idle under cluster=inline, which runs the engine in this process:"
                " nothing would be joined. Leave it out, or type cluster=standing beside it"
            )
        found = ADDRESS.fullmatch(self.address)
        if self.address == "auto" or (found and int(found[2]) in PORTS):
            return self
        if self.address == "local":
            raise ValueError(
                "cluster.address=local is no cluster that stands already: engines could not be placed there. Type"
                " cluster=local for one that is started on this machine"
            )
        scheme, _, rest = self.address.rpartition("://")
        host = rest.partition("/")[0].rpartition(":")[0]
        host = host if re.fullmatch(HOST, host) else "HOST"
        what = f"is a {scheme}:// address, which is Ray's client or dashboard" if scheme else "is no HOST:PORT"
        raise ValueError(
            f"cluster.address={self.address} {what}: engines could not be placed there. Type"
            f" cluster.address={host}:6379 (what ray start printed on the head node), or cluster.address=auto on a node"
            " of the cluster"
        )
