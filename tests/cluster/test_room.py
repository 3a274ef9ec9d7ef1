"""How many engines are loaded side by side where nobody says."""

import pytest

from banpick_exp.cluster.config import ClusterConfig
from banpick_exp.cluster.plan import plan_run
from banpick_exp.cluster.room import MOST_ON_A_NODE, Node, engines_that_fit, here
from banpick_exp.engine.config import EngineConfig
from banpick_exp.models.dtype import this_machine

GIB = 2.0**30
LAPTOP = Node(cpus=2, gpus=0, memory_bytes=16 * GIB)
SERVER = Node(cpus=32, gpus=8, memory_bytes=512 * GIB)
TINY, LARGE = 3e6, 60e9


@pytest.mark.parametrize(
    ("nodes", "engine", "weights", "fits"),
    [
        ([LAPTOP], EngineConfig(), TINY, 2),
        ([LAPTOP], EngineConfig(cpus=2), TINY, 1),
        ([LAPTOP], EngineConfig(tensor_parallel_size=2), TINY, 1),
        ([LAPTOP], EngineConfig(pipeline_parallel_size=2), TINY, 1),
        ([LAPTOP], EngineConfig(cpus=3), TINY, 1),
        ([LAPTOP], EngineConfig(kv_cache_gib=6), TINY, 1),
        ([Node(2, 0, 4 * GIB)], EngineConfig(), TINY, 1),
        ([SERVER], EngineConfig(), TINY, MOST_ON_A_NODE),
        ([SERVER], EngineConfig(), LARGE, 1),
        ([SERVER] * 2, EngineConfig(), LARGE, 2),
        ([SERVER] * 2, EngineConfig(gpus=4, tensor_parallel_size=4), LARGE, 4),
        # Four are left over on each node, and an engine on one node cannot take two and two.
        ([Node(8, 6, GIB)] * 2, EngineConfig(gpus=4, tensor_parallel_size=4), LARGE, 2),
        ([Node(8, 6, GIB)] * 2, EngineConfig(gpus=12, distributed_executor_backend="ray"), LARGE, 1),
        ([LAPTOP], EngineConfig(gpus=1), LARGE, 1),
    ],
)
def test_engines_that_fit(nodes: list[Node], engine: EngineConfig, weights: float, fits: int) -> None:
    assert engines_that_fit(nodes, engine, weights) == fits


def test_cores_that_were_named_are_those_that_count() -> None:
    assert here(ClusterConfig(cpus=3)) == Node(3, 0, this_machine().memory_bytes)


@pytest.mark.parametrize(
    ("typed", "engines"),
    [
        (["cluster.cpus=2"], 2),
        (["cluster.cpus=1"], 1),
        (["cluster.engines=3"], 3),
        (["cluster=inline"], 1),
        (["cluster=standing", "cluster.address=127.0.0.1:6379"], 1),
        (["engine=cuda"], 1),
    ],
)
def test_a_dry_run_prices_as_many_as_it_can_know(
    typed: list[str], engines: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("banpick_exp.cluster.room.this_machine", lambda: type(this_machine())(None, int(32 * GIB)))
    assert plan_run(["policy=fixed_k", "policy.k=2", *typed, "tracking=none"]).engines == engines
