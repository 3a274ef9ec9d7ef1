"""What a server's policies did, as Prometheus metrics: tokens and budget by policy and layer, and what each policy is.

Layers are counted from 0 over the MoE layers alone, as in a sweep's records.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from banpick_exp.engine.engine import stages_of
from banpick_exp.engine.serving.held import held
from banpick_exp.engine.types import RankReport

Call = Callable[..., Awaitable[list[Any]]]


@dataclass(frozen=True, slots=True)
class Totals:
    """Of one row since it got its policy, by layer."""

    tokens: list[int]
    kept: list[int]
    """Token-expert pairs."""
    unique: list[int]
    """Experts that at least one token went to."""


class Figures(Collector):
    """The figures of the last time that the workers were asked."""

    def __init__(self) -> None:
        self.stages: list[int] = [0]
        """The pipeline stage of each rank."""
        self._first_ranks: list[int] = [0]
        """A rank of each pipeline stage; those of one stage count alike."""
        self._totals: list[Totals] = []
        self._reading = asyncio.Lock()

    def register(self) -> None:
        """Among what `/metrics` shows; of two servers in one process, the later one."""
        for former in [each for each in REGISTRY._collector_to_names if isinstance(each, Figures)]:
            REGISTRY.unregister(former)
        REGISTRY.register(self)

    async def learn(self, call: Call) -> None:
        """Which ranks to read."""
        reports = [RankReport.of(plain) for plain in await call("banpick_describe")]
        self.stages = [report.stage for report in reports]
        self._first_ranks = [reports.index(ranks[0]) for ranks in stages_of(reports)]

    async def read(self, call: Call) -> None:
        """Ask the workers."""
        async with self._reading:
            ranks = await call("banpick_row_totals")
            stages = [ranks[rank] for rank in self._first_ranks]
            self._totals = [
                Totals(*([value for of_stage in stages for value in of_stage[row][part]] for part in range(3)))
                for row in range(len(stages[0]))
            ]

    def policies(self) -> list[dict[str, str]]:
        """What each policy is, by table row."""
        return [
            {
                "policy": each.name,
                "label": each.label,
                "fingerprint": each.fingerprint,
                "domain": each.domain or "",
                "default": "true" if row == 0 else "false",
            }
            for row, each in enumerate(held().policies.served)
        ]

    def collect(self) -> Iterator[Any]:
        info = InfoMetricFamily("banpick_policy", "The policies that requests can name", labels=["policy"])
        for each in self.policies():
            info.add_metric([each["policy"]], {key: value for key, value in each.items() if key != "policy"})
        yield info
        tokens = CounterMetricFamily("banpick_tokens", "Tokens routed under a policy", labels=["policy"])
        kept = GaugeMetricFamily(
            "banpick_mean_kept", "Experts a token, mean since the policy was set", labels=["policy", "layer"]
        )
        unique = GaugeMetricFamily(
            "banpick_unique_experts", "Experts that answered at least one token since then", labels=["policy", "layer"]
        )
        for name, totals in zip(held().policies.names, self._totals, strict=False):
            tokens.add_metric([name], max(totals.tokens, default=0))
            for layer, (count, pairs, used) in enumerate(zip(totals.tokens, totals.kept, totals.unique, strict=True)):
                unique.add_metric([name, str(layer)], used)
                if count:
                    kept.add_metric([name, str(layer)], pairs / count)
        yield from (tokens, kept, unique)
