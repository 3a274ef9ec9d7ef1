"""How many engines fit side by side, for `cluster.engines=auto`. Imports nothing heavy: a dry run asks too.

On GPUs as many as there are devices for. On a CPU a small checkpoint gains nothing from a second core (most of a step
is vLLM's own Python), so each core holds an engine; a large one is given its node's cores whole.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from banpick_exp.cluster.config import ClusterConfig
from banpick_exp.engine.config import EngineConfig
from banpick_exp.models.dtype import this_machine

SMALL_BYTES = 2**28
"""Weights on the disk up to which an engine computes on one core. Sweep of the embedded model on two cores: 158 s with
one engine, 95 s with two, the same answers (docs/performance.md)."""
MOST_ON_A_NODE = 4
"""CPU engines: further ones would finish a minute's work while they load."""
MEMORY_SHARE = 0.5
"""Of a node's memory that engines may take."""
OWN_BYTES = 3 * 2**29
"""Of an engine without weights and cache: vLLM, torch and what they allocate."""
WEIGHT_COPIES = 4
"""Of the weights on the disk: bfloat16 that is computed in float32, and prepacking holds it twice for a while."""


@dataclass(frozen=True, slots=True)
class Node:
    """What a machine of the cluster has."""

    cpus: int
    gpus: int
    memory_bytes: float


def here(cluster: ClusterConfig) -> Node:
    """This machine as far as it is known without Ray: no GPU is looked for."""
    return Node(cluster.cpus or len(os.sched_getaffinity(0)), 0, this_machine().memory_bytes)


def engines_that_fit(nodes: Sequence[Node], engine: EngineConfig, weight_bytes: float) -> int:
    """How many of one engine the nodes hold; at least 1, which is what a refusal is then about."""
    if engine.gpus and engine.distributed_executor_backend == "ray":  # spread over nodes
        return max(1, sum(node.gpus for node in nodes) // engine.gpus)
    return max(1, sum(_on(node, engine, weight_bytes) for node in nodes))


def _on(node: Node, engine: EngineConfig, weight_bytes: float) -> int:
    if engine.gpus:
        return node.gpus // engine.gpus
    cpus = engine.cpus or (1 if weight_bytes <= SMALL_BYTES else node.cpus)
    cpus = max(cpus, engine.ranks)
    needed = OWN_BYTES + engine.kv_cache_gib * 2**30 + WEIGHT_COPIES * weight_bytes
    return min(MOST_ON_A_NODE, node.cpus // cpus, int(MEMORY_SHARE * node.memory_bytes / needed))
