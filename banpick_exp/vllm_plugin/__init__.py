"""The router hook inside vLLM: the only importer of vLLM's internals.

`hook` attaches it and refuses what it cannot reach, `layer` routes and counts, `experts` lets the expert kernels skip
what was banned, `handover` says which GPU kernels may be handed an id of -1, `ops` are the two exits from a
compiled graph, `bare` is one layer of CPU experts without an engine, to be timed.
"""

from banpick_exp.vllm_plugin.hook import find_layers, install
from banpick_exp.vllm_plugin.layer import HookedLayer

__all__ = ["HookedLayer", "find_layers", "install"]
