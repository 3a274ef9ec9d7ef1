"""What an engine takes of a cluster: its bundles, its cores, on which node it sits tightest, and what can never fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from banpick_exp.engine.config import EngineConfig

Resources = Mapping[str, float]
"""Of a node or a bundle: CPU, GPU and what else Ray counts."""


def bundles(engine: EngineConfig, cpus: int) -> tuple[list[dict[str, float]], str]:
    """Resources of one engine and how to pack them.

    One bundle on one node, unless vLLM's `ray` backend spreads the ranks: that takes one GPU a bundle, packed as tight
    as the nodes allow. Ray fills whole nodes first where they are free (`tests/cluster/test_forty_gpus.py`).
    """
    if engine.distributed_executor_backend == "ray" and engine.gpus > 1:
        return [{"CPU": 1, "GPU": 1} for _ in range(engine.gpus)], "PACK"
    bundle: dict[str, float] = {"CPU": cpus}
    if engine.gpus:
        bundle["GPU"] = engine.gpus
    return [bundle], "STRICT_PACK"


def engine_cpus(engine: EngineConfig, engines: int, nodes: Sequence[Resources]) -> int:
    """CPU cores of one engine: as asked, else one a GPU, else the most with which so many engines fit the nodes."""
    if engine.cpus is not None:
        return engine.cpus
    if engine.gpus:
        return max(1, engine.gpus)
    cores = [int(node.get("CPU", 0)) for node in nodes]
    share = max([1, min(max(cores, default=1), sum(cores) // engines)])
    while share > 1 and sum(each // share for each in cores) < engines:
        share -= 1
    return share


def fits(bundle: Resources, node: Resources) -> bool:
    return all(node.get(kind, 0) >= amount for kind, amount in bundle.items())


def fits_empty(wanted: Sequence[Resources], nodes: Sequence[Resources]) -> bool:
    """Whether one engine has room on the nodes when nothing else runs there. Its bundles are alike."""
    bundle = wanted[0]
    room = sum(int(min(node.get(kind, 0) // amount for kind, amount in bundle.items())) for node in nodes)
    return room >= len(wanted)


def tightest(bundle: Resources, free: Mapping[str, Resources]) -> str | None:
    """The node with the least left over of those that the bundle fits, by what is free on each; None where none has
    room. So engines fill a node before they begin another, and whole nodes stay for those that need them.

    >>> tightest({"GPU": 4}, {"a": {"GPU": 8}, "b": {"GPU": 4}, "c": {"GPU": 2}})
    'b'
    """
    room = {name: node for name, node in free.items() if fits(bundle, node)}
    return min(room, key=lambda name: (room[name].get("GPU", 0), room[name].get("CPU", 0), name), default=None)


def less(free: Resources, bundle: Resources) -> dict[str, float]:
    """What is left of a node under one more bundle."""
    return {**free} | {kind: free.get(kind, 0) - amount for kind, amount in bundle.items()}


def never_fits(engine: EngineConfig, wanted: Sequence[Resources], nodes: Sequence[Resources]) -> str:
    """What to say of an engine that has no room on the nodes even when they are empty."""
    one = len(wanted) == 1
    takes = f"{_said(wanted[0])} on one node" if one else f"{len(wanted)} GPUs, each with a core of its node"
    has = Counter(_said(node) for node in nodes)
    each = ", ".join(f"{count} x {what}" for what, count in has.items()) or "no node"
    remedy = "a smaller one with engine.gpus or engine.cpus"
    if one and engine.gpus and sum(node.get("GPU", 0) for node in nodes) >= engine.gpus:
        remedy += ", or one over several nodes with engine.distributed_executor_backend=ray"
    return (
        f"One engine takes {takes}; the cluster has {each}: it would never start, however long it waits. Use {remedy}."
        " Where a node with room will join by itself, type cluster.grows=true and the run waits for it."
    )


def _said(resources: Resources) -> str:
    gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
    return f"{gpus} GPU(s) and {cpus} core(s)" if gpus else f"{cpus} core(s)"
