"""Every backend by name, imported when it is chosen."""

from __future__ import annotations

from importlib import import_module

from banpick_exp.cluster.backends.base import Backend
from banpick_exp.cluster.config import ClusterConfig
from banpick_exp.errors import UserError

BACKENDS = {
    "ray": "banpick_exp.cluster.backends.ray:RayBackend",
    "inline": "banpick_exp.cluster.backends.inline:InlineBackend",
}
"""Name -> module:class; a new backend is a module of its own and one more entry here."""


def backend_of(cluster: ClusterConfig) -> Backend:
    """The backend that the settings name, not connected yet. Raises UserError for a name that is none."""
    if cluster.backend not in BACKENDS:
        raise UserError(
            f"cluster.backend={cluster.backend} is unknown: no engine could be placed. Use one of"
            f" {', '.join(BACKENDS)}."
        )
    module, _, name = BACKENDS[cluster.backend].partition(":")
    backend: Backend = getattr(import_module(module), name)(cluster)
    return backend
